"""Metrics in the real wandb, offline: what it wrote is read back from its own file."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from retort.algos.config import ConfigError, preset, resolve
from retort.algos.diagnostics import flat
from retort.algos.launch import launch
from retort.algos.mirror import mirrored
from retort.algos.runs import Run
from retort.algos.train import train
from retort.envs.base import MissingPackage
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no network, no settings of whoever runs this; and nothing is left running."""
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    ended()


def ended() -> None:
    """Ends wandb's own process, which writes its file out; `finish` does not wait for that."""
    helpers = [process for process in psutil.Process().children(True) if "wandb" in process.name()]
    wandb.teardown()
    _, left = psutil.wait_procs(helpers, timeout=30)
    assert not left


def records(path: Path) -> Iterator[Any]:
    """Of a .wandb file: blocks of 32 KiB, in them pieces with checksum, length and kind: whole, first, middle, last."""
    data, at, whole = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def written(folder: Path) -> tuple[list[dict[str, float]], list[Any]]:
    """The history of all sessions of a run, in order, without what wandb adds; and all records."""
    ended()
    every = [record for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")) for record in records(path)]
    lines = []
    for record in every:
        if record.WhichOneof("record_type") == "history":
            told = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            lines.append({key: value for key, value in told.items() if not key.startswith("_")})
    return lines, every


def configured(**changed: Any) -> Any:
    small = {"traces": {"tasks": 4, "per_task": 2}, "steps": 2, "prompts": 2, "checkpoint_every": 1, "threads": 1}
    return resolve({**preset("sft", "tiny"), **small, "wandb": "a-project", **changed})


def test_a_run_is_mirrored_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured())
    train(run)
    lines, every = written(run.folder)
    assert lines == [flat(line) for line in run.metrics()]
    assert lines[1]["loss"] > 0
    (begun,) = [record.run for record in every if record.WhichOneof("record_type") == "run"]
    assert (begun.project, begun.display_name, begun.run_id) == (
        "a-project",
        "run",
        (run.folder / "wandb.txt").read_text(),
    )
    told = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in begun.config.update}
    assert (told["recipe"], told["learner"]["optimiser"]) == ("sft", "muon")
    assert [record.exit.exit_code for record in every if record.WhichOneof("record_type") == "exit"] == [0]
    longer = Run(run.folder, run.config.model_copy(update={"steps": 3}))
    train(longer)
    assert written(run.folder)[0] == [flat(line) for line in longer.metrics()]
    sessions = [record.run.run_id for record in written(run.folder)[1] if record.WhichOneof("record_type") == "run"]
    assert len(sessions) == 2
    assert len(set(sessions)) == 1


def test_warnings_stand_in_the_summary_and_a_broken_run_is_marked(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured())

    def broken() -> None:
        with mirrored(run) as send:
            for line in (
                {"step": 1, "warnings": ["first: so"], "seconds": {"update": 0.5}},
                {"step": 2, "warnings": []},
                {"step": 3, "warnings": ["second: so", "third: so"]},
            ):
                run.log(line)
                send(line)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    lines, every = written(run.folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["seconds/update"] == 0.5
    said = [
        json.loads(item.value_json)
        for record in every
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
        if "warnings" in (item.key, *item.nested_key)
    ]
    assert said[-1] == ["first: so", "second: so", "third: so"]
    assert [record.exit.exit_code for record in every if record.WhichOneof("record_type") == "exit"] == [1]


def test_without_a_project_nothing_is_sent(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured(wandb=""))
    with mirrored(run) as send:
        send({"step": 1})
    assert not (run.folder / "wandb").exists()
    assert not (run.folder / "wandb.txt").exists()


def test_a_missing_package_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match=r"'wandb' is not installed: .* -m pip install 'wandb>=0.19'"):
        launch(configured(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_login_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    run = Run.create(tmp_path / "run", configured())
    with pytest.raises(ConfigError, match=r"wandb=a-project: No API key.*WANDB_MODE=offline"), mirrored(run):
        raise AssertionError("it started")
