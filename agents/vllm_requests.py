"""What is asked of vLLM, and how its answers are read: alike in this process and over HTTP.

Scores come from `prompt_logprobs`: of each position the token that stands there, and the k likeliest. What vLLM cannot
give (other tokens that are named, the entropy, another temperature than 1) is refused; a score that is missing, not
finite, or of another token is NaN, which takes the token out of every loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from retort.agents.base import Completion, ContextFull, EnvironmentFault, Finish, Sampling, TokenScores

MOST = 64  # top entries that a server is asked for; beyond this the answers weigh more than the work
LEAST_LOGP = -9000.0  # servers write -9999 for minus infinity
Entry = Sequence[tuple[int, float]]  # (token id, log-prob): the token that stands there, then others by rank


def to_sample(sampling: Sampling, stop_ids: frozenset[int], seed: int, room: int) -> dict[str, Any]:
    """Fields of `SamplingParams`. All that changes the distribution is named, since servers have defaults of their own.

    room: tokens that the context has left.

    Raises:
        ContextFull: it has none.
    """
    if room < 1:
        raise ContextFull("the prompt fills the engine's context")
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": min(sampling.max_new_tokens, room),
        "seed": seed % 2**63,
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,  # the chat's stop tokens are all there are
        "logprobs": 0,
        "detokenize": False,
    }


def to_score(k: int) -> dict[str, Any]:
    """Fields of `SamplingParams` that score a prompt. One token is sampled beside: none is refused."""
    return {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": k, "detokenize": False, "ignore_eos": True}


def to_read(sequence: Sequence[int], positions: Sequence[int], context: int) -> list[int]:
    """The tokens to send for scores of `positions`; none where that is more than the context takes with one more."""
    stop = int(max(positions, default=-1)) + 1
    return [int(number) for number in sequence[:stop]] if stop < context else []


def completion(
    ids: Sequence[int], logp: Sequence[float], versions: Sequence[int], sampling: Sampling, *, stopped: bool
) -> Completion:
    """What was sampled. Greedy choices have log-prob 0, as everywhere here.

    Raises:
        EnvironmentFault: a sampled token has no log-prob.
    """
    told = [0.0] * len(ids) if sampling.temperature == 0 else list(logp)
    if len(told) != len(ids) or len(versions) != len(ids) or not ids:
        raise EnvironmentFault(f"the engine sampled {len(ids)} tokens with {len(told)} log-probs")
    if any(not LEAST_LOGP < value <= 1e-3 for value in told):
        raise EnvironmentFault("the engine gave no log-prob to a token that it sampled")
    return Completion(tuple(ids), tuple(told), Finish.STOP if stopped else Finish.LENGTH, tuple(versions))


def refuse(name: str, *, ids: Any, k: int, entropy: bool, temperature: float) -> None:
    """Raises NotImplementedError for scores that vLLM cannot give, with the nearest that it can."""
    asked = {
        "chosen vocabulary ids (a student's support)": ids is not None,
        "the entropy": entropy,
        f"temperature {temperature}": temperature != 1.0,
        f"the top {k}": k > MOST,
    }
    if found := [what for what, wanted in asked.items() if wanted]:
        raise NotImplementedError(
            f"{name} cannot score {' and '.join(found)}; nearest: sampled tokens and at most the top {MOST}, at "
            "temperature 1, or a model in this process"
        )


def scores(
    tokens: Sequence[int], positions: Sequence[int], entry: Callable[[int], Entry | None], k: int
) -> TokenScores:
    """Scores of `positions`. entry: what the engine answered for one, or None.

    rest_logp is one minus what was listed, so no finer than float32 sums are: about 1e-6 of the mass.
    """
    size = len(positions)
    logp = np.full(size, np.nan, np.float32)
    top_ids, top_logp = np.zeros((size, k), np.int64), np.full((size, k), np.nan, np.float32)
    for row, position in enumerate(positions):
        found = entry(int(position))
        if not found or found[0][0] != tokens[position] or not LEAST_LOGP < found[0][1] <= 1e-3:
            continue
        others = found[1 : k + 1]
        if len(others) < k:
            continue
        logp[row] = found[0][1]
        if k:
            top_ids[row], top_logp[row] = zip(*others, strict=True)
    if not k:
        return TokenScores(logp)
    with np.errstate(divide="ignore"):
        rest = np.log(np.clip(1 - np.exp(top_logp.astype(np.float64)).sum(-1), 0, None))
    return TokenScores(logp, topk_ids=top_ids, topk_logp=top_logp, rest_logp=rest.astype(np.float32))


def entry_of_json(told: Mapping[str, Any] | None, token: int, k: int) -> Entry | None:
    """One position of a server's `prompt_logprobs`, whose keys are token ids as text."""
    if told is None or str(token) not in told:
        return None
    ranked = sorted((item["rank"], int(number), item["logprob"]) for number, item in told.items())
    others = [(number, logp) for rank, number, logp in ranked if rank <= k]
    return [(token, told[str(token)]["logprob"]), *others[:k]]
