"""OPD by hand, and a run whose tasks are taught by several models, some of which fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.agents import store, tiny
from retort.agents.base import EngineError, Trajectory
from retort.agents.chat import Chat
from retort.agents.hf import load_model
from retort.agents.scoring import score_tokens
from retort.algos import opd
from retort.algos.config import ConfigError, TrainConfig, preset, resolve
from retort.algos.launch import launch, resume_run
from retort.algos.opd import OPDOptions, advantage
from retort.algos.runs import Run
from retort.algos.train import train
from retort.envs.base import Split, TaskRef, TextEnv, TextSpace, content_digest
from safetensors.torch import load_file

TEXTS = ["say 3 and then done\n", "delete note.csv\n", "move card.csv to out.txt\n", "rm mv cat echo"] * 30
SMALL = {"prompts": 4, "group_size": 4, "concurrency": 8, "threads": 1, "signals_every": 1, "probe_every": 0}
FAMILIES = {"env_args": {"families": ["delete", "move"]}}


def of(batch: Any, hand: Any, logp: torch.Tensor, **options: Any) -> torch.Tensor:
    asked = OPDOptions(**options)
    return hand.total(opd.loss(batch, opd.credit(batch, asked), hand.student(logp), asked))


def test_by_hand(hand: Any) -> None:
    """The teacher speaks of three tokens: 0.5 nats more, 1 less, 2 more; ratios 1, 1.1 and 0.5, clipped at 0.8."""
    teacher = torch.tensor([[[0.0, -1.5, -3.0], [0.0, -1.0, 0.0]]])
    batch = hand.batch(
        teacher_logp=teacher,
        proximal_logp=torch.tensor([[0.0, -2.0, -2.0], [0.0, -3.0, 0.0]]),
        behaviour_logp=torch.tensor([[0.0, -2.0, -2.0], [0.0, -3.0, 0.0]]),
    )
    logp = batch.proximal_logp + torch.tensor([[0, 1.0, 1.1], [0, 0.5, 0]]).log().nan_to_num(neginf=0)
    # -A r: -0.5, 1.1, and max(-2 x 0.5, -2 x 0.8) = -1
    assert of(batch, hand, logp).item() == pytest.approx((-0.5 + 1.1 - 1.0) / 3)
    (term,) = opd.loss(batch, opd.credit(batch, OPDOptions()), hand.student(logp), OPDOptions())
    assert (term.name, term.weight) == ("policy", 1.0)


def test_beyond_the_teacher_by_hand() -> None:
    """1.25 (teacher - reference) - (old - reference) = 1.25 x 2 - 1 = 1.5"""
    told = (torch.tensor([[-1.0]]), torch.tensor([[-2.0]]), torch.tensor([[-3.0]]))
    assert advantage(*told, reward_scale=1.25).item() == pytest.approx(1.5)
    with pytest.raises(ValueError, match=r"reward_scale is 1\.25: expected reference_logp"):
        advantage(*told[:2], reward_scale=1.25)
    assert OPDOptions(reward_scale=1.25).needs_reference
    assert not OPDOptions().needs_reference


@given(st.integers(0, 999))
def test_at_scale_1_no_reference_matters_and_a_twin_teaches_nothing(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    teacher, old, reference = (torch.randn(3, 5, generator=draw) for _ in range(3))
    torch.testing.assert_close(advantage(teacher, old), advantage(teacher, old, reference))
    torch.testing.assert_close(
        advantage(teacher, old), 1.0 * (teacher - reference) - (old - reference), atol=1e-5, rtol=1e-5
    )
    assert (advantage(old, old) == 0).all()


def test_a_token_without_a_teacher_counts_nowhere(hand: Any) -> None:
    batch = hand.batch(
        teacher_mask=torch.tensor([[[False, True, False], [False, False, False]]]),
        teacher_logp=torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]),
    )
    logp = torch.zeros(2, 3, requires_grad=True)
    found = of(batch, hand, logp)
    assert found.item() == pytest.approx(-1.0)
    (slope,) = torch.autograd.grad(found, logp)
    assert slope.tolist() == [[0, -1, 0], [0, 0, 0]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("student"), TEXTS, seed=3)


@pytest.fixture(scope="module")
def specialist(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Models with the student's tokenizer and habits of their own, by a seed."""
    made: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in made:
            model, draw = load_model(student), torch.Generator().manual_seed(seed)
            with torch.no_grad():
                weight = model.get_output_embeddings().weight
                weight.add_(0.15 * torch.randn(weight.shape, generator=draw))
            made[seed] = tmp_path_factory.mktemp("specialist")
            model.save_pretrained(made[seed])
            Chat.load(student).save(made[seed])
        return made[seed]

    return make


