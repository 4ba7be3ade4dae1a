"""A gym that answers back.

`import retort` registers the built-in environments with Gymnasium, by name alone, and those that other distributions
offer through the entry-point group `retort.envs` (entry name: the environment's id; value: `module:Class`). It loads
neither torch nor any environment.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points

import gymnasium

__version__ = "0.1.0"

# Before torch is imported: threads that spin while they wait make a busy two-core machine ten times slower, and threads
# that sleep at once make small matrices twice as slow. So they spin for some microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

BUILT_IN = {
    "retort/ReasoningGym-v0": "retort.envs.reasoning_gym:ReasoningGymEnv",
    "retort/Reply-v0": "retort.envs.reply:ReplyEnv",
    "retort/Shell-v0": "retort.envs.shell:ShellEnv",
    "retort/TextWorld-v0": "retort.envs.textworld:TextWorldEnv",
}


def _register() -> None:
    offered = {entry.name: entry.value for entry in entry_points(group="retort.envs")}
    for env_id, target in {**offered, **BUILT_IN}.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=target, disable_env_checker=True)


_register()
