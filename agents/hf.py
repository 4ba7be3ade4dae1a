"""A transformers model in this process as a policy: batches whoever waits, keeps caches across turns, and scores.

Two ways to form a batch. With the barrier, a batch starts once every open episode of a cohort waits, in the order of
the episodes' names: the same episodes give the same batches, and so the same bits. Without it, whoever is ready goes,
for at most SLICE tokens before others may join: a long answer holds nobody up. Runs agree up to float rounding.

The model runs in the thread of the event loop, which waits for it: torch keeps a team of workers for every thread that
calls it, and two teams on the same cores make both twice as slow. Environments run in threads of their own meanwhile.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import torch
from retort.agents.base import Completion, EngineError, Finish, Int64, Prompt, Sampling, TokenScores
from retort.agents.chat import Chat
from retort.agents.decoding import Call, Context, generate
from retort.envs.base import TextEnv

SLICE = 32


@dataclass(eq=False)
class _Waiting:
    """A completion that an episode waits for, and what there is of it."""

    episode: str
    call: Call
    future: asyncio.Future[Completion]
    parts: list[Completion] = field(default_factory=list)

    def slice(self) -> Call:
        """The call for the next few tokens."""
        sampling = self.call.sampling
        return replace(self.call, sampling=replace(sampling, max_new_tokens=min(SLICE, sampling.max_new_tokens)))

    def take(self, part: Completion) -> bool:
        """Adds what was sampled; whether that was all, and the episode has its completion."""
        self.parts.append(part)
        call, count = self.call, len(part.token_ids)
        left = call.sampling.max_new_tokens - count
        if part.finish_reason is Finish.LENGTH and left and not self.future.done():
            self.call = replace(
                call,
                prompt=(*call.prompt, *part.token_ids),
                sampling=replace(call.sampling, max_new_tokens=left),
                drawn=call.drawn + count,
            )
            return False
        if not self.future.done():
            self.future.set_result(_joined(self.parts))
        return True


def _joined(parts: Sequence[Completion]) -> Completion:
    return Completion(
        tuple(token for part in parts for token in part.token_ids),
        tuple(logp for part in parts for logp in part.logp),
        parts[-1].finish_reason,
        tuple(version for part in parts for version in part.versions),
    )


class HFPolicy:
    """A model that plays.

    barrier: batch a whole cohort at once, for runs that repeat bit for bit. max_batch: rows in one forward pass.
    arithmetic: the precision to sample in, which is that of the learner's scores.
    cohorts: fixed halves of the episodes that take turns, one generating while the other acts; a runner deals its
        episodes to `policy.cohorts`, each of which is a policy. Setting `version` after an update forgets every cache.
    """

    def __init__(
        self,
        model: Any,
        chat: Chat,
        *,
        name: str,
        device: str | torch.device | None = None,
        barrier: bool = True,
        max_batch: int = 128,
        cohorts: int = 1,
        arithmetic: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if max_batch < 1 or cohorts < 1:
            raise ValueError(f"expected max_batch and cohorts of at least 1, found {max_batch} and {cohorts}")
        self.model = model if device is None else model.to(device)
        self.chat = chat
        self.name = name
        self.barrier = barrier
        self.arithmetic = arithmetic
        self.max_batch = max_batch
        self.cohorts: tuple[Cohort, ...] = tuple(Cohort(self) for _ in range(cohorts))
        self._version = 0

    @classmethod
    def load(cls, folder_or_name: str | Path, *, device: str = "cpu", dtype: str = "float32", **options: Any) -> Self:
        """The policy of a model folder or of a Hugging Face name; `options` as for the class."""
        chat = Chat.load(folder_or_name)
        return cls(load_model(folder_or_name, device=device, dtype=dtype), chat, name=str(folder_or_name), **options)

    @property
    def version(self) -> int:
        """Of the weights; every token carries the one that sampled it."""
        return self._version

    @version.setter
    def version(self, value: int) -> None:
        if held := [episode for cohort in self.cohorts for episode in cohort.open]:
            raise RuntimeError(f"the weights changed while {len(held)} episodes were open, {held[0]!r} among them")
        self._version = value

    def update(self, model: Any, version: int) -> None:
        """See `Engine.update`. The learner's model is the very one that plays here: nothing moves."""
        if model is not self.model:
            raise EngineError("expected the model that plays here, found another: make a policy of that one")
        self.version = version

    async def begin(self, episode: str, env: TextEnv) -> None:
        await self.cohorts[0].begin(episode, env)

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        return await self.cohorts[0].generate(prompt, sampling, episode=episode, seed=seed)

    async def end(self, episode: str) -> None:
        await self.cohorts[0].end(episode)

    async def score(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        *,
        ids: Sequence[Int64] | None = None,
        k: int = 0,
        entropy: bool = False,
        temperature: float = 1.0,
    ) -> list[TokenScores]:
        """See `Policy.score`."""
        from retort.agents.scoring import score_tokens, to_token_scores

        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                scored = score_tokens(
                    self.model, sequences, positions, ids=ids, k=k, entropy=entropy, temperature=temperature
                )
        finally:
            self.model.train(was_training)
        return [to_token_scores(item) for item in scored]

    def complete(self, calls: Sequence[Call]) -> list[Completion]:
        """Completes calls in order, `max_batch` at a time, those that sample alike together. Blocks."""
        done: list[Completion] = []
        for _, alike in groupby(calls, key=lambda call: replace(call.sampling, max_new_tokens=1)):
            rows = list(alike)
            for start in range(0, len(rows), self.max_batch):
                batch = rows[start : start + self.max_batch]
                with self.arithmetic():
                    done += generate(self.model, batch, self.chat.stop_ids, self._version)
        return done


