"""One forward pass over rows that begin alike, such as the episodes of a group: what they share is read once.

Rows with one beginning become the branches of a tree: first the trunk, then branch after branch. Trees lie one behind
the other in lines of one length, so that little is padding. Every token keeps the position that it had in its row, and
the attention mask lets it see its trunk and what stands before it in its own branch. The hidden states and gradients
are those of reading each row whole, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WORTH = 0.8  # of the arithmetic of reading whole rows: what trees must stay below


def hidden_states(backbone: nn.Module, tokens: Tensor, row: Tensor, at: Tensor) -> Tensor:
    """Hidden states [M,D] of the tokens before `at[m]` in row `row[m]` of `tokens` [B,T], padded on the right.

    row, at: [M], `at` from 1 to T-1. Trees are read only where that takes less than `WORTH` of the arithmetic, and by
    models whose attention is full in every layer and takes a mask.
    """
    count, width = tokens.shape
    trunk = torch.full((count,), width, device=tokens.device).scatter_reduce(0, row, at, "amin")
    stop = trunk.scatter_reduce(0, row, at, "amax", include_self=False)
    column = torch.arange(width, device=tokens.device)
    trunks, tree = torch.unique(torch.where(column < trunk[:, None], tokens, -1), dim=0, return_inverse=True)
    short, own = (trunks >= 0).sum(1), stop - trunk
    sizes = short.scatter_add(0, tree, own)
    line, place = (torch.tensor(part, device=tokens.device) for part in _lines(sizes.tolist()))
    lines, length = int(line.max()) + 1, int(sizes.max())
    narrow = 6 * backbone.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    gain = lines * length * (narrow + length) < WORTH * count * (width - 1) * (narrow + width)
    if not gain or not _takes_trees(backbone):
        hidden = backbone(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        return _pick(hidden, row, at - 1)
    # Where each branch starts: behind its trunk and the branches before it.
    start = (place + short)[tree] + (own * (tree[:, None] == tree).tril(-1)).sum(1)
    number = torch.arange(count + len(trunks), device=tokens.device)
    ids, position, name, root = torch.zeros((4, lines, length), dtype=torch.long, device=tokens.device)
    name -= 1  # padding sees padding
    # Trunks, then branches: what is written, which part of it, where, and what it and its trunk are called.
    for texts, part, lies, shift, called, below in (
        (trunks, column < short[:, None], line, place, number[count:], number[count:]),
        (
            tokens,
            (column >= trunk[:, None]) & (column < stop[:, None]),
            line[tree],
            start - trunk,
            number,
            count + tree,
        ),
    ):
        which, where = part.nonzero(as_tuple=True)
        target = lies[which], shift[which] + where
        ids[target], position[target] = texts[which, where], where
        name[target], root[target] = called[which], below[which]
    seen = name[:, None, :]
    mask = ((seen == name[:, :, None]) | (seen == root[:, :, None])).tril_()[:, None]
    hidden = backbone(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).last_hidden_state
    before, of = at - 1, tree[row]
    column = torch.where(before < trunk[row], place[of] + before, start[row] + before - trunk[row])
    return _pick(hidden, line[of], column)


def _lines(sizes: list[int]) -> tuple[list[int], list[int]]:
    """The line and the first column of each tree: longest first, each into the first line that has room."""
    room: list[int] = []
    line, place = [0] * len(sizes), [0] * len(sizes)
    for tree in sorted(range(len(sizes)), key=lambda tree: -sizes[tree]):
        found = next((number for number, left in enumerate(room) if left >= sizes[tree]), len(room))
        if found == len(room):
            room.append(max(sizes))
        line[tree], place[tree] = found, max(sizes) - room[found]
        room[found] -= sizes[tree]
    return line, place


def _pick(hidden: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return hidden.flatten(0, 1).index_select(0, row * hidden.shape[1] + column)


def _takes_trees(backbone: Any) -> bool:
    """Whether positions and a boolean mask say all: no windows, no recurrent state, no attention without a mask."""
    config = backbone.config.get_text_config()
    others = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    windows = getattr(config, "sliding_window", None) is not None
    state = getattr(backbone, "_is_stateful", False)
    return config._attn_implementation == "sdpa" and not (others or windows or state)
