"""The examples run as they stand, and are short."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import gymnasium
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TRACES = ["traces.tasks=8", "per_task=2"]
SMALL = ["steps=2", "prompts=2", "group_size=2", "concurrency=4", "threads=1"]


def ran(name: str, *arguments: str, python: str = sys.executable) -> str:
    command = [python, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    # smollm2.py also unpacks the weights that it trains.
    assert len(path.read_text().splitlines()) <= {"my_env.py": 40, "smollm2.py": 100}.get(path.name, 30)


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
    assert "held-out families" in ran("evaluate.py", str(trained), "18")


@pytest.mark.slow
def test_an_environment_of_ones_own(tmp_path: Path) -> None:
    """Registered, checked, trained on and evaluated; and the command line finds it by its module."""
    said = ran("my_env.py", str(tmp_path), *SMALL).splitlines()
    assert re.fullmatch(r"sft: \d+% of unseen numbers right", said[-2])
    assert re.fullmatch(r"srpo: \d+% of unseen numbers right", said[-1])
    model = tmp_path / "srpo" / "checkpoints" / "step-000002"
    command = [sys.executable, "-m", "retort", "eval", "--env", "my_env:me/Count-v0", "--model", str(model)]
    command += ["--json", "--limit", "9", "--turn-tokens", "8", "--out", str(tmp_path / "eval")]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, check=True, timeout=250)
    assert json.loads(done.stdout)["n"] == 9


@pytest.mark.slow
def test_a_pretrained_model_by_either_engine(engine_python: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """One step each from the same weights, which are unpacked once and then found."""
    model = tmp_path / "model"
    if pytestconfig.cache is not None:
        model.symlink_to(pytestconfig.cache.mkdir("smollm2"))
    small = ["prompts=1", "group_size=2", "turn_tokens=8", "steps=1", "checkpoint_every=1"]
    for engine, python, tasks in (("hf", sys.executable, "0"), ("vllm", engine_python, "1")):
        asked = ["--engine", engine, "--out", str(tmp_path), "--tasks", tasks, "--untaught", *small]
        said = ran("smollm2.py", *asked, python=python)
        (apart,) = re.findall(r"step 1: the engine and the learner are (\S+) nats apart", said)
        assert float(apart) < 1e-3
    assert "on retort/Shell-v0" in said.replace("\n", " ")
    kept = [tmp_path / f"grpo-{engine}" / "checkpoints" / "step-000001" for engine in ("hf", "vllm")]
    assert all((place / "adapter_model.safetensors").is_file() for place in kept)


README = (EXAMPLES.parent / "README.md").read_text()
INDENTED = (
    textwrap.dedent(block).strip("\n") + "\n" for block in re.findall(r"(?:^(?:    .*)?\n)+", README, re.MULTILINE)
)
BLOCKS = [block for block in INDENTED if re.search(r"^(import|from) ", block, re.MULTILINE)]


@pytest.mark.parametrize("number", range(2))
def test_the_readme_can_be_pasted(number: int, tmp_path: Path) -> None:
    assert len(BLOCKS) == 2
    (tmp_path / "count.py").write_text(BLOCKS[number])
    command = [sys.executable, "count.py"]
    if "register(" in BLOCKS[number]:
        command = [sys.executable, "-m", "retort", "check-env", "count:me/Count-v0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_shows_what_the_example_has() -> None:
    (shown,) = (block for block in BLOCKS if "register(" in block)
    imports, rest = shown.split("\n\n\n", 1)
    example = (EXAMPLES / "my_env.py").read_text()
    assert rest in example
    assert all(line in example or line == "from gymnasium import register" for line in imports.splitlines())


def test_what_the_example_hears() -> None:
    example = runpy.run_path(str(EXAMPLES / "my_env.py"))
    gymnasium.registry.pop("me/Count-v0")
    assert example["spell"](473) == "kvarcent sepdek tri"
    assert example["spell"](111) == "cent dek unu"
    assert example["hear"]("say 473 in Esperanto", "kvarcent sepdek kvar") == (0, "you said 474")
    assert example["hear"]("say 473 in Esperanto", "kvarcent sepdek tri\n") == (1, "you said 473")
    assert example["hear"]("say 473 in Esperanto", "four hundred") == (0, "you said no number")


def test_evaluate_the_gold_solution() -> None:
    assert "1.000" in ran("evaluate.py", "gold", "18")
