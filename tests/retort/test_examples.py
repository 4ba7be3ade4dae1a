"""The examples run as they stand, and are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TRACES = ["traces.tasks=8", "per_task=2"]
SMALL = ["steps=2", "prompts=2", "group_size=2", "concurrency=4", "threads=1"]


def ran(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 30


@pytest.mark.slow
def test_train_and_evaluate(tmp_path: Path) -> None:
    cold = [sys.executable, "-m", "retort", "train", "sft", "--out", str(tmp_path / "cold")]
    cold += [part for setting in [*TRACES, *SMALL] for part in ("--set", setting)]
    subprocess.run(cold, capture_output=True, check=True, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1"})
    model = tmp_path / "cold" / "checkpoints" / "step-000002"
    said = ran("train_shell.py", "--model", str(model), "--out", str(tmp_path / "run"), *SMALL)
    trained = tmp_path / "run" / "checkpoints" / "step-000002"
    assert f"checkpoint: {trained}" in said.replace("\n", "")
    assert (trained / "model.safetensors").is_file()
    assert "held out" in ran("evaluate.py", str(trained), "18")


def test_evaluate_the_gold_solution() -> None:
    assert "1.000" in ran("evaluate.py", "gold", "18")
