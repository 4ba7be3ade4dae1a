"""One vLLM server: asked with patience, held against what is here, and given new weights between two of its steps."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.agents.base import ContextFull, EngineError
from retort.agents.chat import PROBE, Chat
from retort.agents.serving import ADAPTER
from retort.envs.base import UsageError, nearest, needed

log = logging.getLogger(__name__)
SAMPLE = "Say 3, then cat card.csv | wc -l > out.txt\nDone: \u00e9t\u00e9 100 % \U0001f642\t[x] {y}"
UNTRAINED = "default"  # what a server calls the weights that it was started with
PASSING = (408, 409, 425, 429)  # and all above 499
LONGEST_PAUSE_S = 10.0
TRANSFERS = ("path", "nccl")


@dataclass(frozen=True)
class Serving:
    """How servers are asked.

    timeout_s: seconds for one answer. retries: of one request. concurrency: requests at once, on each server.
    start_s: seconds to wait for a server that starts, or starts again. shared: a folder that the servers read too, for
    new weights. transfer: how these go over, by "path" or from GPU to GPU by "nccl".
    """

    timeout_s: float = 300.0
    retries: int = 4
    concurrency: int = 256
    start_s: float = 120.0
    shared: str = ""
    transfer: str = "path"

    def __post_init__(self) -> None:
        for name, least in (("timeout_s", 0.001), ("retries", 0), ("concurrency", 1), ("start_s", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise UsageError(f"{name}: expected a number of at least {least}, found {value!r}")
        if self.transfer not in TRANSFERS:
            raise UsageError(f"transfer: found {self.transfer!r}; {nearest(str(self.transfer), TRANSFERS)}")


class Down(RuntimeError):
    """A server that did not answer a request, after every attempt."""


class Lost(RuntimeError):
    """A server that has other weights than it was given: it was started again, or somebody else uses it."""


class Server:
    """One server.

    usable: whether it may be asked. lives: how often it was found again after it was gone. adapters: whether it takes
    an adapter apart from the weights.
    """

    def __init__(self, url: str, options: Serving) -> None:
        self.url, self.options = url.rstrip("/"), options
        self.usable, self.lives, self.adapters = True, 0, False
        self.open: set[str] = set()
        self._model = ""  # what requests name; the weights alone have no name
        self._halfway = False  # weights that were not loaded to their end, which only another start mends
        # A client takes long to make; a connection that is kept would be a dead one after a restart.
        self._admin = _httpx().Client(limits=_httpx().Limits(max_keepalive_connections=0))
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
            Lost: it does not know the adapter that it was given.
            ContextFull: the prompt is too long for it.
            EngineError: it refuses the request.
        """
        said, named = "", {"model": self._model} if self._model else {}
        for attempt in range(self.options.retries + 1):
            if attempt:
                await asyncio.sleep(min(LONGEST_PAUSE_S, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))
            try:
                async with self._gate:
                    response = await self._client.post("/inference/v1/generate", json={**body, **named})
                if response.status_code == 200:
                    answer: dict[str, Any] = response.json()
                    return answer
            except (_httpx().HTTPError, ValueError) as error:
                said = f"{type(error).__name__}: {error}"
                continue
            said = f"status {response.status_code}: {response.text[:300]}"
            if response.status_code == 404 and named:
                raise Lost(f"{self.url} does not have the adapter of this run, {said}")
            if response.status_code < 500 and response.status_code not in PASSING:
                if "context length" in response.text or "max_model_len" in response.text:
                    raise ContextFull(said)
                raise EngineError(f"{self.url} refuses a request, {said}{advice(response.text)}")
        raise Down(f"{self.url} did not answer {self.options.retries + 1} times: {said}")

    def call(self, method: str, path: str, *, timeout_s: float | None = None, **request: Any) -> Any:
        """One administrative request; blocks. What it answers, as JSON where it is that.

        Raises:
            EngineError: it fails.
        """
        httpx = _httpx()
        try:
            timeout = timeout_s or self.options.timeout_s
            response = self._admin.request(method, f"{self.url}{path}", timeout=timeout, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineError(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            hint = advice(response.text) if response.status_code != 404 else "; VLLM_SERVER_DEV_MODE=1 is needed"
            raise EngineError(f"{self.url}{path}: status {response.status_code}: {response.text[:300]}{hint}")
        return response.json() if response.headers.get("content-type", "").startswith("application/json") else None

    def healthy(self) -> bool:
        """Whether it says so now."""
        try:
            return bool(self._admin.get(f"{self.url}/health", timeout=5.0).status_code == 200)
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

    def load(self, label: str, bring: Callable[[], None]) -> None:
        """Takes new weights between two steps; what is open goes on with them, its keys computed again.

        bring: what has them loaded, such as `take_whole`, while nothing is computed.

        Raises:
            EngineError: it failed, and cannot be used; if it broke off midway, not before it is started again.
        """
        try:
            if self._halfway and self.label() != UNTRAINED:
                raise EngineError(f"{self.url} was not started again")
            self.call("POST", "/pause", params={"mode": "keep"})
            self._halfway, self._model = True, ""
            bring()
            if not self.call("POST", "/reset_prefix_cache", params={"reset_running_requests": True})["success"]:
                raise EngineError(f"{self.url} did not forget what the old weights have read")
            self.call("POST", "/update_weight_version", json={"new_version": label})
            self.call("POST", "/resume")
        except EngineError as error:
            hint = "; new weights stopped halfway: start this server again" if self._halfway else ""
            raise EngineError(f"{error}{hint}") from error
        self._halfway = False

    def take_whole(self, folder: Path) -> None:
        """Loads all weights from a folder."""
        kwargs = {"weights_path": str(folder)}
        self.call("POST", "/collective_rpc", json={"method": "reload_weights", "kwargs": kwargs})

    def take_adapter(self, place: Path) -> None:
        """Loads the adapter at `place`, which is the same for every version.

        With `load_inplace` vLLM would read the adapter from its folder at every step from then on, and requests that
        are open would go on with the folder they began with. So the adapter is forgotten, and its place read once more
        at the next step.
        """
        known = {card["id"]: card["root"] for card in self.call("GET", "/v1/models")["data"]}
        if known.get(ADAPTER) == str(place):
            (told, *_) = self.call("POST", "/collective_rpc", json={"method": "list_loras"})["results"]
            for number in re.findall(r"\d+", str(told)):
                self.call("POST", "/collective_rpc", json={"method": "remove_lora", "args": [int(number)]})
        else:
            if ADAPTER in known:
                self.call("POST", "/v1/unload_lora_adapter", json={"lora_name": ADAPTER})
            try:
                self.call("POST", "/v1/load_lora_adapter", json={"lora_name": ADAPTER, "lora_path": str(place)})
            except EngineError:
                self._halfway = False  # it refused the adapter, and is as it was
                self.call("POST", "/resume")
                raise
        self._model = ADAPTER

    def meet(self, chat: Chat, expected: str | None, *, follows: bool) -> int:
        """Holds it against what is here; how many tokens it reads.

        Raises:
            EngineError: it has another model, tokenizer or template, a run's weights where it must not, or samples and
                tells otherwise than it must.
        """
        (card, *_) = self.call("GET", "/v1/models")["data"]
        label = self.label()
        if label != UNTRAINED and not follows:
            raise EngineError(
                f"{self.url} holds weights {label} of a run, expected those of {expected}: start it again"
            )
        if label == UNTRAINED and expected is not None and not same(card, expected):
            raise EngineError(f"{self.url} serves the model {card['root']}, expected {expected}")
        if self.call("GET", "/is_paused")["is_paused"]:  # by a run that was killed in an update
            if not follows:
                raise EngineError(f"{self.url} is paused, as in the middle of an update: start it again")
            self.call("POST", "/resume")
        for text in (SAMPLE, *_words(chat.tokenizer)):
            ids = self.call("POST", "/tokenize", json={"prompt": text, "add_special_tokens": False})["tokens"]
            if ids != (own := chat.tokenizer.encode(text, add_special_tokens=False)):
                place = next((n for n, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), 0)
                raise EngineError(
                    f"{self.url} has another tokenizer than the learner (digest {chat.tokenizer_digest}): it reads "
                    f"{text[:20]!r} with {ids[place : place + 3]}, expected {own[place : place + 3]}"
                )
        ids = self.call("POST", "/tokenize", json={"messages": PROBE, "add_generation_prompt": True})["tokens"]
        if ids != chat.prompt(PROBE):
            raise EngineError(
                f"{self.url} has another chat template than the learner (digest {chat.template_digest}); "
                "'retort serve MODEL' starts a server with this one"
            )
        wanted = {"temperature": 1.0, "top_k": 1, "max_tokens": 1, "logprobs": 0, "detokenize": False}
        answer = self.call("POST", "/inference/v1/generate", json={"token_ids": ids, "sampling_params": wanted})
        if answer["choices"][0]["logprobs"]["content"][0]["logprob"] < -1e-4:
            raise EngineError(f"{self.url} tells log-probs of another distribution than it samples from{advice('')}")
        self.adapters = follows and self._takes_adapters()
        return int(card["max_model_len"])

    def _takes_adapters(self) -> bool:
        """Whether it has the way to load one: a request that names none is then refused, and not unknown."""
        path, nameless = "/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}
        try:
            response = self._admin.post(f"{self.url}{path}", json=nameless, timeout=self.options.timeout_s)
        except _httpx().HTTPError as error:
            raise EngineError(f"{self.url}: {type(error).__name__}: {error}") from error
        return bool(response.status_code != 404)


def _words(tokenizer: Any) -> list[str]:
    """Texts that most of a vocabulary occurs in: what tokenizers with the same digest all read alike."""
    size = len(tokenizer)
    words = [tokenizer.decode([number]) for number in range(0, size, max(1, size // 8192))]
    return [" ".join(words[start : start + 1024]) for start in range(0, len(words), 1024)]


def same(card: Mapping[str, Any], expected: str) -> bool:
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


def advice(said: str) -> str:
    return "" if "max_logprobs" in said else "; 'retort serve MODEL' starts a server with what is needed"


def _httpx() -> Any:
    return needed("httpx", "pip install 'retort-rl[train]'")
