"""GRPO: each episode's reward against its group, through the clipped surrogate.

    A = (R - mean_group) / (std_group + eps)        r = exp(logp - proximal_logp)
    L = aggregate( w max(-A r, -A clip(r, 1-clip_low, 1+clip_high)) ) + kl_coef aggregate( KL )

w = exp(proximal_logp - behaviour_logp), bounded, corrects for the engine that sampled (decoupled PPO, Hilton et al.
2022, arXiv:2110.00641). proximal_logp is the learner's own before the first optimiser step of an update: with one
(`learner.mini_batches` and `learner.epochs` at 1, as they are at first) r is 1, also under `max_staleness`, and the
clip holds nothing. Source: Shao et al. 2024, arXiv:2402.03300.

Changed: the mean runs over tokens and not over rows first (`aggregate="sequence_mean"` is the paper's, for episodes of
one row: after a prefix break each row counts); no KL by default, and where asked for it has the value of k3 and the
gradient of k2, because the gradient of k3 is that of the other divergence. Left out: dropping groups of equal rewards
(their tokens carry no gradient and are not computed, but they stay in the denominator) and reward shaping by length.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator
from retort.algos.advantages import Scale, group_relative
from retort.algos.aggregate import dr_grpo, sequence_mean, sequence_sum, token_mean
from retort.algos.base import Aggregate, Credit, Options, Recipe, Student, Term, TokenBatch
from retort.algos.divergences import k2, k3, straight_through
from retort.algos.surrogates import held, importance, ppo, ratio_of
from torch import Tensor

LENGTH = 512.0  # tokens


class Correction(Options):
    """How far the learner may be from the policy that sampled; `high` and `low` bound exp(proximal - behaviour)."""

    outside: Literal["truncate", "mask"] = "truncate"
    level: Literal["token", "sequence"] = "token"
    low: float = Field(default=0.0, ge=0)
    high: float = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Correction:
        if self.low >= self.high:
            raise ValueError(f"expected low below high, found {self.low:g} and {self.high:g}")
        return self

    def weight(self, batch: TokenBatch) -> Tensor:
        """[B,T] weights without gradient."""
        return importance(batch.proximal_logp, batch.behaviour_logp, batch.mask, **self.model_dump())


class CorrectedOptions(Options):
    """correction: see `Correction`."""

    correction: Correction = Correction()


class RewardOptions(CorrectedOptions):
    """scale, eps: of the advantage."""

    scale: Scale = "group"
    eps: float = Field(default=1e-6, gt=0)


class Clips(Options):
    """clip_low, clip_high, dual_clip: of the surrogate."""

    clip_low: float = Field(default=0.2, gt=0, le=1)
    clip_high: float = Field(default=0.2, gt=0)
    dual_clip: float | None = Field(default=None, gt=1)

    @property
    def clips(self) -> dict[str, Any]:
        """The three bounds, as the surrogates name them."""
        return {"clip_low": self.clip_low, "clip_high": self.clip_high, "dual_clip": self.dual_clip}


class PolicyOptions(RewardOptions, Clips):
    """Of a reward against the group, through the clipped surrogate."""


class SurrogateOptions(CorrectedOptions, Clips):
    """aggregate: how tokens are averaged; length: the constant of "dr_grpo" in tokens. kl_coef: to the reference."""

    aggregate: Literal["token_mean", "sequence_mean", "sequence_sum", "dr_grpo"] = "token_mean"
    length: float = Field(default=LENGTH, gt=0)
    kl_coef: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _length_is_of_dr_grpo(self) -> SurrogateOptions:
        if self.length != LENGTH and self.aggregate != "dr_grpo":
            raise ValueError(f"length={self.length:g} needs aggregate=dr_grpo, found aggregate={self.aggregate}")
        return self

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0


class GRPOOptions(PolicyOptions, SurrogateOptions):
    """Both: a reward against the group, and how its surrogate is averaged."""


def advantage(batch: TokenBatch, options: RewardOptions) -> Tensor:
    """[B,T]: the episode's advantage on each of its model tokens."""
    of_row = group_relative(batch.reward, batch.group, scale=options.scale, eps=options.eps, episode=batch.episode)
    return of_row.unsqueeze(-1) * batch.mask


def credit(batch: TokenBatch, options: RewardOptions) -> Credit:
    """The group-relative advantage and the correction for the policy that sampled."""
    a = advantage(batch, options)
    live = (a != 0).any(-1).float().mean().item() if len(a) else 0.0
    return Credit(advantage=a, weight={"behaviour": options.correction.weight(batch)}, metrics={"rows_live": live})


def policy_term(
    batch: TokenBatch,
    credit: Credit,
    student: Student,
    options: Clips,
    *,
    mask: Tensor,
    weight: float = 1.0,
    aggregate: Aggregate = token_mean,
) -> Term:
    """The clipped surrogate over `mask`."""
    value = ppo(student.logp, batch.proximal_logp, credit.advantage, **options.clips) * credit.weight["behaviour"]
    at_bound = held(ratio_of(student.logp, batch.proximal_logp), credit.advantage, **options.clips)
    return Term("policy", value, mask, weight, aggregate, active=mask & (credit.advantage != 0), clipped=at_bound)


def loss(batch: TokenBatch, credit: Credit, student: Student, options: SurrogateOptions) -> tuple[Term, ...]:
    """The surrogate, and the divergence from the reference where it is asked for.

    Raises:
        ValueError: `kl_coef` above 0 without a reference in the batch.
    """
    folds: dict[str, Aggregate] = {
        "token_mean": token_mean,
        "sequence_mean": sequence_mean,
        "sequence_sum": sequence_sum,
        "dr_grpo": partial(dr_grpo, length=options.length),
    }
    fold = folds[options.aggregate]
    terms = [policy_term(batch, credit, student, options, mask=batch.mask, aggregate=fold)]
    if options.kl_coef > 0:
        reference = batch.reference_logp
        if reference is None:
            raise ValueError("kl_coef is above 0: expected reference_logp in the batch, found none")
        divergence = straight_through(k3(student.logp, reference), k2(student.logp, reference))
        terms.append(Term("kl", divergence, batch.mask, options.kl_coef, fold))
    return tuple(terms)


RECIPE = Recipe(options=GRPOOptions, credit=credit, loss=loss)
