"""Endpoints: a real HTTP server that plays, refuses, stalls and lies, and a policy that makes the best of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from retort.agents import openai, scripted
from retort.agents.base import Finish, Prompt, Sampling, Trajectory
from retort.agents.decoding import Call, Context
from retort.agents.episode import EpisodeRequest
from retort.agents.evaluate import evaluate, resume
from retort.agents.hf import HFPolicy
from retort.agents.openai import Endpoint, EndpointError, OpenAIPolicy
from retort.agents.policies import load_player
from retort.agents.rollout import Runner
from retort.envs.base import Failure, UsageError

KEY = "sk-not-for-any-file"
Body = Mapping[str, Any]
Answer = tuple[int, Mapping[str, str], bytes]


def completion(text: str | None, finish: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def error(status: int, text: str = "busy", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": text}}).encode()


def echo_gold(body: Body) -> Answer:
    """Plays the tests' Echo environment from what it said: task i wants "done" as action 1 + i % 4."""
    messages = [message for message in body["messages"] if message["role"] != "system"]
    number, turn = int(messages[0]["content"].split()[1]), len(messages) // 2
    return completion("done" if turn == number % 4 else "say")


@dataclass
class Server:
    """Serves /v1/chat/completions on this machine. `faults` are answered first, one a request."""

    play: Callable[[Body], Answer] = echo_gold
    faults: deque[Answer | Callable[[], Answer]] = field(default_factory=deque)
    bodies: list[Body] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, port: int = 0) -> None:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = served.answer(self.path, body, dict(self.headers))
                if answer is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def answer(self, path: str, body: Body, headers: Mapping[str, str]) -> Answer | None:
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            fault = self.faults.popleft() if self.faults else None
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if path != "/v1/chat/completions":
                return error(404, f"no {path}")
            if fault is None:
                return self.play(body)
            return fault() if callable(fault) else fault
        finally:
            with self.lock:
                self.now -= 1

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    served.start()
    yield served
    served.stop()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai, "LONGEST_PAUSE_S", 0.05)  # back-off grows to seconds; what it is for, waits less


def play(echo: Any, server: Server, tasks: Any = range(8), concurrency: int = 4, **options: Any) -> list[Trajectory]:
    chat = scripted.byte_chat()
    policy = OpenAIPolicy(Endpoint(server.url, "tiny", **options), chat)
    asked = [EpisodeRequest(f"echo-{task}", 7 * n, n, f"{n:03d}") for n, task in enumerate(tasks)]
    with closing(Runner(echo, policy, chat, env_id="echo", concurrency=concurrency)) as runner:
        played = runner.run(asked)
    assert policy._client is None  # no connection stays open
    return played


def test_it_plays_and_everything_is_written_down(echo: Any, server: Server) -> None:
    played = play(echo, server, body={"top_k": 5, "top_p": ""})
    assert all(item.success for item in played)
    assert [len(item.turns) for item in played] == [1, 2, 3, 4, 1, 2, 3, 4]
    item = played[3]
    assert [message["role"] for message in item.messages] == ["user", "assistant"] * 4
    assert [turn.action for turn in item.turns] == ["say", "say", "say", "done"]
    assert [(turn.usage.prompt, turn.usage.completion) for turn in item.turns if turn.usage] == [(11, 3)] * 4
    (row,) = item.rows
    assert np.isnan(row.behaviour_logp[row.mask]).all()  # nobody told them, so nothing is made up
    assert item.provenance.policy == f"openai:{server.url}#tiny"
    first = server.bodies[0]
    assert (first["model"], first["temperature"], first["max_tokens"], first["top_k"]) == ("tiny", 1.0, 256, 5)
    assert "top_p" not in first
    assert first["messages"] == [{"role": "user", "content": first["messages"][0]["content"]}]
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies) == 20
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_without_a_key_none_is_sent(echo: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert play(echo, server, tasks=[0])[0].success
    assert "Authorization" not in server.headers[0]


def lost() -> Any:
    return None


@pytest.mark.parametrize(
    "fault",
    [
        error(429, **{"Retry-After": "0"}),
        error(500),
        error(503),
        (200, {}, b"<html>not JSON</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": 5}}]}'),
        (200, {"Content-Length": "999", "Connection": "close"}, b"{"),
        lost,
    ],
    ids=["429", "500", "503", "html", "no choice", "no text", "broken body", "lost connection"],
)
def test_what_passes_is_asked_again(echo: Any, server: Server, fault: Any) -> None:
    server.faults.extend([fault] * 3)
    played = play(echo, server)
    assert all(item.success for item in played)
    assert len(server.bodies) == 20 + 3


