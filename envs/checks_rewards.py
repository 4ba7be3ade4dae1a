"""Checks of rewards: the solution earns 1; doing nothing, noise, near misses and forgeries earn nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from retort.envs.probe import FORGERIES, Fault, Step, Subject, cut, shown

NEAR_ZERO = 0.1  # mean reward that doing nothing, noise, or a forger may earn


def gold_scores_one(subject: Subject) -> Iterator[Fault]:
    for episode in subject.played("gold"):
        if not math.isclose(episode.total, 1.0) or episode.steps[-1].info.get("success") is not True:
            said = " | ".join(f"{step.action} -> {step.observation}" for step in episode.steps)
            success = episode.steps[-1].info.get("success")
            yield Fault(
                f"{episode} ({episode.ref.family or 'no family'}): expected reward 1 and success True, found reward "
                f"{episode.total:g}, success {success} after {shown(said, 300)}",
                "mend the task or its gold solution: no agent could solve it either",
            )


def doing_nothing_scores_nothing(subject: Subject) -> Iterator[Fault]:
    for player in ("null", "done", "random"):
        totals = [episode.total for episode in subject.played(player)]
        if totals and (mean := sum(totals) / len(totals)) > NEAR_ZERO:
            yield Fault(
                f"the {player} player earns {mean:.2f} a task (at most {NEAR_ZERO} is sound)",
                "start tasks away from their goal and let nothing but the goal be rewarded",
            )


def near_misses_fail(subject: Subject) -> Iterator[Fault]:
    for episode in subject.played("near miss"):
        if episode.steps[-1].info.get("success") or episode.total >= 1:
            found = f"{episode}: {_plan(episode.steps)} scores {episode.total:g}"
            yield Fault(found, "grade more strictly, or it is no near miss")


def _plan(steps: Sequence[Step]) -> str:
    """The actions, each run of the same one said once."""
    runs = [(action, len(list(run))) for action, run in groupby(step.action for step in steps)]
    said = [shown(action, 200) + (f" ({times} times)" if times > 1 else "") for action, times in runs]
    return cut(", ".join(said), 400)


def forgeries_earn_nothing(subject: Subject) -> Iterator[Fault]:
    for forgery in FORGERIES:
        totals = [episode.total for episode in subject.played(forgery)]
        if totals and (mean := sum(totals) / len(totals)) > NEAR_ZERO:
            yield Fault(
                f"the {forgery} earns {mean:.2f} a task, with {shown(FORGERIES[forgery][0], 120)}",
                "grade from outside, by files that the agent never could write: sandboxes/verifier.py (take, verify)",
            )


CHECKS = (
    gold_scores_one,
    doing_nothing_scores_nothing,
    near_misses_fail,
    forgeries_earn_nothing,
)
