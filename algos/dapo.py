"""DAPO: GRPO with a higher upper clip, groups that teach something, and a soft penalty on overlong answers.

    l_t = max(-A r, -A clip(r, 1 - 0.2, 1 + 0.28))          L = token-mean of l_t
    R'  = R + 0                       where n <= limit - buffer
          R + (limit - buffer - n) / buffer   up to n = limit, n: tokens that the episode sampled
          R - 1                       beyond
    groups whose rewards are all equal are dropped, and others are played in their place

The clip acts from the second optimiser step of an update on: with `learner.mini_batches` or `learner.epochs` above 1.
Source: Yu et al. 2025, arXiv:2503.14476. Changed: other tasks are played at most `resample` times a step, after which
the step makes do with what it has, where the authors go on until the batch is full. The penalty is off until `limit` is
set, since it is in tokens of one's own model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from retort.algos import grpo
from retort.algos.base import Credit, TokenBatch
from torch import Tensor

if TYPE_CHECKING:
    from retort.agents.base import Trajectory


class DAPOOptions(grpo.GRPOOptions):
    """resample: how often a step plays other tasks for groups of equal rewards. limit, buffer: tokens of an episode at
    which the penalty is 1, and over how many before it grows from 0; limit 0 is no penalty.
    """

    clip_high: float = Field(default=0.28, gt=0)
    resample: int = Field(default=2, ge=0)
    limit: int = Field(default=0, ge=0)
    buffer: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _buffer_fits(self) -> DAPOOptions:
        if self.limit and self.buffer > self.limit:
            raise ValueError(f"expected a buffer of at most limit={self.limit} tokens, found {self.buffer}")
        return self


def overlong(tokens: Tensor, *, limit: int, buffer: int) -> Tensor:
    """The penalty, from -1 to 0, of episodes of so many tokens [B]."""
    return ((limit - buffer - tokens) / buffer).clamp(-1, 0)


def teaches(group: Sequence[Trajectory]) -> bool:
    """Whether a group's rewards differ."""
    return len({trajectory.reward for trajectory in group}) > 1


def credit(batch: TokenBatch, options: DAPOOptions) -> Credit:
    """GRPO's, on rewards with the penalty."""
    if options.limit:
        own = batch.mask.sum(-1)
        sampled = torch.zeros(int(batch.episode.max()) + 1, dtype=own.dtype, device=own.device)
        sampled = sampled.index_add(0, batch.episode, own)[batch.episode]
        batch = replace(batch, reward=batch.reward + overlong(sampled, limit=options.limit, buffer=options.buffer))
    return grpo.credit(batch, options)


RECIPE = replace(grpo.RECIPE, options=DAPOOptions, credit=credit, keep=teaches)
