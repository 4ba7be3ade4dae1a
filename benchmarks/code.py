"""What graded code costs: gold answers a second, one environment at a time, beside the bare check.

Usage: python benchmarks/code.py [seconds per measurement]

An episode: reset, one gold answer, the grade. The bare check is the same verifier call on the same files in the same
sandbox, without an environment around it. The two take turns, episode by episode, so that both see the same machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import measure
from retort.envs import candidate, human_eval
from retort.sandboxes import verifier

import retort  # noqa: F401  (registers the environments)

IDS = ("retort/Code-v0", "retort/HumanEval-v0")


def recorded(calls: list[Callable[[], object]]) -> Callable[..., verifier.Verdict]:
    """`verify` that remembers its last call, to be made again without an environment."""

    def verify(*arguments: Any, **named: Any) -> verifier.Verdict:
        calls[:] = [lambda: verifier.verify(*arguments, **named)]
        return verifier.verify(*arguments, **named)

    return verify


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def both(env_id: str, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each episode, and of its check alone."""
    calls: list[Callable[[], object]] = []
    candidate.verify = human_eval.verify = recorded(calls)  # type: ignore[attr-defined]
    episodes, checks = [], []
    with gymnasium.make(env_id, split="test") as env:
        keys = [ref.key for ref in env.get_wrapper_attr("tasks")()]

        def episode(key: str) -> None:
            observation, _ = env.reset(options={"task": key})
            if env.step(env.get_wrapper_attr("gold")(observation))[1] != 1.0:
                raise RuntimeError(f"{key}: gold does not score 1")

        episode(keys[0])
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            key = keys[37 * len(episodes) % len(keys)]
            episodes.append(timed(lambda key=key: episode(key)))  # type: ignore[misc]
            checks.append(timed(calls[0]))
    return episodes, checks


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    rows = []
    for env_id in IDS:
        episodes, checks = both(env_id, seconds)
        middle, bare = statistics.median(episodes), statistics.median(checks)
        ratio = statistics.median(one / other for one, other in zip(episodes, checks, strict=True))
        rows.append((env_id, 1 / middle, middle * 1e3, bare * 1e3, 100 * (ratio - 1)))
    measure.table(("gold play, one slot", "episodes/s", "episode, ms", "its check alone, ms", "added, %"), rows)


if __name__ == "__main__":
    main()
