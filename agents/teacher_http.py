"""A teacher that `retort teach` serves, asked in payloads and held to its card.

Each try of a request has `timeout_s` from the first byte to the last. What may pass (a lost connection, a busy server,
an answer that was damaged on its way) is asked again `retries` times, after a pause that doubles.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from retort.agents.base import EngineError, Int64, TokenScores
from retort.agents.card import Card
from retort.agents.payload import (
    PayloadError,
    Question,
    aligned,
    answer_from_bytes,
    question_to_bytes,
    unscored,
)
from retort.agents.scoring import MAX_TOKENS
from retort.envs.base import needed

log = logging.getLogger(__name__)
PASSING = (408, 425, 429)  # and all above 499
LONGEST_PAUSE_S = 10.0
SIGN_OF_LIFE_S = 5.0
REQUEST_TOKENS = 8 * MAX_TOKENS
START = "start one with 'retort teach MODEL'"


class TeacherDown(RuntimeError):
    """A teacher that did not score what it was asked, after every attempt."""


class TeacherServer:
    """One teacher at a URL. name: as its card has it. version: of the weights that answered last.

    Raises:
        EngineError: nobody teaches there.
    """

    here, request_tokens = False, REQUEST_TOKENS

    def __init__(self, url: str, *, timeout_s: float = 120.0, retries: int = 2) -> None:
        self.url, self.timeout_s, self.retries = url.rstrip("/"), timeout_s, retries
        self.card = self._card()
        self.name, self.version = self.card.model, self.card.version
        self._tokenizer = self.card.tokenizer
        self._failed = False

    def _card(self) -> Card:
        httpx, said = _httpx(), ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(_pause(attempt))
            try:
                response = httpx.get(f"{self.url}/card", timeout=self.timeout_s)
                if response.status_code == 200:
                    return Card.from_json(response.json())
                said = f"status {response.status_code}: {response.text[:200]}"
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                said = f"{type(error).__name__}: {error}"
        raise EngineError(f"no teacher at {self.url} ({said}); {START}")

    async def wake(self) -> bool:
        """Whether it may be asked: one that failed must show first that it lives."""
        if not self._failed:
            return True
        try:
            async with self._client() as client, asyncio.timeout(min(SIGN_OF_LIFE_S, self.timeout_s)):
                self._failed = (await client.get("/health")).status_code != 200
        except (_httpx().HTTPError, TimeoutError):
            return False
        return not self._failed

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
        """See `Policy.score`, as one request. What is longer than it reads has no score.

        Raises:
            NotImplementedError: by name, for what its card does not give.
            TeacherDown: it did not answer, or not to what it was asked.
        """
        wants = {"support": ids is not None, "entropy": entropy, "temperature": temperature != 1.0}
        refuse(self.name, self.card, [name for name, wanted in wants.items() if wanted])
        texts = [np.asarray(sequence, np.int64) for sequence in sequences]
        wheres = [np.asarray(where, np.int64) for where in positions]
        limit = self.card.context or max(map(len, texts), default=0)
        fits = [n for n, where in enumerate(wheres) if int(where.max(initial=0)) < limit]
        asked = Question(
            [texts[n] for n in fits],
            [wheres[n] for n in fits],
            None if ids is None else [ids[n] for n in fits],
            k,
            entropy,
            temperature,
        )
        width = k if ids is None else max((rows.shape[1] for rows in ids), default=0)
        found = [unscored(len(where), width=width, entropy=entropy) for where in wheres]
        for number, scores in zip(fits, await self._ask(asked) if fits else [], strict=True):
            found[number] = scores
        return found

    async def _ask(self, asked: Question) -> list[TokenScores]:
        body, said = question_to_bytes(asked), ""
        async with self._client() as client:
            for attempt in range(self.retries + 1):
                if attempt:
                    await asyncio.sleep(_pause(attempt))
                try:
                    async with asyncio.timeout(self.timeout_s):
                        response = await client.post("/score", content=body)
                    if response.status_code == 200:
                        return self._read(asked, response.content)
                except TimeoutError:
                    said = f"no answer in {self.timeout_s:g} s"
                    continue
                except (_httpx().HTTPError, PayloadError) as error:
                    said = f"{type(error).__name__}: {error}"
                    continue
                said = f"status {response.status_code}: {response.text[:300]}"
                if response.status_code < 500 and response.status_code not in PASSING:
                    break
        self._failed = True
        raise TeacherDown(f"{self.url}: {said}")

    def _read(self, asked: Question, content: bytes) -> list[TokenScores]:
        told = answer_from_bytes(content)
        if told.tokenizer != self._tokenizer:
            raise PayloadError(f"another tokenizer answers now: expected {self._tokenizer}, found {told.tokenizer}")
        if told.version != self.version:
            log.warning("the teacher at %s has other weights now: %s, and had %s", self.url, told.version, self.version)
            self.version = told.version
        return aligned(asked, told)

    def _client(self) -> Any:
        # Without https there is nothing to verify, and no need to read certificates for it.
        verify = self.url.startswith("https")
        return _httpx().AsyncClient(base_url=self.url, timeout=self.timeout_s, verify=verify)


def refuse(name: str, card: Card, wants: Collection[str]) -> None:
    """Raises NotImplementedError for what the card does not give, with the nearest that does."""
    if found := card.missing(wants):
        raise NotImplementedError(
            f"{name} cannot give {' and '.join(found)}; nearest: sampled tokens at temperature 1, or a model that "
            "'retort teach' serves with its own engine"
        )


def _pause(attempt: int) -> float:
    return min(LONGEST_PAUSE_S, 0.25 * 2.0**attempt) * random.uniform(0.5, 1.0)


def _httpx() -> Any:
    return needed("httpx", "pip install 'retort-rl[train]'")
