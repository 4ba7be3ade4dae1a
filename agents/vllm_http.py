"""vLLM servers as a policy: token ids go out and come back, with log-probs, and new weights are loaded by path.

Servers are started with `retort serve`, or with the arguments that `serving.command` gives. Before anything is played
each is held against the model and the chat that are here. What may pass (a busy server, a lost connection) is asked
again after a pause that doubles; an episode goes on with another server where its own has gone, and only where none is
left does the run end. A server that was started again has the weights of its folder, and is left alone until the next
update.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from retort.agents import serving
from retort.agents import vllm_requests as requests
from retort.agents.base import (
    Completion,
    ContextFull,
    EngineError,
    EnvironmentFault,
    Int64,
    Prompt,
    Sampling,
    TokenScores,
)
from retort.agents.chat import PROBE, Chat
from retort.envs.base import TextEnv, UsageError, needed

log = logging.getLogger(__name__)
SAMPLE = "Say 3, then cat card.csv | wc -l > out.txt\nDone: \u00e9t\u00e9 100 % \U0001f642\t[x] {y}"
UNTRAINED = "default"  # what a server calls the weights that it was started with
PASSING = (408, 409, 425, 429)  # and all above 499
LONGEST_PAUSE_S = 10.0
NEAR = {"float32": 1e-2}  # mean nats between two ways to compute the same model; in other precisions:
NEAR_ELSE = 0.25


@dataclass(frozen=True)
class Serving:
    """How servers are asked.

    timeout_s: seconds for one answer. retries: of one request. concurrency: requests at once, on each server.
    start_s: seconds to wait for a server that starts. shared: a folder that the servers read too, for new weights.
    """

    timeout_s: float = 300.0
    retries: int = 4
    concurrency: int = 256
    start_s: float = 120.0
    shared: str = ""

    def __post_init__(self) -> None:
        for name, least in (("timeout_s", 0.001), ("retries", 0), ("concurrency", 1), ("start_s", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise UsageError(f"{name}: expected a number of at least {least}, found {value!r}")


class Down(RuntimeError):
    """A server that did not answer a request, after every attempt."""


class Server:
    """One server. version: of its weights, as far as is known here; usable: whether it may be asked."""

    def __init__(self, url: str, options: Serving) -> None:
        self.url, self.options = url.rstrip("/"), options
        self.usable = True
        self.open: set[str] = set()
        self._halfway = False  # weights that were not loaded to their end, which only another start mends
        self._client: Any = None
        self._gate = asyncio.Semaphore()
        self._users = 0

    async def enter(self) -> None:
        """Somebody is about to ask; connections stay open until the last one leaves."""
        if self._client is None:
            httpx = _httpx()
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.options.concurrency)
            self._client = httpx.AsyncClient(base_url=self.url, timeout=self.options.timeout_s, limits=limits)
            self._gate = asyncio.Semaphore(self.options.concurrency)
        self._users += 1

    async def leave(self) -> None:
        self._users -= 1
        if not self._users:
            client, self._client = self._client, None
            await client.aclose()

    @asynccontextmanager
    async def line(self) -> AsyncIterator[None]:
        """`enter` and `leave`."""
        await self.enter()
        try:
            yield
        finally:
            await self.leave()

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one generate request, asked again while that may help.

        Raises:
            Down: it did not answer.
            ContextFull: the prompt is too long for it.
            EngineError: it refuses the request.
        """
        said = ""
        for attempt in range(self.options.retries + 1):
            if attempt:
                await asyncio.sleep(min(LONGEST_PAUSE_S, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))
            try:
                async with self._gate:
                    response = await self._client.post("/inference/v1/generate", json=body)
                if response.status_code == 200:
                    answer: dict[str, Any] = response.json()
                    return answer
            except (_httpx().HTTPError, ValueError) as error:
                said = f"{type(error).__name__}: {error}"
                continue
            said = f"status {response.status_code}: {response.text[:300]}"
            if response.status_code < 500 and response.status_code not in PASSING:
                if "context length" in response.text or "max_model_len" in response.text:
                    raise ContextFull(said)
                raise EngineError(f"{self.url} refuses a request, {said}{_advice(response.text)}")
        raise Down(f"{self.url} did not answer {self.options.retries + 1} times: {said}")

    def call(self, method: str, path: str, *, timeout_s: float | None = None, **request: Any) -> Any:
        """One administrative request; blocks. What it answers, as JSON where it is that.

        Raises:
            EngineError: it fails.
        """
        httpx = _httpx()
        try:
            timeout = timeout_s or self.options.timeout_s
            response = httpx.request(method, f"{self.url}{path}", timeout=timeout, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            advice = _advice(response.text) if response.status_code != 404 else "; VLLM_SERVER_DEV_MODE=1 is needed"
            raise EngineError(f"{self.url}{path}: status {response.status_code}: {response.text[:300]}{advice}")
        return response.json() if response.headers.get("content-type", "").startswith("application/json") else None

    def healthy(self) -> bool:
        """Whether it says so now."""
        try:
            return bool(_httpx().get(f"{self.url}/health", timeout=5.0).status_code == 200)
        except (_httpx().HTTPError, _httpx().InvalidURL):
            return False

    def wait(self) -> None:
        """Until it is healthy. Raises EngineError when that takes more than `start_s`."""
        limit, told = time.monotonic() + self.options.start_s, False
        while not self.healthy():
            if not told:
                log.warning("waiting for a vLLM server at %s, up to %g s", self.url, self.options.start_s)
                told = True
            if time.monotonic() > limit:
                raise EngineError(f"no healthy vLLM server at {self.url}: start one with 'retort serve MODEL'")
            time.sleep(0.5)

    def label(self) -> str:
        """What it calls its weights."""
        return str(self.call("GET", "/weight_info")["weight_version"])

    def load(self, folder: Path, label: str) -> None:
        """Takes the weights in `folder` between two steps; what is open goes on with them, its keys computed again.

        Raises:
            EngineError: it failed, and cannot be used; if it broke off midway, not before it is started again.
        """
        try:
            if self._halfway and self.label() != UNTRAINED:
                raise EngineError(f"{self.url} was not started again")
            self.call("POST", "/pause", params={"mode": "keep"})
            self._halfway = True
            kwargs = {"weights_path": str(folder)}
            self.call("POST", "/collective_rpc", json={"method": "reload_weights", "kwargs": kwargs})
            if not self.call("POST", "/reset_prefix_cache", params={"reset_running_requests": True})["success"]:
                raise EngineError(f"{self.url} did not forget what the old weights have read")
            self.call("POST", "/update_weight_version", json={"new_version": label})
            self.call("POST", "/resume")
        except EngineError as error:
            self.usable = False
            advice = "; new weights stopped halfway: start this server again" if self._halfway else ""
            raise EngineError(f"{error}{advice}") from error
        self.usable, self._halfway = True, False


class VLLMServers:
    """A model that one server runs, or several; each episode stays with one as long as that lives.

    expected: the model that they must have been started with, as its path or name; None for any. follows: whether they
        get a learner's weights before they play; otherwise they must have those that they were started with.

    Raises:
        EngineError: a server is not there, has another model, tokenizer or template, holds a run's weights where it
            must not, or samples and tells otherwise than it must.
    """

    barrier = False

    def __init__(
        self,
        urls: Sequence[str],
        chat: Chat,
        *,
        name: str,
        expected: str | None,
        options: Serving | None = None,
        follows: bool = True,
    ) -> None:
        self.options = options or Serving()
        self.servers = [Server(url, self.options) for url in urls]
        self.chat, self.name, self._follows = chat, name, follows
        self.version, self._label = 0, ""
        self._shapes: serving.Shapes | None = None
        contexts = [self._meet(server, expected) for server in self.servers]
        self.context = min(contexts)

    def _meet(self, server: Server, expected: str | None) -> int:
        """Holds a server against what is here; how many tokens it reads."""
        server.wait()
        (card, *_) = server.call("GET", "/v1/models")["data"]
        label = server.label()
        if label != UNTRAINED and not self._follows:
            raise EngineError(
                f"{server.url} holds weights {label} of a run, expected those of {expected}: start it again"
            )
        if label == UNTRAINED and expected is not None and not _same(card, expected):
            raise EngineError(f"{server.url} serves the model {card['root']}, expected {expected}")
        for text in (SAMPLE, *_words(self.chat.tokenizer)):
            ids = server.call("POST", "/tokenize", json={"prompt": text, "add_special_tokens": False})["tokens"]
            if ids != (own := self.chat.tokenizer.encode(text, add_special_tokens=False)):
                place = next((n for n, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), 0)
                raise EngineError(
                    f"{server.url} has another tokenizer than the learner (digest {self.chat.tokenizer_digest}): it "
                    f"reads {text[:20]!r} with {ids[place : place + 3]}, expected {own[place : place + 3]}"
                )
        ids = server.call("POST", "/tokenize", json={"messages": PROBE, "add_generation_prompt": True})["tokens"]
        if ids != self.chat.prompt(PROBE):
            raise EngineError(
                f"{server.url} has another chat template than the learner (digest {self.chat.template_digest}); "
                "'retort serve MODEL' starts a server with this one"
            )
        wanted = {"temperature": 1.0, "top_k": 1, "max_tokens": 1, "logprobs": 0, "detokenize": False}
        answer = server.call("POST", "/inference/v1/generate", json={"token_ids": ids, "sampling_params": wanted})
        if answer["choices"][0]["logprobs"]["content"][0]["logprob"] < -1e-4:
            raise EngineError(f"{server.url} tells log-probs of another distribution than it samples from{_advice('')}")
        return int(card["max_model_len"])

    def close(self) -> None:
        """Servers live on."""

    def check(self, model: Any, dtype: str) -> None:
        """Whether servers that are as they were started have the weights of `model`, by what both say of a text. Every
        update must bring weights of these names and shapes.

        Raises:
            EngineError: they have others.
        """
        from retort.agents.scoring import score_tokens

        self._shapes = serving.shapes(model)
        ids = self.chat.prompt([{"role": "user", "content": SAMPLE}])
        at = list(range(1, len(ids)))
        (own,) = score_tokens(model, [ids], [at])
        body = {"token_ids": ids, "sampling_params": requests.to_score(0)}
        for server in self.servers:
            if server.label() != UNTRAINED:
                continue
            told = _read(server.call("POST", "/inference/v1/generate", json=body), ids, at, 0).logp
            far = float(np.abs(told - own.logp.detach().cpu().numpy()).mean())
            if not far <= NEAR.get(dtype, NEAR_ELSE):
                raise EngineError(f"{server.url} has other weights than the learner: {far:.3g} nats apart on average")

    def update(self, model: Any, version: int) -> None:
        """See `Engine.update`: writes the weights into `shared`, and has each server load them that is there.

        Raises:
            EngineError: none took them, or they are no weights of its model.
        """
        if self._shapes is not None:
            serving.check_shapes(serving.shapes(model), self._shapes)
        if not self.options.shared:
            raise EngineError("engine_args.shared: expected a folder that the servers can read, found none")
        self._label = str(version)
        place = Path(self.options.shared).resolve()
        folder = serving.save_served(model, self.chat, place / f"version-{version}")
        failed: EngineError | None = None
        for server in self.servers:
            if not server.usable and not server.healthy():
                continue
            try:
                server.load(folder, self._label)
            except EngineError as error:
                failed = error
                log.warning("left out until the next update: %s", error)
        if not any(server.usable for server in self.servers):
            raise failed or self._nobody()
        for old in place.glob("version-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        self.version = version

    async def begin(self, episode: str, env: TextEnv) -> None:
        server = self._choose()
        server.open.add(episode)
        await server.enter()

    async def end(self, episode: str) -> None:
        for server in self.servers:
            if episode in server.open:
                server.open.discard(episode)
                await server.leave()

    def _choose(self) -> Server:
        usable = [server for server in self.servers if server.usable]
        if not usable:
            raise self._nobody()
        return min(usable, key=lambda server: len(server.open))

    def _nobody(self) -> EngineError:
        return EngineError(f"no vLLM server is left of {', '.join(server.url for server in self.servers)}")

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        room = self.context - len(prompt.token_ids)
        wanted = requests.to_sample(sampling, self.chat.stop_ids, seed, room)
        body = {"token_ids": [int(number) for number in prompt.token_ids], "sampling_params": wanted}
        try:
            choice = (await self._answer(body, episode))["choices"][0]
        except Down as down:
            raise EnvironmentFault(str(down)) from down
        ids = choice["token_ids"]
        logp = [item["logprob"] for item in choice["logprobs"]["content"]]
        spans = choice["weight_versions"]
        versions = [int(span["version"]) if self._label else 0 for span in spans for _ in _span(span)]
        return requests.completion(ids, logp, versions, sampling, stopped=choice["finish_reason"] == "stop")

    async def _answer(self, body: Mapping[str, Any], episode: str | None = None) -> dict[str, Any]:
        """From the episode's server, else from one that is left. One that has other weights than it must is left alone.

        Raises:
            Down: a server that lives does not answer this request.
            EngineError: none is left.
        """
        while True:
            server = next((item for item in self.servers if item.usable and episode in item.open), None)
            server = server or self._choose()
            try:
                async with server.line():
                    answer = await server.ask(body)
            except Down:
                if server.usable and await asyncio.to_thread(server.healthy):
                    raise  # it lives: this request alone is more than it can do
                server.usable = False
                continue
            labels = {str(span["version"]) for span in answer["choices"][0].get("weight_versions") or ()}
            if not (foreign := sorted(filter(self._is_foreign, labels))):
                return answer
            if server.usable:
                log.warning("%s has other weights now (%s), and is left alone", server.url, ", ".join(foreign))
            server.usable = False

    def _is_foreign(self, label: str) -> bool:
        """Whether weights of that label must not play: a run's where it has none, the first ones after an update."""
        return not label.isdigit() if self._label else label != UNTRAINED and not self._follows

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
        """See `Policy.score`. What no server could score has no score."""
        requests.refuse(self.name, ids=ids, k=k, entropy=entropy, temperature=temperature)
        return await asyncio.gather(
            *(self._score(sequence, where, k) for sequence, where in zip(sequences, positions, strict=True))
        )

    async def _score(self, sequence: Sequence[int], where: Sequence[int], k: int) -> TokenScores:
        answer: dict[str, Any] = {}
        if read := requests.to_read(sequence, where, self.context):
            with suppress(Down):  # no score is not a score of 0: `scores` leaves NaN, which is counted
                answer = await self._answer({"token_ids": read, "sampling_params": requests.to_score(k)})
        return _read(answer, sequence, where, k)


def _words(tokenizer: Any) -> list[str]:
    """Texts that most of a vocabulary occurs in: what tokenizers with the same digest all read alike."""
    size = len(tokenizer)
    words = [tokenizer.decode([number]) for number in range(0, size, max(1, size // 8192))]
    return [" ".join(words[start : start + 1024]) for start in range(0, len(words), 1024)]


def _read(answer: Mapping[str, Any], sequence: Sequence[int], where: Sequence[int], k: int) -> TokenScores:
    told = answer.get("prompt_logprobs") or []

    def entry(position: int) -> requests.Entry | None:
        return requests.entry_of_json(told[position], int(sequence[position]), k) if position < len(told) else None

    return requests.scores(sequence, where, entry, k)


def _span(span: Mapping[str, Any]) -> range:
    return range(int(span["start"]), int(span["end"]))


def _same(card: Mapping[str, Any], expected: str) -> bool:
    """Whether a server's model is the one of that path or name. A folder that is not here is known by its last name."""
    names = {str(card["id"]), str(card["root"])}
    wanted = Path(expected)
    if expected in names or not wanted.is_dir():
        return expected in names
    if {str(wanted.resolve()), str(wanted)} & {str(Path(name).resolve()) for name in names}:
        return True
    here = [Path(name) for name in names if Path(name).is_dir()]
    if here:
        own = _weights(wanted)
        return bool(own) and any(_weights(folder) == own for folder in here)
    return wanted.resolve().name in {Path(name).name for name in names}


def _weights(folder: Path) -> dict[str, str]:
    """The digest of each file of weights."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _advice(said: str) -> str:
    return "" if "max_logprobs" in said else "; 'retort serve MODEL' starts a server with what is needed"


def _httpx() -> Any:
    return needed("httpx", "pip install 'retort-rl[train]'")
