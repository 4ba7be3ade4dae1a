"""Divergences between next-token distributions, and estimators of them from one sampled token. All in nats.

Distributions are log-probs over the last axis: the whole vocabulary, or some entries and a bucket for the rest. An
entry without mass (-inf) in p contributes exactly 0 to KL(p||q), in value and in gradient.

JSD: Agarwal et al. 2024, arXiv:2306.13649 (GKD). Estimators: Schulman, "Approximating KL divergence", 2020. For tokens
sampled from the student, differentiated as they stand, in expectation:

    k1 = log s - log t                      gradient exactly 0: useless as a loss
    k2 = (log s - log t)^2 / 2              gradient of KL(S||T), the reverse divergence
    k3 = t/s - 1 - log(t/s)                 gradient of KL(T||S), the forward divergence, though its value is KL(S||T)

So `k1` here has the value of k1 and the gradient of k2. `straight_through(k3(..), k2(..))` does the same for k3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from retort.algos.aggregate import lift
from torch import Tensor

Rest = Literal["tail", "renormalise"]


def kl(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    """KL(p||q) = sum of p (log p - log q) over the last axis. Infinite where q has no mass and p has."""
    return kl_summands(p_logp, q_logp).sum(-1)


def kl_summands(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    """p (log p - log q) for each entry."""
    p_logp, q_logp = lift(p_logp), lift(q_logp)
    empty = torch.isneginf(p_logp)
    p, q = p_logp.masked_fill(empty, 0), q_logp.masked_fill(empty, 0)
    return (p.exp() * (p - q)).masked_fill(empty, 0)


def jsd(student_logp: Tensor, teacher_logp: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence: beta KL(T||M) + (1-beta) KL(S||M), M = (1-beta) S + beta T.

    beta 0 is KL(T||S), beta 1 is KL(S||T), as in the paper; the family is discontinuous there (it tends to 0).

    Raises:
        ValueError: beta outside of 0 to 1.
    """
    return jsd_summands(student_logp, teacher_logp, beta).sum(-1)


def jsd_summands(student_logp: Tensor, teacher_logp: Tensor, beta: float) -> Tensor:
    """What each entry adds to `jsd`. Raises ValueError for beta outside of 0 to 1."""
    if not 0 <= beta <= 1:
        raise ValueError(f"expected beta from 0 to 1, found {beta}")
    student, teacher = lift(student_logp), lift(teacher_logp)
    if beta == 0:
        return kl_summands(teacher, student)
    if beta == 1:
        return kl_summands(student, teacher)
    empty = torch.isneginf(student) & torch.isneginf(teacher)
    s, t = student.masked_fill(empty, 0), teacher.masked_fill(empty, 0)
    middle = torch.logaddexp(s + math.log1p(-beta), t + math.log(beta)).masked_fill(empty, 0)
    return beta * kl_summands(teacher, middle) + (1 - beta) * kl_summands(student, middle)


def with_rest(support_logp: Tensor, rest_logp: Tensor, *, rest: Rest = "tail") -> Tensor:
    """A distribution from the log-probs of K entries [..,K] and the log-mass of all others [..].

    "tail": [..,K+1], the others as one bucket. "renormalise": [..,K], the others dropped.
    """
    if rest == "renormalise":
        return lift(support_logp).log_softmax(-1)
    return torch.cat([lift(support_logp), lift(rest_logp).unsqueeze(-1)], -1)


def restrict(logp: Tensor, ids: Tensor, *, rest: Rest = "tail") -> Tensor:
    """`with_rest` from log-probs of the whole vocabulary [..,V] and the entries to keep, ids [..,K], none twice.

    The tail is summed over the other entries themselves, so that it is exact however small; without any it is -inf.
    """
    logp = lift(logp)
    inside = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, ids, True)
    others = logp.masked_fill(inside, -torch.inf)
    empty = torch.isneginf(others).all(-1)
    # A sum over nothing has no gradient, which logsumexp would make NaN.
    tail = others.masked_fill(empty.unsqueeze(-1), 0).logsumexp(-1).masked_fill(empty, -torch.inf)
    return with_rest(logp.gather(-1, ids), tail, rest=rest)


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """The value of the first with the gradient of the second."""
    return value.detach() + gradient - gradient.detach()


def k1(logp: Tensor, other_logp: Tensor) -> Tensor:
    """log s - log t, unbiased for KL(S||T); differentiates as k2, since its own expected gradient is 0."""
    return straight_through(lift(logp) - lift(other_logp), k2(logp, other_logp))


def k2(logp: Tensor, other_logp: Tensor) -> Tensor:
    """(log s - log t)^2 / 2: biased as a value, its gradient is that of KL(S||T)."""
    return (lift(logp) - lift(other_logp)) ** 2 / 2


def k3(logp: Tensor, other_logp: Tensor) -> Tensor:
    """t/s - 1 - log(t/s): unbiased for KL(S||T) and never negative; its gradient is that of KL(T||S)."""
    gap = lift(other_logp) - lift(logp)
    return gap.expm1() - gap
