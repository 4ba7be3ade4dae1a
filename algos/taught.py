"""What the teacher of a step sees of its episodes, and what it says of the student's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from retort.agents.base import TokenScores, Trajectory
from retort.agents.chat import Chat
from retort.agents.engines import Apart
from retort.agents.rollout import run_loop
from retort.agents.scoring import Scored
from retort.agents.teachers import Pool
from retort.algos.base import Memory, Recipe, TokenBatch
from retort.algos.batch import Rows
from retort.algos.config import TrainConfig
from retort.algos.teacher import Teacher
from retort.feedback.base import TeacherView
from torch import Tensor


def teacher_views(
    recipe: Recipe,
    config: TrainConfig,
    chat: Chat,
    memory: Memory | None,
    trajectories: Sequence[Trajectory],
    rows: Rows,
    step: int,
) -> list[TeacherView]:
    """What the teacher sees of each group. Shuffled feedback is another group's, by a seeded rotation."""
    if not recipe.channels or config.feedback == "none":
        return []
    order = sorted({trajectory.group for trajectory in trajectories})
    members = {group: [i for i, item in enumerate(trajectories) if item.group == group] for group in order}
    if config.feedback == "shuffled" and len(order) < 2:
        return []  # the infrastructure failed in all other groups, and a group's own feedback is no control
    turn = int(np.random.default_rng([config.seed, step]).integers(1, len(order))) if len(order) > 1 else 0
    found: list[TeacherView] = []
    for place, group in enumerate(order):
        giver = order[(place + turn) % len(order)] if config.feedback == "shuffled" else group
        found += (memory or recipe).views(
            [trajectories[index] for index in members[group]],
            [trajectories[index] for index in members[giver]],
            [rows.of[index] for index in members[group]],
            chat,
            config.options,
        )
    return found


def teacher_scores(
    recipe: Recipe,
    config: TrainConfig,
    teacher: Teacher | Apart | Pool | None,
    views: Sequence[TeacherView],
    batch: TokenBatch,
    trajectories: Sequence[Trajectory],
    arithmetic: Callable[[], AbstractContextManager[None]],
) -> list[Scored]:
    """The teacher's scores of the student's tokens, at the student's support and the student's temperature.

    arithmetic: the precision of a teacher in this process that is the policy itself; others have one of their own.
    """
    if teacher is None or not views:
        return []
    if isinstance(teacher, Pool):
        return _scores_of_pool(teacher, views, batch, trajectories, entropy=recipe.teacher_entropy)
    if not isinstance(teacher, Teacher):
        return _scores_from_afar(teacher, views)
    support = _support(views, batch)
    with arithmetic():
        return teacher.score(
            views,
            ids=support,
            entropy=recipe.teacher_entropy,
            temperature=[float(batch.temperature[view.row]) for view in views],
            max_tokens=config.learner.micro_tokens,
        )


def whose_word(config: TrainConfig, teacher: Teacher | Apart | Pool | None) -> tuple[str, Sequence[str]]:
    """Whose scores the step's teacher gave, in words; and of a pool, who scored each view."""
    if isinstance(teacher, Pool):
        return teacher.provenance, teacher.by
    if isinstance(teacher, Teacher):
        return teacher.provenance, ()
    return ("" if teacher is None else f"scored by {config.scorer}"), ()


def _support(views: Sequence[TeacherView], batch: TokenBatch) -> list[Tensor] | None:
    """The student's support at the tokens that each view covers."""
    support = batch.support_ids
    return None if support is None else [support[view.row, torch.from_numpy(view.covers)] for view in views]


def _scores_of_pool(
    pool: Pool, views: Sequence[TeacherView], batch: TokenBatch, trajectories: Sequence[Trajectory], *, entropy: bool
) -> list[Scored]:
    """Scores by the teachers of each view's task."""
    support = _support(views, batch)
    told = pool.score(
        [trajectories[int(batch.episode[view.row])].task.key for view in views],
        [view.token_ids for view in views],
        [view.at for view in views],
        ids=None if support is None else [ids.numpy() for ids in support],
        entropy=entropy,
        temperature=float(batch.temperature[0]),  # one for all that a run samples
    )
    return [_scored(item) for item in told]


def _scores_from_afar(engine: Apart, views: Sequence[TeacherView]) -> list[Scored]:
    """An engine's scores of the tokens that each view covers; NaN, which has no teacher, where it gave none."""
    sequences, positions = [view.token_ids.tolist() for view in views], [view.at.tolist() for view in views]
    return [_scored(item) for item in run_loop(lambda: engine.score(sequences, positions))]


def _scored(told: TokenScores) -> Scored:
    fields = (told.logp, told.entropy, told.topk_ids, told.topk_logp, told.rest_logp)
    return Scored(*(None if field is None else torch.from_numpy(field) for field in fields))  # type: ignore[arg-type]