def test_a_slow_answer_is_given_up_and_asked_for_again(echo: Any, server: Server) -> None:
    over = threading.Event()

    def slow() -> Answer:
        over.wait(60)
        return completion("done")

    server.faults.append(slow)
    try:
        assert all(item.success for item in play(echo, server, timeout_s=0.5))
    finally:
        over.set()
    assert len(server.bodies) == 21


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_holds_for_everybody(echo: Any, server: Server, date: bool) -> None:
    wait = formatdate(time.time() + 2, usegmt=True) if date else "1"
    server.faults.append(error(429, **{"Retry-After": wait}))
    assert all(item.success for item in play(echo, server, tasks=[0], concurrency=1))
    refused, again = server.times
    # A promise to the server, not a speed: a date has whole seconds, of which part has passed.
    assert again - refused >= (0.5 if date else 1.0)


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("3", 3.0), ("-1", 0.0), ("soon", None), ("1.5", 1.5), ("Fri, 1", None)]
)
def test_retry_after_is_read(header: str | None, seconds: float | None) -> None:
    assert openai._rest_s(header) == seconds


def test_a_server_that_wants_an_hour_is_not_waited_for(echo: Any, server: Server) -> None:
    server.play = lambda body: error(429, **{"Retry-After": "3600"})
    (item,) = play(echo, server, tasks=[0])
    assert item.failure is Failure.INFRASTRUCTURE
    assert "1 attempts" in (item.error or "")
    assert "3600" in (item.error or "")


def test_what_does_not_pass_costs_its_own_episode_alone(echo: Any, server: Server) -> None:
    def play_all_but_three(body: Body) -> Answer:
        number = int(body["messages"][0]["content"].split()[1])
        return error(500, "no luck") if number == 3 and len(body["messages"]) > 2 else echo_gold(body)

    server.play = play_all_but_three
    played = play(echo, server, retries=2)
    assert [item.usable for item in played] == [number != 3 for number in range(8)]
    broken = played[3]
    assert (broken.success, broken.failure) == (None, Failure.INFRASTRUCTURE)
    assert "3 attempts" in (broken.error or "")
    assert "status 500" in (broken.error or "")
    assert [turn.action for turn in broken.turns] == ["say"]  # what came before is kept


def test_a_bad_request_is_not_asked_again(echo: Any, server: Server) -> None:
    server.faults.append(error(400, "what is top_k?"))
    played = play(echo, server, concurrency=1)
    assert [item.usable for item in played] == [False] + [True] * 7
    assert "what is top_k?" in (played[0].error or "")
    assert len(server.bodies) == 20


def test_a_wrong_key_ends_it_at_once_and_is_not_repeated(echo: Any, server: Server) -> None:
    server.play = lambda body: error(401, f"Incorrect API key: {KEY}")
    with pytest.raises(EndpointError, match=r"status 401.*OPENAI_API_KEY") as ended:
        play(echo, server, concurrency=1)
    assert len(server.bodies) == 1
    assert KEY not in str(ended.value)


