"""Several teachers: each scores the tasks that are routed to it, and the next one where it fails.

A teacher teaches the tasks whose keys match one of its patterns. Who stands first in the configuration is asked first;
what it does not score goes to the next one that teaches the task, and has no teacher (NaN) where none is left. A
teacher that failed is left alone for the rest of the step, and asked again in the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from retort.agents.base import EngineError, Int64, TokenScores
from retort.agents.chat import Chat
from retort.agents.payload import unscored
from retort.agents.rollout import run_loop
from retort.agents.scoring import pack
from retort.agents.teacher_http import TeacherDown
from retort.agents.teaching import MAKERS, TeacherSpec, Teaching

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What a teacher did in a step. asked, scored: tokens. seconds: of answered requests, together. failures: requests,
    or an empty sign of life. fallbacks: sequences that it scored and whoever stands before it did not.
    """

    requests: int = 0
    seconds: float = 0.0
    failures: int = 0
    fallbacks: int = 0
    asked: int = 0
    scored: int = 0

    def metrics(self, version: str) -> dict[str, Any]:
        """For the log; what cannot be told is left out."""
        counts = {"requests": self.requests, "failures": self.failures, "fallbacks": self.fallbacks}
        known: dict[str, Any] = {**counts, "tokens": self.asked, "version": version}
        known |= {"seconds": self.seconds / self.requests} if self.requests else {}
        return known | ({"coverage": self.scored / self.asked} if self.asked else {})


@dataclass(frozen=True, eq=False)
class _Call:
    """What is to be scored, and what there is of it. by: who scored each sequence, "" is nobody. down: who failed."""

    sequences: Sequence[Int64]
    positions: Sequence[Int64]
    ids: Sequence[Int64] | None
    options: Mapping[str, Any]
    found: list[TokenScores]
    by: list[str]
    down: set[str] = field(default_factory=set)


class Pool:
    """Teachers by their names, in the order in which they are asked. by: who scored each sequence of the last call."""

    def __init__(self, specs: Mapping[str, TeacherSpec], teachers: Mapping[str, Teaching]) -> None:
        self.specs, self.teachers = specs, teachers
        self.by: list[str] = []
        self._tallies = {name: Tally() for name in teachers}

    @classmethod
    def make(cls, specs: Mapping[str, TeacherSpec], chat: Chat, device: str) -> Pool:
        """Each held against the student's chat. device: of weights in this process.

        Raises:
            UsageError: there is no such model.
            EngineError: nobody teaches there, or a teacher has another tokenizer or vocabulary.
        """
        return cls(specs, {name: MAKERS[spec.serves](spec, chat, device) for name, spec in specs.items()})

    def score(
        self,
        tasks: Sequence[str],
        sequences: Sequence[Int64],
        positions: Sequence[Int64],
        *,
        ids: Sequence[Int64] | None = None,
        entropy: bool = False,
        temperature: float = 1.0,
    ) -> list[TokenScores]:
        """See `Policy.score`. tasks: the key of each sequence's task. NaN where no teacher scored."""
        width = 0 if ids is None else max((rows.shape[1] for rows in ids), default=0)
        found = [unscored(len(where), width=width, entropy=entropy) for where in positions]
        options = {"entropy": entropy, "temperature": temperature}
        call = _Call(sequences, positions, ids, options, found, [""] * len(found))
        run_loop(lambda: self._score(tasks, call))
        self.by = call.by
        return call.found

    @property
    def provenance(self) -> str:
        """Who scored the sequences of the last call, in words."""
        counts = Counter(self.by)
        told = [f"{name} (version {self.teachers[name].version}): {counts[name]}" for name in self.specs]
        return f"views scored by {', '.join(told)}; by nobody: {counts['']}"

    def metrics(self) -> dict[str, dict[str, Any]]:
        """What each did since this was last asked, by its name."""
        found = {name: tally.metrics(self.teachers[name].version) for name, tally in self._tallies.items()}
        self._tallies, self.by = {name: Tally() for name in self.teachers}, []
        return found

    async def _score(self, tasks: Sequence[str], call: _Call) -> None:
        ways = [[name for name, spec in self.specs.items() if spec.teaches(task)] for task in tasks]
        await asyncio.gather(*(self._wake(name, call) for name in self.specs if any(name in way for way in ways)))
        for rank in range(len(self.specs)):
            dealt: dict[str, list[int]] = {}
            for row, way in enumerate(ways):
                if rank < len(way) and not call.by[row]:
                    dealt.setdefault(way[rank], []).append(row)
            # Who scores in this process holds its thread: the others come first, and do not wait for it.
            here = [name for name in dealt if self.teachers[name].here]
            await asyncio.gather(*(self._ask(name, dealt[name], rank, call) for name in dealt if name not in here))
            for name in here:
                await self._ask(name, dealt[name], rank, call)

    async def _wake(self, name: str, call: _Call) -> None:
        if not await self.teachers[name].wake():
            self._fail(name, call, "it shows no sign of life")

    def _fail(self, name: str, call: _Call, said: str) -> None:
        if name not in call.down:
            log.warning("the teacher %r is left alone for this step: %s", name, said)
        self._tallies[name].failures += 1
        call.down.add(name)

    async def _ask(self, name: str, rows: Sequence[int], rank: int, call: _Call) -> None:
        """Asks for some of the sequences, in requests of like lengths, one after the other."""
        self._tallies[name].asked += sum(len(call.positions[row]) for row in rows)
        if not (limit := self.teachers[name].request_tokens):
            await asyncio.gather(*(self._request(name, [row], rank, call) for row in rows))
            return
        for part in pack([int(call.positions[row].max(initial=0)) + 1 for row in rows], limit):
            await self._request(name, [rows[place] for place in part], rank, call)

    async def _request(self, name: str, rows: Sequence[int], rank: int, call: _Call) -> None:
        if name in call.down:
            return
        tally, start = self._tallies[name], time.perf_counter()
        ids = None if call.ids is None else [call.ids[row] for row in rows]
        sequences, positions = ([of[row] for row in rows] for of in (call.sequences, call.positions))
        try:
            told = await self.teachers[name].score(sequences, positions, ids=ids, **call.options)
        except (TeacherDown, EngineError) as error:
            self._fail(name, call, str(error))
            return
        tally.requests += 1
        tally.seconds += time.perf_counter() - start
        for row, scores in zip(rows, told, strict=True):
            if count := int(np.isfinite(scores.logp).sum()):
                call.found[row], call.by[row] = scores, name
                tally.scored += count
                tally.fallbacks += rank > 0
