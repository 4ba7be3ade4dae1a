"""SDPO: the policy learns from itself with feedback in its prompt.

    S, T = student and teacher on the student's k likeliest entries, all others as one bucket
    M = (1-alpha) S + alpha T        D = (1-alpha) KL(S||M) + alpha KL(T||M); alpha 0: KL(T||S), 1: KL(S||T)
    L = token-mean over tokens with a teacher of  min(exp(logp - proximal_logp), is_clip) w D

w corrects for the engine that sampled. No reward and no advantage enter. Source: Huebotter et al. 2026,
arXiv:2601.20802, and its authors' code.

Changed: the support is fixed by the pass before the update, where the authors take it anew each mini-batch (the same
with one update a batch); the bucket is summed over the other entries and so is right where the authors clamp its mass
at 1e-7; the denominator is that of the whole mini-batch and not of each micro-batch; the teacher speaks once a
step, not before each mini-batch. Left out: the sampled-token variant.
"""

from __future__ import annotations

from typing import Protocol

import torch
from pydantic import Field
from retort.algos.aggregate import lift, token_mean
from retort.algos.base import Credit, Options, Recipe, Student, TeacherOptions, Term, TokenBatch
from retort.algos.divergences import Rest, jsd, restrict, with_rest
from retort.algos.grpo import Correction
from retort.algos.surrogates import importance, ratio_of
from retort.feedback.reprompt import Reprompt, views
from torch import Tensor


class DistillOptions(Options):
    """k: entries of the student's support. alpha: of the divergence. rest: what becomes of the other entries.

    is_clip: upper bound of the current-to-proximal ratio. teacher: whose weights teach. reprompt: what they read.
    """

    k: int = Field(default=100, ge=1)
    alpha: float = Field(default=0.5, ge=0, le=1)
    rest: Rest = "tail"
    is_clip: float = Field(default=2.0, gt=0)
    teacher: TeacherOptions = TeacherOptions(kind="ema")
    reprompt: Reprompt = Reprompt()


class SDPOOptions(DistillOptions):
    """With the correction for the policy that sampled."""

    correction: Correction = Correction()


def token_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, k: int, alpha: float, rest: Rest = "tail"
) -> Tensor:
    """[B,T] divergence from logits [B,T,V] over the student's k likeliest entries; no gradient for the teacher."""
    student, teacher = lift(student_logits).log_softmax(-1), lift(teacher_logits).detach().log_softmax(-1)
    ids = student.topk(min(k, student.shape[-1])).indices
    return jsd(restrict(student, ids, rest=rest), restrict(teacher, ids, rest=rest), alpha)


class Corrected(Protocol):
    """Options with a correction for the policy that sampled."""

    @property
    def correction(self) -> Correction: ...


def credit(batch: TokenBatch, options: Corrected) -> Credit:
    """Which tokens have a teacher."""
    taught = batch.mask & batch.teacher_mask[0]
    share = taught.sum().item() / max(1, int(batch.mask.sum()))
    return Credit(
        advantage=torch.zeros_like(batch.behaviour_logp),
        weight={"behaviour": options.correction.weight(batch)},
        mask={"taught": taught},
        metrics={"tokens_taught": share},
    )


def supports(batch: TokenBatch, credit: Credit, student: Student, rest: Rest) -> tuple[Tensor, Tensor] | None:
    """The student's and the teacher's log-probs [B,T,K or K+1]; None where no teacher spoke in the whole batch.

    Raises:
        ValueError: a teacher spoke but the scores of the support are missing.
    """
    if batch.teacher_support_logp is None or batch.teacher_rest_logp is None:
        if credit.mask["taught"].any():
            raise ValueError("expected teacher_support_logp and teacher_rest_logp beside teacher_mask, found none")
        return None
    if student.support_logp is None or student.rest_logp is None:
        raise ValueError("expected the student's support_logp and rest_logp, found none")
    return (
        with_rest(student.support_logp, student.rest_logp, rest=rest),
        with_rest(batch.teacher_support_logp[0], batch.teacher_rest_logp[0], rest=rest).detach(),
    )


def distil_terms(
    batch: TokenBatch, credit: Credit, student: Student, options: DistillOptions, *, weight: float = 1.0
) -> tuple[Term, ...]:
    """The divergence from the teacher over `credit.mask["taught"]`; nothing where no teacher spoke in the whole batch.

    Raises:
        ValueError: a teacher spoke but the scores of the support are missing.
    """
    pair = supports(batch, credit, student, options.rest)
    if pair is None:
        return ()
    mask = credit.mask["taught"]
    ratio = importance(student.logp, batch.proximal_logp, mask, high=options.is_clip)
    divergence = jsd(*pair, options.alpha)
    value = divergence * ratio * credit.weight["behaviour"]
    if "entropy" in credit.weight:
        value = value * credit.weight["entropy"]
    at_bound = ratio_of(student.logp, batch.proximal_logp) > options.is_clip
    return (Term("distil", value, mask, weight, token_mean, clipped=at_bound),)


def loss(batch: TokenBatch, credit: Credit, student: Student, options: SDPOOptions) -> tuple[Term, ...]:
    """The divergence from the teacher."""
    return distil_terms(batch, credit, student, options)


RECIPE = Recipe(options=SDPOOptions, credit=credit, loss=loss, views=views, support="student", channels=1)
