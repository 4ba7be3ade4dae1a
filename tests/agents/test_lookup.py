"""A model's name that leads nowhere is refused at once: paths here, other names with one question to the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from retort.agents.lookup import is_path, look_up, newest
from retort.envs.base import UsageError

ASK = "import sys; from retort.agents.lookup import look_up; look_up(sys.argv[1], trains=bool(sys.argv[2:]))"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run of two checkpoints, and an empty one."""
    for step in ("step-000010", "step-000020"):
        (tmp_path / "runs" / "demo" / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "runs" / "demo" / "checkpoints" / step / "config.json").write_text("{}")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "empty" / "notes").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(model: str, *, trains: bool = False) -> str:
    with pytest.raises(UsageError) as refused:
        look_up(model, trains=trains)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("./x", True),
        ("../x/y", True),
        ("/x", True),
        ("~/x", True),
        ("a/b/c", True),
        ("runs/nope", True),
        ("Qwen/Qwen3-0.6B", False),
        ("gpt2", False),
        ("runs", False),
    ],
)
def test_what_can_only_be_a_path(model: str, path: bool, runs: Path) -> None:
    assert is_path(model) is path


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("runs/deno", "nearest: {}/runs/demo/checkpoints/step-000020"),
        ("./runs/emty", "nearest: {}/runs/demo/checkpoints/step-000020"),
        ("runs/demo/checkpoints/step-000011", "nearest: {}/runs/demo/checkpoints/step-000010"),
        ("runs/demo/checkpoint/step-000020", "nearest: {}/runs/demo/checkpoints/step-000020"),
        ("rums/demo/checkpoints", "nearest: {}/runs/demo/checkpoints/step-000020"),
        ("./runz", "nearest: {}/runs/demo/checkpoints/step-000020"),
        ("runs/empty/x", "there is no model in {}/runs/empty either"),
        ("runs/empty/notes", "there is no model in {}/runs/empty either"),
        ("/nonexistent/path", "there is no model in / either"),
    ],
)
def test_a_path_that_is_no_folder_names_the_nearest_model(model: str, near: str, runs: Path) -> None:
    what = "a file" if model.endswith("notes") else "nothing"
    where = os.path.abspath(model)
    (runs / ".hidden").mkdir()
    (runs / ".hidden" / "config.json").touch()
    cold = runs / "runs" / "demo" / "cold-start" / "checkpoints" / "step-000900"
    cold.mkdir(parents=True)
    (cold / "config.json").touch()
    for trains in (False, True):
        assert said(model, trains=trains) == (
            f"model {model!r}: expected a checkpoint folder with config.json, found {what} at {where}; "
            + near.format(runs)
        )


def test_folders(runs: Path) -> None:
    look_up("runs/demo/checkpoints/step-000010")
    assert said("runs/demo").endswith("found none; did you mean runs/demo/checkpoints/step-000020?")
    assert said("runs/empty").endswith("expected a model folder with config.json, found none")
    assert newest(Path("runs/empty")) == Path("runs/empty")


def test_names_that_play_or_have_nothing_to_load() -> None:
    for model in ("gold", "openai:http://127.0.0.1:1/v1#x", "script:mine:play"):
        assert said(model) == f"{model} plays and cannot be trained: expected tiny, a checkpoint folder or a " + (
            "Hugging Face name"
        )
    assert "retort train sft" in said("tiny")
    for form in ("'golden'", "did you mean 'gold'", "null", "random", "openai:URL#NAME", "script:MODULE:NAME"):
        assert form in said("golden")
    assert "tiny" not in said("golden")


def test_what_is_to_be_trained_is_offered_what_can_be() -> None:
    assert said("tinyy", trains=True) == (
        "unknown model 'tinyy'; did you mean 'tiny'? expected tiny, a checkpoint folder or a Hugging Face name"
    )


class Hub(BaseHTTPRequestHandler):
    """A hub that knows one model, and is broken for another."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        code = {"/api/models/me/known": 200, "/api/models/me/broken": 500}.get(self.path, 404)
        body = json.dumps({"id": "me/known"} if code == 200 else {"error": "no"}).encode()
        self.send_response(code)
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def asked(model: str, endpoint: str, home: Path, offline: str = "", cwd: Path | None = None, *trains: str) -> str:
    """What a fresh process says of a model, with the hub at that address: the error's line, or nothing."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HOME": str(home)}
    command = [sys.executable, "-c", ASK, model, *trains]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return done.stderr.strip().rpartition("\n")[2]


def test_one_question_to_a_hub_that_answers(hub: str, tmp_path: Path) -> None:
    assert asked("me/known", hub, tmp_path) == ""
    unknown = asked("me/unknown", hub, tmp_path)
    assert "unknown model 'me/unknown': no folder here, and none at the hub; behind an endpoint it is open" in unknown
    assert "; expected gold, " in unknown
    assert "script:MODULE:NAME" in unknown
    broken = asked("me/broken", hub, tmp_path)
    assert f"the Hugging Face hub ({hub}) cannot be asked for it" in broken
    assert [path for path in Hub.asked if "/models/" in path] == [
        f"/api/models/me/{name}" for name in ("known", "unknown", "broken")
    ]
    assert "unknown model 'no name'" in asked("no name", hub, tmp_path)


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    assert f"the Hugging Face hub ({closed}) cannot be asked for it" in asked("me/known", closed, tmp_path)
    assert "HF_HUB_OFFLINE is set, and it is not cached" in asked("me/known", closed, tmp_path, offline="1")
    folder = tmp_path / "hub" / "models--me--known"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    assert asked("me/known", closed, tmp_path, offline="1") == ""
    assert "it is in the cache: set HF_HUB_OFFLINE=1" in asked("me/known", closed, tmp_path)


def test_a_name_that_nobody_knows_here_is_told_what_it_could_be(runs: Path, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    (runs / "hub" / "models--me--small-model").mkdir(parents=True)
    (runs / "finetuned").mkdir()
    (runs / "finetuned" / "config.json").touch()
    unknown = asked("gpt-foo", closed, runs, "", runs)
    assert "model 'gpt-foo': no folder of this name is here, and the Hugging Face hub" in unknown
    assert "(offline? " in unknown
    assert "behind an endpoint it is openai:URL#gpt-foo; expected gold, null, random" in unknown
    trained = asked("gpt-foo", closed, runs, "", runs, "trains")
    assert "openai" not in trained
    assert trained.endswith("; expected tiny, a checkpoint folder or a Hugging Face name")
    assert "did you mean 'me/small-model'?" in asked("me/smal-model", closed, runs, "1", runs)
    assert "did you mean './finetuned'?" in asked("finetunned", closed, runs, "1", runs)
