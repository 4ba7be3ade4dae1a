"""Dr. GRPO: GRPO without the two divisions that favour easy questions and short failures.

    A = R - mean_group
    L = mean over rows of  sum over tokens of l_GRPO / length        length: one constant, in tokens

Source: Liu et al. 2025, arXiv:2503.20783. Changed: the mean is over rows, so that an episode which a
prefix break split into two counts twice in it. Left out: nothing that we know of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from retort.algos import grpo
from retort.algos.advantages import Scale


class DrGRPOOptions(grpo.GRPOOptions):
    """Those of GRPO; `length` should be the most tokens that an episode may sample."""

    scale: Scale = "none"
    aggregate: Literal["token_mean", "sequence_mean", "sequence_sum", "dr_grpo"] = "dr_grpo"


RECIPE = replace(grpo.RECIPE, options=DrGRPOOptions)
