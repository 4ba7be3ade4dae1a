"""OPD: the policy learns from another model what that would have written in its place, token by token.

    A = reward_scale (teacher_logp - reference_logp) - (proximal_logp - reference_logp)
    L = token-mean over tokens with a teacher of  w max(-A r, -A clip(r, 1-clip_low, 1+clip_high))

At reward_scale 1 the reference falls out: A = teacher_logp - proximal_logp, of which the expected gradient is that of
KL(student || teacher). Above 1 the student goes on beyond its teacher, away from the policy as training began. r and w
are those of `grpo`. The teacher reads what the student read and nothing else, so it has to be another model: `teachers`
routes tasks to several, each a specialist of its own. Sources: on-policy distillation, Agarwal et al. 2023,
arXiv:2306.13649; this advantage in the place of a reward, and `reward_scale` (1.25 there), G-OPD 2026,
arXiv:2602.12125; a teacher for each domain, MiMo-V2-Flash 2026, arXiv:2601.02780.

Changed: the weight of the policy that sampled is truncated at 2 (G-OPD: at 5; MiMo: 0 outside of a band, which
`correction.outside="mask"` is); the mean runs over tokens (MiMo: over rows of their means). Left out: the environment's
own reward beside the teacher (MiMo), a bound on A, the teacher's whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from retort.agents.base import Trajectory
from retort.agents.chat import Chat
from retort.algos.aggregate import lift
from retort.algos.base import Credit, Recipe, Student, Term, TokenBatch
from retort.algos.grpo import Clips, Correction, policy_term
from retort.feedback.base import TeacherView
from torch import Tensor


class OPDOptions(Clips):
    """reward_scale: how far towards the teacher, and beyond it. correction: for the policy that sampled."""

    reward_scale: float = Field(default=1.0, gt=0)
    correction: Correction = Correction()

    @property
    def needs_reference(self) -> bool:
        return self.reward_scale != 1


def advantage(
    teacher_logp: Tensor, old_logp: Tensor, reference_logp: Tensor | None = None, *, reward_scale: float = 1.0
) -> Tensor:
    """[B,T] without gradient.

    Raises:
        ValueError: a scale other than 1 without a reference.
    """
    teacher, old = lift(teacher_logp).detach(), lift(old_logp).detach()
    if reward_scale == 1:
        return teacher - old
    if reference_logp is None:
        raise ValueError(f"reward_scale is {reward_scale:g}: expected reference_logp in the batch, found none")
    reference = lift(reference_logp).detach()
    return reward_scale * (teacher - reference) - (old - reference)


def views(
    group: Sequence[Trajectory],
    source: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    chat: Chat,
    options: OPDOptions,
) -> list[TeacherView]:
    """A view of every row: the row itself."""
    found = []
    for trajectory, own in zip(group, rows, strict=True):
        for number, row in zip(own, trajectory.rows, strict=True):
            if (covers := np.flatnonzero(row.mask)).size:
                found.append(TeacherView(number, 0, row.token_ids.astype(np.int64), covers, covers))
    return found


def credit(batch: TokenBatch, options: OPDOptions) -> Credit:
    """What the teacher thinks of each token, where it spoke."""
    taught = batch.mask & batch.teacher_mask[0]
    a = advantage(batch.teacher_logp[0], batch.proximal_logp, batch.reference_logp, reward_scale=options.reward_scale)
    return Credit(
        advantage=a.masked_fill(~taught, 0),
        weight={"behaviour": options.correction.weight(batch)},
        mask={"taught": taught},
        metrics={"tokens_taught": taught.sum().item() / max(1, int(batch.mask.sum()))},
    )


def loss(batch: TokenBatch, credit: Credit, student: Student, options: OPDOptions) -> tuple[Term, ...]:
    """The clipped surrogate over the tokens that have a teacher."""
    return (policy_term(batch, credit, student, options, mask=credit.mask["taught"]),)


RECIPE = Recipe(options=OPDOptions, credit=credit, loss=loss, views=views, channels=1, privileged=False)
