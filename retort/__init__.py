"""A gym that answers back.

`import retort` registers the built-in environments with Gymnasium, by name alone, and those that other distributions
offer through the entry-point group `retort.envs` (entry name: the environment's id; value: `module:Class`). It loads
neither torch nor any environment. A process that has not imported it can write `gymnasium.make("retort:ns/Name-v0")`.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import entry_points

import gymnasium

__version__ = "0.1.0"

# Before torch is imported: threads that spin while they wait make a busy two-core machine ten times slower, and threads
# that sleep at once make small matrices twice as slow. So they spin for some microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

BUILT_IN = {
    "retort/AgentBenchOS-v0": "retort.envs.agentbench:AgentBenchEnv",
    "retort/BFCL-v0": "retort.envs.bfcl:BFCLEnv",
    "retort/Code-v0": "retort.envs.code:CodeEnv",
    "retort/Harbor-v0": "retort.envs.harbor:HarborEnv",
    "retort/HumanEval-v0": "retort.envs.human_eval:HumanEvalEnv",
    "retort/ReasoningGym-v0": "retort.envs.reasoning_gym:ReasoningGymEnv",
    "retort/Repair-v0": "retort.envs.repair:RepairEnv",
    "retort/Reply-v0": "retort.envs.reply:ReplyEnv",
    "retort/Shell-v0": "retort.envs.shell:ShellEnv",
    "retort/TextWorld-v0": "retort.envs.textworld:TextWorldEnv",
    "retort/Tools-v0": "retort.envs.tools:ToolsEnv",
}


def _register() -> None:
    offered = {entry.name: entry.value for entry in entry_points(group="retort.envs")}
    for env_id, target in {**offered, **BUILT_IN}.items():
        if env_id in gymnasium.registry:
            continue
        try:
            gymnasium.register(env_id, entry_point=target, disable_env_checker=True)
        except gymnasium.error.Error as error:  # another distribution's name must not keep this one from starting
            warnings.warn(f"the entry point {env_id} = {target} of retort.envs is left out: {error}", stacklevel=2)


_register()
