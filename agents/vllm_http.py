"""vLLM servers as a policy: token ids go out and come back, with log-probs, and new weights are loaded by path.

Servers are started with `retort serve`, or with the arguments that `serving.command` gives. Before anything is played
each is held against the model and the chat that are here. What may pass (a busy server, a lost connection) is asked
again after a pause that doubles; an episode goes on with another server where its own has gone, and where none is left
it waits. A server that was started again has the weights of its folder: it is held against what is here once more, gets
the newest, and plays on. What it was asked is asked again, with the same seeds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from retort.agents import serving
from retort.agents import vllm_requests as requests
from retort.agents.base import Completion, EngineError, EnvironmentFault, Int64, Prompt, Sampling, TokenScores
from retort.agents.chat import Chat
from retort.agents.versions import Behind, Version
from retort.agents.vllm_server import SAMPLE, UNTRAINED, Down, Lost, Server, Serving
from retort.envs.base import TextEnv, UsageError

log = logging.getLogger(__name__)
NEAR = {"float32": 1e-2}  # mean nats between two ways to compute the same model; in other precisions:
NEAR_ELSE = 0.25
LOOK_S = 0.5  # between two looks for servers that are gone, while somebody waits for one
LOOK_AGAIN_S = 5.0  # while others play
TRIES = 8  # servers, one after another, that a request may outlive


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
        if self.options.transfer == "nccl":
            from retort.agents.nccl import check

            check()
        self.servers = [Server(url, self.options) for url in urls]
        self.chat, self.name, self._expected, self._follows = chat, name, expected, follows
        self.version, self._label = 0, ""
        self._shapes: serving.Shapes | None = None
        self._newest: Version | None = None
        self._wires: dict[str, Any] = {}
        self._lock = threading.RLock()  # an update and a look for servers that are back may come from two threads
        self._looked = 0.0
        contexts = []
        for server in self.servers:
            server.wait()
            contexts.append(server.meet(chat, expected, follows=follows))
        self.context = min(contexts)

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
            # An adapter comes on top of the weights that a server has, whatever it played before.
            if server.label() != UNTRAINED and not (server.adapters and serving.adapted(model)):
                continue
            told = _read(server.call("POST", "/inference/v1/generate", json=body), ids, at, 0).logp
            far = float(np.abs(told - own.logp.detach().cpu().numpy()).mean())
            if not far <= NEAR.get(dtype, NEAR_ELSE):
                raise EngineError(f"{server.url} has other weights than the learner: {far:.3g} nats apart on average")

    def update(self, model: Any, version: int) -> None:
        """See `Engine.update`: each server that is there takes the weights, from a folder in `shared` or by NCCL. Where
        none is, it waits for one.

        Raises:
            EngineError: none took them, or they are no weights of its model.
        """
        if self._shapes is not None:
            serving.check_shapes(serving.shapes(model), self._shapes)
        if not self.options.shared:
            raise UsageError("engine_args.shared: expected a folder that the servers can read, found none")
        newest = Version(model, version, self.chat, Path(self.options.shared).resolve())
        with self._lock:
            self._newest, self._label = newest, newest.label
            there = [server for server in self.servers if server.usable or server.healthy()]
            refused = [error for server in there if (error := self._mend(server, wire=True))]
            if len(refused) == len(self.servers):
                raise refused[-1]
        limit = time.monotonic() + self.options.start_s
        while not self._look():
            if time.monotonic() > limit:
                raise self._nobody()
            time.sleep(LOOK_S)
        with self._lock:
            newest.tidy()
            self.version = version

    def _mend(self, server: Server, *, wire: bool = False) -> EngineError | None:
        """Lets a server play that is there, with the newest weights; says why where it refuses. The lock is held.

        wire: weights may come straight from the learner, which waits.
        """
        back = not server.usable
        try:
            if back:
                self._cut(server)
                server.meet(self.chat, self._expected, follows=self._follows)
            if self._newest is not None:
                self._give(server, self._newest, wire)
        except Behind:
            return None
        except EngineError as error:
            server.usable = False
            self._cut(server)
            log.warning("%s is left out: %s", server.url, error)
            return error if server.healthy() else None
        server.usable = True
        if back:
            server.lives += 1
            log.warning("%s is back%s", server.url, f", with version {self._label}" if self._label else "")
        return None

    def _give(self, server: Server, newest: Version, wire: bool) -> None:
        if server.adapters and newest.adapted:
            bring = partial(server.take_adapter, newest.adapter())
        elif wire and self.options.transfer == "nccl":
            bring = partial(self._send, server, newest.model)
        else:
            bring = partial(server.take_whole, newest.whole())
        server.load(newest.label, bring)

    def _send(self, server: Server, model: Any) -> None:
        from retort.agents.nccl import Wire

        if server.url not in self._wires:
            self._wires[server.url] = Wire(server, model)
        self._wires[server.url].send()

    def _cut(self, server: Server) -> None:
        if (wire := self._wires.pop(server.url, None)) is not None:
            wire.close()

    def _look(self) -> bool:
        """Whether a server can be asked, after a look for those that were gone: who is back gets the newest weights.

        Raises:
            EngineError: all are there, and none can be used.
        """
        with self._lock:
            gone = [server for server in self.servers if not server.usable]
            if gone and time.monotonic() - self._looked >= LOOK_S:
                there = [server for server in gone if server.healthy()]
                refused = [error for server in there if (error := self._mend(server))]
                self._looked = time.monotonic()
                if len(refused) == len(self.servers):
                    raise refused[-1]
            return any(server.usable for server in self.servers)

    async def begin(self, episode: str, env: TextEnv) -> None:
        server = await self._server(episode)
        server.open.add(episode)
        await server.enter()

    async def end(self, episode: str) -> None:
        for server in self.servers:
            if episode in server.open:
                server.open.discard(episode)
                await server.leave()

    async def _server(self, episode: str | None) -> Server:
        """The one that an episode stays with, or the least busy. Where none is left it waits for one to be back.

        Raises:
            EngineError: none is after `start_s`.
        """
        limit = time.monotonic() + self.options.start_s
        while not (usable := [server for server in self.servers if server.usable]):
            if not await asyncio.to_thread(self._look):
                if time.monotonic() > limit:
                    raise self._nobody()
                await asyncio.sleep(LOOK_S)
        if len(usable) < len(self.servers) and time.monotonic() - self._looked > LOOK_AGAIN_S:
            self._looked = time.monotonic()
            asyncio.get_running_loop().run_in_executor(None, self.look)  # who plays is not held up
        own = [server for server in usable if episode in server.open]
        return own[0] if own else min(usable, key=lambda server: len(server.open))

    def look(self) -> bool:
        """Whether a server can be asked, after a look for those that were gone, which are held against what is here."""
        with suppress(EngineError):
            self._looked = 0.0
            return self._look()
        return False

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
        """From the episode's server, else from one that is left. One that has other weights than it must gets them, and
        is asked again.

        Raises:
            Down: a server that lives does not answer this request.
            EngineError: none is left, or what is asked ends every one.
        """
        for _ in range(TRIES):
            server = await self._server(episode)
            life = server.lives
            try:
                async with server.line():
                    answer = await server.ask(body)
                labels = {str(span["version"]) for span in answer["choices"][0].get("weight_versions") or ()}
                if not (foreign := sorted(filter(self._is_foreign, labels))):
                    return answer
                why = f"{server.url} has other weights now ({', '.join(foreign)})"
            except Lost as lost:
                why = str(lost)
            except Down as down:
                if await asyncio.to_thread(self._is_the_same, server, life):
                    raise  # it lives: this request alone is more than it can do
                why = str(down)
            if server.usable and server.lives == life:
                log.warning("left alone: %s", why)
                server.usable = False
        raise EngineError(f"a request was asked {TRIES} times, and each time its server went: {why}")

    def _is_the_same(self, server: Server, life: int) -> bool:
        """Whether a server was there all the time, with the weights that it was given."""
        with suppress(EngineError):
            return server.lives == life and server.healthy() and not self._is_foreign(server.label())
        return False

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


def _read(answer: Mapping[str, Any], sequence: Sequence[int], where: Sequence[int], k: int) -> TokenScores:
    told = answer.get("prompt_logprobs") or []

    def entry(position: int) -> requests.Entry | None:
        return requests.entry_of_json(told[position], int(sequence[position]), k) if position < len(told) else None

    return requests.scores(sequence, where, entry, k)


def _span(span: Mapping[str, Any]) -> range:
    return range(int(span["start"]), int(span["end"]))
