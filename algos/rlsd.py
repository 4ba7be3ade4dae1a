"""RLSD: the reward says which way a token moves, the teacher that knows the answer how far.

    gap = sg(teacher_logp - logp)          w = clip( exp(sign(A) gap), 1 - clip, 1 + clip )
    A^  = A ((1 - mix) + mix w)            L = L_PPO(A^)
    mix falls linearly from its start to 0 over `decay` updates

The sign of A is never turned, since w is positive. Source: RLSD 2026, arXiv:2604.03128. The teacher is a snapshot of
the student every 10 updates that reads the final answer alone; where an environment has none, its solution
(`hint.sources`). Changed: the gap takes the student of the pass before the update, the same with one update a batch;
token mean for the paper's mean of row means (`aggregate="sequence_mean"` is the paper's).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from retort.algos import grpo
from retort.algos.aggregate import lift
from retort.algos.base import Credit, Recipe, TeacherOptions, TokenBatch
from retort.algos.surrogates import LIMIT
from retort.feedback.hints import Hint, views
from torch import Tensor


class RLSDOptions(grpo.GRPOOptions):
    """mix: where it starts. decay: updates until it is 0; 0 keeps it. clip: of w. hint: what the teacher reads."""

    clip_high: float = Field(default=0.28, gt=0)
    mix: float = Field(default=0.5, ge=0, le=1)
    decay: int = Field(default=50, ge=0)
    clip: float = Field(default=0.2, ge=0, le=1)
    hint: Hint = Hint()
    teacher: TeacherOptions = TeacherOptions(kind="ema", rate=1.0, every=10)


def schedule(step: int, *, mix: float, decay: int) -> float:
    """The mix at 0-based `step`."""
    return mix * max(0.0, 1 - step / decay) if decay else mix


def credit(advantage: Tensor, gap: Tensor, *, mix: float, clip: float = 0.2) -> Tensor:
    """[B,T] A^ from A [B,T] and the teacher's gap [B,T], without gradient. At mix 0 it is A."""
    advantage, gap = lift(advantage).detach(), lift(gap).detach()
    w = (advantage.sign() * gap).clamp(-LIMIT, LIMIT).exp().clamp(1 - clip, 1 + clip)
    return advantage * ((1 - mix) + mix * w)


def taught_credit(batch: TokenBatch, options: RLSDOptions) -> Credit:
    """GRPO's credit, reweighted where a teacher spoke."""
    found = grpo.credit(batch, options)
    taught = batch.mask & batch.teacher_mask[0]
    gap = (batch.teacher_logp[0] - batch.proximal_logp).masked_fill(~taught, 0)
    mix = schedule(batch.step, mix=options.mix, decay=options.decay)
    return replace(
        found,
        advantage=torch.where(taught, credit(found.advantage, gap, mix=mix, clip=options.clip), found.advantage),
        metrics={**found.metrics, "mix": mix, "tokens_taught": taught.sum().item() / max(1, int(batch.mask.sum()))},
    )


RECIPE = Recipe(options=RLSDOptions, credit=taught_credit, loss=grpo.loss, views=views, channels=1)
