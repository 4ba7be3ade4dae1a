"""From [B,T] to one number, with global denominators.

Each function divides by `count`, the denominator of the whole batch, so that micro-batches add up to the loss of the
batch; without it, by that of its own rows. Rows without a token in the mask count nowhere. What lies outside of the
mask is never read: NaN there does no harm. float64 stays, bfloat16 and float16 become float32.

`token_mean` is DAPO's (Yu et al. 2025, arXiv:2503.14476); `sequence_mean` is GRPO's (Shao et al. 2024,
arXiv:2402.03300), where short rows weigh more per token; `dr_grpo` divides by a constant length (Liu et al. 2025,
arXiv:2503.20783).
"""

from __future__ import annotations

import torch
from retort.algos.base import Aggregate
from torch import Tensor


def lift(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _fold(total: Tensor, own: Tensor, count: Tensor | float | None) -> Tensor:
    divisor = torch.as_tensor(own if count is None else count, dtype=total.dtype, device=total.device)
    return total / divisor.clamp(min=1)


def _row_sums(x: Tensor, mask: Tensor) -> Tensor:
    return lift(x).masked_fill(~mask, 0).sum(-1)


def token_mean(x: Tensor, mask: Tensor, *, count: Tensor | float | None = None) -> Tensor:
    """Mean over tokens. `count`: tokens."""
    return _fold(_row_sums(x, mask).sum(), mask.sum(), count)


def sequence_mean(x: Tensor, mask: Tensor, *, count: Tensor | float | None = None) -> Tensor:
    """Mean over rows of each row's mean over tokens. `count`: rows."""
    return _fold((_row_sums(x, mask) / mask.sum(-1).clamp(min=1)).sum(), mask.any(-1).sum(), count)


def sequence_sum(x: Tensor, mask: Tensor, *, count: Tensor | float | None = None) -> Tensor:
    """Mean over rows of each row's sum over tokens. `count`: rows."""
    return _fold(_row_sums(x, mask).sum(), mask.any(-1).sum(), count)


def dr_grpo(x: Tensor, mask: Tensor, *, length: float, count: Tensor | float | None = None) -> Tensor:
    """`sequence_sum` over a constant `length` in tokens; bind it with `functools.partial`. `count`: rows."""
    if length <= 0:
        raise ValueError(f"expected a length above 0, found {length}")
    return sequence_sum(x, mask, count=count) / length


def count_of(aggregate: Aggregate, mask: Tensor) -> float:
    """The denominator that `aggregate` would use for `mask`, whatever aggregate it is.

    Over a constant, the aggregate with count 1 gives numerator alone and without count the quotient.
    """
    ones = torch.ones(mask.shape, dtype=torch.float64, device=mask.device)
    numerator = float(aggregate(ones, mask, count=1.0))
    return numerator / float(aggregate(ones, mask)) if numerator else 0.0
