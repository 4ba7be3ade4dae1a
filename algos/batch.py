"""From trajectories and scores to the `TokenBatch` that a loss reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from retort.agents.base import Int64, Row, Trajectory, succeeded
from retort.agents.scoring import Scored
from retort.algos.base import TokenBatch
from retort.feedback.base import TeacherView
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Student rows in batch order.

    rows: all rows of all episodes. of: for each episode the indices of its rows. positions: for each row the positions
    of its model tokens (never 0).
    """

    rows: tuple[Row, ...]
    of: tuple[tuple[int, ...], ...]
    positions: tuple[Int64, ...]

    @property
    def sequences(self) -> list[Int64]:
        """Token ids of each row."""
        return [row.token_ids.astype(np.int64) for row in self.rows]


def flatten(trajectories: Sequence[Trajectory]) -> Rows:
    """The rows of all episodes, in order.

    Raises:
        ValueError: a row starts with a sampled token, so that nothing stands before it.
    """
    rows: list[Row] = []
    of: list[tuple[int, ...]] = []
    for trajectory in trajectories:
        of.append(tuple(range(len(rows), len(rows) + len(trajectory.rows))))
        rows.extend(trajectory.rows)
    for index, row in enumerate(rows):
        if row.mask.size and row.mask[0]:
            raise ValueError(f"row {index}: expected a prompt before the first sampled token, found none")
    return Rows(tuple(rows), tuple(of), tuple(np.flatnonzero(row.mask) for row in rows))


def collate(trajectories: Sequence[Trajectory], rows: Rows, *, step: int = 0, vocabulary: int = 0) -> TokenBatch:
    """The batch as the rollout left it: `proximal_logp` still equals `behaviour_logp`, and no teacher has spoken.

    Success is as `agents.base.succeeded` says.
    """
    size, length = len(rows.rows), max((len(row.token_ids) for row in rows.rows), default=0)
    tokens, turn = np.zeros((size, length), np.int64), np.full((size, length), -1, np.int64)
    mask, behaviour = np.zeros((size, length), bool), np.zeros((size, length), np.float32)
    turn_reward = np.zeros((size, length), np.float32)
    episode, group = np.zeros(size, np.int64), np.zeros(size, np.int64)
    reward, temperature = np.zeros(size, np.float32), np.ones(size, np.float32)
    success = np.zeros(size, bool)
    for number, trajectory in enumerate(trajectories):
        rewards = np.array([turn.reward for turn in trajectory.turns], np.float32)
        for index in rows.of[number]:
            row, at = rows.rows[index], rows.positions[index]
            tokens[index, : len(row.token_ids)] = row.token_ids
            mask[index, at] = True
            turn[index, at] = row.turn[at]
            behaviour[index, at] = row.behaviour_logp[at]
            turn_reward[index, at] = rewards[row.turn[at]]
            episode[index], group[index] = number, trajectory.group
            reward[index] = trajectory.reward
            success[index] = succeeded(trajectory)
            temperature[index] = trajectory.provenance.sampling.temperature
    behaviour_logp = torch.from_numpy(behaviour)
    return TokenBatch(
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        turn=torch.from_numpy(turn),
        turn_reward=torch.from_numpy(turn_reward),
        behaviour_logp=behaviour_logp,
        proximal_logp=behaviour_logp,
        episode=torch.from_numpy(episode),
        group=torch.from_numpy(group),
        reward=torch.from_numpy(reward),
        success=torch.from_numpy(success),
        temperature=torch.from_numpy(temperature),
        teacher_mask=torch.zeros((0, size, length), dtype=torch.bool),
        teacher_logp=torch.zeros((0, size, length)),
        step=step,
        vocabulary=vocabulary,
    )


