"""The demonstration, reduced: before, after, a summary; and nothing is done twice."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from retort.algos.config import ConfigError, dump, preset, resolve
from retort.algos.launch import cold_config
from retort.algos.runs import Run
from retort.algos.train import train
from rich.console import Console

from retort.demo import ENV, TASKS, run_demo

SETTINGS = ("steps=2", "prompts=4", "group_size=4", "concurrency=16", "checkpoint_every=1", "threads=1")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def shown(out: Path, *settings: str) -> tuple[dict[str, Any], str]:
    console = Console(file=io.StringIO(), width=200)
    summary = run_demo(0, out, [*SETTINGS, *settings], console)
    assert isinstance(console.file, io.StringIO)
    return summary, console.file.getvalue()


def cold_started(out: Path) -> None:
    """A finished cold start where the demo looks for one, its weights from a shorter one."""
    whole = cold_config(resolve({**preset("srpo", "tiny"), "env": ENV, "seed": 0}, SETTINGS))
    small = {"traces": {"tasks": 300, "per_task": 2}, "steps": 80, "checkpoint_every": 80}
    weights = train(Run.create(out.parent / "small", resolve({**dump(whole), **small})))
    run = Run.create(out / "cold-start", whole)

    def copy(folder: Path) -> None:
        for path in weights.iterdir():
            if path.name != "progress.json":
                shutil.copy(path, folder)

    run.save(run.config.steps, copy)


@pytest.mark.slow
def test_the_demo_trains_evaluates_and_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    cold_started(out)
    summary, said = shown(out)
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for name in ("before", "after"):
        assert {"success", "stderr", "n", "families", "held_out"} <= set(summary[name])
        assert summary[name]["n"] >= 200
        assert summary[name]["n"] + summary[name]["held_out"]["n"] == TASKS
        assert len(summary[name]["families"]) >= 10
        assert 0 <= summary[name]["success"] <= 1
    for kind in ("seconds", "cpu_seconds"):
        assert set(summary[kind]) == {"cold_start", "train", "eval"}
        assert summary[kind]["train"] > 0
    assert summary["episodes"] == 2 * 16
    assert summary["tokens"] > 0
    assert 0 < summary["tokens_taught_by_feedback"] <= 1
    assert summary["feedback"] == "own"
    assert f"Before training: {summary['before']['success']:.2f} of unseen tasks" in said
    assert f"{summary['after']['success']:.3f} ±" in said
    for line in (
        "Before training",
        "all families in training",
        "of processors",
        "never trained on",
        "held-out families",
        "Try next",
        "--set feedback=shuffled",
    ):
        assert line in said
    assert str(out / "summary.json") in said

    files = [out / "metrics.jsonl", *out.glob("checkpoints/*/*"), *out.glob("cold-start/checkpoints/*/*")]
    before = {path: path.stat().st_mtime_ns for path in files if path.name != "metrics.jsonl"}
    metrics = (out / "metrics.jsonl").read_bytes()
    spent = json.loads((out / "seconds.json").read_text())["cpu_seconds"]
    monkeypatch.setattr("retort.demo.TASKS", 36)  # from here on nothing is said about what it measures
    again, _ = shown(out)
    assert json.loads((out / "seconds.json").read_text())["cpu_seconds"]["train"] >= spent["train"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "metrics.jsonl").read_bytes() == metrics
    assert {name: again[name] for name in ("episodes", "tokens", "checkpoint", "tokens_taught_by_feedback")} == {
        name: summary[name] for name in ("episodes", "tokens", "checkpoint", "tokens_taught_by_feedback")
    }

    shutil.rmtree(out / "checkpoints" / "step-000002")
    weights = (out / "checkpoints" / "step-000001" / "model.safetensors").stat().st_mtime_ns
    resumed, _ = shown(out)
    assert resumed["episodes"] == summary["episodes"]
    assert (out / "checkpoints" / "step-000001" / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(ConfigError, match="another configuration"):
        shown(out, "feedback=shuffled")
