"""Training with vLLM in this process: run by `tests/agents/test_vllm_in_process.py` with vLLM's interpreter."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from retort.agents import store
from retort.agents.base import EngineError
from retort.agents.chat import Chat
from retort.agents.engines import make_engine
from retort.agents.evaluate import evaluate
from retort.agents.hf import load_model
from retort.agents.scoring import score_tokens
from retort.agents.vllm import VLLMPolicy
from retort.algos.config import ConfigError, TrainConfig, preset, resolve
from retort.algos.launch import resume_run
from retort.algos.runs import Run, check
from retort.algos.train import train
from retort.envs.base import UsageError

FAMILY = {"env_args": {"families": ["delete"]}}
SMALL = {"steps": 3, "prompts": 3, "group_size": 4, "concurrency": 12, "checkpoint_every": 1, "threads": 1}


@pytest.fixture(scope="session")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the format."""
    small = {"traces": {"tasks": 60, "per_task": 3, "skill": 0.5}, "steps": 40, "prompts": 16, "checkpoint_every": 40}
    config = resolve({**preset("sft", "tiny"), **FAMILY, **small, "threads": 1})
    return train(Run.create(tmp_path_factory.mktemp("cold") / "run", config))


def configured(recipe: str, model: Path, *settings: str, **changed: Any) -> TrainConfig:
    return resolve({**preset(recipe, str(model)), **FAMILY, **SMALL, "engine": "vllm", **changed}, settings)


def test_grpo_trains_and_the_engine_stays_in_step(cold: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured("grpo", cold))
    train(run)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["episodes"] == 12
        assert line["infrastructure_failures"] == 0
        assert line["sampler_gap_nats"] < 1e-3
        assert line["staleness_max"] == 0
    versions = [
        {int(v) for item in store.read(run.rollouts(n)) for row in item.rows for v in row.version} for n in (1, 2)
    ]
    assert versions == [{-1, 0}, {-1, 1}]
    report = evaluate(
        "retort/Shell-v0",
        str(run.checkpoints()[-1]),
        limit=6,
        env_args=FAMILY["env_args"],
        model_args={"engine": "vllm", "dtype": "float32"},
    )
    assert report.overall.episodes == 6
    assert report.infrastructure_failures == 0


def test_an_adapter_that_goes_over_alone_is_in_step_too(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = configured("grpo", cold, "lora_rank=4", "optimiser=adamw", "lr=0.01", "engine_args.enable_lora=true")
    run = Run.create(tmp_path / "run", asked)
    monkeypatch.setattr(VLLMPolicy, "_weights", None)  # none but the adapter's may go
    train(run)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert max(line["sampler_gap_nats"] for line in lines) < 1e-3
    run = Run.create(tmp_path / "whole", configured("grpo", cold, "engine_args.enable_lora=true"))
    with pytest.raises(UsageError, match=r"enable_lora is for runs that train an adapter"):
        train(run)


def processes(parent: int, name: str) -> list[int]:
    """Those of that name below a process."""
    below, found = {parent}, []
    told = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it is over
            told.append(path.read_text())
    for number, line in sorted((int(line.split()[0]), line) for line in told):
        if int(line[line.rindex(")") + 2 :].split()[1]) in below:
            below.add(number)
            found += [number] if line[line.index("(") + 1 : line.rindex(")")] == name else []
    return found


@pytest.mark.parametrize("seed", [int(os.environ.get("RETORT_KILL_SEED", "0"))])
def test_a_run_that_is_killed_while_it_plays_ahead_goes_on(cold: Path, tmp_path: Path, seed: int) -> None:
    draw, place = random.Random(seed), tmp_path / "run"
    log = tmp_path / "log.txt"
    settings = {**SMALL, "steps": 6, "max_staleness": 1, "env_args": '{families = ["delete"]}', "lr": 3e-3}
    begin = [sys.executable, "-m", "retort", "train", "grpo", "--model", str(cold), "--engine", "vllm"]
    begin += ["--out", str(place)]
    begin += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run_of = partial(Run.open, place)

    def until(steps: int, process: subprocess.Popen[bytes]) -> None:
        while not (place / "metrics.jsonl").exists() or len(run_of().metrics()) < steps:
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.01)

    with log.open("wb") as out:
        process = subprocess.Popen(begin, stdout=out, stderr=out)
        try:
            until(1, process)
            sandboxes = processes(process.pid, "python3")  # the first process in each
            assert sandboxes
            for number in sandboxes:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            until(draw.choice([2, 3, 4]), process)
            fresh = set(processes(process.pid, "python3"))
            assert fresh, "environments that die are replaced"
            assert not fresh & set(sandboxes)
            time.sleep(draw.uniform(0, 0.4))
        finally:
            process.kill()
            process.wait()
        before = run_of().metrics()
        assert len(before) < 6, "it was killed too late to show anything"
    run = resume_run(place)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    lost = 0
    for step, line in enumerate(lines):
        played = store.read(run.rollouts(step + 1))
        assert [item.episode for item in played] == [f"{step}-{g}-{m}" for g in range(3) for m in range(4)]
        versions = {int(version) for item in played for row in item.rows for version in row.version} - {-1}
        assert versions <= {max(0, step - 1), step}
        lost += sum(not item.usable for item in played)
        assert line["infrastructure_failures"] == sum(not item.usable for item in played)
    assert lost <= 24, "each of them was killed once"
    assert [check(folder) for folder in run.checkpoints()] == [5, 6]