def _place(like: Tensor, rows: Sequence[int], at: Sequence[Int64], values: Sequence[Tensor]) -> Tensor:
    """[B,T] or [B,T,K] with `values[i]` at the positions `at[i]` of row `rows[i]`, 0 elsewhere."""
    first = values[0]
    placed = torch.zeros((*like.shape, *first.shape[1:]), dtype=first.dtype)
    index = torch.cat([torch.full((len(where),), row) for row, where in zip(rows, at, strict=True)])
    column = torch.cat([torch.from_numpy(where) for where in at])
    placed[index, column] = torch.cat([value.detach().cpu() for value in values])
    return placed


def with_proximal(batch: TokenBatch, rows: Rows, scores: Sequence[Scored]) -> TokenBatch:
    """Adds the learner's own scores before the update; `scores[i]` has one entry for each model token of row i.

    Raises:
        ValueError: a sampled token has no finite log-prob, by row.
    """
    every = range(len(rows.rows))

    def placed(values: Sequence[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        return _place(batch.tokens, every, rows.positions, known) if len(known) == len(values) and known else None

    logp = placed([score.logp for score in scores])
    if logp is None:
        return batch
    if bad := torch.nonzero(~torch.isfinite(logp).all(-1)).flatten().tolist():
        raise ValueError(f"the learner gives no finite log-prob to tokens that were sampled, in rows {bad[:8]}")
    return replace(
        batch,
        proximal_logp=logp,
        proximal_entropy=placed([score.entropy for score in scores]),
        support_ids=placed([score.ids for score in scores]),
        proximal_support_logp=placed([score.ids_logp for score in scores]),
        proximal_rest_logp=placed([score.rest_logp for score in scores]),
    )


def with_reference(batch: TokenBatch, rows: Rows, scores: Sequence[Scored]) -> TokenBatch:
    """Adds the frozen initial policy's log-probs; `scores[i]` has one entry for each model token of row i."""
    logp = [score.logp for score in scores]
    return replace(batch, reference_logp=_place(batch.tokens, range(len(rows.rows)), rows.positions, logp))


def with_teacher(
    batch: TokenBatch, views: Sequence[TeacherView], scores: Sequence[Scored], channels: int
) -> TokenBatch:
    """Adds what the teacher gave to the student's own tokens; `scores[i]` has one entry for each token of `views[i]`.

    A token whose teacher score is missing or not finite loses its teacher; what stands there then is read by nobody.

    Raises:
        ValueError: two views of one channel cover the same token.
    """
    shape = (channels, *batch.tokens.shape)
    if not views:
        return replace(
            batch,
            teacher_mask=torch.zeros(shape, dtype=torch.bool),
            teacher_logp=torch.zeros(shape),
            teacher_entropy=None,
        )
    where = [view.channel * len(batch.tokens) + view.row for view in views]
    flat = batch.tokens.new_zeros((channels * len(batch.tokens), batch.tokens.shape[1]))
    covers = [view.covers for view in views]

    def placed(values: Sequence[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        found = _place(flat, where, covers, known)
        return found.reshape(*shape, *found.shape[2:])

    count = placed([torch.ones(len(view.covers)) for view in views])
    logp = placed([score.logp for score in scores])
    assert count is not None
    assert logp is not None
    if int(count.sum()) != sum(len(view.covers) for view in views):
        raise ValueError("two teacher views of one channel cover the same token")
    entropy, support = placed([score.entropy for score in scores]), placed([score.ids_logp for score in scores])
    rest = placed([score.rest_logp for score in scores])
    mask = (count > 0) & torch.isfinite(logp)
    for further in (entropy, support, rest):  # an entry of a support may have no mass, but not NaN
        if further is not None:
            mask &= ~torch.isnan(further.reshape(*shape, -1)).any(-1)

    def known(values: Tensor | None) -> Tensor | None:
        """0 where nobody teaches: NaN there would reach the gradient, though masked."""
        return None if values is None else values.masked_fill(~mask.reshape(*shape, *[1] * (values.dim() - 3)), 0)

    return replace(
        batch,
        teacher_mask=mask,
        teacher_logp=logp.masked_fill(~mask, 0),
        teacher_entropy=known(entropy),
        teacher_support_logp=known(support),
        teacher_rest_logp=known(rest),
    )
