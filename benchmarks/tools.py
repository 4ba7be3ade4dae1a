"""Function calling: episodes of the gold plan a second, and what they cost beside the calls and the checker alone.

Usage: python benchmarks/tools.py [seconds per measurement]

Alone: for Tools-v0 the gold calls on a world, its rows compared with the expected ones; for BFCL-v0 the package's own
checker on the gold calls. CPU seconds of one thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import gymnasium
import measure
from retort.envs.bfcl_tasks import FAMILIES, entries, judged
from retort.envs.tools import graded, opened
from retort.envs.tools_tasks import task

import retort  # noqa: F401  (registers the environments)


def tools_alone(key: str) -> None:
    job = task(key)
    world = opened(job)
    for call in job.do:
        world.call(call)
    assert graded(job, world.rows(), world.broken, job.last_word).success
    world.close()


def bfcl_alone(key: str) -> None:
    entry = entries(key.partition("/")[0])[key]
    assert judged(entry, [[calls] if calls else [] for calls in entry.gold])["valid"]


def gold(env: gymnasium.Env[str, str]) -> Callable[[str], None]:
    def play(key: str) -> None:
        said, _ = env.reset(options={"task": key})
        over, reward = False, 0.0
        while not over:
            said, reward, terminated, truncated, _ = env.step(env.get_wrapper_attr("gold")(said))  # type: ignore[assignment]
            over = terminated or truncated
        assert reward == 1.0

    return play


def a_second(action: Callable[[str], None], keys: Sequence[str], seconds: float) -> float:
    """How often an action is done in a second of this thread's CPU time, after one pass that warms up."""
    for key in keys:
        action(key)
    start, count = time.thread_time(), 0
    while time.thread_time() - start < seconds:
        action(keys[count % len(keys)])
        count += 1
    return count / (time.thread_time() - start)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    rows = []
    for env_id, alone in (("retort/Tools-v0", tools_alone), ("retort/BFCL-v0", bfcl_alone)):
        for family in (None,) if alone is tools_alone else FAMILIES:
            with gymnasium.make(env_id, split="test", families=family and (family,)) as env:
                keys = [ref.key for ref in env.get_wrapper_attr("tasks")()][::5]
                played, checked = a_second(gold(env), keys, seconds), a_second(alone, keys, seconds)
            rows.append((f"{env_id} {family or ''}".strip(), played, checked, checked / played))
    measure.table(("gold plan", "episodes/s", "alone/s", "ratio"), rows)


if __name__ == "__main__":
    main()