def test_what_vllm_cannot_score_is_refused_when_the_configuration_is_read(cold: Path) -> None:
    with pytest.raises(ConfigError, match=r"sdpo needs the teacher's log-probs of the student's support.*rlsd"):
        configured("sdpo", cold, "scorer=engine")
    with pytest.raises(ConfigError, match="teacher's entropy"):
        configured("srpo", cold, "scorer=engine")
    with pytest.raises(ConfigError, match=r"teacher\.kind=current"):
        configured("rlsd", cold, "scorer=engine")
    with pytest.raises(ConfigError, match="no teacher at all"):
        configured("grpo", cold, "scorer=engine")
    with pytest.raises(ConfigError, match="temperature 1"):
        configured("rlsd", cold, "scorer=engine", "teacher.kind=current", "temperature=0.7")
    with pytest.raises(ConfigError, match="samples nothing"):
        configured("sft", cold)
    with pytest.raises(ConfigError, match=r"did you mean|expected|vllm"):
        configured("grpo", cold, "engine=vlm")


def test_a_tied_head_follows_too(cold: Path, tmp_path: Path) -> None:
    chat, model = Chat.load(cold), load_model(cold)
    tied = type(model)(type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": True})).eval()
    tied.save_pretrained(tmp_path / "tied")
    chat.save(tmp_path / "tied")
    ids = chat.prompt([{"role": "user", "content": "say 3 and then done"}])
    with closing(make_engine("vllm", str(tmp_path / "tied"), chat, arguments={})) as engine:
        for version in (1, 2):
            with torch.no_grad():
                for parameter in tied.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                (own,) = score_tokens(tied, [ids], [range(1, len(ids))])
            engine.update(tied, version)
            (told,) = asyncio.run(engine.score([ids], [range(1, len(ids))]))
            assert np.abs(told.logp - own.logp.numpy()).max() < 1e-3


@pytest.fixture(scope="module")
def kept(cold: Path) -> Iterator[VLLMPolicy]:
    """There is one engine in a process: who wants one of its own comes before this one."""
    with closing(VLLMPolicy(cold, Chat.load(cold), name="vllm")) as engine:
        yield engine


@pytest.fixture
def at_hand(kept: VLLMPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take the engine that is there instead of one of their own, and give it their weights before they play."""
    monkeypatch.setattr(kept, "close", lambda: None)
    monkeypatch.setattr("retort.algos.setup.make_engine", lambda *_, **__: kept)


@pytest.mark.usefixtures("at_hand")
def test_with_an_adapter_and_after_a_resume_it_is_in_step_too(cold: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured("grpo", cold, "lora_rank=4", "optimiser=adamw", "lr=0.01", "steps=2"))
    train(run)
    text = (run.folder / "config.toml").read_text()
    (run.folder / "config.toml").write_text(text.replace("steps = 2", "steps = 3", 1))
    resume_run(run.folder)
    lines = Run.open(run.folder).metrics()
    assert len(lines) == 3
    assert max(line["sampler_gap_nats"] for line in lines) < 1e-3


@pytest.mark.usefixtures("at_hand")
def test_an_engine_that_is_not_synced_is_found_out_within_one_step(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", configured("grpo", cold))
    update = VLLMPolicy.update

    def forget(self: VLLMPolicy, model: Any, version: int) -> None:
        """Says that it has the new weights, and keeps those that it began with."""
        update(self, model, version) if not version else setattr(self, "version", version)

    monkeypatch.setattr(VLLMPolicy, "update", forget)
    with pytest.raises(EngineError, match=r"out of step at version 1: .* nats off"):
        train(run)
    assert [line["step"] for line in run.metrics()] == [1]


@pytest.mark.usefixtures("at_hand")
def test_steps_that_are_played_ahead_are_as_old_as_they_may_be_and_corrected(cold: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured("grpo", cold, "max_staleness=2", "steps=6", "lr=3e-3"))
    train(run)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    oldest = [line["staleness_max"] for line in lines]
    assert oldest[0] == 0
    assert max(oldest) in (1, 2)
    assert all(old <= 2 for old in oldest)
    stale = [line for line in lines if line["staleness"] > 0]
    assert stale
    assert any(abs(line["importance_max"] - 1) > 1e-3 for line in stale), "older weights must be corrected for"
    for step, line in enumerate(lines):
        played = store.read(run.rollouts(step + 1))
        assert [item.episode for item in played] == [f"{step}-{g}-{m}" for g in range(3) for m in range(4)]
        versions = {int(version) for item in played for row in item.rows for version in row.version} - {-1}
        assert versions <= set(range(max(0, step - 2), step + 1))
        assert line["infrastructure_failures"] == 0


@pytest.mark.usefixtures("at_hand")
def test_the_engine_teaches_with_the_current_weights(cold: Path, tmp_path: Path) -> None:
    """The same scores, whoever computes them: so the same losses."""
    losses: list[list[float]] = []
    for name in ("learner", "engine"):
        asked = configured("rlsd", cold, f"scorer={name}", "teacher.kind=current", "steps=2")
        run = Run.create(tmp_path / name, asked)
        train(run)
        lines = run.metrics()
        assert all(line["teacher_scores_missing"] == 0 for line in lines)
        assert max(line["teacher_coverage"] for line in lines) > 0
        losses.append([line["gap"] for line in lines if "gap" in line])
    assert losses[0]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
