"""Policy-gradient surrogates [B,T] and the weights that correct for the policy that sampled."""

from __future__ import annotations

from typing import Literal

import torch
from retort.algos.aggregate import lift
from torch import Tensor

LIMIT = 20.0  # of a log-ratio: exp(20) is still finite in float32 after any sum over tokens


def ppo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """max(-A r, -A clip(r, 1-clip_low, 1+clip_high)), r = exp(logp - old_logp). Gradient reaches `logp` alone.

    dual_clip: c above 1; where A < 0 the loss is at most -A c (Ye et al. 2020, arXiv:1912.09729).
    Source: Schulman et al. 2017, arXiv:1707.06347; a higher upper bound is DAPO's (arXiv:2503.14476).
    """
    ratio = ratio_of(logp, old_logp)
    return clipped(ratio, advantage, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def ratio_of(logp: Tensor, old_logp: Tensor) -> Tensor:
    """exp(logp - old_logp), finite whatever they are. Gradient reaches `logp` alone."""
    return (lift(logp) - lift(old_logp).detach()).clamp(-LIMIT, LIMIT).exp()


def clipped(
    ratio: Tensor,
    advantage: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """`ppo`, from the ratio. Raises ValueError for a dual clip that is not above 1."""
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"expected dual_clip above 1, found {dual_clip}")
    advantage = lift(advantage).detach()
    loss = (-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is not None:
        loss = loss.minimum(-advantage * dual_clip).where(advantage < 0, loss)
    return loss


def held(
    ratio: Tensor, advantage: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> Tensor:
    """[B,T] bool: the tokens that `clipped` holds at a bound, so that they have no gradient."""
    outside = ((advantage > 0) & (ratio > 1 + clip_high)) | ((advantage < 0) & (ratio < 1 - clip_low))
    return outside if dual_clip is None else outside | ((advantage < 0) & (ratio > dual_clip))


def sequence_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """[B,T]: on each token the exp of its row's mean log-ratio over `mask`, with a gradient to that token alone.

    Source: Zheng et al. 2025, arXiv:2507.18071 (GSPO-token).
    """
    logp = lift(logp)
    gap = (logp - lift(old_logp)).detach().masked_fill(~mask, 0)
    mean = gap.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    own = torch.where(mask, logp - logp.detach(), 0)
    return mean.clamp(-LIMIT, LIMIT).exp() * own.exp()


def cispo(logp: Tensor, old_logp: Tensor, advantage: Tensor, *, low: float = 0.0, high: float = 5.0) -> Tensor:
    """-sg(clip(r, low, high)) A logp, r = exp(logp - old_logp): every token keeps its gradient, with a bounded weight.

    Two forms are in use: an upper bound alone, `high` itself (MiniMax 2025, arXiv:2506.13585, and TRL: low 0, high
    about 5), and the band of PPO (verl: low 1 - 0.2, high 1 + 0.28).
    """
    if not 0 <= low < high:
        raise ValueError(f"expected 0 <= low < high, found low {low} and high {high}")
    ratio = (lift(logp) - lift(old_logp)).detach().clamp(-LIMIT, LIMIT).exp()
    return -ratio.clamp(low, high) * lift(advantage).detach() * lift(logp)


def importance(
    logp: Tensor,
    behaviour_logp: Tensor,
    mask: Tensor,
    *,
    high: float = 2.0,
    low: float = 0.0,
    outside: Literal["truncate", "mask"] = "truncate",
    level: Literal["token", "sequence"] = "token",
) -> Tensor:
    """Weights [B,T] = exp(logp - behaviour_logp), without gradient; 1 outside of `mask`.

    outside: a weight that leaves [low, high] is set to the bound it crossed ("truncate") or to 0 ("mask"; with a `low`
    above 0 this is the band of IcePop). level: "sequence" gives each token the product over its row.
    Sources: Espeholt et al. 2018, arXiv:1802.01561 (truncation); the engine-trainer gap is described in verl and TRL.
    """
    if not 0 <= low < high:
        raise ValueError(f"expected 0 <= low < high, found low {low} and high {high}")
    gap = (lift(logp) - lift(behaviour_logp)).detach().masked_fill(~mask, 0)
    if level == "sequence":
        gap = gap.sum(-1, keepdim=True).expand_as(gap)
    weight = gap.clamp(-LIMIT, LIMIT).exp()
    bounded = weight.clamp(low, high)
    if outside == "mask":
        bounded = bounded.masked_fill((weight < low) | (weight > high), 0)
    return bounded.masked_fill(~mask, 1)
