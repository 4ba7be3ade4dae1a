"""SDAR: GRPO, and beside it a gated pull towards oneself with skills in the prompt.

    gap  = teacher_logp - sg(logp)                 g = sg( sigmoid(beta gap) )
    L    = L_GRPO + coef  token-mean of  g (teacher_logp - logp)  + kl_coef KL(pi || reference)
    "entropy" gate: sigmoid(beta h)                "soft_or": sigmoid(beta (1 - (1-h)(1-gap)))
    h: the student's entropy over log V

The gate is never negative: where the teacher likes a token less, it is pulled up less, not pushed down. At beta 0 it is
1/2 everywhere, and the expected gradient of the second term is exactly 0: noise, not distillation. Source: SDAR 2026,
arXiv:2605.15155, whose released code has the gap gate alone.

Changed: the entropy of the gates is that of the pass before the update, the gap's student too with one update a batch;
skills enter the first user message, not the start of a decoded and re-encoded prompt. Left out: the penalty on invalid
actions, which is the environment's to give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from retort.algos import grpo
from retort.algos.aggregate import lift, token_mean
from retort.algos.base import Credit, Recipe, Student, TeacherOptions, Term, TokenBatch
from retort.feedback.skills import Shelf, SkillOptions
from torch import Tensor

Gate = Literal["gap", "entropy", "soft_or"]


class SDAROptions(grpo.GRPOOptions):
    """coef: of the second term. beta, gate: of the gate. skills: what the teacher reads. teacher: the current weights,
    once before each update.
    """

    kl_coef: float = Field(default=0.01, ge=0)
    coef: float = Field(default=0.01, ge=0)
    beta: float = Field(default=5.0, ge=0)
    gate: Gate = "gap"
    skills: SkillOptions = SkillOptions()
    teacher: TeacherOptions = TeacherOptions(kind="current")


def gate(gap: Tensor, *, beta: float = 5.0) -> Tensor:
    """[B,T] sigmoid(beta gap), without gradient."""
    return (beta * lift(gap).detach()).sigmoid()


def _gap(gap: Tensor, entropy: Tensor | None, beta: float) -> Tensor:
    return gate(gap, beta=beta)


def _entropy(gap: Tensor, entropy: Tensor | None, beta: float) -> Tensor:
    return gate(_known(entropy), beta=beta)


def _soft_or(gap: Tensor, entropy: Tensor | None, beta: float) -> Tensor:
    return gate(1 - (1 - _known(entropy)) * (1 - gap), beta=beta)


def _known(entropy: Tensor | None) -> Tensor:
    if entropy is None:
        raise ValueError("this gate needs the student's entropy over log V, found none")
    return entropy


GATES: Mapping[str, Callable[[Tensor, Tensor | None, float], Tensor]] = {
    "gap": _gap,
    "entropy": _entropy,
    "soft_or": _soft_or,
}


def auxiliary(
    student_logp: Tensor,
    teacher_logp: Tensor,
    *,
    beta: float = 5.0,
    gate: Gate = "gap",
    entropy: Tensor | None = None,
) -> Tensor:
    """[B,T] g (teacher_logp - student_logp); the gradient is -g, to the student alone.

    entropy: [B,T], the student's over log V, for the gates that read it.

    Raises:
        ValueError: an unknown gate, or one that needs the entropy without it.
    """
    if gate not in GATES:
        raise ValueError(f"expected a gate of {', '.join(GATES)}, found {gate!r}")
    student, teacher = lift(student_logp), lift(teacher_logp).detach()
    difference = teacher - student
    return GATES[gate](difference.detach(), entropy, beta) * difference


def credit(batch: TokenBatch, options: SDAROptions) -> Credit:
    """GRPO's, and which tokens have a teacher."""
    found = grpo.credit(batch, options)
    taught = batch.mask & batch.teacher_mask[0]
    gap = (batch.teacher_logp[0] - batch.proximal_logp).masked_fill(~taught, 0)
    open_ = GATES[options.gate](gap, _share(batch), options.beta).masked_fill(~taught, 0)
    count = max(1, int(taught.sum()))
    metrics = {**found.metrics, "tokens_taught": count / max(1, int(batch.mask.sum())) if taught.any() else 0.0}
    metrics["gate"] = open_.sum().item() / count
    return Credit(found.advantage, {**found.weight, "gate": open_}, {"sdar": taught}, metrics=metrics)


def loss(batch: TokenBatch, credit: Credit, student: Student, options: SDAROptions) -> tuple[Term, ...]:
    """GRPO's terms and the gated pull."""
    terms = grpo.loss(batch, credit, student, options)
    pull = partial(auxiliary, beta=options.beta, gate=options.gate, entropy=_share(batch))
    taught = credit.mask["sdar"]
    teacher = torch.where(taught, batch.teacher_logp[0], student.logp.detach())
    return (*terms, Term("sdar", pull(student.logp, teacher), taught, options.coef, token_mean))


def _share(batch: TokenBatch) -> Tensor | None:
    return None if batch.proximal_entropy is None else batch.proximal_entropy / math.log(batch.vocabulary)


RECIPE = Recipe(
    options=SDAROptions,
    credit=credit,
    loss=loss,
    memory=lambda options: Shelf(options.skills),
    student_entropy=True,
    channels=1,
)
