"""Where a training step's episodes come from: the policy's own rollouts, or expert traces.

Both are functions of the step's number, so that a resumed run draws what the other would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from retort.agents.base import Trajectory
from retort.agents.episode import EpisodeRequest
from retort.agents.rollout import Runner, playable
from retort.envs.base import TaskRef

Item = TypeVar("Item")
RESAMPLE = 1 << 32  # a place in the tree of seeds that no episode has


class Episodes(Protocol):
    """Gives the episodes of step `step`."""

    def __call__(self, step: int) -> list[Trajectory]: ...


def seed_of(*path: int) -> int:
    """A 63-bit seed derived from the run's seed and the place it is for."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> 1)


def drawn(items: Sequence[Item], count: int, step: int, seed: int) -> list[Item]:
    """`count` items for one step: all are gone through in a seeded order, then again in another."""
    places = range(step * count, (step + 1) * count)
    epochs = {place // len(items) for place in places}
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(len(items)) for epoch in epochs}
    return [items[int(orders[place // len(items)][place % len(items)])] for place in places]


def own_rollouts(
    runner: Runner,
    tasks: Sequence[TaskRef],
    *,
    prompts: int,
    group_size: int,
    seed: int,
    keep: Callable[[Sequence[Trajectory]], bool] | None = None,
    resample: int = 0,
) -> Episodes:
    """Groups of `group_size` episodes of `prompts` tasks, sampled from the policy as it is.

    keep: where fewer groups than `prompts` pass it, other tasks are played for the rest, up to `resample` times. All
    episodes are given, those of groups that did not pass too.

    Raises:
        UsageError: when called, where the infrastructure failed in every episode of the step.
    """

    def play(step: int, chosen: Sequence[TaskRef], first: int) -> list[Trajectory]:
        requests = [
            EpisodeRequest(
                task=task.key,
                seed=seed_of(seed, step, number, member),
                group=number,
                episode=f"{step}-{number}-{member}",
            )
            for number, task in enumerate(chosen, first)
            for member in range(group_size)
        ]
        return playable(runner.run(requests))

    def episodes(step: int) -> list[Trajectory]:
        chosen = drawn(tasks, prompts, step, seed)
        played = play(step, chosen, 0)
        others = [task for task in tasks if task not in set(chosen)]
        if keep is None or not resample or not others:
            return played
        order = np.random.default_rng([seed, step, RESAMPLE]).permutation(len(others))
        count = prompts
        for _ in range(resample):
            groups = {item.group: [other for other in played if other.group == item.group] for item in played}
            short = prompts - sum(keep([item for item in group if item.usable]) for group in groups.values())
            again = [others[int(place)] for place in order[count - prompts :][:short]]
            if short <= 0 or not again:
                break
            played += play(step, again, count)
            count += len(again)
        return played

    return episodes


def expert_traces(rows: Sequence[Trajectory], *, count: int, seed: int) -> Episodes:
    """`count` of the given rows a step, all gone through in a seeded order before any comes again."""

    def episodes(step: int) -> list[Trajectory]:
        return drawn(rows, count, step, seed)

    return episodes
