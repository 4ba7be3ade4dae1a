"""Batched sampling from a transformers causal language model, with each episode's keys and values kept across turns.

A batch is one block of keys and values in which every row may have holes, hidden by the attention mask; positions are
explicit, so that a hole moves nothing. While the same episodes come back together, and until holes outnumber tokens,
they go on in the block that they have. Any others are copied into a new one, so that any episodes can meet in any
batch. Either way a turn costs what is new in it, beside attention and at most one copy of what is old.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from retort.agents.base import Bool, Completion, Finish, Sampling
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 64


@dataclass(eq=False)
class Context:
    """What the model has read of one episode: `ids`, whose keys and values are the first ones of a block's row."""

    ids: list[int] = field(default_factory=list)
    block: _Block | None = None
    row: int = 0


@dataclass(frozen=True, eq=False)
class Call:
    """One completion to sample: from `seed` alone, whoever else is in the batch.

    drawn: tokens at the prompt's end that an earlier call sampled with the same seed; this one goes on from there.
    """

    context: Context
    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    drawn: int = 0


def generate(model: Any, calls: Sequence[Call], stop_ids: frozenset[int], version: int) -> list[Completion]:
    """Completes every call; all must share temperature, top-p and top-k. Contexts are brought up to date.

    Raises:
        FloatingPointError: the model's logits are not finite.
        ValueError: a call asks for no token, or its prompt is empty.
    """
    for call in calls:
        if call.sampling.max_new_tokens < 1 or not call.prompt:
            raise ValueError(
                "expected a prompt and at least 1 new token, found "
                f"{len(call.prompt)} tokens and max_new_tokens={call.sampling.max_new_tokens}"
            )
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            block, logits = _read(model, calls)
            return _write(model, block, logits, calls, stop_ids, version)
    finally:
        model.train(was_training)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniform` [B] float64: ids [B], log-probs [B].

    The log-probs are float32, of the distribution after temperature, top-k and top-p. Greedy has log-prob 0.
    """
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.where(logits.isfinite().all(-1), 0.0, torch.nan)
    logp = warp(logits, sampling)
    cumulative = logp.double().exp_().cumsum_(-1)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return ids.squeeze(-1), logp.gather(-1, ids).squeeze(-1)


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs [B,V], float32, after temperature, then top-k, then top-p; what is cut off gets -inf."""
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if sampling.top_p < 1:
        ranked, order = scaled.softmax(-1).sort(stable=True, dim=-1, descending=True)
        # A token stays while what stands before it has not reached top_p; the first always does.
        cut = ranked.cumsum(-1) - ranked >= sampling.top_p
        cut[:, 0] = False
        scaled = scaled.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
    return scaled.log_softmax(-1)


def uniforms(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The numbers that a call draws its tokens with: Philox keyed by the seed."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's view of a block, in the form that transformers writes through."""

    def __init__(self, block: _Block, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._block, self._index = block, index

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start = self._block.used
        stop = start + key_states.shape[-2]
        keys, values = self._block.store[self._index]
        keys[:, :, start:stop] = key_states
        values[:, :, start:stop] = value_states
        return keys[:, :, :stop], values[:, :, :stop]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The block is made whole."""

    def get_seq_length(self) -> int:
        return self._block.used

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._block.used + query_length, 0

    def get_max_length(self) -> int:
        return -1


class _Block:
    """Keys and values of B rows: store [layers, 2, B, heads, S, D], of which `used` columns are written.

    valid: [B,S], where a row has a token. length: [B], how many. bias: [B,S], what attention adds: 0, or -inf at holes.
    """

    def __init__(self, store: Tensor, valid: Bool, used: int) -> None:
        self.store, self.valid, self.used = store, valid, used
        self.length = valid[:, :used].sum(1)
        blocked = torch.finfo(store.dtype).min
        holes = torch.from_numpy(~valid).to(store.device)
        self.bias = torch.zeros(valid.shape, dtype=store.dtype, device=store.device).masked_fill_(holes, blocked)
        self.cache = Cache(layers=[_Layer(self, index) for index in range(len(store))])

    @classmethod
    def of(cls, model: Any, contexts: Sequence[Context], room: int) -> _Block:
        """A block whose rows are the contexts: the one that they have, or a new one without holes and with `room`."""
        used = max(len(context.ids) for context in contexts)
        held = contexts[0].block
        if held is not None and held.used <= 2 * used and held.holds(contexts):
            return held
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, len(contexts), heads, used + room, width)
        store = torch.empty(shape, dtype=model.dtype, device=model.device)
        valid = np.zeros((len(contexts), used + room), np.bool_)
        for row, context in enumerate(contexts):
            length = len(context.ids)
            valid[row, :length] = True
            # Holes are masked, but a NaN in one would still spread: 0 * NaN is NaN.
            store[:, :, row, :, length:used] = 0
            if context.block is not None and length:
                store[:, :, row, :, :length] = context.block.read(context.row, length)
        return cls(store, valid, used)

    def holds(self, contexts: Sequence[Context]) -> bool:
        """Whether these contexts, whole and in order, are all of its rows."""
        return len(contexts) == len(self.length) and all(
            context.block is self and context.row == row and len(context.ids) == self.length[row]
            for row, context in enumerate(contexts)
        )

    def read(self, row: int, length: int) -> Tensor:
        """Keys and values [layers, 2, heads, length, D] of a row's first tokens, without its holes."""
        columns = np.flatnonzero(self.valid[row, : self.used])[:length]
        if columns[-1] == length - 1:
            return self.store[:, :, row, :, :length]
        return self.store[:, :, row].index_select(3, torch.from_numpy(columns).to(self.store.device))

    @classmethod
    def joined(cls, blocks: Sequence[_Block]) -> _Block:
        """The rows of all blocks, one below the other."""
        if len(blocks) == 1:
            return blocks[0]
        used = max(block.used for block in blocks)
        layers, two, _, heads, _, width = blocks[0].store.shape
        rows = sum(len(block.length) for block in blocks)
        store = blocks[0].store.new_empty((layers, two, rows, heads, used + GROWTH, width))
        valid = np.zeros((rows, used + GROWTH), np.bool_)
        start = 0
        for block in blocks:
            stop = start + len(block.length)
            store[:, :, start:stop, :, : block.used] = block.store[:, :, :, :, : block.used]
            store[:, :, start:stop, :, block.used : used] = 0
            valid[start:stop, : block.used] = block.valid[:, : block.used]
            start = stop
        return cls(store, valid, used)

    def select(self, rows: Sequence[int]) -> _Block:
        """A block of these rows, in this order, some perhaps more than once."""
        if list(rows) == list(range(len(self.length))):
            return self
        layers, two, _, heads, columns, width = self.store.shape
        store = self.store.new_empty((layers, two, len(rows), heads, columns, width))
        # What is not written yet is not copied.
        store[..., : self.used, :] = self.store[:, :, list(rows), :, : self.used]
        return _Block(store, self.valid[list(rows)], self.used)

    def feed(self, model: Any, ids: Tensor, real: Bool) -> Tensor:
        """Reads ids [B,Q] where `real` [B,Q]; the logits [B,V] that follow the last column."""
        count = ids.shape[1]
        self._reserve(count)
        start, stop = self.used, self.used + count
        position = np.maximum(self.length[:, None] + real.cumsum(1) - 1, 0)
        self.valid[:, start:stop] = real
        self.length = self.length + real.sum(1)
        device = self.store.device
        output = model(
            input_ids=ids,
            attention_mask=self._mask(real, start, stop),
            position_ids=torch.from_numpy(position).to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.used = stop
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _mask(self, real: Bool, start: int, stop: int) -> Tensor:
        """[B,1,Q,stop]: what each new column sees. A column that is no token sees itself, so that nothing is NaN."""
        blocked = torch.finfo(self.store.dtype).min
        count, device = stop - start, self.store.device
        self.bias[:, start:stop] = torch.zeros_like(self.bias[:, start:stop]).masked_fill_(
            torch.from_numpy(~real).to(device), blocked
        )
        mask = self.bias[:, None, None, :stop].repeat(1, 1, count, 1)
        if count > 1 or not real.all():
            later = torch.ones((count, count), dtype=torch.bool, device=device).triu_(1)
            mask[..., start:].masked_fill_(later, blocked).diagonal(dim1=-2, dim2=-1).zero_()
        return mask

    def _reserve(self, count: int) -> None:
        short = self.used + count - self.valid.shape[1]
        if short <= 0:
            return
        more = max(short, GROWTH, self.valid.shape[1] // 2)
        layers, two, rows, heads, _, width = self.store.shape
        self.store = torch.cat([self.store, self.store.new_empty((layers, two, rows, heads, more, width))], dim=4)
        self.valid = np.concatenate([self.valid, np.zeros((rows, more), np.bool_)], axis=1)
        self.bias = torch.cat([self.bias, self.bias.new_full((rows, more), torch.finfo(self.bias.dtype).min)], dim=1)


def _read(model: Any, calls: Sequence[Call]) -> tuple[_Block, Tensor]:
    """Reads every prompt, equal ones once. A block with a row for each call, and the logits [B,V] that follow."""
    firsts: dict[tuple[int, ...], int] = {}
    old: list[int] = []
    for index, call in enumerate(calls):
        _keep_prefix(call.context, call.prompt)
        if call.context.ids:
            old.append(index)
        else:
            firsts.setdefault(tuple(call.prompt), index)
    rows = {index: row for row, index in enumerate([*firsts.values(), *old])}
    blocks, logits = [], []
    # Apart, because a prompt is long and what a turn adds is short.
    for group in (list(firsts.values()), old):
        if group:
            suffixes = [calls[index].prompt[len(calls[index].context.ids) :] for index in group]
            block = _Block.of(model, [calls[index].context for index in group], max(map(len, suffixes)) + GROWTH)
            logits.append(_feed_ragged(model, block, suffixes))
            blocks.append(block)
    order = [rows[index] if index in rows else rows[firsts[tuple(call.prompt)]] for index, call in enumerate(calls)]
    return _Block.joined(blocks).select(order), torch.cat(logits)[order]


def _keep_prefix(context: Context, prompt: Sequence[int]) -> None:
    """Drops what the prompt does not begin with; at least its last token is always read anew."""
    known, wanted = context.ids, list(prompt[:-1])
    if wanted[: len(known)] != known:
        pairs = zip(known, wanted, strict=False)
        same = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(known), len(wanted)))
        context.ids = known[:same]


def _feed_ragged(model: Any, block: _Block, suffixes: Sequence[Sequence[int]]) -> Tensor:
    """Reads suffixes of different lengths, padded on the left so that all end in the last column."""
    width = max(map(len, suffixes))
    ids = np.zeros((len(suffixes), width), np.int64)
    real = np.zeros((len(suffixes), width), np.bool_)
    for row, suffix in enumerate(suffixes):
        ids[row, width - len(suffix) :] = suffix
        real[row, width - len(suffix) :] = True
    return block.feed(model, torch.from_numpy(ids).to(model.device), real)


def _write(
    model: Any, block: _Block, logits: Tensor, calls: Sequence[Call], stop_ids: frozenset[int], version: int
) -> list[Completion]:
    """Samples until every call has met a stop token or its limit."""
    limits = [call.sampling.max_new_tokens for call in calls]
    numbers = np.zeros((len(calls), max(limits)))
    for index, call in enumerate(calls):
        numbers[index, : limits[index]] = uniforms(call.seed, call.drawn + limits[index])[call.drawn :]
    tokens: list[list[int]] = [[] for _ in calls]
    logps: list[list[float]] = [[] for _ in calls]
    rows, going = list(range(len(calls))), np.ones(len(calls), np.bool_)
    for step in range(max(limits)):
        uniform = torch.from_numpy(numbers[rows, step]).to(logits.device)
        ids, logp = draw(logits, uniform, calls[0].sampling)
        for row, (token, value) in enumerate(zip(ids.tolist(), logp.tolist(), strict=True)):
            if going[row]:
                number = rows[row]
                tokens[number].append(token)
                logps[number].append(value)
                if token in stop_ids or len(tokens[number]) == limits[number]:
                    going[row] = False
                    context = calls[number].context
                    context.ids = [*calls[number].prompt, *tokens[number][:-1]]
                    context.block, context.row = block, row
        if not going.any():
            break
        if going.sum() <= len(rows) // 2:
            kept = np.flatnonzero(going).tolist()
            block, ids = block.select(kept), ids[kept]
            rows, going = [rows[row] for row in kept], going[kept]
        logits = block.feed(model, ids.unsqueeze(1), going[:, None])
    if not np.isfinite([value for values in logps for value in values]).all():
        raise FloatingPointError("the model's logits are not finite: its weights have diverged or were loaded wrongly")
    ends = [Finish.STOP if ids[-1] in stop_ids else Finish.LENGTH for ids in tokens]
    return [
        Completion(tuple(ids), tuple(logp), end, (version,) * len(ids))
        for ids, logp, end in zip(tokens, logps, ends, strict=True)
    ]
