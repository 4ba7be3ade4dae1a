"""Which teacher scores: from an entry of the table `teachers` to what a pool asks.

http://HOST:PORT    a model that `retort teach` serves
vllm:URL            a vLLM server; vllm:URL,URL for several with the same model
FOLDER, or NAME     a model folder or a Hugging Face name, with weights in this process
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator
from retort.agents.base import TokenScores
from retort.agents.card import Card, card_of, hold_tokenizer
from retort.agents.chat import Chat
from retort.agents.engines import check_engine, make_engine
from retort.agents.lookup import look_up
from retort.agents.teacher_http import REQUEST_TOKENS, TeacherServer

Score = Callable[..., Awaitable[list[TokenScores]]]


class TeacherSpec(BaseModel):
    """One teacher of a pool. model: as at the head of this file.

    tasks: patterns of task keys, such as "move/*". timeout_s, retries: of one request to a server; by default 120 s for
    each try and 2 more tries. dtype: of weights in this process, by default float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    tasks: tuple[str, ...] = Field(default=("*",), min_length=1)
    timeout_s: float | None = Field(default=None, gt=0)
    retries: int | None = Field(default=None, ge=0)
    dtype: Literal["float32", "bfloat16"] | None = None

    @property
    def serves(self) -> Literal["http", "vllm", "here"]:
        """Where its weights are."""
        if self.model.startswith(("http://", "https://")):
            return "http"
        return "vllm" if self.model.partition(":")[0] == "vllm" else "here"

    @property
    def patience(self) -> dict[str, Any]:
        """How a server is asked."""
        return {"timeout_s": self.timeout_s or 120.0, "retries": 2 if self.retries is None else self.retries}

    @model_validator(mode="after")
    def _can_be_meant(self) -> TeacherSpec:
        if self.serves == "vllm":
            check_engine(self.model)
            if ":" not in self.model:
                raise ValueError("expected vllm:URL for a vLLM server, or a folder for weights in this process")
        if self.serves == "here" and (self.timeout_s, self.retries) != (None, None):
            raise ValueError("timeout_s and retries are for servers; a model in this process takes neither")
        if self.serves != "here" and self.dtype is not None:
            raise ValueError("dtype is for a model in this process; a server has one of its own")
        return self

    def teaches(self, task: str) -> bool:
        """Whether the task of that key is routed to it."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


class Teaching(Protocol):
    """What a pool asks."""

    @property
    def here(self) -> bool:
        """Whether its weights are in this process, whose thread it holds while it scores."""
        ...

    @property
    def request_tokens(self) -> int:
        """Padded tokens of one request; with 0 each sequence is one, all of them at once."""
        ...

    @property
    def version(self) -> str:
        """Of its weights, as far as is known."""
        ...

    @property
    def score(self) -> Score:
        """See `Policy.score`. Raises TeacherDown or EngineError where it fails."""
        ...

    async def wake(self) -> bool:
        """A step begins: whether it may be asked."""
        ...


class Here:
    """A model in this process."""

    here, request_tokens = True, REQUEST_TOKENS

    def __init__(self, spec: TeacherSpec, chat: Chat, device: str) -> None:
        from retort.agents.hf import HFPolicy

        policy = HFPolicy.load(spec.model, device=device, dtype=spec.dtype or "float32", barrier=False)
        self.card = card_of(policy.model, policy.chat, spec.model)
        self.card.hold(chat, f"the teacher {spec.model}")
        self.version = self.card.version
        self.score: Score = policy.score

    async def wake(self) -> bool:
        return True


class Served:
    """vLLM servers, which batch by themselves: sampled tokens at temperature 1."""

    here, request_tokens = False, 0

    def __init__(self, spec: TeacherSpec, chat: Chat) -> None:
        engine: Any = make_engine(spec.model, None, chat, arguments=spec.patience)
        # Once they were met nobody waits for them to come back: the next teacher steps in.
        engine.options = replace(engine.options, start_s=0.0)
        self.version = ",".join(sorted({server.label() for server in engine.servers}))
        self.score: Score = engine.score
        self._look: Callable[[], bool] = engine.look

    async def wake(self) -> bool:
        return await asyncio.to_thread(self._look)


def _over_http(spec: TeacherSpec, chat: Chat) -> TeacherServer:
    server = TeacherServer(spec.model, **spec.patience)
    server.card.hold(chat, f"the teacher at {server.url}")
    return server


MAKERS: Mapping[str, Callable[[TeacherSpec, Chat, str], Teaching]] = {
    "http": lambda spec, chat, device: _over_http(spec, chat),
    "vllm": lambda spec, chat, device: Served(spec, chat),
    "here": Here,
}


def meet(specs: Mapping[str, TeacherSpec], chat: Chat) -> dict[str, Card]:
    """Holds what can be known of teachers before any weights are loaded against the student's chat; cards of servers.

    Raises:
        UsageError: there is no such model.
        EngineError: nobody teaches there, or a teacher has another tokenizer or vocabulary.
    """
    cards = {}
    for name, spec in specs.items():
        if spec.serves == "http":
            cards[name] = _over_http(spec, chat).card
        elif spec.serves == "here":
            look_up(spec.model)
            hold_tokenizer(Chat.load(spec.model).tokenizer_digest, chat, f"the teacher {spec.model}")
    return cards