class Cohort:
    """The episodes that are batched together. A policy in its own right."""

    def __init__(self, policy: HFPolicy) -> None:
        self._policy = policy
        self.open: dict[str, Context] = {}
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._policy.name

    @property
    def version(self) -> int:
        return self._policy.version

    async def begin(self, episode: str, env: TextEnv) -> None:
        if episode in self.open:
            raise ValueError(f"episode {episode!r} is already open: names must differ")
        self.open[episode] = Context()

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        call = Call(self.open[episode], prompt.token_ids, sampling, seed)
        waiting = _Waiting(episode, call, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._start()
        try:
            return await waiting.future
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def end(self, episode: str) -> None:
        self.open.pop(episode, None)
        self._start()

    async def score(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], **options: Any
    ) -> list[TokenScores]:
        return await self._policy.score(sequences, positions, **options)

    def _start(self) -> None:
        if self._running is None and self._ready():
            self._running = asyncio.get_running_loop().create_task(self._run())

    def _ready(self) -> bool:
        if not self._policy.barrier:
            return bool(self._waiting)
        if not self._waiting or len(self._waiting) < len(self.open):
            return False
        return {item.episode for item in self._waiting} >= set(self.open)

    async def _run(self) -> None:
        """One batch, then the next where it is ready."""
        await asyncio.sleep(0)  # whoever is about to ask in this round of the loop joins
        batch = self._batch()
        try:
            if batch:
                done = self._policy.complete([item.call if self._policy.barrier else item.slice() for item in batch])
                self._waiting += [item for item, part in zip(batch, done, strict=True) if not item.take(part)]
        except Exception as error:
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(error)
        finally:
            self._running = None
            self._start()

    def _batch(self) -> list[_Waiting]:
        """Takes those who go now, in the order of their episodes' names."""
        if not self._ready():
            return []
        batch, self._waiting = sorted(self._waiting, key=lambda item: item.episode), []
        return batch


@contextmanager
def old_names() -> Iterator[None]:
    """Where peft asks a model by names that transformers has replaced: its users can do nothing about the warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def load_model(folder_or_name: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A causal language model in evaluation mode. device "auto": a GPU where there is one.

    Raises:
        ValueError: an unknown dtype.
    """
    from transformers import AutoModelForCausalLM

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise ValueError(f"dtype: expected one of {', '.join(kinds)}, found {dtype!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and dtype != "float32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn(f"{dtype} on this CPU is 20 to 90 times slower than float32: it has no unit for it", stacklevel=2)
    model: Any
    if (Path(folder_or_name) / "adapter_config.json").is_file():
        # An adapter becomes part of the weights, so that the model can be trained and served like any other. What it
        # adapts may be an adapter's model itself, and another one on top must name it as its base.
        from peft import PeftConfig, PeftModel

        below = PeftConfig.from_pretrained(str(folder_or_name)).base_model_name_or_path
        base = load_model(below, dtype=dtype)
        with old_names():
            adapted: Any = PeftModel.from_pretrained(base, str(folder_or_name))
        model = adapted.merge_and_unload().requires_grad_(True)
        model.name_or_path = str(folder_or_name)
    else:
        model = AutoModelForCausalLM.from_pretrained(str(folder_or_name), dtype=kinds[dtype])
    return model.to(device).eval()