def test_a_wrong_address_ends_it_soon(echo: Any, server: Server) -> None:
    with pytest.raises(EndpointError, match="404"):
        play(echo, _at(server, "/v2"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        nowhere = Server()
        nowhere.http = type("Http", (), {"server_address": taken.getsockname()})()  # type: ignore[assignment]
        with pytest.raises(EndpointError, match="does not answer: ConnectError"):
            play(echo, nowhere)


def _at(server: Server, path: str) -> Any:
    return type("Elsewhere", (), {"url": server.url.replace("/v1", path)})()


def test_a_full_context_is_a_truncation(echo: Any, server: Server) -> None:
    said = "This model's maximum context length is 64 tokens. However, you requested 80 tokens"
    server.play = lambda body: error(400, said) if len(body["messages"]) > 3 else echo_gold(body)
    (item,) = play(echo, server, tasks=[3])
    assert (item.truncated, item.truncated_by, item.usable) == (True, "context", True)
    assert [turn.action for turn in item.turns] == ["say", "say"]


def test_a_cut_answer_is_a_truncation(echo: Any, server: Server) -> None:
    server.play = lambda body: completion("sa", "length")
    (item,) = play(echo, server, tasks=[3])
    assert (item.truncated_by, item.turns[0].finish_reason) == ("turn_tokens", Finish.LENGTH)


@pytest.mark.parametrize("text", [None, "", "\ud800 half", "<|im_end|>", "é\n\0"])
def test_any_text_is_an_action(echo: Any, server: Server, text: str | None) -> None:
    server.play = lambda body: completion(text)
    (item,) = play(echo, server, tasks=[1])
    assert item.usable
    assert item.turns[0].action == (text or "").encode(errors="replace").decode()


def test_tools_are_shown(echo: Any, server: Server) -> None:
    real = echo.reset

    def reset(self: Any, **options: Any) -> Any:
        observation, info = real(self, **options)
        return observation, {**info, "tools": [{"name": "run"}, {"name": "stop"}]}

    echo.reset = reset
    assert play(echo, server, tasks=[3])[0].success
    for body in server.bodies:
        assert body["messages"][0]["role"] == "system"
        assert body["messages"][0]["content"].splitlines()[1:] == ['{"name": "run"}', '{"name": "stop"}']


def test_requests_are_as_many_at_once_as_episodes(echo: Any, server: Server) -> None:
    meeting = threading.Barrier(3)

    def together() -> Answer:
        meeting.wait(60)  # broken, and so an answer that fails, unless three are here at once
        return completion("done")

    server.faults.extend([together] * 6)
    assert all(item.success for item in play(echo, server, tasks=[0] * 12, concurrency=3))
    assert server.most == 3


def test_requests_keep_to_their_rate(echo: Any, server: Server) -> None:
    play(echo, server, requests_per_minute=1200)
    gaps = np.diff(sorted(server.times))
    assert len(gaps) == 19
    assert sum(gaps) >= 19 * 0.05 - 0.05  # a promise; when a request arrives is the network's


def test_scoring_is_refused_by_name() -> None:
    policy = OpenAIPolicy(Endpoint("http://localhost:1", "x"), scripted.byte_chat())
    with pytest.raises(NotImplementedError, match="endpoint"):
        asyncio.run(policy.score([[1, 2]], [[1]]))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host:8000", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/v1/", "http://host:8000/v1/chat/completions"),
        ("https://host/api/chat/completions", "https://host/api/chat/completions"),
        ("https://host/azure?api-version=3", "https://host/azure/chat/completions?api-version=3"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert Endpoint(url, "x").address == address


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("openai:localhost:8000#x", {}, "expected openai:http://HOST/v1#NAME"),
        ("openai:http://host/v1", {}, "expected openai:http://HOST/v1#NAME"),
        ("openai:http://ho st:x/v1#a", {}, "expected openai:http://HOST/v1#NAME"),
        ("openai:http://me:secret@host/v1#x", {}, "put the key into OPENAI_API_KEY"),
        ("openai:http://host/v1#x", {"request_per_minute": 3}, "did you mean 'requests_per_minute'"),
        ("openai:http://host/v1#x", {"requests_per_minute": 0}, "above 0, found 0"),
        ("openai:http://host/v1#x", {"timeout_s": "soon"}, "timeout_s: expected a number above 0"),
        ("openai:http://host/v1#x", {"retries": -1}, "retries: expected a whole number"),
        ("openai:http://host/v1#x", {"body": 3}, "body: expected fields"),
        ("gold", {"device": "cpu"}, "gold takes no argument 'device'"),
        ("script:nowhere:play", {}, "expected script:MODULE:NAME"),
    ],
)
def test_wrong_use_is_named(model: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_player(model, given)


@pytest.fixture
def registered(echo: Any) -> Iterator[str]:
    gymnasium.register("tests/Echo-v0", entry_point=echo, disable_env_checker=True)
    yield "tests/Echo-v0"
    del gymnasium.registry["tests/Echo-v0"]


def test_a_server_that_goes_away_loses_nothing(server: Server, registered: str, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"split": "train", "n": 3, "ks": (1, 3), "concurrency": 2, "model_args": {"retries": 1}}
    model = f"openai:{server.url}#tiny"
    whole = evaluate(registered, model, out=tmp_path / "whole", **ask)
    count = len(server.bodies)

    def dies(body: Body) -> Answer:
        return echo_gold(body) if len(server.bodies) <= count + 20 else error(503)

    server.play = dies
    with pytest.raises(EndpointError, match="status 503"):
        evaluate(registered, model, out=tmp_path / "cut", **ask)
    assert not (tmp_path / "cut" / "report.json").exists()
    server.play, before = echo_gold, len(server.bodies)
    assert resume(tmp_path / "cut") == whole
    assert len(server.bodies) - before < count  # what was played was not asked for again
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_nothing_played_leaves_nothing(server: Server, registered: str, tmp_path: Path) -> None:
    server.play = lambda body: error(401)
    with pytest.raises(EndpointError):
        evaluate(registered, f"openai:{server.url}#tiny", split="train", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_real_model_behind_a_real_server_plays_the_shell(
    server: Server, policy_of: Callable[..., HFPolicy], tmp_path: Path
) -> None:
    policy, one_at_a_time = policy_of(barrier=False), threading.Lock()

    def model(body: Body) -> Answer:
        prompt = policy.chat.prompt(body["messages"])
        sampling = Sampling(body["temperature"], max_new_tokens=body["max_tokens"])
        with one_at_a_time:
            (done,) = policy.complete([Call(Context(), prompt, sampling, body["seed"])])
        return completion(policy.chat.text(done.token_ids), done.finish_reason)

    server.play = model
    ask = [sys.executable, "-m", "retort", "eval", "--model", f"openai:{server.url}#tiny", "--limit", "18"]
    ask += ["--turn-tokens", "8", "--env-arg", "sandbox=unsafe", "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["n"] + told["held_out"]["n"] == 18
    assert told["infrastructure_failures"] == 0
    assert told["tokens"] == pytest.approx(3 * told["turns"])  # as the server counts
    assert told["prompt_tokens"] == pytest.approx(11 * told["turns"])


def test_a_dry_run_asks_nothing(server: Server) -> None:
    ask = [sys.executable, "-m", "retort", "eval", "--model", f"openai:{server.url}#tiny", "--dry-run", "-n", "2"]
    done = subprocess.run([*ask, "--limit", "18", "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["tasks"], told["episodes"], told["least_requests"], told["most_requests"]) == (18, 36, 36, 144)
    assert told["most_completion_tokens"] == 144 * 256
    assert 0 < told["least_prompt_tokens"] < told["most_prompt_tokens"]
    assert server.bodies == []
    done = subprocess.run([*ask, "--limit", "18"], capture_output=True, text=True, check=False, timeout=120)
    assert "nothing was played" in done.stdout


def test_a_prompt_is_its_messages(server: Server) -> None:
    async def one() -> Any:
        policy = OpenAIPolicy(Endpoint(server.url, "tiny"), scripted.byte_chat())
        prompt = Prompt((1, 2), ({"role": "user", "content": "say 0 and then done"},))
        done = await policy.generate(prompt, Sampling(0.0, max_new_tokens=7), episode="a", seed=2**63)
        await policy.end("a")
        return done

    done = asyncio.run(one())
    assert done.finish_reason is Finish.STOP
    assert server.bodies[0]["max_tokens"] == 7
    assert server.bodies[0]["temperature"] == 0.0
    assert 0 <= server.bodies[0]["seed"] < 2**31
