"""vLLM in this process, as a policy: it batches whoever waits, scores prompts, and follows a learner's weights.

The engine makes a step in the thread of the event loop, for whatever is open, and lets the episodes go on. Between two
steps its weights may change: each token carries the version of the step that sampled it, and the keys of what is open
are computed again. A step or a reload that fails leaves vLLM unusable: the engine is then made anew with the learner's
weights, and what was under way is asked again with its seeds.

With `enable_lora` an adapter goes over alone, and takes the place of the last one.

For a server that runs elsewhere see `vllm_http.py`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
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
from retort.agents.base import Completion, EngineError, Int64, Prompt, Sampling, TokenScores
from retort.agents.chat import Chat
from retort.envs.base import TextEnv, UsageError, nearest

log = logging.getLogger(__name__)
MENDS = 3  # times that an engine is made anew between two updates; one that always fails ends the run
PAUSE_S = 0.1  # between looks for an update that a broken engine waits for


@dataclass(eq=False)
class _Asked:
    """A request and what there is of its answer."""

    prompt: list[int]
    params: Any
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
        if self._arguments.get("enable_lora"):
            self._arguments.setdefault("lora_target_modules", serving.adaptable(folder))
        self._shapes: serving.Shapes | None = None
        self._held: serving.Held | None = None
        self._adapter: Any = None  # what requests name, once an adapter was loaded
        self._broken: Exception | None = None
        self._mended = 0
        self._engine: Any = self._made(folder)
        self.context = int(self._engine.model_config.max_model_len)

    def update(self, model: Any, version: int) -> None:
        """See `Engine.update`. It may come between two steps of completions that are under way."""
        if self._shapes is not None:
            serving.check_shapes(serving.shapes(model), self._shapes)
        held = serving.Held(model, version)
        with self._lock:
            self._held, self._mended = held, 0
            if self._broken is None:
                try:
                    self._load(model)
                except Exception as error:
                    self._broken = error
            if self._broken is not None:
                self._rebuild()
            # Keys and values of the old weights are forgotten, and those of open requests computed again.
            elif not self._engine.reset_prefix_cache(reset_running_requests=True):
                raise EngineError("vLLM did not forget what the old weights have read")
            self.version = version

    def _load(self, model: Any) -> None:
        if not self._takes_adapter(model):
            rpc = self._engine.model_executor.collective_rpc
            rpc("reload_weights", kwargs={"weights_iterator": self._weights(model)})
            self._adapter = None
            return
        with tempfile.TemporaryDirectory(prefix="retort-adapter-") as place:
            self._load_adapter(serving.save_adapter(model, Path(place) / "adapter"))

    def _load_adapter(self, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        if not self._engine.add_lora(LoRARequest(serving.ADAPTER, 1, str(folder), load_inplace=True)):
            raise EngineError("vLLM did not take the adapter")
        # Requests name it without `load_inplace`, with which vLLM would read it from its folder at every step.
        self._adapter = LoRARequest(serving.ADAPTER, 1, str(folder))

    def _takes_adapter(self, model: Any) -> bool:
        return bool(self._arguments.get("enable_lora")) and serving.adapted(model)

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
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**wanted, output_kind=RequestOutputKind.DELTA, flat_logprobs=True)
        loop = asyncio.get_running_loop()
        asked, name = _Asked([int(number) for number in ids], params, loop.create_future()), str(next(self._numbers))
        with self._lock:
            if self._broken is None:
                self._submit(name, asked)
            self._asked[name] = asked
        if self._running is None:
            self._running = loop.create_task(self._run())
        try:
            return asked, await asked.future
        finally:
            with self._lock:
                if self._asked.pop(name, None) is not None and self._broken is None:
                    self._engine.abort_request([name])

    def _submit(self, name: str, asked: _Asked) -> None:
        from vllm.inputs import tokens_input

        self._engine.add_request(name, tokens_input(asked.prompt), asked.params, lora_request=self._adapter)

    async def _run(self) -> None:
        """Steps while anybody waits."""
        try:
            while self._asked:
                # Whoever is about to ask in this round of the loop joins.
                await asyncio.sleep(0 if self._broken is None else PAUSE_S)
                with self._lock:
                    if self._asked:
                        self._step()
        except Exception as error:
            for asked in self._asked.values():
                _fail(asked.future, error)
        finally:
            self._running = None

    def _step(self) -> None:
        """One step of the engine, or of mending it. Raises EngineError where it cannot be mended."""
        outputs: Any = ()
        if self._broken is None:
            try:
                outputs = self._engine.step()
            except Exception as error:
                self._broken = error
        if self._broken is not None:
            self._rebuild()
        for output in outputs:
            self._take(output)

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

    def _rebuild(self) -> None:
        """Makes a broken engine anew with the learner's weights, and asks again what was under way. Where the learner
        has moved on from them, its next update does so.

        Raises:
            EngineError: it has no learner, does not start, or has failed too often.
        """
        cause = f"{type(self._broken).__name__}: {self._broken}"
        if self._held is None or self._mended >= MENDS:
            raise EngineError(f"vLLM failed: {cause}") from self._broken
        if not self._held.current():
            return
        self.close()
        model, apart = self._held.model, self._takes_adapter(self._held.model)
        with tempfile.TemporaryDirectory(prefix="retort-served-") as place:
            try:
                folder = serving.save_served(model, self.chat, Path(place) / "model", merged=not apart)
                adapter = serving.save_adapter(model, Path(place) / "adapter") if apart else None
                if not self._held.current():
                    return
                self._mended += 1
                log.warning("the engine is made anew with version %d, since it failed: %s", self._held.version, cause)
                self._engine, self._adapter = self._made(folder), None
                if adapter is not None:
                    self._load_adapter(adapter)
            except Exception as error:
                raise EngineError(f"the engine failed ({cause}), and to start again: {error}") from error
        self._broken = None
        for name, asked in self._asked.items():
            asked.ids, asked.logp, asked.versions = [], [], []
            self._submit(name, asked)

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
