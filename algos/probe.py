"""What is worth a pass through a model every few steps: how far the policy has come, and whether its teacher is near.

    kl_start      KL of the policy to itself as training began, by k3 over the step's tokens
    topk_overlap  share of the teacher's k likeliest tokens among the student's, on prefixes that the student wrote

Distillation from what a student samples can only move mass within the overlap ("Rethinking OPD" 2026,
arXiv:2604.13016, where it rises in runs that learn).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from retort.agents.scoring import score_tokens
from retort.algos.base import TokenBatch
from retort.algos.batch import Rows, with_reference
from retort.algos.diagnostics import kl_to
from retort.algos.learner import Learner
from retort.algos.teacher import Teacher
from retort.feedback.base import TeacherView
from torch import Tensor

TOP = 16


class Probe:
    """Measures every `every` steps, from the first; 0 is never.

    The policy as training began is a recipe's own reference (whose log-probs are in the batch), a teacher that holds
    those weights, the model below its adapter, or a copy of the model. Make it before a checkpoint is restored.
    """

    def __init__(self, learner: Learner, teacher: Teacher | None, reference: Teacher | None, every: int) -> None:
        self.every, self.learner, self.teacher = every, learner, teacher
        self.start: Any = None
        if not every or reference is not None:
            return
        if teacher is not None and teacher.options.kind in ("fixed", "trust_region"):
            self.start = teacher.model
        else:
            self.start = learner.model if learner.options.lora_rank else _copy(learner.model)

    def __call__(self, batch: TokenBatch, rows: Rows, views: Sequence[TeacherView]) -> dict[str, float]:
        """Nothing in the steps between."""
        if not self.every or batch.step % self.every:
            return {}
        with torch.no_grad(), self.learner.arithmetic():
            found = {} if self.start is None else {"kl_start": self._kl(batch, rows)}
            first = [view for view in views if view.channel == 0 and len(view.covers)]
            return {**found, "topk_overlap": self._overlap(batch, rows, first)} if first and self.teacher else found

    def _kl(self, batch: TokenBatch, rows: Rows) -> float:
        below = self.start.disable_adapter() if self.start is self.learner.model else nullcontext()
        with below:
            told = score_tokens(
                self.start,
                rows.sequences,
                rows.positions,
                temperature=batch.temperature.tolist(),
                max_tokens=self.learner.options.micro_tokens,
            )
        reference = with_reference(batch, rows, told).reference_logp
        assert reference is not None
        return kl_to(batch, reference)

    def _overlap(self, batch: TokenBatch, rows: Rows, views: Sequence[TeacherView]) -> float:
        assert self.teacher is not None
        k, limit = min(TOP, self.learner.vocabulary), self.learner.options.micro_tokens
        sequences = rows.sequences
        own = self.learner.score([sequences[view.row] for view in views], [view.covers for view in views], k=k)
        told = self.teacher.score(views, ids=None, k=k, entropy=False, temperature=[1.0] * len(views), max_tokens=limit)
        pairs = [(mine.ids, theirs.ids) for mine, theirs in zip(own, told, strict=True)]
        return torch.cat([shared(s, t) for s, t in pairs if s is not None and t is not None]).mean().item()


def shared(first: Tensor, second: Tensor) -> Tensor:
    """[N] the share of each row of `first` [N,K] that stands in that row of `second` [N,K], none twice in either."""
    return (first.unsqueeze(-1) == second.unsqueeze(-2)).any(-1).float().mean(-1)


def _copy(model: Any) -> Any:
    return copy.deepcopy(model).requires_grad_(False).eval()
