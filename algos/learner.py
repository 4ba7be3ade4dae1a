"""The learner: scores what the student wrote, and moves the weights by the terms of a recipe.

An update makes one optimiser step, or one for each mini-batch that the episodes are dealt to. Proximal log-probs and
credit are those from before the first: the ratio of current to proximal leaves 1 with the second, and only then has a
clip anything to hold. Denominators are those of a whole mini-batch, read from the masks of the terms before anything is
computed, so that the split into micro-batches changes nothing. Only tokens that some term depends on are scored, and
the model reads a row no further than its last one.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, model_validator
from retort.agents.base import Int64
from retort.agents.scoring import Scored, forward_positions, pack, score_tokens
from retort.algos.aggregate import count_of
from retort.algos.base import Credit, Student, Term, TokenBatch
from retort.algos.minibatch import UpdateStats, dealt, merged
from retort.algos.muon import Muon
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

Loss = Callable[[TokenBatch, Credit, Student, Any], tuple[Term, ...]]
Value = TypeVar("Value")


class LearnerOptions(BaseModel):
    """How the weights move, and on what.

    lr: of everything, or with "muon" of hidden matrices; adam_lr: of all else then (None: lr). weight_decay: of
    matrices alone. grad_clip: largest norm of the whole gradient. micro_tokens: padded tokens in one pass.
    device: "auto" takes an accelerator where there is one. dtype: of the arithmetic below the head; weights that learn
    stay float32. checkpointing: keep only what enters each layer, and compute the rest again. lora_rank: 0 trains all
    weights; lora_alpha: None is twice the rank. mini_batches: parts of a step's episodes with an optimiser step each;
    epochs: how often a step goes through all of them. warmup: steps up to lr. schedule: after that; "linear" and
    "cosine" reach 0 at step `decay_steps`. These count steps of the run: all mini-batches of one have one rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimiser: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=1e-5, gt=0)
    adam_lr: float | None = Field(default=None, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    micro_tokens: int = Field(default=4096, ge=1)
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    lora_rank: int = Field(default=0, ge=0)
    lora_alpha: int | None = Field(default=None, gt=0)
    mini_batches: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    warmup: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    decay_steps: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _decay_has_an_end(self) -> LearnerOptions:
        if self.schedule != "constant" and self.decay_steps <= self.warmup:
            raise ValueError(f"schedule {self.schedule!r} needs decay_steps above warmup, found {self.decay_steps}")
        return self

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at 0-based `step`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = 1 - min(1.0, (step - self.warmup) / max(1, self.decay_steps - self.warmup))
        shapes = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return shapes[self.schedule]


class Learner:
    """Owns the weights that learn (`model`) and their optimisers."""

    def __init__(self, model: nn.Module, options: LearnerOptions) -> None:
        self.options = options
        self.device = torch.device(_device(options.device))
        self.model = _prepare(model, options, self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("expected a model with parameters that learn, found all of them frozen")
        self.optimisers = _optimisers(self.model, options)
        self.rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.steps = 0

    @property
    def vocabulary(self) -> int:
        """Entries in it, padding of the head included."""
        return int(self.model.get_output_embeddings().out_features)

    @property
    def context(self) -> int:
        """Tokens that the model can read at once; where it does not say, there is no limit."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize)

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """The precision below the head; whoever scores with these weights scores within it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.dtype == "bfloat16")

    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[ArrayLike],
        positions: Sequence[ArrayLike],
        *,
        ids: Sequence[Tensor | Int64] | None = None,
        k: int = 0,
        entropy: bool = False,
        temperature: float | Sequence[float] = 1.0,
    ) -> list[Scored]:
        """`score_tokens` with the current weights; `k` beyond the vocabulary means all of it."""
        k = min(k, self.vocabulary)
        asked = {"ids": ids, "k": k, "entropy": entropy, "temperature": temperature}
        with self.arithmetic():
            return score_tokens(self.model, sequences, positions, max_tokens=self.options.micro_tokens, **asked)  # type: ignore[arg-type]

    def update(self, batch: TokenBatch, credit: Credit, loss: Loss, options: Any, *, seed: int = 0) -> UpdateStats:
        """One optimiser step for each mini-batch of each epoch; `seed` deals them. A gradient that is not finite, or no
        token to learn from, skips a step and is reported.

        Raises:
            ValueError: a term wants a loss at position 0, or two have one name.
        """
        batch, credit = _map(batch, lambda t: t.to(self.device)), _map(credit, lambda t: t.to(self.device))
        told, width = [], batch.tokens.shape[1]
        parts, epochs = self.options.mini_batches, self.options.epochs
        for rows in dealt(batch.episode, mini_batches=parts, epochs=epochs, seed=seed):
            part = (batch, credit) if rows is None else (select(batch, rows, width), select(credit, rows, width))
            told.append(self._optimise(*part, loss, options))
        stats = merged(told)
        self.steps += not stats.skipped
        return stats

    def _optimise(self, batch: TokenBatch, credit: Credit, loss: Loss, options: Any) -> UpdateStats:
        """One optimiser step from a whole mini-batch."""
        with torch.no_grad():
            terms = loss(batch, credit, batch.before, options)
        counts = {term.name: count_of(term.aggregate, term.mask) for term in terms}
        if len(counts) < len(terms):
            names = ", ".join(term.name for term in terms)
            raise ValueError(f"expected terms of the loss with a name each, found {names}")
        needed = torch.zeros_like(batch.mask)
        for term in terms:
            needed |= live(term)
        if needed[:, 0].any():
            raise ValueError("a term has a token at position 0, which nothing stands before")
        lengths = _ends(needed)
        # What is averaged reaches beyond what the model reads: tokens without credit count in their row's mean.
        counted = torch.stack([batch.mask, needed, *(term.mask for term in terms)]).any(0)
        spans = _ends(counted)
        rows = np.flatnonzero(lengths)
        moved = {term.name: int(live(term).sum()) for term in terms}
        tallies, gap = {name: np.zeros(3) for name in moved}, 0.0
        micro = [rows[part] for part in pack(lengths[rows], self.options.micro_tokens)]
        self._zero()
        self.model.train(self.options.checkpointing)  # Only then are layers computed again.
        for part in micro:
            index, span = torch.from_numpy(part).to(self.device), int(spans[part].max())
            found, distance = self._backward(
                select(batch, index, span), select(credit, index, span), needed[index, :span], loss, options, counts
            )
            tallies = {name: tallies[name] + found[name] for name in tallies}
            gap = max(gap, distance)
        self.model.eval()
        values = {name: float(tally[0]) for name, tally in tallies.items()}
        total = sum(term.weight * values[term.name] for term in terms)
        read, scored = int((lengths[rows] - 1).sum()), int(needed.sum())
        norm = self._clip() if micro else 0.0
        skipped = "" if micro else "no token to learn from"
        if not (math.isfinite(norm) and math.isfinite(total)):
            skipped = "the gradient is not finite"
        rate = self.rates[0][0] * self.options.factor(self.steps)
        if not skipped:
            self._step()
        self._zero()
        return UpdateStats(
            loss=total,
            terms=values,
            slopes={name: math.sqrt(tally[1]) for name, tally in tallies.items()},
            weights={term.name: term.weight for term in terms},
            reached=moved,
            held={term.name: float(tallies[term.name][2]) for term in terms if term.clipped is not None},
            grad_norm=norm,
            lr=rate,
            model_tokens=int(batch.mask.sum()),
            tokens=read,
            scored=scored,
            micro_batches=len(micro),
            gap=gap,
            skipped=skipped,
            optimiser_steps=int(not skipped),
        )

    def _backward(
        self,
        batch: TokenBatch,
        credit: Credit,
        needed: Tensor,
        loss: Loss,
        options: Any,
        counts: Mapping[str, float],
    ) -> tuple[dict[str, list[float]], float]:
        """Adds the gradient of one micro-batch; returns of each term its share of the value, the square of its gradient
        for the student's log-probs and the tokens that it clipped, and the gap.
        """
        student = self._student(batch, needed)
        terms = loss(batch, credit, student, options)
        folded = {term.name: term.aggregate(term.value, term.mask, count=counts[term.name]) for term in terms}
        weighted = {term.name: term.weight * folded[term.name] for term in terms}
        squares = {name: _square(value, student) for name, value in weighted.items()}
        total = torch.stack(list(weighted.values())).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        gap = (student.logp.detach() - batch.proximal_logp).abs().max()
        clips = [_clipped(term) for term in terms]
        told = torch.stack([gap, *(value.detach() for value in folded.values()), *squares.values(), *clips]).tolist()
        return {name: told[1 + place :: len(terms)] for place, name in enumerate(folded)}, told[0]

    def _student(self, batch: TokenBatch, needed: Tensor) -> Student:
        """The current weights' word on the needed tokens, and the proximal values elsewhere."""
        row, at = needed.nonzero(as_tuple=True)
        width = int(at.max()) + 1  # Nothing after it is read.
        with self.arithmetic():
            scored = forward_positions(
                self.model,
                batch.tokens[:, :width],
                row,
                at,
                ids=None if batch.support_ids is None else batch.support_ids[row, at],
                entropy=batch.proximal_entropy is not None,
                temperature=batch.temperature[row],
            )

        def put(old: Tensor | None, new: Tensor | None) -> Tensor | None:
            return None if old is None or new is None else old.index_put((row, at), new.to(old.dtype))

        return Student(
            logp=batch.proximal_logp.index_put((row, at), scored.logp.to(batch.proximal_logp.dtype)),
            entropy=put(batch.proximal_entropy, scored.entropy),
            rest_logp=put(batch.proximal_rest_logp, scored.rest_logp),
            support_logp=put(batch.proximal_support_logp, scored.ids_logp),
        )

    def _clip(self) -> float:
        return float(nn.utils.clip_grad_norm_(self.parameters, self.options.grad_clip))

    def _step(self) -> None:
        factor = self.options.factor(self.steps)
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()

    def _zero(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and the count of steps, which fixes the learning rate; the weights are the model's."""
        return {"steps": self.steps, "optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave; the next step is then the same bit for bit.

        Raises:
            ValueError: it is the state of other optimisers or of another model.
        """
        if len(state["optimisers"]) != len(self.optimisers):
            found = len(state["optimisers"])
            raise ValueError(f"expected the state of {len(self.optimisers)} optimisers, found {found}")
        for optimiser, own in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(own)
        self.steps = int(state["steps"])


def live(term: Term) -> Tensor:
    """[B,T] bool: the tokens that a term depends on."""
    return term.mask if term.active is None else term.mask & term.active


def _ends(mask: Tensor) -> Int64:
    """[B]: one past each row's last token in `mask`, 0 where it has none."""
    ends: Int64 = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(-1).cpu().numpy()
    return ends


def _clipped(term: Term) -> Tensor:
    """How many of the tokens that a term depends on it clips."""
    return term.value.new_zeros(()) if term.clipped is None else (live(term) & term.clipped).sum().to(term.value.dtype)


def _square(value: Tensor, student: Student) -> Tensor:
    """The squared norm of a term's gradient for what the student said, as far as the loss and no further."""
    said = (student.logp, student.entropy, student.rest_logp, student.support_logp)
    leaves = [tensor for tensor in said if tensor is not None and tensor.requires_grad]
    if not value.requires_grad or not leaves:
        return value.new_zeros(())
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return torch.stack([grad.detach().float().square().sum() for grad in found if grad is not None]).sum()


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _prepare(model: nn.Module, options: LearnerOptions, device: torch.device) -> Any:
    """On its device, without dropout (a ratio of current to proximal is 1 before the first step), adapters added."""
    if options.dtype == "bfloat16" and device.type == "cpu":
        warnings.warn("bfloat16 on a CPU is often many times slower than float32", stacklevel=3)
    if options.lora_rank:
        from peft import LoraConfig, get_peft_model  # type: ignore[attr-defined, unused-ignore]
        from retort.agents.hf import old_names

        if options.dtype == "bfloat16":
            model = model.to(torch.bfloat16)
        alpha = options.lora_alpha if options.lora_alpha is not None else 2 * options.lora_rank
        adapter = LoraConfig(r=options.lora_rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        with old_names():
            model = get_peft_model(model, adapter)
    else:
        model = model.float()
    model.to(device)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010
    model.eval()
    if options.checkpointing:
        # Its second name is that of older transformers, such as vLLM may pin.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable: Any = next(found for name in names if (found := getattr(model, name, None)))
        enable({"use_reentrant": False})
    return model


def _optimisers(model: Any, options: LearnerOptions) -> list[Optimizer]:
    """AdamW for all; or Muon for hidden matrices, and AdamW for embeddings, head, norms and biases."""
    named = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = {id(parameter) for end in ends for parameter in end.parameters()}
    hidden = [p for p in named if p.ndim == 2 and id(p) not in apart] if options.optimiser == "muon" else []
    taken = {id(parameter) for parameter in hidden}
    others = [parameter for parameter in named if id(parameter) not in taken]
    decay = {True: options.weight_decay, False: 0.0}
    groups = [
        {"params": chosen, "weight_decay": decay[matrices]}
        for matrices in (True, False)
        if (chosen := [parameter for parameter in others if (parameter.ndim >= 2) is matrices])
    ]
    made: list[Optimizer] = []
    if hidden:
        made.append(Muon(hidden, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay))
    if groups:
        rate = options.adam_lr if hidden and options.adam_lr is not None else options.lr
        made.append(AdamW(groups, lr=rate, betas=options.betas, fused=True))
    return made


def _map(whole: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """A TokenBatch or Credit with `change` applied to each of its tensors."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return {key: changed(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    return replace(whole, **{f.name: changed(getattr(whole, f.name)) for f in fields(whole)})  # type: ignore[type-var, arg-type]


def select(whole: Value, index: Tensor, width: int) -> Value:
    """The rows at `index`, cut to `width` tokens. The shapes tell: [B], [B,T,..], or [N,B,T,..] for a teacher's."""
    teacher: dict[int, Tensor] = {}
    if isinstance(whole, TokenBatch):
        names = [f.name for f in fields(whole) if f.name.startswith("teacher_")]
        teacher = {id(value): value for name in names if (value := getattr(whole, name)) is not None}

    def chosen(value: Tensor) -> Tensor:
        if id(value) in teacher:
            return value[:, index, :width]
        return value[index, :width] if value.ndim > 1 else value[index]

    return _map(whole, chosen)
