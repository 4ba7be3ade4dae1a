"""Mini-batches: which rows make each optimiser step of an update, and what its steps did together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def dealt(episode: Tensor, *, mini_batches: int, epochs: int, seed: int) -> Iterator[Tensor | None]:
    """The rows of each optimiser step, in their order in the batch; None is all of them.

    Episodes are shuffled anew each epoch, by a generator of `seed`, and cut into `mini_batches` parts of nearly as many
    episodes, or into fewer where there are not so many. All rows of an episode stay together. A group may be split: its
    advantages are known before.
    """
    names = episode.unique()  # type: ignore[no-untyped-call]
    parts = min(mini_batches, len(names))
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        if parts <= 1:
            yield None
            continue
        order = torch.from_numpy(generator.permutation(len(names))).to(names.device)
        for part in torch.tensor_split(names[order], parts):
            yield torch.isin(episode, part).nonzero()[:, 0]


@dataclass(frozen=True)
class UpdateStats:
    """What one update did. Of several optimiser steps: the mean over them, or the sum where that is said.

    loss: weighted sum of `terms`, each by its name. slopes: the norm of each weighted term's gradient for the student's
    log-probs. weights: of the terms. grad_norm: before clipping. gap: nats, the largest distance of a scored token's
    log-prob from its proximal one, before the first step. skipped: why no step was made, or "".
    Sums: reached: the tokens that a term depends on; held: those of them that a bound of the loss holds; model_tokens:
    all of the model's; tokens: read by the model, without padding; scored: that any term depends on; micro_batches;
    optimiser_steps.
    """

    loss: float
    terms: Mapping[str, float]
    slopes: Mapping[str, float]
    weights: Mapping[str, float]
    reached: Mapping[str, int]
    held: Mapping[str, float]
    grad_norm: float
    lr: float
    model_tokens: int
    tokens: int
    scored: int
    micro_batches: int
    gap: float = 0.0
    skipped: str = ""
    optimiser_steps: int = 1

    @property
    def shares(self) -> dict[str, float]:
        """Of the model's tokens, those that a term depends on."""
        return {name: count / max(1, self.model_tokens) for name, count in self.reached.items()}

    @property
    def clips(self) -> dict[str, float]:
        """Of a term's tokens, those that a bound holds."""
        return {name: count / max(1, self.reached[name]) for name, count in self.held.items()}

    def metrics(self) -> dict[str, float | int | str]:
        """Flat, for the log."""
        known = {f"loss_{name}": value for name, value in self.terms.items()}
        known |= {f"tokens_{name}": value for name, value in self.shares.items()}
        known |= {f"slope_{name}": value for name, value in self.slopes.items()}
        known |= {f"weight_{name}": value for name, value in self.weights.items()}
        known |= {f"clip_{name}": value for name, value in self.clips.items()}
        rest: dict[str, float | int | str] = {"loss": self.loss, "grad_norm": self.grad_norm, "lr": self.lr, **known}
        counts = {"tokens_read": self.tokens, "tokens_scored": self.scored, "micro_batches": self.micro_batches}
        return {**rest, **counts, "optimiser_steps": self.optimiser_steps, "skipped": self.skipped}


def merged(parts: Sequence[UpdateStats]) -> UpdateStats:
    """What the parts of one update did together. Means are over those that made a step, or over all where none did."""
    first = parts[0]
    made = [part for part in parts if not part.skipped]
    told = made or parts

    def mean(value: Callable[[UpdateStats], float]) -> float:
        return sum(map(value, told)) / len(told)

    def means(values: Callable[[UpdateStats], Mapping[str, float]]) -> dict[str, float]:
        return {name: sum(values(part)[name] for part in told) / len(told) for name in values(first)}

    return replace(
        first,
        loss=mean(lambda part: part.loss),
        terms=means(lambda part: part.terms),
        slopes=means(lambda part: part.slopes),
        reached={name: sum(part.reached[name] for part in parts) for name in first.reached},
        held={name: sum(part.held[name] for part in parts) for name in first.held},
        grad_norm=mean(lambda part: part.grad_norm),
        model_tokens=sum(part.model_tokens for part in parts),
        tokens=sum(part.tokens for part in parts),
        scored=sum(part.scored for part in parts),
        micro_batches=sum(part.micro_batches for part in parts),
        skipped="" if made else first.skipped,
        optimiser_steps=len(made),
    )
