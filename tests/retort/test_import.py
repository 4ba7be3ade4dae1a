"""`import retort` registers environments and stays light."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {
    "torch",
    "transformers",
    "tokenizers",
    "renderers",
    "pyarrow",
    "safetensors",
    "peft",
    "pexpect",
    "rich",
    "typer",
}
LOADED = """
import json, sys
import gymnasium
before = set(sys.modules)
import retort
fresh = [name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names]
ids = [name for name in gymnasium.registry if name.startswith("retort/")]
print(json.dumps([fresh, ids, sorted(sys.modules)]))
"""
LOOP = """
import gymnasium, retort, sys
env = gymnasium.make("retort/Shell-v0", split="test")
observation, info = env.reset(seed=0)
over = False
while not over:
    observation, reward, terminated, truncated, info = env.step(env.unwrapped.gold(observation))
    over = terminated or truncated
env.close()
assert "torch" not in sys.modules
print(reward, info["success"])
"""


def ran(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_loads_no_environment_and_nothing_heavy() -> None:
    fresh, ids, every = json.loads(ran(LOADED))
    assert fresh == ["retort"]
    assert "retort/Shell-v0" in ids
    assert HEAVY.isdisjoint(name.partition(".")[0] for name in every)


def test_an_ordinary_loop_needs_no_torch() -> None:
    assert ran(LOOP).split() == ["1.0", "True"]
