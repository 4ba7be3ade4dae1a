"""Checks of rewards: the solution earns 1; doing nothing, noise, near misses and forgeries earn nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from retort.envs.probe import FORGERIES, Fault, Subject

NEAR_ZERO = 0.1  # mean reward that doing nothing, noise, or a forger may earn


def gold_scores_one(subject: Subject) -> Iterator[Fault]:
    for episode in subject.played("gold"):
        if not math.isclose(episode.total, 1.0) or episode.steps[-1].info.get("success") is not True:
            said = " | ".join(f"{step.action} -> {step.observation}" for step in episode.steps)
            yield Fault(
                f"{episode} ({episode.ref.family or 'no family'}): reward {episode.total:g}, success "
                f"{episode.steps[-1].info.get('success')} after {said!r:.300}",
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
            said = " | ".join(step.action for step in episode.steps)
            yield Fault(f"{episode}: {said!r} scores {episode.total:g}", "grade more strictly, or it is no near miss")


def forgeries_earn_nothing(subject: Subject) -> Iterator[Fault]:
    for forgery in FORGERIES:
        totals = [episode.total for episode in subject.played(forgery)]
        if totals and (mean := sum(totals) / len(totals)) > NEAR_ZERO:
            yield Fault(
                f"the {forgery} earns {mean:.2f} a task, with {FORGERIES[forgery][0]!r:.120}",
                "grade from outside, by files that the agent never could write: sandboxes/verifier.py (take, verify)",
            )


CHECKS = (
    gold_scores_one,
    doing_nothing_scores_nothing,
    near_misses_fail,
    forgeries_earn_nothing,
)