def configured(student: Path, *settings: str, **changed: Any) -> TrainConfig:
    base = {**preset("opd", str(student)), **FAMILIES, **SMALL, "steps": 2, "checkpoint_every": 1}
    return resolve({**base, **changed}, settings)


def gaps(run: Run, step: int) -> dict[str, float]:
    """The mean gap of a step's tokens by who taught them."""
    table = pq.read_table(run.signals(step)).to_pylist()
    names = {row["teacher"] for row in table}
    told = {name: [row["gap"] for row in table if row["teacher"] == name] for name in names}
    return {name: sum(values) / len(values) for name, values in told.items()}


class Sides(TextEnv):
    """A line of text in one of two families, to be answered in one turn; nothing is right."""

    blocking = False

    def __init__(self, split: Split = "train") -> None:
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        keys = [f"{side}/{number}" for side in ("delete", "move") for number in range(4)]
        self.refs = [TaskRef(key, content_digest(key), split, key.partition("/")[0]) for key in keys]

    def tasks(self) -> Sequence[TaskRef]:
        return self.refs

    def gold(self, observation: str) -> str:
        return "done"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.ref = self.refs[self.pick(self.refs, options)]
        return self.ref.key, {"task": self.ref, "tools": [], "feedback": (), "success": None}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", 0.0, True, False, {"task": self.ref, "feedback": (), "success": None}


@pytest.fixture
def sides() -> Iterator[str]:
    gymnasium.register("tests/Sides-v0", entry_point=Sides, disable_env_checker=True)
    yield "tests/Sides-v0"
    del gymnasium.registry["tests/Sides-v0"]


def liked(folder: Path, played: Sequence[Trajectory]) -> float:
    """The mean log-prob that a model gives to what was sampled."""
    rows = [row for item in played for row in item.rows]
    with torch.no_grad():
        told = score_tokens(load_model(folder), [r.token_ids for r in rows], [np.flatnonzero(r.mask) for r in rows])
    return torch.cat([item.logp for item in told]).mean().item()


@pytest.mark.slow
def test_two_teachers_each_of_a_family_and_the_student_comes_nearer_to_both(
    sides: str, student: Path, specialist: Callable[[int], Path], tmp_path: Path
) -> None:
    own = {"delete": specialist(1), "move": specialist(2)}
    teachers = {side: {"model": str(folder), "tasks": [f"{side}/*"]} for side, folder in own.items()}
    more = {"env": sides, "env_args": {}, "prompts": 8, "group_size": 8, "sampling": {"turn_tokens": 32}}
    run = Run.create(tmp_path / "run", configured(student, "lr=0.01", teachers=teachers, steps=10, **more))
    train(run)
    first, last, played = gaps(run, 1), gaps(run, 10), store.read(run.rollouts(10))
    assert set(first) == set(last) == set(own)
    for side, other in (("delete", "move"), ("move", "delete")):
        assert first[side] < 0
        assert last[side] > 0.75 * first[side], (first, last)
        mine = [item for item in played if item.task.family == side]
        assert liked(own[side], mine) > liked(own[other], mine)
    for line in run.metrics():
        assert line["teacher_coverage"] == 1
        assert line["tokens_taught"] == 1
        told = line["teachers"]
        assert told["delete"]["coverage"] == told["move"]["coverage"] == 1
        assert told["delete"]["tokens"] + told["move"]["tokens"] == line["tokens"]
        assert told["delete"]["version"] != told["move"]["version"]
    for row in pq.read_table(run.signals(1)).to_pylist():
        assert row["teacher"] == row["task"].partition("/")[0]
    about = json.loads(pq.read_schema(run.signals(1)).metadata[b"retort.about"])
    assert "scored by delete (version " in about["teacher"]


def test_a_run_with_teachers_goes_on_as_if_it_had_not_stopped(
    student: Path, specialist: Callable[[int], Path], tmp_path: Path
) -> None:
    teachers = {"one": {"model": str(specialist(1)), "tasks": ["delete/*"]}}
    config = configured(student, "reward_scale=1.25", "prompts=2", teachers=teachers, steps=3)
    run = launch(config, tmp_path / "run")
    assert not (run.checkpoints()[-1] / "teacher.pt").exists()
    assert (run.checkpoints()[-1] / "reference.pt").exists()
    straight = (run.checkpoints()[-1] / "model.safetensors").read_bytes()
    shutil.rmtree(run.checkpoints()[-1])
    resume_run(run.folder)
    assert (run.checkpoints()[-1] / "model.safetensors").read_bytes() == straight
    for line in run.metrics():
        assert 0 <= line["teacher_coverage"] < 1
        assert line["teacher_scores_missing"] > 0


