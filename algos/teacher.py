"""The self-teacher: the policy as it was, as it averages out, or as it is.

fixed         the weights as training began: the safe default for long runs
ema           theta_T <- (1 - rate) theta_T + rate theta, once every `every` updates, skipped after a skipped update
current       the learner's own weights, at the moment of scoring
trust_region  logits (1 - rate) z_fixed + rate z_current

Source: Hübotter et al. 2026, arXiv:2601.20802 (SDPO) for the moving average and the trust region.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from retort.agents.base import Int64
from retort.agents.scoring import Scored, backbone_and_head, score_tokens
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
        self.scorer = Blend(self.model, model, options.rate) if options.kind == "trust_region" else self.model

    @property
    def provenance(self) -> str:
        """Whose weights teach now, in words."""
        told = {
            "fixed": "the policy as training began",
            "current": "the policy as it is",
            "ema": f"the policy's moving average, rate {self.options.rate:g} every {self.options.every} updates",
            "trust_region": f"the policy as training began, blended with itself at rate {self.options.rate:g}",
        }
        return f"{self.options.kind}: {told[self.options.kind]}, after {self._updates} updates"

    @torch.no_grad()
    def score(
        self,
        views: Sequence[TeacherView],
        *,
        ids: Sequence[Tensor] | None,
        k: int = 0,
        entropy: bool,
        temperature: Sequence[float],
        max_tokens: int,
    ) -> list[Scored]:
        """Scores of the tokens that each view covers. ids: [n,K] the student's support there, or the own top `k`."""
        return score_tokens(
            self.scorer,
            [view.token_ids for view in views],
            [view.at for view in views],
            ids=ids,
            k=k,
            entropy=entropy,
            temperature=temperature,
            max_tokens=max_tokens,
        )

    @torch.no_grad()
    def logp(
        self, sequences: Sequence[Int64], positions: Sequence[Int64], *, temperature: Sequence[float], max_tokens: int
    ) -> list[Scored]:
        """Log-probs of a row's own tokens, with nothing privileged before them."""
        return score_tokens(self.scorer, sequences, positions, temperature=temperature, max_tokens=max_tokens)

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


class Blend(nn.Module):
    """Two models of one make whose logits are mixed, (1 - rate) first + rate second, each as it is at the moment.

    Their hidden states stand side by side and one head reads both, so that it is scored as any other model is.
    """

    def __init__(self, first: nn.Module, second: nn.Module, rate: float) -> None:
        super().__init__()
        backbones, heads = zip(*map(backbone_and_head, (first, second)), strict=True)
        self.config: Any = first.config
        self.base_model = _SideBySide(backbones, self.config)
        self.head = _Mixed(heads, (1 - rate, rate))

    def get_output_embeddings(self) -> nn.Module:
        """The head, as transformers calls it."""
        return self.head

    def forward(self, **given: Any) -> Any:
        """`logits`, as of a causal language model."""
        return SimpleNamespace(logits=self.head(self.base_model(**given).last_hidden_state))


class _SideBySide(nn.Module):
    """Hidden states of both backbones, joined."""

    def __init__(self, backbones: Sequence[nn.Module], config: Any) -> None:
        super().__init__()
        self.backbones, self.config = nn.ModuleList(backbones), config

    def forward(self, **given: Any) -> Any:
        hidden = [backbone(**given).last_hidden_state for backbone in self.backbones]
        return SimpleNamespace(last_hidden_state=torch.cat(hidden, -1))


class _Mixed(nn.Module):
    """Logits of both heads, mixed."""

    def __init__(self, heads: Sequence[nn.Module], rates: Sequence[float]) -> None:
        super().__init__()
        self.heads, self.rates = nn.ModuleList(heads), rates
        self.out_features = heads[0].out_features

    def forward(self, hidden: Tensor) -> Tensor:
        parts = [
            rate * head(half) for rate, head, half in zip(self.rates, self.heads, hidden.chunk(2, -1), strict=True)
        ]
        return torch.stack(parts).sum(0)
