"""A model behind an OpenAI-compatible endpoint, as a policy: text goes out, text comes in.

Its tokens are not ours, so what it writes is recorded through the chat that it is given (a byte chat will do), with
log-probs that are NaN; what the server counted stands in `usage`. An environment's tools are shown in a system message,
one JSON schema a line, as every model here sees them: an action is text, also where it calls a tool.

What may pass (a busy server, a lost connection, an answer that is none) is asked again after a pause that doubles, or
that the server names in Retry-After. An episode whose request failed for good is an infrastructure failure. Where the
endpoint answers nobody any more, `EndpointError` ends the evaluation, whose folder keeps what was played.

The key comes from the environment variable OPENAI_API_KEY, and is neither logged nor stored.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import nan
from typing import TYPE_CHECKING, Any

from retort.agents.base import (
    Completion,
    ContextFull,
    EnvironmentFault,
    Finish,
    Int64,
    Message,
    Prompt,
    Sampling,
    TokenScores,
    Usage,
)
from retort.agents.chat import Chat
from retort.agents.chatml import TOOLS
from retort.envs.base import TextEnv, UsageError, needed

if TYPE_CHECKING:
    import httpx

KEY = "OPENAI_API_KEY"
HOPELESS = (401, 403, 404, 405)  # wrong key, or wrong address
PASSING = (408, 409, 425, 429)  # and all above 499
LONGEST_REST_S = 600.0  # a server that asks for more than this is not waited for
LONGEST_PAUSE_S = 30.0


class EndpointError(UsageError):
    """The endpoint answers nobody; the message says what it says instead."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and how it may be asked.

    url: up to /v1, or whole. model: its name there. requests_per_minute: None is as fast as may be. retries: of one
    request. timeout_s: seconds for one answer. body: more fields of every request; one that is "" is left out of it.

    Raises:
        UsageError: an address or a number that cannot be used.
    """

    url: str
    model: str
    requests_per_minute: float | None = None
    retries: int = 6
    timeout_s: float = 300.0
    body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            address = _httpx().URL(self.url)
        except _httpx().InvalidURL as error:
            raise UsageError(f"expected openai:http://HOST/v1#NAME, found openai:{self.url}: {error}") from error
        if address.scheme not in ("http", "https") or not address.host or not self.model:
            raise UsageError(f"expected openai:http://HOST/v1#NAME, found openai:{self.url}#{self.model}")
        if address.userinfo:
            raise UsageError(f"the address of an endpoint is stored: put the key into {KEY}, not into the address")
        for name in ("requests_per_minute", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise UsageError(f"{name}: expected a number above 0, found {value!r}")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise UsageError(f"retries: expected a whole number of at least 0, found {self.retries!r}")
        if not isinstance(self.body, Mapping):
            raise UsageError(f"body: expected fields such as {{top_k=5}}, found {self.body!r}")

    @property
    def address(self) -> str:
        """Where completions are asked for. An address without a path gets /v1."""
        whole = _httpx().URL(self.url)
        path = whole.path.rstrip("/") or "/v1"
        return str(whole.copy_with(path=path if path.endswith("/chat/completions") else f"{path}/chat/completions"))


class _Trouble(Exception):
    """A request that failed. passing: it may be asked again. rest_s: seconds that the server wants to be left alone."""

    def __init__(self, said: str, *, passing: bool, hopeless: bool = False, rest_s: float | None = None) -> None:
        super().__init__(said)
        self.passing, self.hopeless, self.rest_s = passing, hopeless, rest_s


class OpenAIPolicy:
    """Plays by asking `endpoint`. Requests in flight are as many as episodes at once."""

    version = 0

    def __init__(self, endpoint: Endpoint, chat: Chat) -> None:
        self.endpoint = endpoint
        self.name = f"openai:{endpoint.url}#{endpoint.model}"
        self._chat = chat
        self._key = os.environ.get(KEY, "")
        self._client: httpx.AsyncClient | None = None
        self._open: set[str] = set()
        self._free_at = 0.0  # on the loop's clock: when the next request may go
        self._answered = False
        self._failed_in_a_row = 0

    async def begin(self, episode: str, env: TextEnv) -> None:
        self._open.add(episode)

    async def end(self, episode: str) -> None:
        """The connections close with the last episode."""
        self._open.discard(episode)
        if not self._open and self._client is not None:
            client, self._client, self._free_at = self._client, None, 0.0
            await client.aclose()

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        """What the endpoint answers.

        Raises:
            EndpointError: it answers nobody.
            EnvironmentFault: it did not answer this one.
            ContextFull: it says that the conversation is too long.
        """
        answer = await self._ask(self._body(prompt, sampling, seed))
        choice = answer["choices"][0]
        # JSON may hold half a character, which no file of ours can.
        text = (choice["message"].get("content") or "").encode(errors="replace").decode()
        cut = choice.get("finish_reason") == "length"
        ids = self._chat.action_ids(text)
        ids = ids[:-1] if cut else ids
        return Completion(
            tuple(ids),
            (nan,) * len(ids),
            Finish.LENGTH if cut else Finish.STOP,
            (self.version,) * len(ids),
            _usage(answer.get("usage")),
        )

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
        raise NotImplementedError(f"policy {self.name!r} is an endpoint whose tokens are not known here")

    def _body(self, prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, Any]:
        messages: list[Message] = list(prompt.messages)
        if prompt.tools:
            lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in prompt.tools)
            messages.insert(0, {"role": "system", "content": TOOLS + lines})
        fields = {
            "model": self.endpoint.model,
            "messages": messages,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**31,
            **self.endpoint.body,
        }
        return {name: value for name, value in fields.items() if value != ""}

    async def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        attempt = 0
        while True:
            await self._turn()
            try:
                answer = await self._once(body)
            except _Trouble as trouble:
                if not trouble.passing or attempt >= self._attempts(trouble):
                    raise self._given_up(trouble, attempt + 1) from trouble
                await self._rest(trouble, attempt)
                attempt += 1
            else:
                self._answered, self._failed_in_a_row = True, 0
                return answer

    async def _turn(self) -> None:
        """Waits until the next request may go."""
        clock = asyncio.get_running_loop().time
        while (wait := self._free_at - clock()) > 0:
            await asyncio.sleep(wait)
        if self.endpoint.requests_per_minute is not None:
            self._free_at = clock() + 60.0 / self.endpoint.requests_per_minute

    async def _rest(self, trouble: _Trouble, attempt: int) -> None:
        """Waits before the next attempt. What the server asks for holds for all episodes."""
        if trouble.rest_s:
            self._free_at = max(self._free_at, asyncio.get_running_loop().time() + trouble.rest_s)
        else:
            await asyncio.sleep(min(LONGEST_PAUSE_S, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))

    async def _once(self, body: Mapping[str, Any]) -> dict[str, Any]:
        httpx = _httpx()
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            limits = httpx.Limits(max_connections=None)
            self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=self.endpoint.timeout_s)
        try:
            response = await self._client.post(self.endpoint.address, json=body)
        except httpx.HTTPError as error:
            raise _Trouble(self._safe(f"{type(error).__name__}: {error}"), passing=True) from error
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            answer: dict[str, Any] = response.json()
            content = answer["choices"][0]["message"].get("content")
            if not isinstance(content, str | None):
                raise TypeError(f"content is {type(content).__name__}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            said = f"expected a chat completion, found {response.text[:200]!r} ({type(error).__name__})"
            raise _Trouble(self._safe(said), passing=True) from error
        return answer

    def _refusal(self, response: httpx.Response) -> Exception:
        status, said = response.status_code, response.text
        if status == 400 and ("context_length" in said or "context length" in said):
            return ContextFull(self._safe(said[:200]))
        rest = _rest_s(response.headers.get("Retry-After"))
        passing = (status in PASSING or status >= 500) and (rest is None or rest <= LONGEST_REST_S)
        where = f" after {rest:.0f} s" if rest is not None else ""
        said = f"status {status} from {self.endpoint.address}{where}: {said[:300]}"
        return _Trouble(self._safe(said), passing=passing, hopeless=status in HOPELESS, rest_s=rest)

    def _attempts(self, trouble: _Trouble) -> int:
        """How often a request may be repeated: an address where nobody ever answered, not for minutes."""
        unreachable = isinstance(trouble.__cause__, _httpx().ConnectError)
        return min(self.endpoint.retries, 2) if unreachable and not self._answered else self.endpoint.retries

    def _given_up(self, trouble: _Trouble, attempts: int) -> Exception:
        self._failed_in_a_row += 1
        # Two rounds of all open episodes without one answer: nobody is there any more.
        most = max(8, 2 * len(self._open)) if self._answered else 3
        if self._failed_in_a_row >= most or (trouble.hopeless and not self._answered):
            advice = f"; the key is read from {KEY}" if trouble.hopeless else ""
            return EndpointError(f"{self.endpoint.address} does not answer: {trouble}{advice}")
        return EnvironmentFault(f"endpoint, {attempts} attempts: {trouble}")

    def _safe(self, said: str) -> str:
        return said.replace(self._key, "***") if self._key else said


def _httpx() -> Any:
    return needed("httpx", "pip install 'retort-rl[train]'")


def _usage(told: Any) -> Usage | None:
    try:
        return Usage(int(told["prompt_tokens"]), int(told["completion_tokens"]))
    except (TypeError, KeyError, ValueError):
        return None  # servers need not count


def _rest_s(header: str | None) -> float | None:
    """The seconds that Retry-After asks for, a number or a date; None where it asks for none."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
