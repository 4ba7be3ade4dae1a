"""Tokens a second of generation and of scoring: vLLM in this process against the embedded engine, on the same model.

Usage: .venv-vllm/bin/python benchmarks/engines.py [--model FOLDER] [--repeats N] [--threads N] [--requests N ...]

Each request is a prompt of 48 tokens of its own and is given exactly 64 more, no token being a stop. Scoring reads the
same 112 tokens and answers the log-probs of the last 64. The two engines take turns, and share the threads of torch.
Both are in float32. What a GPU does is not measured here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import measure
import numpy as np
import torch
from retort.agents.base import Prompt, Sampling
from retort.agents.chat import Chat
from retort.agents.engines import make_engine
from retort.agents.hf import HFPolicy, load_model

PROMPT, NEW = 48, 64


class Endless(Chat):
    """A chat in which nothing ends an answer, so that every request costs the same."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stop_ids = frozenset()


async def generated(policy: Any, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """What the policy says to all of them at once."""
    names = [str(number) for number in range(len(prompts))]
    for name in names:
        await policy.begin(name, None)
    calls = (
        policy.generate(Prompt(tuple(ids), ()), Sampling(max_new_tokens=NEW), episode=name, seed=number)
        for number, (name, ids) in enumerate(zip(names, prompts, strict=True))
    )
    done = await asyncio.gather(*calls)
    for name in names:
        await policy.end(name)
    assert all(len(item.token_ids) == NEW for item in done)
    return [item.token_ids for item in done]


async def scored(policy: Any, rows: Sequence[Sequence[int]]) -> Any:
    return await policy.score(rows, [range(PROMPT, PROMPT + NEW)] * len(rows))


def round_of(policy: Any, prompts: Sequence[Sequence[int]]) -> dict[str, tuple[float, float]]:
    """Tokens a second, and tokens a CPU second, of generating answers and of scoring them."""
    with measure.spending() as speaking:
        said = asyncio.run(generated(policy, prompts))
    speaking_took = speaking()
    rows = [[*ids, *answer] for ids, answer in zip(prompts, said, strict=True)]
    with measure.spending() as reading:
        asyncio.run(scored(policy, rows))
    reading_took = reading()
    new, read = len(rows) * NEW, len(rows) * (PROMPT + NEW)
    return {
        "generates": (new / speaking_took.wall, new / speaking_took.cpu),
        "scores": (read / reading_took.wall, read / reading_took.cpu),
    }


def compared(engines: dict[str, Any], count: int, repeats: int, draw: Any, size: int) -> dict[str, list[object]]:
    """A row of each table: `count` requests at once, the engines in turns."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for repeat in range(repeats + 1):
        for name, engine in engines.items():
            # A prompt that was read before would be found in a cache.
            told = round_of(engine, draw.integers(3, size, (count, PROMPT)).tolist())
            for verb, rates in told.items():
                if repeat:  # the first is a warm-up
                    found.setdefault((verb, name), []).append(rates)
    middle = {key: [measure.median(column) for column in zip(*rates, strict=True)] for key, rates in found.items()}
    rows: dict[str, list[object]] = {}
    for verb in ("generates", "scores"):
        (own, own_cpu), (other, other_cpu) = middle[verb, "embedded"], middle[verb, "vLLM"]
        rows[verb] = [count, own, other, other / own, own_cpu, other_cpu, other_cpu / own_cpu]
    return rows


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 128])
    args = parser.parse_args()
    model = measure.cold_model(args.model)
    if args.threads:
        torch.set_num_threads(args.threads)
    chat = Endless.load(model)
    with closing(make_engine("vllm", model, chat, arguments={})) as apart:
        print(f"{args.repeats} repeats, torch threads: {torch.get_num_threads()}, vLLM {version()}")
        engines = {"embedded": HFPolicy(load_model(model), chat, name=model), "vLLM": apart}
        draw, size = np.random.default_rng(0), len(chat.tokenizer)
        rows = [compared(engines, count, args.repeats, draw, size) for count in args.requests]
    header = ("requests at once", "embedded, tokens/s", "vLLM", "ratio", "embedded, tokens per CPU s", "vLLM", "ratio")
    for verb, title in (("generates", "Generation"), ("scores", "Scoring, tokens read")):
        print(f"\n{title}:")
        measure.table(header, [row[verb] for row in rows])


def version() -> str:
    import vllm

    return str(vllm.__version__)


if __name__ == "__main__":
    main()
