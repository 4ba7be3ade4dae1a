"""SRPO: reward teaches what succeeded, the feedback-conditioned teacher what failed.

    to SDPO: failed and with a teacher; to GRPO: all others, so a failure without a teacher too
    w_t = exp(-beta H_T(t)), divided by its mean over all tokens routed to SDPO; H_T: the teacher's entropy in nats
    L = ( sum over GRPO tokens of l_GRPO + sum over SDPO tokens of w_t l_SDPO ) / (routed tokens)

Source: SRPO 2026, arXiv:2604.02288. Success is the environment's word and never "advantage above 0", which a group of
equal rewards would send astray. Group statistics take in every episode, wherever it is routed. Changed: as in `sdpo`;
tokens of an SDPO row that no view covers carry no loss and do not count; of several mini-batches each gives both
terms their shares of the whole step. Left out: nothing that we know of.
"""

from __future__ import annotations

import torch
from pydantic import Field
from retort.algos.base import Credit, Recipe, Student, Term, TokenBatch
from retort.algos.grpo import PolicyOptions, advantage, policy_term
from retort.algos.sdpo import DistillOptions, distil_terms
from retort.feedback.reprompt import failed_views
from torch import Tensor


class SRPOOptions(PolicyOptions, DistillOptions):
    """Those of GRPO's surrogate and SDPO's divergence. entropy_beta: how much an unsure teacher counts less."""

    entropy_beta: float = Field(default=1.0, ge=0)


def route(success: Tensor, has_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(to_grpo, to_sdpo), both [B] bool: each row goes to exactly one."""
    to_sdpo = ~success.bool() & has_teacher.bool()
    return ~to_sdpo, to_sdpo


def entropy_weight(teacher_entropy: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """[B,T] weights exp(-beta H) with mean 1 over `mask`; 0 outside of it, no gradient."""
    if not mask.any():
        return torch.zeros_like(teacher_entropy)
    surprise = -beta * teacher_entropy.detach()
    log_weight = surprise.masked_fill(~mask, -torch.inf)
    log_mean = log_weight.flatten().logsumexp(0) - mask.sum().log()
    return (log_weight - log_mean).exp()


def credit(batch: TokenBatch, options: SRPOOptions) -> Credit:
    """Routes rows, weighs tokens by the teacher's certainty, and shares one denominator between both terms.

    Raises:
        ValueError: tokens are routed to SDPO but the teacher's entropy is missing.
    """
    to_grpo, to_sdpo = route(batch.success, batch.has_teacher)
    taught = batch.teacher_mask[0] if len(batch.teacher_mask) else torch.zeros_like(batch.mask)
    grpo, sdpo = batch.mask & to_grpo.unsqueeze(-1), batch.mask & taught & to_sdpo.unsqueeze(-1)
    if batch.teacher_entropy is None and sdpo.any():
        raise ValueError("expected teacher_entropy beside teacher_mask, found none")
    entropy = torch.zeros_like(batch.behaviour_logp) if batch.teacher_entropy is None else batch.teacher_entropy[0]
    total = max(1, int(grpo.sum() + sdpo.sum()))
    share = {"grpo": grpo.sum().item() / total, "sdpo": sdpo.sum().item() / total}
    a = advantage(batch, options)
    live = (a != 0).any(-1).float().mean().item() if len(a) else 0.0
    return Credit(
        advantage=a,
        weight={
            "behaviour": options.correction.weight(batch),
            "entropy": entropy_weight(entropy, sdpo, beta=options.entropy_beta),
        },
        mask={"grpo": grpo, "taught": sdpo},
        share=share,
        metrics={"rows_live": live, "tokens_taught": share["sdpo"]},
    )


def loss(batch: TokenBatch, credit: Credit, student: Student, options: SRPOOptions) -> tuple[Term, ...]:
    """Both terms, each weighing its share of the routed tokens."""
    policy = policy_term(batch, credit, student, options, mask=credit.mask["grpo"], weight=credit.share["grpo"])
    return (policy, *distil_terms(batch, credit, student, options, weight=credit.share["sdpo"]))


RECIPE = Recipe(
    options=SRPOOptions,
    credit=credit,
    loss=loss,
    views=failed_views,
    support="student",
    teacher_entropy=True,
    channels=1,
)
