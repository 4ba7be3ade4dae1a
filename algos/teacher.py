"""The self-teacher: the policy as it was, as it averages out, or as it is.

fixed    the weights as training began: the safe default for long runs
ema      theta_T <- (1 - rate) theta_T + rate theta, once every `every` updates, skipped after a skipped update
current  the learner's own weights, at the moment of scoring

Source: Hübotter et al. 2026, arXiv:2601.20802 (SDPO) for the moving average; its trust-region teacher is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from retort.agents.base import Int64
from retort.agents.scoring import Scored, score_tokens
from retort.algos.base import TeacherOptions
from retort.feedback.base import TeacherView
from torch import Tensor, nn


class Teacher:
    """Holds the teacher's weights and scores views with them."""

    def __init__(self, model: nn.Module, options: TeacherOptions) -> None:
        self.options = options
        self._student = model
        self._updates = 0
        self.model = model if options.kind == "current" else copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def score(
        self,
        views: Sequence[TeacherView],
        *,
        ids: Sequence[Tensor] | None,
        entropy: bool,
        temperature: Sequence[float],
        max_tokens: int,
    ) -> list[Scored]:
        """Scores of the tokens that each view covers. ids: [n,K] the student's support at those tokens."""
        return score_tokens(
            self.model,
            [view.token_ids for view in views],
            [view.at for view in views],
            ids=ids,
            entropy=entropy,
            temperature=temperature,
            max_tokens=max_tokens,
        )

    @torch.no_grad()
    def logp(
        self, sequences: Sequence[Int64], positions: Sequence[Int64], *, temperature: Sequence[float], max_tokens: int
    ) -> list[Scored]:
        """Log-probs of a row's own tokens, with nothing privileged before them."""
        return score_tokens(self.model, sequences, positions, temperature=temperature, max_tokens=max_tokens)

    @torch.no_grad()
    def follow(self) -> None:
        """One update of the student has happened."""
        self._updates += 1
        if self.options.kind != "ema" or self._updates % self.options.every:
            return
        for mine, theirs in zip(self.model.parameters(), self._student.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.dtype), self.options.rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights (none for `current`) and the count of updates."""
        own = {} if self.options.kind == "current" else dict(self.model.state_dict())
        return {**{f"model.{name}": value for name, value in own.items()}, "updates": torch.tensor(self._updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave. Raises RuntimeError where names or shapes differ."""
        own = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        if self.options.kind != "current":
            self.model.load_state_dict(own)
        self._updates = int(state["updates"])
