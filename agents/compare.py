"""Two evaluations of the same tasks, compared task by task.

    d = mean success of the second - mean success of the first, of one task
    difference = mean of d over tasks; stderr = std of d / sqrt(tasks)      (paired: Miller 2024, arXiv:2411.00640)
    p = share of all sign flips of d whose sum is at least as far from 0    (Fisher 1935, The Design of Experiments)

The flips are counted exactly; with one rollout a task this is McNemar's exact test. Where they are too many to count
(tasks that lost rollouts give d uneven denominators), they are drawn with a fixed seed instead. A task is one
observation however often it was played. p is not corrected for the number of families that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path
from typing import Any

import numpy as np
from retort.agents.base import Trajectory
from retort.agents.evaluation import Evaluation
from retort.agents.report import by_task, mean_and_error, won
from retort.envs.base import TaskRef, UsageError

COUNTABLE = 2**30  # additions that an exact count may take
DRAWS = 100_000
SAME = ("env", "split")


@dataclass(frozen=True)
class Contrast:
    """Some tasks. n: tasks; first, second: mean success; difference: second - first; wins, losses: tasks where the
    second is better, or worse; p: the chance of a difference this large if neither were better; held_out: never in
    training."""

    name: str
    n: int
    first: float
    second: float
    difference: float
    stderr: float
    p: float
    wins: int
    losses: int
    ties: int
    held_out: bool


@dataclass(frozen=True)
class Comparison:
    """overall: all families but the held-out ones. only_first, only_second: tasks that the other has no rollout of;
    they are left out. settings: those that differ, with both values."""

    first: str
    second: str
    overall: Contrast | None
    families: tuple[Contrast, ...]
    held_out: Contrast | None
    only_first: int
    only_second: int
    settings: Mapping[str, tuple[Any, Any]]


def compare(first: Path, second: Path) -> Comparison:
    """Compares the evaluations in two folders.

    Raises:
        UsageError: a folder holds none, or they are of different environments, splits or verifiers, or a task has
            changed between them, or they share none.
        StoreError: a file of episodes is corrupted.
    """
    one, other = Evaluation.open(first), Evaluation.open(second)
    _refuse_unlike(one, other)
    played = [list(item.played().values()) for item in (one, other)]
    refs = _shared(played, (first, second))
    results = [by_task(items, won) for items in played]
    differences = {
        key: (_mean(results[0][key]), _mean(results[1][key]), ref.family)
        for key, ref in refs.items()
        if key in results[0] and key in results[1]
    }
    if not differences:
        raise UsageError(f"{first} and {second} share no task that both have played")
    apart = set(one.manifest["held_out"])
    names = sorted({family for _, _, family in differences.values()})
    values = list(differences.values())
    return Comparison(
        first=str(first),
        second=str(second),
        overall=_contrast("all", [pair for pair in values if pair[2] not in apart]),
        families=tuple(
            found
            for name in names
            if (found := _contrast(name, [pair for pair in values if pair[2] == name], name in apart))
        ),
        held_out=_contrast("held out", [pair for pair in values if pair[2] in apart], True),
        only_first=len(results[0].keys() - differences.keys()),
        only_second=len(results[1].keys() - differences.keys()),
        settings=_differing(one, other),
    )


def sign_flip_p(differences: Sequence[Fraction]) -> float:
    """The two-sided p-value of the sum of `differences` under all flips of their signs; 1 where all are 0."""
    moved = [item for item in differences if item]
    if not moved:
        return 1.0
    scale = lcm(*(item.denominator for item in moved))
    whole = [int(item * scale) for item in moved]
    steps = [abs(item) // gcd(*whole) for item in whole]
    far = abs(sum(whole)) // gcd(*whole)
    if len(steps) * sum(steps) > COUNTABLE:
        return _drawn(steps, far)
    reach = sum(steps)
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for step in steps:  # no sum leaves the array, so that nothing rolls over its edge
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2
    return min(float(chances[: reach - far + 1].sum() + chances[reach + far :].sum()), 1.0)


def _drawn(steps: Sequence[int], far: int) -> float:
    """`sign_flip_p` from random flips, the found one counted as one of them."""
    rng, sizes = np.random.default_rng(0), np.array(steps, np.float64)
    extreme = 0
    for _ in range(DRAWS // 1000):
        signs = rng.integers(0, 2, (1000, len(steps)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ sizes) >= far).sum())
    return (extreme + 1) / (DRAWS + 1)


def _contrast(name: str, pairs: Sequence[tuple[Fraction, Fraction, str]], held_out: bool = False) -> Contrast | None:
    if not pairs:
        return None
    moves = [second - first for first, second, _ in pairs]
    difference, error = mean_and_error([float(move) for move in moves])
    wins, losses = sum(move > 0 for move in moves), sum(move < 0 for move in moves)
    return Contrast(
        name=name,
        n=len(pairs),
        first=float(sum(first for first, _, _ in pairs) / len(pairs)),
        second=float(sum(second for _, second, _ in pairs) / len(pairs)),
        difference=difference,
        stderr=error,
        p=sign_flip_p(moves),
        wins=wins,
        losses=losses,
        ties=len(pairs) - wins - losses,
        held_out=held_out,
    )


def _mean(won: Sequence[bool]) -> Fraction:
    return Fraction(sum(won), len(won))


def _refuse_unlike(one: Evaluation, other: Evaluation) -> None:
    told = [{name: getattr(item.config, name) for name in SAME} for item in (one, other)]
    for item, found in zip((one, other), told, strict=True):
        found["verifier version"] = item.manifest["verifier_version"]
    for name, value in told[0].items():
        if value != told[1][name]:
            raise UsageError(
                f"expected two evaluations of one {name}, found {value!r} in {one.folder} and {told[1][name]!r} in "
                f"{other.folder}: their successes do not mean the same"
            )


def _shared(played: Sequence[Sequence[Trajectory]], folders: tuple[Path, Path]) -> dict[str, TaskRef]:
    """The tasks of both, by key."""
    refs = [{item.task.key: item.task for item in items if item.usable} for items in played]
    shared = {key: ref for key, ref in refs[0].items() if key in refs[1]}
    if changed := [key for key, ref in shared.items() if ref.digest != refs[1][key].digest]:
        raise UsageError(
            f"{len(changed)} of {len(shared)} tasks have changed between {folders[0]} and {folders[1]}, "
            f"{changed[0]!r} among them: evaluate both anew"
        )
    return shared


def _differing(one: Evaluation, other: Evaluation) -> dict[str, tuple[Any, Any]]:
    told = [item.config.model_dump(mode="json") for item in (one, other)]
    return {name: (value, told[1][name]) for name, value in told[0].items() if value != told[1][name]}
