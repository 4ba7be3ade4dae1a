"""CISPO: the importance weight is clipped and not the update, so that no token loses its gradient.

    L = token-mean of  -sg( clip(r, low, high) ) A logp          r = exp(logp - proximal_logp)

The bounds act from the second optimiser step of an update on: with `learner.mini_batches` or `learner.epochs` above 1.
Source: MiniMax-M1 2025, arXiv:2506.13585. Both published forms are here: with `low` 0 the upper bound is `high` itself
(the paper's, and TRL's, where about 5 is usual); `low=0.8 high=1.28` is the band that verl clips to. The default is the
first. Changed: the denominator is that of the whole batch. Left out: nothing that we know of.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, model_validator
from retort.algos import grpo
from retort.algos.aggregate import token_mean
from retort.algos.base import Credit, Student, Term, TokenBatch
from retort.algos.surrogates import cispo, ratio_of


class CISPOOptions(grpo.RewardOptions):
    """low, high: bounds of the ratio."""

    low: float = Field(default=0.0, ge=0)
    high: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> CISPOOptions:
        if self.low >= self.high:
            raise ValueError(f"expected low below high, found {self.low} and {self.high}")
        return self


def loss(batch: TokenBatch, credit: Credit, student: Student, options: CISPOOptions) -> tuple[Term, ...]:
    """Policy gradient with bounded weights."""
    value = cispo(student.logp, batch.proximal_logp, credit.advantage, low=options.low, high=options.high)
    value = value * credit.weight["behaviour"]
    ratio = ratio_of(student.logp, batch.proximal_logp)
    live, at_bound = batch.mask & (credit.advantage != 0), (ratio < options.low) | (ratio > options.high)
    return (Term("policy", value, batch.mask, 1.0, token_mean, active=live, clipped=at_bound),)


RECIPE = replace(grpo.RECIPE, options=CISPOOptions, loss=loss)
