"""Log-probs of chosen tokens from a causal language model, with or without gradient.

Everything from the language-model head on is float32 (float64 stays), because half of the error of a bfloat16 log-prob
is made when the logit is rounded. Only hidden states that are asked for reach the head, and they pass it in chunks: no
more than `chunk` logits exist at a time, in the forward or in the backward pass. The backward pass computes the logits
of a chunk again, unless there was but one chunk, whose logits are kept.

With z the logits over the temperature, p = softmax(z) and H the entropy (all in nats):

    d logp_y / dz_v = [v = y] - p_v                       d H / dz_v = -p_v (log p_v + H)
    d rest / dz_v   = [v not in ids] p_v / exp(rest) - p_v     where rest = log sum of p over v not in ids

`rest` is summed over the complement itself and so stays exact however small it is; an empty complement gives -inf with
no gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from retort.agents.base import Int64, TokenScores
from retort.agents.prefix import hidden_states
from torch import Tensor, nn
from torch.func import functional_call

CHUNK = 1 << 24
MAX_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of M tokens in nats, float32: logp, entropy, rest_logp [M]; ids, ids_logp [M,K].

    rest_logp is the log-mass outside `ids`. What was not asked for is None.
    """

    logp: Tensor
    entropy: Tensor | None = None
    ids: Tensor | None = None
    ids_logp: Tensor | None = None
    rest_logp: Tensor | None = None

    def take(self, index: Tensor) -> Scored:
        """The scores of the tokens at `index`."""
        fields = (self.logp, self.entropy, self.ids, self.ids_logp, self.rest_logp)
        return Scored(*(None if field is None else field[index] for field in fields))  # type: ignore[arg-type]


def to_token_scores(scored: Scored) -> TokenScores:
    """The same scores as arrays, without gradient."""
    fields = (scored.logp, scored.entropy, scored.ids, scored.ids_logp, scored.rest_logp)
    return TokenScores(*(None if field is None else field.detach().cpu().numpy() for field in fields))  # type: ignore[arg-type]


