"""What an episode of retort/Repair-v0 costs: reset, grading, and gold episodes in a second.

Usage: python benchmarks/repair.py [sandbox] [tasks]

The first reset of a task builds its repository with git, and its first grading runs the tests on it as it was given;
later ones of the process restore and remember. Gold reads a file, edits it, runs the tests and is graded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import measure
from retort.envs.repair import RepairEnv


def milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    sandbox = sys.argv[1] if len(sys.argv) > 1 else "bwrap"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    env = RepairEnv(split="test", sandbox=sandbox)
    keys = [ref.key for ref in env.tasks()][:count]
    env.reset(seed=0)  # starts the sandbox
    env.step("done")
    taken: dict[str, list[float]] = {}
    for turn in ("first", "later"):
        for key in keys:
            taken.setdefault(f"reset, {turn}", []).append(milliseconds(partial(env.reset, options={"task": key})))
            taken.setdefault(f"grading, {turn}", []).append(milliseconds(partial(env.step, "done")))
    start = time.perf_counter()
    for key in keys:
        observation, _ = env.reset(options={"task": key})
        reward, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(env.gold(observation))
            over = terminated or truncated
        assert reward == 1.0, key
    rate = len(keys) / (time.perf_counter() - start)
    env.close()
    rows = [(name, measure.median(values), sorted(values)[int(0.95 * len(values))]) for name, values in taken.items()]
    measure.table((f"{sandbox}, ms", "p50", "p95"), sorted(rows, reverse=True))
    measure.table(("gold, one slot", "episodes/s"), [(f"{len(keys)} tasks", rate)])


if __name__ == "__main__":
    main()
