"""vLLM in this process, as a policy: it batches whoever waits, scores prompts, and follows a learner's weights.

The engine makes a step in the thread of the event loop, for whatever is open, and lets the episodes go on. Between two
steps its weights may change: each token carries the version of the step that sampled it, and the keys of what is open
are computed again. A reload that fails midway leaves vLLM unusable, so that the engine is then made anew.

For a server that runs elsewhere see `vllm_http.py`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

from retort.agents import serving
from retort.agents import vllm_requests as requests
from retort.agents.base import Completion, EngineError, EnvironmentFault, Int64, Prompt, Sampling, TokenScores
from retort.agents.chat import Chat
from retort.envs.base import TextEnv, UsageError, nearest


@dataclass(eq=False)
class _Asked:
    """A request and what there is of its answer."""

    future: asyncio.Future[Any]
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class VLLMPolicy:
    """A model that vLLM runs here.

    folder: of the model; `serving.servable` makes one that vLLM keeps in step. dtype: of weights and arithmetic.
    arguments: of vLLM's `EngineArgs`, such as `max_num_seqs` (the cap on concurrency) or `gpu_memory_utilization`.

    Raises:
        UsageError: vLLM takes no such argument.
        EngineError: this process has an engine already.
    """

    barrier = False
    _open = 0  # vLLM's process groups are global: whoever ends one engine ends them all

    def __init__(
        self,
        folder: str | Path,
        chat: Chat,
        *,
        name: str,
        dtype: str = "float32",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.chat, self.name, self.version = chat, name, 0
        self._numbers = count()
        self._asked: dict[str, _Asked] = {}
        self._running: asyncio.Task[None] | None = None
        self._lock = threading.Lock()  # an update may come from another thread than the steps
        self._arguments = {"dtype": dtype, **_defaults(), **(arguments or {})}
        self._shapes: serving.Shapes | None = None
        self._engine: Any = self._made(folder)
        self.context = int(self._engine.model_config.max_model_len)

    def update(self, model: Any, version: int) -> None:
        """See `Engine.update`. It may come between two steps of completions that are under way."""
        if self._shapes is not None:
            serving.check_shapes(serving.shapes(model), self._shapes)
        with self._lock:
            try:
                rpc = self._engine.model_executor.collective_rpc
                rpc("reload_weights", kwargs={"weights_iterator": self._weights(model)})
            except Exception as error:
                self._rebuild(model, error)
            # Keys and values of the old weights are forgotten, and those of open requests computed again.
            if not self._engine.reset_prefix_cache(reset_running_requests=True):
                raise EngineError("vLLM did not forget what the old weights have read")
            self.version = version

    def check(self, model: Any, dtype: str) -> None:
        """The folder that it was made from is the model's: its weights are those that every update must bring."""
        self._shapes = serving.shapes(model)

    def _weights(self, model: Any) -> Any:
        return serving.served(model)

    async def begin(self, episode: str, env: TextEnv) -> None:
        """Nothing to reserve: what episodes share is cached by its content."""

    async def end(self, episode: str) -> None:
        """Nothing is kept for an episode."""

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        room = self.context - len(prompt.token_ids)
        asked, output = await self._ask(prompt.token_ids, requests.to_sample(sampling, self.chat.stop_ids, seed, room))
        stopped = output.outputs[0].finish_reason == "stop"
        return requests.completion(asked.ids, asked.logp, asked.versions, sampling, stopped=stopped)

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
        """See `Policy.score`. What does not fit into the context has no score."""
        requests.refuse(self.name, ids=ids, k=k, entropy=entropy, temperature=temperature)
        return await asyncio.gather(
            *(self._score(sequence, where, k) for sequence, where in zip(sequences, positions, strict=True))
        )

    async def _score(self, sequence: Sequence[int], where: Sequence[int], k: int) -> TokenScores:
        flat: Any = None
        if read := requests.to_read(sequence, where, self.context):
            _, output = await self._ask(read, requests.to_score(k))
            flat = output.prompt_logprobs

        def entry(position: int) -> requests.Entry | None:
            if flat is None or position >= len(flat.start_indices):
                return None
            part = slice(flat.start_indices[position], flat.end_indices[position])
            return list(zip(flat.token_ids[part], flat.logprobs[part], strict=True))

        return requests.scores(sequence, where, entry, k)

    async def _ask(self, ids: Sequence[int], wanted: Mapping[str, Any]) -> tuple[_Asked, Any]:
        """The answer to one request: what was sampled, and vLLM's last word."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**wanted, output_kind=RequestOutputKind.DELTA, flat_logprobs=True)
        loop = asyncio.get_running_loop()
        asked, name = _Asked(loop.create_future()), str(next(self._numbers))
        with self._lock:
            self._engine.add_request(name, tokens_input([int(number) for number in ids]), params)
            self._asked[name] = asked
        if self._running is None:
            self._running = loop.create_task(self._run())
        try:
            return asked, await asked.future
        finally:
            with self._lock:
                if self._asked.pop(name, None) is not None:
                    self._engine.abort_request([name])

    async def _run(self) -> None:
        """Steps while anybody waits."""
        try:
            while self._asked:
                await asyncio.sleep(0)  # whoever is about to ask in this round of the loop joins
                with self._lock:
                    for output in self._engine.step() if self._asked else ():
                        self._take(output)
        except Exception as error:
            for asked in self._asked.values():
                _fail(asked.future, EngineError(f"vLLM failed: {type(error).__name__}: {error}"))
        finally:
            self._running = None

    def _take(self, output: Any) -> None:
        asked = self._asked.get(output.request_id)
        if asked is None or asked.future.done():
            return
        part = output.outputs[0]
        asked.ids += part.token_ids
        asked.versions += [self.version] * len(part.token_ids)
        if part.logprobs is not None:
            asked.logp += [part.logprobs.logprobs[start] for start in part.logprobs.start_indices]
        if output.finished:
            del self._asked[output.request_id]
            asked.future.set_result(output)

    def _made(self, folder: str | Path) -> Any:
        os.environ.update(serving.quiet())
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        known = [item.name for item in fields(EngineArgs)]
        for key in self._arguments:
            if key not in known:
                raise UsageError(f"vLLM takes no argument {key!r}; {nearest(key, known)}")
        if VLLMPolicy._open:
            raise EngineError("vLLM runs one engine in a process: close the first, or use a server (retort serve)")
        made = LLMEngine.from_engine_args(EngineArgs(model=str(folder), **self._arguments))
        VLLMPolicy._open += 1
        return made

    def _rebuild(self, model: Any, cause: Exception) -> None:
        """Makes the engine anew with the weights of `model`; completions that were under way are lost."""
        for asked in self._asked.values():
            lost = EnvironmentFault(f"the engine was made anew: {cause}")
            asked.future.get_loop().call_soon_threadsafe(_fail, asked.future, lost)
        self._asked.clear()
        self.close()
        with tempfile.TemporaryDirectory(prefix="retort-served-") as place:
            try:
                self._engine = self._made(serving.save_served(model, self.chat, Path(place) / "model"))
            except Exception as error:
                raise EngineError(f"the engine failed at new weights ({cause}), and to start again: {error}") from error

    def close(self) -> None:
        """Ends the engine and frees what it holds. May be called again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.engine_core.shutdown()
            VLLMPolicy._open -= 1
            del engine
            gc.collect()


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _defaults() -> dict[str, Any]:
    """Beside a learner on the same device. Without a GPU nothing can be compiled, and a request with a seed of its own
    breaks the engine where its prompt is read in parts: vLLM then sets back a generator that cannot go back."""
    import torch

    shared: dict[str, Any] = {
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": requests.MOST,
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if torch.cuda.is_available():
        return {**shared, "gpu_memory_utilization": 0.45}
    return {**shared, "enforce_eager": True, "enable_chunked_prefill": False, "max_num_seqs": 128}