def test_a_teacher_that_is_killed_amid_a_step_ends_no_run(
    teaching: Any, link: Any, student: Path, specialist: Callable[[int], Path], tmp_path: Path
) -> None:
    """It dies at the first question of the second step; another model of this process steps in where it may."""
    with teaching(specialist(1), tmp_path / "log.txt") as server, link(server.url) as (near, state):
        teachers = {
            "far": {"model": near, "retries": 1, "timeout_s": 60},
            "near": {"model": str(specialist(2)), "tasks": ["move/*"]},
        }

        def kill(number: int) -> None:
            if number == 2:
                server.process.kill()
                server.process.wait()

        state.before = kill
        run = Run.create(tmp_path / "run", configured(student, teachers=teachers, steps=3, prompts=8))
        train(run)
    first, second, third = run.metrics()
    assert (first["teacher_coverage"], first["teacher_scores_missing"]) == (1, 0)
    assert (first["teachers"]["far"]["requests"], first["teachers"]["near"]["requests"]) == (1, 0)
    for line in (second, third):
        told = line["teachers"]
        assert (told["far"]["failures"], told["far"]["coverage"]) == (1, 0)
        assert told["far"]["tokens"] == line["tokens"]
        assert told["near"]["fallbacks"] > 0
        assert 0 < line["teacher_coverage"] < 1
        assert line["teacher_scores_missing"] == line["tokens"] - told["near"]["tokens"]
        assert line["skipped"] == ""
    rows = pq.read_table(run.signals(2)).to_pylist()
    assert {(row["teacher"], row["gap"] is None) for row in rows} == {("near", False), (None, True)}
    assert all((row["mask"], row["push"]) == (False, 0) for row in rows if row["teacher"] is None)
    now, before = (load_file(folder / "model.safetensors") for folder in (run.checkpoints()[-1], student))
    assert any(not torch.equal(value, before[name]) for name, value in now.items())
    assert all(torch.isfinite(value).all() for value in now.values())


@pytest.mark.slow
def test_a_teacher_of_another_process_gives_all_that_a_recipe_wants(teaching: Any, cold: Path, tmp_path: Path) -> None:
    """Support and entropy over the link: the same losses, up to float16 alternatives, as from this process."""
    teacher = cold.parents[1] / "init"
    family = {"env_args": {"families": ["delete"]}}
    more = {"steps": 1, "sampling": {"temperature": 0.8, "turn_tokens": 16}}
    losses = []
    with teaching(teacher, tmp_path / "log.txt") as server:
        for name, model in (("far", server.url), ("here", str(teacher))):
            asked = {**SMALL, **family, **more, "teachers": {"big": {"model": model}}}
            config = resolve({**preset("srpo", str(cold)), **asked}, ["teacher.kind=fixed", "k=8"])
            run = Run.create(tmp_path / name, config)
            train(run)
            (line,) = run.metrics()
            assert line["teacher_scores_missing"] == 0
            assert line["teachers"]["big"]["coverage"] == 1
            losses.append((line["loss_distil"], line["gap"], line["teacher_support_mass"]))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3, abs=1e-4)


def test_what_cannot_teach_is_refused_before_a_run_has_a_folder(
    student: Path, specialist: Callable[[int], Path], tmp_path: Path
) -> None:
    one = str(specialist(1))
    with pytest.raises(ConfigError, match=r"no training task matches 'moves/\*'; did you mean 'move/\*'"):
        train(
            Run.create(tmp_path / "routes", configured(student, teachers={"a": {"model": one, "tasks": ["moves/*"]}}))
        )
    stranger = tiny.build(tmp_path / "stranger", ["quite other words, and none of these\n"] * 30, seed=4)
    with pytest.raises(EngineError, match="another tokenizer than the learner"):
        launch(configured(student, teachers={"a": {"model": str(stranger)}}), tmp_path / "run")
    with pytest.raises(EngineError, match=r"no teacher at http://127\.0\.0\.1:9 .*retort teach"):
        launch(configured(student, teachers={"a": {"model": "http://127.0.0.1:9", "retries": 0}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
