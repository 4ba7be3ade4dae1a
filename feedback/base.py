"""What a teacher sees, aligned to what the student wrote, and the guard that keeps the two apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from retort.agents.base import Int64, Origin, Row, Tokenizer, Trajectory

LEAK_RUN = 8


class LeakError(RuntimeError):
    """Privileged text reached the student. The message has the offending row's provenance; the run must end."""


class ViewError(ValueError):
    """A teacher view does not line up with the student's tokens."""


@dataclass(frozen=True, eq=False)
class TeacherView:
    """Some of a row's model tokens behind another context.

    row: index of the student row in the batch. channel: which teacher input this fills. token_ids: [L], what the
    teacher reads. at: [N] positions in `token_ids`; covers: [N] positions in the row. Always
    `token_ids[at] == row.token_ids[covers]`. cut: how many tokens of context were dropped to fit.
    """

    row: int
    channel: int
    token_ids: Int64
    at: Int64
    covers: Int64
    cut: int = 0

    def check(self, row: Row) -> None:
        """Raises ViewError unless the covered tokens are the student's own, token for token."""
        if self.at.shape != self.covers.shape or not np.array_equal(
            self.token_ids[self.at], row.token_ids[self.covers]
        ):
            raise ViewError(f"view of row {self.row}: its tokens are not the student's at the positions it covers")
        if not row.mask[self.covers].all():
            raise ViewError(f"view of row {self.row}: it covers a token that the model did not sample")
        if self.at.size and self.at.min() < 1:
            raise ViewError(f"view of row {self.row}: it covers a token with nothing before it")


def guard(trajectories: Iterable[Trajectory], tokenizer: Tokenizer) -> None:
    """Ends the run if privileged text stands in anything that the student reads.

    Two rules. No token of a student row may have the origin PRIVILEGED. And no run of `LEAK_RUN` tokens of invisible
    feedback may stand in a later observation, unless the student could read the same run before it was given.

    Raises:
        LeakError: with the episode, the turn and the provenance of the offending row.
    """
    for trajectory in trajectories:
        for number, row in enumerate(trajectory.rows):
            if (row.origin == Origin.PRIVILEGED).any():
                raise LeakError(_where(trajectory, f"row {number} has a privileged token"))
        _guard_observations(trajectory, tokenizer)


def _guard_observations(trajectory: Trajectory, tokenizer: Tokenizer) -> None:
    hidden = [item for item in trajectory.feedback if not item.visible and item.turn + 1 < len(trajectory.turns)]
    if not hidden:
        return
    read = [tokenizer.encode(turn.observation, add_special_tokens=False) for turn in trajectory.turns]
    wrote = [tokenizer.encode(turn.action, add_special_tokens=False) for turn in trajectory.turns]
    for item in hidden:
        secret = _runs([tokenizer.encode(item.text, add_special_tokens=False)])
        known = _runs(read[: item.turn + 1]) | _runs(wrote)
        for turn in range(item.turn + 1, len(read)):
            if (secret - known) & _runs([read[turn]]):
                reason = (
                    f"invisible {item.source} feedback of turn {item.turn} stands in the observation of turn {turn}"
                )
                raise LeakError(_where(trajectory, reason))


def _runs(texts: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    return {tuple(ids[start : start + LEAK_RUN]) for ids in texts for start in range(len(ids) - LEAK_RUN + 1)}


def _where(trajectory: Trajectory, reason: str) -> str:
    return (
        f"privileged context reached the student: {reason}; episode {trajectory.episode}, "
        f"task {trajectory.task.key}, {trajectory.provenance}"
    )
