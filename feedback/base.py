"""What a teacher sees, aligned to what the student wrote, and the guard that keeps the two apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from retort.agents.base import Int64, Row


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
