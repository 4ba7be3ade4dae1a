"""A teacher as a server: token ids in, log-probs out, in the payloads of `agents/payload.py`.

GET /health answers once the model is there; GET /card says who teaches and what it can give; POST /score scores. One
worker has the model: requests wait for one another, and each is batched by length within itself.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import numpy as np

from retort.agents.base import Policy, TokenScores
from retort.agents.card import Card, card_of
from retort.agents.chat import Chat
from retort.agents.engines import make_engine
from retort.agents.lookup import look_up
from retort.agents.payload import Answer, PayloadError, Question, answer_to_bytes, question_from_bytes
from retort.agents.rollout import run_loop
from retort.envs.base import UsageError, nearest

MOST_BYTES = 1 << 28  # of one request
PATHS = "GET /health, GET /card, POST /score"


@dataclass(frozen=True)
class Loaded:
    """Who teaches, as it introduces itself, and with what."""

    policy: Policy
    card: Card


def load_hf(model: str, dtype: str, device: str) -> Loaded:
    """A transformers model, which gives everything."""
    from safetensors import SafetensorError

    from retort.agents.hf import HFPolicy

    look_up(model)
    try:
        policy = HFPolicy.load(model, device=device, dtype=dtype, barrier=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"model {model!r} cannot be loaded: {error}") from error
    return Loaded(policy, card_of(policy.model, policy.chat, model))


def load_vllm(model: str, dtype: str, device: str) -> Loaded:
    """The same with vLLM, which scores sampled tokens at temperature 1 and knows no more of its weights than a name."""
    if device != "auto":
        raise UsageError(f"device {device!r} is for the engine hf; vLLM finds its own (CUDA_VISIBLE_DEVICES)")
    chat = Chat.load(model)
    made = make_engine("vllm", model, chat, dtype=dtype, follows=False, arguments={})
    entries = len(chat.tokenizer)
    card = Card(model, model, chat.tokenizer_digest, chat.template_digest, entries, made.context, ())
    return Loaded(made, card)


ENGINES: dict[str, Callable[[str, str, str], Loaded]] = {"hf": load_hf, "vllm": load_vllm}


class TeachServer(ThreadingHTTPServer):
    """Bound when it is made; it answers from `open` on.

    Raises:
        UsageError: the address cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__((host, port), Handler, bind_and_activate=False)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="retort-teacher")
        self.loaded: Loaded
        try:
            self.server_bind()
        except OSError as error:
            self.server_close()
            raise UsageError(f"cannot listen at {host}:{port}: {error}; --port 0 takes a free one") from error

    def server_bind(self) -> None:
        """As of any socket: nobody needs the host's name, and looking it up may take long."""
        TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def open(self, loaded: Loaded) -> None:
        """From now on connections are taken."""
        self.loaded = loaded
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def answer(self, asked: Question) -> bytes:
        """The scores, in the worker's thread."""
        card = self.loaded.card
        sequences, positions = ([row.tolist() for row in rows] for rows in (asked.sequences, asked.positions))
        scores: list[TokenScores] = run_loop(
            lambda: self.loaded.policy.score(
                sequences,
                positions,
                ids=asked.ids,
                k=asked.k,
                entropy=asked.entropy,
                temperature=asked.temperature,
            )
        )
        token_ids = [ids[where] for ids, where in zip(asked.sequences, asked.positions, strict=True)]
        return answer_to_bytes(Answer(card.model, card.version, card.tokenizer, asked.positions, token_ids, scores))


class Handler(BaseHTTPRequestHandler):
    """One request of one client."""

    server: TeachServer
    timeout = 60  # seconds that a client may keep silent amid its request

    def do_GET(self) -> None:
        card = json.dumps(self.server.loaded.card.to_json())
        found = {"/health": (200, "ok", "text/plain"), "/card": (200, card, "application/json")}
        self.say(*found.get(self.path, (404, f"{self.path}: expected {PATHS}", "text/plain")))

    def do_POST(self) -> None:
        status, body = self.responded() if self.path == "/score" else (404, f"{self.path}: expected {PATHS}")
        if body is not None:
            self.say(status, body, "application/octet-stream" if isinstance(body, bytes) else "text/plain")

    def responded(self) -> tuple[int, str | bytes | None]:
        """Status and body of the answer to a question."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            return 411, "expected a Content-Length, found none"
        if int(length) > MOST_BYTES:
            return 413, f"expected at most {MOST_BYTES} bytes, found {length}: ask for fewer sequences at once"
        try:
            asked = question_from_bytes(self.rfile.read(int(length)))
            check(asked, self.server.loaded.card)
            return 200, self.server.worker.submit(self.scored, asked).result()
        except (PayloadError, NotImplementedError, UsageError) as error:
            return 400, str(error)
        except Exception as error:  # whatever a model may raise is told to who asked, and the next is served
            return 500, f"{type(error).__name__}: {error}"

    def scored(self, asked: Question) -> bytes | None:
        """The answer; none where the client has gone meanwhile, having lost patience."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        if ready and not self.connection.recv(1, socket.MSG_PEEK):
            return None
        return self.server.answer(asked)

    def say(self, status: int, body: str | bytes, kind: str) -> None:
        """One answer, after which the connection ends."""
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not told."""


def check(asked: Question, card: Card) -> None:
    """Whether a question can be answered.

    Raises:
        PayloadError: it asks for what the teacher does not give, or for tokens that it does not know or read.
    """
    wants = {"support": asked.ids is not None, "entropy": asked.entropy, "temperature": asked.temperature != 1}
    if missing := card.missing([name for name, wanted in wants.items() if wanted]):
        raise PayloadError(f"this teacher cannot give {' and '.join(missing)}")
    if asked.k > card.vocabulary:
        raise PayloadError(f"k: expected at most the vocabulary's {card.vocabulary}, found {asked.k}")
    for number, sequence in enumerate(asked.sequences):
        if card.context is not None and len(sequence) > card.context:
            raise PayloadError(f"sequence {number}: expected at most {card.context} tokens, found {len(sequence)}")
    for rows in (*asked.sequences, *(asked.ids or ())):
        if rows.size and not (rows.min() >= 0 and rows.max() < card.vocabulary):
            found = f"{rows.min()} to {rows.max()}"
            raise PayloadError(f"token ids: expected 0 to {card.vocabulary - 1}, found {found}")
    for rows in asked.ids or ():
        if (np.diff(np.sort(rows, -1)) == 0).any():
            raise PayloadError("ids: expected each once at a position, found one twice")


def teach(model: str, *, host: str, port: int, engine: str, dtype: str, device: str, say: Callable[[str], Any]) -> None:
    """Serves until SIGINT or SIGTERM. say: told when it is ready, and where.

    Raises:
        UsageError: the address, the model or the engine cannot be had.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine {engine!r}: {nearest(engine, ENGINES)}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    server = TeachServer(host, port)
    try:
        server.open(ENGINES[engine](model, dtype, device))
        say(f"ready: {model} teaches at {server.url}")
        server.serve_forever(0.2)
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.worker.shutdown(cancel_futures=True)
        server.server_close()
