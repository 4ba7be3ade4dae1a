"""The folder of an evaluation: whole, resumable, and the same numbers after a kill as without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from retort.agents import store
from retort.agents.evaluate import evaluate, resume
from retort.agents.evaluation import EvalConfig, Evaluation, Facts
from retort.agents.store import StoreError
from retort.envs.base import TaskRef, UsageError

ECHO = "tests/Echo-v0"
ASK: dict[str, Any] = {"split": "train", "n": 2, "ks": (1, 2), "concurrency": 3}


@pytest.fixture(autouse=True)
def registered(echo: Any) -> Iterator[None]:
    gymnasium.register(ECHO, entry_point=echo, disable_env_checker=True)
    yield
    del gymnasium.registry[ECHO]


def test_the_folder_holds_everything(tmp_path: Path) -> None:
    heard: list[tuple[int, dict[str, Any]]] = []
    found = evaluate(ECHO, "gold", out=tmp_path / "run", watch=lambda _, n, told: heard.append((n, told)), **ASK)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json",
        "manifest.json",
        "episodes.parquet",
        "report.json",
    }
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == json.loads(json.dumps(found.to_json()))
    played = store.read(tmp_path / "run" / "episodes.parquet")
    assert [item.episode for item in played] == [f"{task:06d}-{n:04d}" for task in range(8) for n in range(2)]
    assert all(item.success for item in played)
    assert heard[0] == (0, {"total": 16})
    assert heard[-1] == (16, {"total": 16, "success": 1.0})
    opened = Evaluation.open(tmp_path / "run")
    assert opened.config == EvalConfig(env=ECHO, model="gold", **ASK)
    assert opened.manifest["tasks"] == 8
    assert "torch" in opened.manifest["versions"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(ECHO, "gold", **ASK)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    evaluate(ECHO, "gold", out=tmp_path, **ASK)
    with pytest.raises(UsageError, match="already holds an evaluation"):
        evaluate(ECHO, "null", out=tmp_path, **ASK)


@pytest.mark.parametrize(
    ("env", "model", "name"),
    [
        ("retort/Shell-v0", "gold", "Shell-v0-gold-seed3"),
        ("retort/Shell-v0", "runs/demo/cold/checkpoints/step-001000", "Shell-v0-cold-step-001000-seed3"),
        ("mine:me/X-v1", "HuggingFaceTB/SmolLM2-135M", "X-v1-SmolLM2-135M-seed3"),
        ("X-v1", "openai:http://host:8000/v1#org/tiny 1", "X-v1-tiny-1-seed3"),
        ("X-v1", "script:agent:play", "X-v1-play-seed3"),
        ("X-v1", "models/tiny/", "X-v1-tiny-seed3"),
    ],
)
def test_names_of_folders(env: str, model: str, name: str) -> None:
    assert EvalConfig(env=env, model=model, seed=3).name() == name


def test_folders_are_numbered_where_the_name_is_taken(tmp_path: Path) -> None:
    config, facts = EvalConfig(env=ECHO, model="gold"), Facts((), (), "1")
    made = [Evaluation.named(tmp_path / "runs", config, facts).folder.name for _ in range(3)]
    assert made == ["Echo-v0-gold-seed0", "Echo-v0-gold-seed0-2", "Echo-v0-gold-seed0-3"]


def test_what_is_complete_is_not_played_again(tmp_path: Path, echo: Any) -> None:
    first = evaluate(ECHO, "random", out=tmp_path, **ASK)
    before = (tmp_path / "episodes.parquet").read_bytes()
    made = echo.made
    assert resume(tmp_path) == first
    assert echo.made == made + 1  # to look at the tasks
    assert (tmp_path / "episodes.parquet").read_bytes() == before


def test_what_the_infrastructure_broke_is_played_again(tmp_path: Path, echo: Any) -> None:
    whole = evaluate(ECHO, "random", **ASK)
    real = echo._maybe_break
    lost = [0]

    def broken(self: Any) -> None:
        if self.task.key in ("echo-3", "echo-6") and self.turn:
            lost[0] += 1
            raise OSError("the host went away")

    echo._maybe_break = broken
    found = evaluate(ECHO, "random", out=tmp_path, **ASK)
    assert (found.infrastructure_failures, found.overall.n, lost[0]) == (4, 6, 4)
    assert {row.name: row.outcomes["infrastructure"] for row in found.families} == {"family-0": 2, "family-1": 2}
    echo._maybe_break = real
    heard: list[int] = []
    assert resume(tmp_path, watch=lambda _, n, told: heard.append(n)) == whole
    assert heard == [12, 13, 14, 15, 16]
    assert json.loads((tmp_path / "report.json").read_text())["infrastructure_failures"] == 0
    assert resume(tmp_path) == whole


def test_other_tasks_are_not_mixed_in(tmp_path: Path, echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(ECHO, "gold", out=tmp_path, **ASK)
    with monkeypatch.context() as patch:
        patch.setattr(echo, "verifier_version", "2")
        with pytest.raises(UsageError, match="verifier_version 1, found 2"):
            resume(tmp_path)
    changed = [TaskRef(f"echo-{n}", "new", "train", "x") for n in range(8)]
    monkeypatch.setattr(echo, "tasks", lambda self: changed)
    with pytest.raises(UsageError, match="tasks_digest"):
        resume(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected the folder of an evaluation with config\.json"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"env": "x", "model": "gold", "sede": 3}')
    with pytest.raises(UsageError, match="sede"):
        resume(tmp_path)


def test_a_corrupted_part_is_named(tmp_path: Path) -> None:
    evaluate(ECHO, "gold", out=tmp_path, **ASK)
    (tmp_path / "episodes.parquet").write_bytes(b"not this")
    with pytest.raises(StoreError, match=r"episodes\.parquet"):
        resume(tmp_path)


def test_an_interrupted_evaluation_keeps_what_was_played(tmp_path: Path) -> None:
    whole = evaluate(ECHO, "random", **ASK)

    def stop(stage: str, done: int, told: dict[str, Any]) -> None:
        if done == 7:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate(ECHO, "random", out=tmp_path / "run", watch=stop, **ASK)
    finally:
        signal.signal(signal.SIGINT, before)
    assert 7 <= len(Evaluation.open(tmp_path / "run").played()) < 16
    assert resume(tmp_path / "run") == whole


HALTING = """
import itertools, os, threading
import gymnasium
from retort.envs.base import TaskRef, TextEnv, TextSpace, step_info
count = itertools.count()
class Halting(TextEnv):
    observation_space, action_space = TextSpace(), TextSpace(20)
    def tasks(self):
        return [TaskRef(str(n), f"{n:016d}", "test", "ab"[n % 2]) for n in range(45)]
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if next(count) >= 70 and not os.path.exists("go"):
            open("halted", "w").close()
            threading.Event().wait()
        self.task, self.turn = self.tasks()[self.pick(self.tasks(), options)], 0
        return f"write some letters for {self.task.key}", step_info(self.task)
    def step(self, action):
        self.turn += 1
        over = self.turn == 2
        won = len(action) % 2 == int(self.task.key) % 2
        info = step_info(self.task, success=won if over else None)
        return f"found {len(action)}", float(over and won), over, False, info
    def gold(self, observation):
        return "x" * (int(self.task.key) % 2)
