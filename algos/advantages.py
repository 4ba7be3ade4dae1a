"""How much better an episode did than its group.

GRPO: Shao et al. 2024, arXiv:2402.03300, A = (R - mean) / (std + eps) with the unbiased std of the group.
Dividing by nothing (`scale="none"`) is Dr. GRPO's, Liu et al. 2025, arXiv:2503.20783.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]


def group_relative(
    reward: Tensor,
    group: Tensor,
    *,
    scale: Scale = "group",
    eps: float = 1e-6,
    episode: Tensor | None = None,
) -> Tensor:
    """[B] advantages from reward [B] and integer group [B].

    scale: divide by the std of the group, of the batch, or by nothing. A group of one or of equal rewards gets 0.
    episode: [B] integers; rows of one episode carry the same reward and count once.

    Raises:
        ValueError: a reward that is not finite, or an unknown scale.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"expected scale 'group', 'batch' or 'none', found {scale!r}")
    if not torch.isfinite(reward).all():
        raise ValueError(f"expected finite rewards, found {reward[~torch.isfinite(reward)].tolist()[:4]}")
    if not len(reward):
        return reward.float()
    r = reward.double()
    share = torch.ones_like(r)
    if episode is not None:
        _, which, rows = episode.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
        share = 1 / rows[which].double()
    names, index = group.unique(return_inverse=True)  # type: ignore[no-untyped-call]

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(len(names)).index_add_(0, index, x)

    def extreme(kind: str) -> Tensor:
        return r.new_zeros(len(names)).scatter_reduce_(0, index, r, kind, include_self=False)[index]

    episodes = total(share)
    centred = r - (total(share * r) / episodes)[index]
    # The mean of equal rewards may differ from them in the last bit, which a tiny std would blow up.
    centred = centred.masked_fill(extreme("amin") == extreme("amax"), 0)
    if scale == "group":
        variance = total(share * centred**2) / (episodes - 1).clamp(min=1)
        centred = centred / (variance.sqrt()[index] + eps)
    elif scale == "batch":
        mean = (share * r).sum() / share.sum()
        variance = (share * (r - mean) ** 2).sum() / (share.sum() - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)
    return centred.to(reward.dtype if reward.dtype == torch.float64 else torch.float32)