def score_hidden(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    ids: Tensor | None = None,
    k: int = 0,
    entropy: bool = False,
    chunk: int = CHUNK,
) -> Scored:
    """Scores `targets` [M] under the softmax of `head(hidden) / temperature`.

    hidden: [M,D]. temperature: a number or [M].
    ids: [M,K] vocabulary entries to score beside the target, none twice in a row; or the `k` most likely ones.
    chunk: how many logits may exist at once. Gradient reaches `hidden` and the parameters of `head`.

    Raises:
        ValueError: both `ids` and `k`, a `k` beyond the vocabulary, or a temperature that is not positive.
    """
    size = int(head.out_features)  # type: ignore[arg-type]
    if ids is not None and k:
        raise ValueError("expected either `ids` or `k`, found both")
    if not 0 <= k <= size:
        raise ValueError(f"expected k between 0 and the vocabulary's {size}, found {k}")
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ValueError(f"expected a temperature above 0, found {temperature}")
    names, parameters = zip(*head.named_parameters(), strict=True)
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    divisor = torch.as_tensor(temperature, dtype=dtype, device=hidden.device).detach().expand(len(hidden)).unsqueeze(-1)
    call = _Call(head, names, max(1, chunk // size), k, entropy, dtype)
    return Scored(*_Score.apply(call, hidden, targets, divisor, ids, *parameters))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class _Call:
    """What `_Score` needs beside tensors; `rows` of hidden states pass the head at a time."""

    head: nn.Module
    names: tuple[str, ...]
    rows: int
    k: int
    entropy: bool
    dtype: torch.dtype

    def lift(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.dtype) if tensor.is_floating_point() else tensor.detach()

    def pass_through(self, parameters: Sequence[Tensor], wanted: Sequence[bool]) -> _Linear | _Module:
        """The head as a function whose gradient can be asked for, chunk by chunk."""
        lifted = [self.lift(parameter) for parameter in parameters]
        if type(self.head) is nn.Linear and not self.head._forward_hooks and not self.head._forward_pre_hooks:
            return _Linear(lifted, wanted)
        return _Module(self, lifted, wanted)


class _Linear:
    """A plain linear head: one buffer for the logits of all chunks, and gradients added in place."""

    def __init__(self, parameters: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self.weight, self.bias = parameters[0], parameters[1] if len(parameters) > 1 else None
        self.wanted = wanted
        self.totals: list[Tensor | None] = [None] * len(parameters)
        self.buffer = self.weight.new_empty(0, self.weight.shape[0])

    def logits(self, states: Tensor) -> Tensor:
        if len(self.buffer) < len(states):
            self.buffer = self.weight.new_empty(len(states), self.weight.shape[0])
        self.states = states
        logits = torch.mm(states, self.weight.t(), out=self.buffer[: len(states)])
        return logits if self.bias is None else logits.add_(self.bias)

    def push(self, slope: Tensor) -> Tensor | None:
        if self.wanted[1]:
            total = self.totals[0]
            self.totals[0] = slope.t() @ self.states if total is None else total.addmm_(slope.t(), self.states)
        if self.bias is not None and self.wanted[2]:
            total, grad = self.totals[1], slope.sum(0)
            self.totals[1] = grad if total is None else total.add_(grad)
        return slope @ self.weight if self.wanted[0] else None


class _Module:
    """Any other head, such as one with an adapter: autograd runs through each chunk."""

    def __init__(self, call: _Call, parameters: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self.call, self.wanted = call, wanted
        self.leaves = [p.detach().requires_grad_(want) for p, want in zip(parameters, wanted[1:], strict=True)]
        self.totals: list[Tensor | None] = [None] * len(parameters)

    def logits(self, states: Tensor) -> Tensor:
        self.states = states.detach().requires_grad_(self.wanted[0])
        given = dict(zip(self.call.names, self.leaves, strict=True))
        with torch.enable_grad(), torch.autocast(states.device.type, enabled=False):
            graph: Tensor = functional_call(self.call.head, given, (self.states,))
        self.graph = graph
        return graph.detach()

    def push(self, slope: Tensor) -> Tensor | None:
        leaves = [leaf for leaf in (self.states, *self.leaves) if leaf.requires_grad]
        grads = iter(torch.autograd.grad(self.graph, leaves, slope, retain_graph=True))
        into_states: Tensor | None = next(grads) if self.wanted[0] else None
        for number, want in enumerate(self.wanted[1:]):
            if want:
                total, grad = self.totals[number], next(grads)
                self.totals[number] = grad if total is None else total.add_(grad)
        return into_states


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, hidden: Tensor, targets: Tensor, divisor: Tensor, ids: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor | None, ...]:
        wanted = [ctx.needs_input_grad[1], *ctx.needs_input_grad[5:]]
        ctx.call, ctx.kept = call, None
        ctx.set_materialize_grads(False)
        keep = any(wanted) and len(hidden) <= call.rows
        head, states = call.pass_through(parameters, wanted if keep else [False] * len(wanted)), call.lift(hidden)
        parts: list[tuple[Tensor | None, ...]] = []
        for start in range(0, max(1, len(hidden)), call.rows):
            part = slice(start, start + call.rows)
            logits = head.logits(states[part])
            if keep:
                ctx.kept = head, logits
            scaled = logits / divisor if keep else logits.div_(divisor[part])
            parts.append(_measure(scaled, targets[part], None if ids is None else ids[part], call))
        logz, *found = (None if piece[0] is None else torch.cat(piece) for piece in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, targets, divisor, logz, *found[1:], *parameters)
        if found[2] is not None:
            ctx.mark_non_differentiable(found[2])
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        hidden, targets, divisor, logz, entropy, ids, _, rest, *parameters = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[1], *ctx.needs_input_grad[5:]]
        head, kept = ctx.kept or (call.pass_through(parameters, wanted), None)
        states, pieces = call.lift(hidden), list[Tensor | None]()
        head.totals = [None] * len(parameters)
        for start in range(0, max(1, len(hidden)), call.rows):
            part = slice(start, start + call.rows)
            scaled = head.logits(states[part]).div_(divisor[part]) if kept is None else kept / divisor
            saved = [None if t is None else t[part] for t in (targets, divisor, logz, entropy, ids, rest, *upstream)]
            pieces.append(head.push(_slope(scaled, *saved)))  # type: ignore[arg-type]
        into_hidden = torch.cat([p for p in pieces if p is not None]).to(hidden.dtype) if wanted[0] else None
        into = [None if g is None else g.to(p.dtype) for g, p in zip(head.totals, parameters, strict=True)]
        return None, into_hidden, None, None, None, *into


def _measure(scaled: Tensor, targets: Tensor, ids: Tensor | None, call: _Call) -> tuple[Tensor | None, ...]:
    """(log-normaliser [M,1], logp, entropy, ids, ids_logp, rest_logp) of scaled logits [M,V], which are used up."""
    logz = scaled.logsumexp(-1, keepdim=True)
    logp = scaled.gather(-1, targets.unsqueeze(-1)).sub_(logz).squeeze(-1)
    if call.k:
        ids = scaled.topk(call.k).indices
    ids_logp = None if ids is None else scaled.gather(-1, ids).sub_(logz)
    entropy = None
    if call.entropy:
        every = scaled - logz
        entropy = every.exp().mul_(every.clamp_(min=torch.finfo(every.dtype).min)).sum(-1).neg_()
    rest = None if ids is None else scaled.scatter_(-1, ids, -torch.inf).logsumexp(-1).sub_(logz.squeeze(-1))
    return logz, logp, entropy, ids, ids_logp, rest


def _slope(
    scaled: Tensor,
    targets: Tensor,
    divisor: Tensor,
    logz: Tensor,
    entropy: Tensor | None,
    ids: Tensor | None,
    rest: Tensor | None,
    to_logp: Tensor | None,
    to_entropy: Tensor | None,
    _: None,
    to_ids: Tensor | None,
    to_rest: Tensor | None,
) -> Tensor:
    """Gradient for the logits [M,V], by the formulas at the head of this file, in place of the scaled logits."""
    every = scaled.sub_(logz)
    onto_p = torch.zeros_like(logz)
    if to_logp is not None:
        onto_p -= to_logp.unsqueeze(-1)
    if to_ids is not None:
        onto_p -= to_ids.sum(-1, keepdim=True)
    outside = None
    if to_rest is not None and rest is not None and ids is not None:
        inside_only = torch.isneginf(rest)
        to_rest = to_rest.masked_fill(inside_only, 0).unsqueeze(-1)
        onto_p -= to_rest
        outside = every.sub(rest.masked_fill(inside_only, 0).unsqueeze(-1)).exp_().scatter_(-1, ids, 0).mul_(to_rest)
    if to_entropy is not None and entropy is not None:
        p = every.exp()
        bend = (
            every.clamp_(min=torch.finfo(every.dtype).min).add_(entropy.unsqueeze(-1)).mul_(-to_entropy.unsqueeze(-1))
        )
        slope = bend.add_(onto_p).mul_(p)
    else:
        slope = every.exp_().mul_(onto_p)
    if outside is not None:
        slope.add_(outside)
    if to_ids is not None and ids is not None:
        slope.scatter_add_(-1, ids, to_ids)
    if to_logp is not None:
        slope.scatter_add_(-1, targets.unsqueeze(-1), to_logp.unsqueeze(-1))
    return slope.div_(divisor)


_CHECKED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def backbone_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The two halves of a transformers causal language model, bare or wrapped by PEFT.

    Raises:
        NotImplementedError: the model does more than `head(backbone(tokens))` (it caps or scales its logits, or a
            prompt is learned), by the name of its class.
    """
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if causal not in _CHECKED:
        _check_halves(model, causal)
        _CHECKED.add(causal)
    return causal.base_model, causal.get_output_embeddings()


@torch.no_grad()
def _check_halves(model: nn.Module, causal: Any) -> None:
    name = type(causal).__name__
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise NotImplementedError(f"{name}: adapters that learn a prompt cannot be scored; LoRA can")
    backbone, head = causal.base_model, causal.get_output_embeddings()
    if head is None or backbone is causal:
        raise NotImplementedError(f"{name} has no language-model head on a backbone; expected a causal language model")
    seen: list[tuple[Tensor, Tensor]] = []

    def stand_in(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Far-flung logits, so that a soft cap shows itself even in a model without training.
        ramp = torch.linspace(-64, 64, output.shape[-1], device=output.device).to(output.dtype).expand_as(output)
        seen.append((arguments[0], ramp))
        return ramp

    tokens = torch.zeros((1, 2), dtype=torch.long, device=next(causal.parameters()).device)
    hook = head.register_forward_hook(stand_in)
    try:
        logits = causal(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
    hidden = backbone(input_ids=tokens, use_cache=False).last_hidden_state
    if not (len(seen) == 1 and torch.allclose(seen[0][1].to(logits.dtype), logits)):
        raise NotImplementedError(f"{name} caps or scales its logits after the head; this cannot be scored")
    if not torch.allclose(seen[0][0], hidden, rtol=1e-2, atol=1e-3):
        raise NotImplementedError(f"{name} changes hidden states before its head; this cannot be scored")


def forward_positions(
    model: nn.Module,
    tokens: Tensor,
    row: Tensor,
    at: Tensor,
    *,
    ids: Tensor | None = None,
    k: int = 0,
    entropy: bool = False,
    temperature: Tensor | float = 1.0,
    chunk: int = CHUNK,
) -> Scored:
    """One forward pass over `tokens` [B,T], padded on the right with any id, that scores token `at[m]` of row `row[m]`.

    row, at: [M], `at` from 1 to T-1. ids: [M,K]; temperature: a number or [M]. The last column is not read as input,
    and what rows share before their first `at` is read once.
    """
    backbone, head = backbone_and_head(model)
    hidden = hidden_states(backbone, tokens, row, at)
    return score_hidden(
        hidden, head, tokens[row, at], temperature=temperature, ids=ids, k=k, entropy=entropy, chunk=chunk
    )


def pack(lengths: ArrayLike, max_tokens: int) -> list[Int64]:
    """Sorts rows by length and cuts them into padded micro-batches of at most `max_tokens` tokens, longest first.

    A micro-batch also ends where its padding would exceed a quarter of it, and a sixteenth of `max_tokens`. A row that
    is longer than `max_tokens` stands alone. Returns the indices of the rows of each micro-batch.
    """
    sizes = np.asarray(lengths, np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches: list[Int64] = []
    start = padding = 0
    for stop, length in enumerate(sizes[order].tolist()):
        width = int(sizes[order[start]])
        padding += width - length
        size = (stop + 1 - start) * width
        if stop > start and (size > max_tokens or padding > max(max_tokens // 16, size // 4)):
            batches.append(order[start:stop])
            start, padding = stop, 0
    return [*batches, order[start:]] if len(order) else []


def score_tokens(
    model: nn.Module,
    sequences: Sequence[ArrayLike],
    positions: Sequence[ArrayLike],
    *,
    ids: Sequence[Tensor | Int64] | None = None,
    k: int = 0,
    entropy: bool = False,
    temperature: float | Sequence[float] = 1.0,
    max_tokens: int = MAX_TOKENS,
) -> list[Scored]:
    """Scores token p of `sequences[i]` given what stands before it, for each p of `positions[i]` (1 or more).

    ids: for each sequence [N,K]; or the `k` most likely entries. temperature: one, or one for each sequence.
    Sequences are packed by length into padded micro-batches of at most `max_tokens` tokens. Wrap the call in
    `torch.no_grad()` where no gradient is wanted. Results lie on the model's device, in the order asked for.

    Raises:
        ValueError: a position outside of its sequence, or at 0, by sequence.
    """
    device = next(model.parameters()).device
    wheres = [np.asarray(where, np.int64).reshape(-1) for where in positions]
    texts = [np.asarray(sequence, np.int64).reshape(-1) for sequence in sequences]
    for number, (text, where) in enumerate(zip(texts, wheres, strict=True)):
        if where.size and not (where.min() >= 1 and where.max() < len(text)):
            raise ValueError(
                f"sequence {number}: expected positions from 1 to {len(text) - 1}, found {where.min()} to {where.max()}"
            )
    heat = np.broadcast_to(np.asarray(temperature, np.float32), len(texts))
    lengths = np.array([where.max() + 1 if where.size else 1 for where in wheres], np.int64)
    results: list[Scored] = [Scored(torch.empty(0))] * len(texts)
    for rows in pack(lengths, max_tokens):
        tokens = np.zeros((len(rows), max(2, int(lengths[rows[0]]))), np.int64)
        for line, number in zip(tokens, rows, strict=True):
            line[: lengths[number]] = texts[number][: lengths[number]]
        counts = [len(wheres[number]) for number in rows]
        scored = forward_positions(
            model,
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(np.repeat(np.arange(len(rows)), counts)).to(device),
            torch.from_numpy(np.concatenate([wheres[number] for number in rows])).to(device),
            ids=None if ids is None else torch.cat([torch.as_tensor(ids[number]) for number in rows]).to(device),
            k=k,
            entropy=entropy,
            temperature=torch.from_numpy(np.repeat(heat[rows], counts)).to(device),
        )
        for number, part in zip(rows, torch.split(torch.arange(sum(counts), device=device), counts), strict=True):
            results[number] = scored.take(part)
    return results