gymnasium.register("tests/Halting-v0", entry_point=Halting, disable_env_checker=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["random", "tiny"])
def test_a_kill_changes_no_number(tmp_path: Path, folder: Path, model: str) -> None:
    """A real kill -9 of the command, once a part is on the disk and the environment stands still."""
    (tmp_path / "halting.py").write_text(HALTING)
    player = str(folder) if model == "tiny" else model
    ask = [sys.executable, "-c", "import halting, retort.cli; retort.cli.main()", "eval"]
    again = [*ask, "--resume", "cut", "--json"]
    ask += ["--env", "tests/Halting-v0", "--model", player, "-n", "2"]
    ask += ["--turn-tokens", "40", "--concurrency", "16", "--seed", "4", "--k", "1,2", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(
        [*ask, "--out", "cut"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    parts = tmp_path / "cut" / "episodes"
    while not ((tmp_path / "halted").exists() and list(parts.glob("part-*.parquet"))):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (tmp_path / "go").touch()
    kept = len(Evaluation.open(tmp_path / "cut").played())
    assert kept == sum(len(store.read(part)) for part in parts.glob("part-*.parquet"))  # a slow machine's are smaller
    assert 0 < kept < 90
    told = []
    for command in ([*ask, "--out", "whole"], again):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    for report in told:
        for clock in ("policy_s", "env_s", "folder"):
            report.pop(clock)
    assert told[0] == told[1]
    assert 0 < told[0]["success"] < 1
    whole, resumed = (Evaluation.open(tmp_path / name).played() for name in ("whole", "cut"))
    assert [(item.messages, item.reward) for item in whole.values()] == [
        (item.messages, item.reward) for item in resumed.values()
    ]
    assert len(resumed) == 90
