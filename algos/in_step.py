"""Whether the engine that sampled has the learner's weights: what both say of the tokens is held together.

Two programs that compute the same model differ by rounding: in float32 by at most 1e-4 nats on any token, in bfloat16
by 0.05 on average. Anything more means other weights, another temperature or other settings, and training would go on
from log-probs of a policy that nobody has.
"""

from __future__ import annotations

import numpy as np
import torch
from retort.agents.base import EngineError
from retort.algos.base import TokenBatch
from retort.algos.batch import Rows
from retort.algos.config import TrainConfig

LIMITS = {"float32": 5e-3, "bfloat16": 0.2}  # nats: the largest distance in float32, the mean distance in bfloat16


def check_in_step(batch: TokenBatch, rows: Rows, config: TrainConfig) -> None:
    """Compares `proximal_logp` with `behaviour_logp` on the tokens that the current version sampled.

    Raises:
        EngineError: they are further apart than rounding makes them.
    """
    if config.engine == "hf":
        return
    current = torch.from_numpy(np.concatenate([row.version[row.mask] for row in rows.rows]) == batch.step)
    apart = (batch.proximal_logp - batch.behaviour_logp)[batch.mask][current].abs()
    if not len(apart):
        return
    exact = config.learner.dtype == "float32"
    limit = config.gap_limit or LIMITS[config.learner.dtype]
    found = (apart.max() if exact else apart.mean()).item()
    if not found <= limit:
        raise EngineError(
            f"the engine {config.engine} is out of step at version {batch.step}: the learner's log-probs of its tokens "
            f"are {found:.3g} nats off ({'at most' if exact else 'on average'}), expected {limit:g}; it has other "
            "weights, or samples otherwise than it says (gap_limit sets what is allowed)"
        )
