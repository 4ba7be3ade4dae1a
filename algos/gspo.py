"""GSPO: the ratio of a whole row, clipped once for all its tokens.

    s = exp( mean over tokens of (logp - proximal_logp) )
    L = mean over rows of  max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high))

The clip acts from the second optimiser step of an update on: with `learner.mini_batches` or `learner.epochs` above 1.
Source: Zheng et al. 2025, arXiv:2507.18071. The loss stands on every token of its row with a gradient that reaches that
token alone, s_t = sg(s) exp(logp_t - sg(logp_t)), so that the mean over tokens has the paper's value and gradient and
token-wise credit stays possible (the paper's GSPO-token). Changed: a row here is an unbroken part of an episode, most
often all of it. Left out: nothing that we know of.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from retort.algos import grpo
from retort.algos.aggregate import sequence_mean
from retort.algos.base import Credit, Student, Term, TokenBatch
from retort.algos.surrogates import clipped, held, sequence_ratio


class GSPOOptions(grpo.PolicyOptions):
    """Those of GRPO, with the paper's bounds on the ratio of a row."""

    clip_low: float = Field(default=3e-4, gt=0, le=1)
    clip_high: float = Field(default=4e-4, gt=0)


def loss(batch: TokenBatch, credit: Credit, student: Student, options: GSPOOptions) -> tuple[Term, ...]:
    """The clipped surrogate of the row's ratio."""
    ratio = sequence_ratio(student.logp, batch.proximal_logp, batch.mask)
    value = clipped(ratio, credit.advantage, **options.clips) * credit.weight["behaviour"]
    # Every token of a row moves its ratio, also one without credit of its own.
    live = batch.mask & (credit.advantage != 0).any(-1, keepdim=True)
    at_bound = held(ratio, credit.advantage, **options.clips)
    return (Term("policy", value, batch.mask, 1.0, sequence_mean, active=live, clipped=at_bound),)


RECIPE = replace(grpo.RECIPE, options=GSPOOptions, loss=loss)
