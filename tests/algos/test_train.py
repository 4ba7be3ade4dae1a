"""The loop on real tasks: it learns, repeats itself bit for bit, survives being killed, and lets nothing leak."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium.error import ResetNeeded
from retort.agents import store
from retort.agents.base import Origin
from retort.agents.hf import load_model
from retort.algos.config import ConfigError, TrainConfig, load_recipe, preset, recipes, resolve
from retort.algos.launch import cold_config, launch, resume_run
from retort.algos.runs import CheckpointError, Run, check
from retort.algos.setup import assemble, save
from retort.algos.symptoms import DeadTermError
from retort.algos.train import silent, train, train_step
from retort.envs.base import Failure, Feedback, Source, Split, TaskRef, TextEnv, TextSpace, content_digest
from retort.feedback.base import LeakError
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

FAMILY = {"env_args": {"families": ["delete"]}}
SKILLS = Path(__file__).parents[2] / "examples" / "skills"
SETTINGS = {"sdar": [f"skills.folder={SKILLS}"], "dapo": ["limit=48"]}
SECRET = "the word that was asked for is written in the file behind the green door"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the subprocesses have it: the same bits need the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configured(recipe: str, model: Path | str, *settings: str, **changed: Any) -> TrainConfig:
    small = {"steps": 3, "prompts": 2, "group_size": 4, "concurrency": 8, "checkpoint_every": 1, "threads": 1}
    return resolve({**preset(recipe, str(model)), **FAMILY, **small, **changed}, settings)


def weights(run: Run) -> bytes:
    return (run.checkpoints()[-1] / "model.safetensors").read_bytes()


def measured(run: Run) -> list[dict[str, Any]]:
    return [untimed(line) for line in run.metrics()]


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    parts = {name: value for name, value in line.items() if name != "seconds"}
    return {name: untimed(value) if isinstance(value, dict) else value for name, value in parts.items()}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in recipes() if name != "sft"])
def test_a_recipe_trains_end_to_end_and_repeats_itself(cold: Path, tmp_path: Path, recipe: str) -> None:
    untrained = cold.parents[1] / "init"  # of the same tokenizer
    asked = [f"teachers.untrained.model={untrained}"] if recipe == "opd" else SETTINGS.get(recipe, ())
    runs = [Run.create(tmp_path / name, configured(recipe, cold, *asked)) for name in ("first", "second")]
    heard: list[tuple[str, int]] = []
    for run in runs:
        assert train(run, lambda stage, done, _: heard.append((stage, done))) == run.checkpoints()[-1]
    assert heard[:4] == [("step", 0), ("step", 1), ("step", 2), ("step", 3)]
    first, second = runs
    assert weights(first) != (cold / "model.safetensors").read_bytes()
    assert weights(first) == weights(second)
    assert measured(first) == measured(second)
    assert [line["step"] for line in first.metrics()] == [1, 2, 3]
    assert check(first.checkpoints()[-1]) == 3
    for line in first.metrics():
        assert line["episodes"] >= 8
        assert line["infrastructure_failures"] == 0
        assert line["sampler_gap_nats"] < 1e-4
        assert set(line["seconds"]) - {"judge", "signals"} == {
            "rollout",
            "student",
            "teacher",
            "probe",
            "update",
            "measure",
            "sync",
        }
    if load_recipe(recipe).channels:
        assert max(line["teacher_coverage"] for line in first.metrics()) > 0
        assert max(line["tokens_taught"] for line in first.metrics()) > 0
    played = store.read(first.rollouts(2))
    assert len(played) >= 8
    assert {item.provenance.policy_version for item in played} == {1}
    assert sum(item.sampled_tokens for item in played) == first.metrics()[1]["tokens"]
    stored = [pq.read_table(run.signals(1)) for run in runs]
    assert stored[0].equals(stored[1])
    assert 0 < stored[0].num_rows <= first.metrics()[0]["tokens"]
    assert not first.signals(2).exists()


def test_another_seed_is_another_run(cold: Path, tmp_path: Path) -> None:
    runs = [Run.create(tmp_path / str(seed), configured("srpo", cold, f"seed={seed}", "steps=1")) for seed in (0, 1)]
    for run in runs:
        train(run)
    assert weights(runs[0]) != weights(runs[1])
    tasks = [[item.task.key for item in store.read(run.rollouts(1))] for run in runs]
    assert tasks[0] != tasks[1]


def killed_and_resumed(folder: Path, command: Sequence[str], checkpoints: int, seed: int) -> Run:
    """A run in a process that is killed at a random moment after some checkpoints, and then goes on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "retort", "train", *command, "--out", str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        limit = time.monotonic() + 150
        while len(list(folder.glob("checkpoints/step-*"))) < checkpoints:
            assert process.poll() is None, (process.stderr.read() if process.stderr else b"").decode()
            assert time.monotonic() < limit, "no checkpoint was written"
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0.0, 0.5))
        assert process.poll() is None, "the run was over before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stderr:
            process.stderr.close()
    done = Run.open(folder)
    stopped = check(done.checkpoints()[-1])
    assert stopped < done.config.steps
    resumed = subprocess.run(
        [sys.executable, "-m", "retort", "train", "--resume", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert resumed.returncode == 0, resumed.stderr
    return done


def flags(config: TrainConfig, *names: str) -> list[str]:
    """The command line of what `configured` sets."""
    tree = config.model_dump()
    settings = [f"{name}={tree[name]}" for name in names]
    return [*(part for setting in settings for part in ("--set", setting)), "--set", 'env_args.families=["delete"]']


KNOBS = ("steps", "prompts", "group_size", "concurrency", "checkpoint_every", "threads", "keep")


@pytest.mark.slow
def test_a_killed_run_ends_as_the_one_that_was_not(cold: Path, tmp_path: Path) -> None:
    """With a teacher that moves, every second update."""
    config = configured("srpo", cold, "steps=12", "keep=20", "checkpoint_every=2", "kind=ema", "every=2", "rate=0.5")
    straight = Run.create(tmp_path / "straight", config)
    train(straight)
    command = ["srpo", "--model", str(cold), "--set", "kind=ema", "--set", "every=2", "--set", "rate=0.5"]
    resumed = killed_and_resumed(tmp_path / "killed", [*command, *flags(config, *KNOBS)], 1, 0)
    assert resumed.config == config
    assert weights(resumed) == weights(straight)
    assert measured(resumed) == measured(straight)
    for path in straight.checkpoints():
        other = resumed.folder / "checkpoints" / path.name
        for name in ("model.safetensors", "teacher.pt"):
            assert (other / name).read_bytes() == (path / name).read_bytes()


@pytest.mark.slow
def test_a_killed_cold_start_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    changed = {"traces": {"tasks": 20, "per_task": 3, "skill": 0.5}, "steps": 160, "prompts": 4, "group_size": 1}
    config = configured("sft", "tiny", "checkpoint_every=10", "keep=20", **changed)
    straight = Run.create(tmp_path / "straight", config)
    train(straight)
    command = ["sft", "--set", "traces.tasks=20", "--set", "per_task=3", "--set", "skill=0.5", *flags(config, *KNOBS)]
    resumed = killed_and_resumed(tmp_path / "killed", command, 2, 1)
    assert resumed.config == config
    assert weights(resumed) == weights(straight)
    assert measured(resumed) == measured(straight)


def test_a_finished_run_stays_as_it_is(cold: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured("grpo", cold, "steps=1"))
    train(run)
    before = weights(run), measured(run)
    resume_run(run.folder)
    assert (weights(run), measured(run)) == before


def test_a_corrupted_checkpoint_is_not_gone_on_with(cold: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured("grpo", cold, "steps=2"))
    train(run)
    first, last = run.checkpoints()
    data = (last / "learner.pt").read_bytes()
    (last / "learner.pt").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"learner.pt has changed.*newest whole one is {first}"):
        resume_run(run.folder)
    expected = weights(run)
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    resume_run(run.folder)
    assert weights(run) == expected


@pytest.mark.slow
def test_skills_are_part_of_a_checkpoint(cold: Path, tmp_path: Path) -> None:
    config = configured("sdar", cold, *SETTINGS["sdar"], "pick=ucb", "steps=4")
    straight, stopped = (Run.create(tmp_path / name, config) for name in ("straight", "stopped"))
    train(straight)
    with assemble(stopped, load_recipe("sdar"), silent) as parts:
        for step in range(2):
            stopped.log({**train_step(stopped, load_recipe("sdar"), parts, step, silent), "warnings": []})
        stopped.save(2, lambda folder: save(folder, parts))
    resume_run(stopped.folder)
    assert weights(stopped) == weights(straight)
    assert measured(stopped) == measured(straight)
    kept = [json.loads((run.checkpoints()[-1] / "memory.json").read_text()) for run in (straight, stopped)]
    assert kept[0] == kept[1]
    assert kept[0]["updates"] == 4
    assert sum(count for count, _ in kept[0]["used"].values()) > 0


def resumed_at(run: Run, step: int) -> bytes:
    """The last weights of a finished run whose checkpoints after `step` are lost, and which goes on from there."""
    for path in run.checkpoints():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    resume_run(run.folder)
    return weights(run)


def test_mini_batches_and_epochs_go_on_bit_for_bit_and_let_the_clip_act(cold: Path, tmp_path: Path) -> None:
    config = configured("grpo", cold, "steps=2", "prompts=8", "mini_batches=2", "epochs=2", "lr=0.03", "keep=9")
    run = Run.create(tmp_path / "run", config)
    train(run)
    lines = run.metrics()
    assert max(line["optimiser_steps"] for line in lines) == 4  # fewer where a mini-batch has nothing to learn from
    assert max(line["clip_policy"] for line in lines) > 0
    assert max(line["sampler_gap_nats"] for line in lines) < 1e-4  # what was sampled is still the proximal policy's
    straight = weights(run), measured(run)
    assert straight == (resumed_at(run, 1), measured(run))


def of_context(model: Path, folder: Path, tokens: int) -> Path:
    """The same model, which says that it reads so many tokens."""
    shutil.copytree(model, folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "max_position_embeddings": tokens}))
    return folder


def test_nothing_is_read_beyond_the_models_context(cold: Path, tmp_path: Path) -> None:
    """Conversations may not be longer, and views that are longer are left out and counted."""
    short = of_context(cold, tmp_path / "model", 120)
    run = Run.create(tmp_path / "refused", configured("sdpo", short, "steps=1"))
    with pytest.raises(ConfigError, match="context_tokens: the model reads 120 tokens, found 1024"):
        train(run)
    template = "reprompt.feedback_template={prompt} " + "well " * 200 + "{text}"
    config = configured("sdpo", short, "steps=1", "context_tokens=120", template, "reprompt.solutions=false")
    run = Run.create(tmp_path / "run", config)
    train(run)
    (line,) = run.metrics()
    assert line["views_too_long"] > 0
    assert line["teacher_coverage"] == 0


def test_a_model_with_tied_embeddings_goes_on_bit_for_bit(cold: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    shutil.copytree(cold, tied)
    config = LlamaConfig.from_pretrained(tied, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tied)
    run = Run.create(tmp_path / "run", configured("srpo", tied, "steps=2"))
    train(run)
    assert "lm_head.weight" not in load_file(run.checkpoints()[-1] / "model.safetensors")
    straight = weights(run)
    assert straight == resumed_at(run, 1)


def test_an_adapter_goes_on_and_is_trained_further(cold: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured("srpo", cold, "steps=2", "lora_rank=4"))
    train(run)
    adapter = (run.checkpoints()[-1] / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.checkpoints()[-1])
    resume_run(run.folder)
    assert (run.checkpoints()[-1] / "adapter_model.safetensors").read_bytes() == adapter
    further = Run.create(tmp_path / "further", configured("grpo", run.checkpoints()[-1], "steps=1"))
    train(further)
    assert weights(further) != (cold / "model.safetensors").read_bytes()
    above = Run.create(
        tmp_path / "above", configured("grpo", run.checkpoints()[-1], "steps=1", "lora_rank=2", "lr=1e-12")
    )
    train(above)
    first, second, bare = (
        load_model(folder).state_dict() for folder in (run.checkpoints()[-1], above.checkpoints()[-1], cold)
    )
    assert all(torch.allclose(second[name], first[name], atol=1e-6) for name in first)
    assert not all(torch.allclose(second[name], bare[name], atol=1e-6) for name in first)


def test_half_precision_samples_as_it_scores(cold: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", configured("srpo", cold, "steps=1", "dtype=bfloat16"))
    with pytest.warns(UserWarning, match="slower than float32"):
        train(run)
    (line,) = run.metrics()
    assert 0 < line["sampler_gap_nats"] < 0.3
    assert not line["skipped"]


def test_traces_are_not_asked_of_a_run_that_plays_none(cold: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"traces\.\* are for sft"):
        launch(configured("grpo", cold, "traces.tasks=7"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cold_start_takes_over_what_the_run_asks_for() -> None:
    settings = ["traces.tasks=7", "device=cpu", "options.reprompt.feedback_template='{prompt} {text}'"]
    made = cold_config(configured("srpo", "tiny", *settings))
    assert (made.recipe, made.traces.tasks, made.learner.device) == ("sft", 7, "cpu")
    assert made.options.reprompt.feedback_template == "{prompt} {text}"  # type: ignore[attr-defined]
    assert made.env_args == FAMILY["env_args"]


def test_the_untrained_tiny_model_wants_a_cold_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cold-start it"):
        train(Run.create(tmp_path / "run", configured("grpo", "tiny")))


def first_step(folder: Path, config: TrainConfig) -> tuple[dict[str, Any], list[str], list[Any]]:
    """The first step's metrics, what its teacher read, and the conversations that were played."""
    run, recipe = Run.create(folder, config), load_recipe(config.recipe)
    read: list[str] = []
    with assemble(run, recipe, silent) as parts:
        assert parts.teacher is not None
        score = parts.teacher.score

        def watched(views: Any, **options: Any) -> Any:
            read.extend(parts.chat.tokenizer.decode(view.token_ids.tolist()) for view in views)
            return score(views, **options)

        parts.teacher.score = watched  # type: ignore[method-assign]
        metrics = train_step(run, recipe, parts, 0, silent)
    return metrics, read, [item.messages for item in store.read(run.rollouts(1))]


def test_feedback_of_another_task_gives_other_views(cold: Path, tmp_path: Path) -> None:
    """What is played in the first step is the same; what the teacher reads is not, or nothing."""
    own, shuffled, none = (
        first_step(tmp_path / feedback, configured("sdpo", cold, f"feedback={feedback}", "prompts=4"))
        for feedback in ("own", "shuffled", "none")
    )
    assert own[2] == shuffled[2] == none[2]
    assert own[1]
    assert shuffled[1]
    assert set(own[1]).isdisjoint(shuffled[1])
    assert own[0]["teacher_coverage"] > 0
    assert own[0]["loss"] != shuffled[0]["loss"]
    assert none[1] == []
    assert none[0]["teacher_coverage"] == 0
    assert none[0]["skipped"] == "no token to learn from"


class Say(TextEnv):
    """Say the word; one action, or two. What is invisible says the word."""

    def __init__(self, split: Split = "train", mode: str = "") -> None:
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        self.mode = mode
        self.refs = [TaskRef(f"say/{number}", content_digest(number), split, "say") for number in range(4)]
        self.turn = -1

    def tasks(self) -> Sequence[TaskRef]:
        return self.refs

    def gold(self, observation: str) -> str:
        return "done"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.ref, self.turn = self.refs[self.pick(self.refs, options)], 0
        return "delete the file", {"task": self.ref, "tools": [], "feedback": (), "success": None}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.turn < 0:
            raise ResetNeeded("reset first")
        if self.mode == "raises" and self.ref.key == "say/2":
            raise OSError("the disk of the sandbox is gone")
        turn, self.turn = self.turn, self.turn + 1
        over = turn == 1
        observation = SECRET if self.mode == "leaks" and turn == 0 else "nothing to see"
        feedback = (Feedback(SECRET, Source.VERIFIER, turn, False),)
        won = self.mode == "equal"
        success = {"success": won, "failure": None if won else Failure.POLICY} if over else {"success": None}
        return observation, float(won and over), over, False, {"task": self.ref, "feedback": feedback, **success}


@pytest.fixture
def say() -> Iterator[str]:
    gymnasium.register("tests/Say-v0", entry_point=Say, disable_env_checker=True)
    yield "tests/Say-v0"
    del gymnasium.registry["tests/Say-v0"]


def saying(recipe: str, model: Path, mode: str, *settings: str) -> TrainConfig:
    own = {"env": "tests/Say-v0", "env_args": {"mode": mode}, "sampling": {"turn_tokens": 64}}
    return configured(recipe, model, "prompts=4", "group_size=2", "steps=2", *settings, **own)


def test_a_leak_ends_the_run_and_names_the_episode(cold: Path, tmp_path: Path, say: str) -> None:
    run = Run.create(tmp_path / "run", saying("sdpo", cold, "leaks"))
    with pytest.raises(
        LeakError, match=r"invisible verifier feedback of turn 0 .* observation of turn 1; episode 0-"
    ) as error:
        train(run)
    assert "task say/" in str(error.value)
    assert say in str(error.value)
    assert run.checkpoints() == []
    assert run.metrics() == []
    assert not run.rollouts(1).exists()


def test_a_privileged_token_in_a_rollout_ends_the_run(cold: Path, tmp_path: Path, say: str) -> None:
    run = Run.create(tmp_path / "run", saying("grpo", cold, ""))
    recipe = load_recipe("grpo")
    with assemble(run, recipe, silent) as parts:
        play = parts.episodes

        def tagged(step: int) -> Any:
            first, *rest = play(step)
            origin = first.rows[0].origin.copy()
            origin[1] = Origin.PRIVILEGED
            return [replace(first, rows=(replace(first.rows[0], origin=origin),)), *rest]

        parts.episodes = tagged
        with pytest.raises(LeakError, match="episode 0-0-0"):
            train_step(run, recipe, parts, 0, silent)


def test_an_environment_that_raises_is_counted_and_the_batch_goes_on(cold: Path, tmp_path: Path, say: str) -> None:
    run = Run.create(tmp_path / "run", saying("sdpo", cold, "raises"))
    train(run)
    for line in run.metrics():
        assert line["episodes"] >= 8
        assert line["infrastructure_failures"] == 2
        assert line["teacher_coverage"] > 0
        assert line["loss"] != 0
    broken = [item for item in store.read(run.rollouts(1)) if not item.usable]
    assert {item.task.key for item in broken} == {"say/2"}
    assert all(item.failure is Failure.INFRASTRUCTURE for item in broken)
    assert all("OSError: the disk of the sandbox is gone" in (item.error or "") for item in broken)
    assert all(item.success is None for item in broken)


def test_groups_of_equal_rewards_teach_nothing(cold: Path, tmp_path: Path, say: str) -> None:
    run = Run.create(tmp_path / "run", saying("grpo", cold, "equal"))
    train(run)
    for line in run.metrics():
        assert line["groups_of_equal_reward"] == 1
        assert line["success"] == line["reward"]
        assert line["loss"] == 0
        assert line["skipped"] == "no token to learn from"
    now = load_file(run.checkpoints()[-1] / "model.safetensors")
    before = load_file(cold / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in now.items())


def test_a_known_failure_is_said_once_in_words(cold: Path, tmp_path: Path, say: str) -> None:
    """Every group's rewards are equal from the first step; a window of five tells."""
    run, heard = Run.create(tmp_path / "run", saying("grpo", cold, "equal", "steps=7")), list[str]()
    train(run, lambda stage, done, metrics: heard.extend(metrics.get("warnings", ())))
    assert [len(line["warnings"]) for line in run.metrics()] == [0, 0, 0, 0, 1, 0, 0]
    assert heard == run.warnings()
    assert heard[0].startswith("zero-variance groups: 100% of groups have equal rewards")
    assert "100% succeeded throughout) (steps 1 to 5)" in heard[0]
    resumed_at(run, 6)
    assert run.warnings() == heard


def test_a_term_that_stays_at_zero_ends_the_run(cold: Path, tmp_path: Path, say: str) -> None:
    run = Run.create(tmp_path / "run", saying("grpo", cold, "", "steps=9", "dead_after=3"))
    with pytest.raises(DeadTermError, match=r"'policy' has taught nothing for 3 steps, 1 to 3.*equal rewards") as error:
        train(run)
    assert str(error.value).endswith(f"The last checkpoint: {run.checkpoints()[-1]}")
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    assert check(run.checkpoints()[-1]) == 3
    with pytest.raises(DeadTermError):  # goes on from there, and one more such step is enough
        resume_run(run.folder)
    assert len(run.metrics()) == 4


def test_a_teacher_with_nothing_to_say_ends_the_run(cold: Path, tmp_path: Path, say: str) -> None:
    asked = ("reprompt.feedback=false", "steps=4", "dead_after=2")
    with pytest.raises(DeadTermError, match="the teacher has had nothing to say for 2 steps"):
        train(Run.create(tmp_path / "run", saying("sdpo", cold, "", *asked)))
    silent_by_choice = Run.create(tmp_path / "none", saying("sdpo", cold, "", *asked, "feedback=none"))
    train(silent_by_choice)
    assert len(silent_by_choice.metrics()) == 4


def test_an_episode_without_a_model_token_is_data(cold: Path, tmp_path: Path, say: str) -> None:
    """The prompt alone fills the context, so the policy is never asked."""
    run = Run.create(tmp_path / "run", saying("sdpo", cold, "", "context_tokens=8"))
    train(run)
    for line in run.metrics():
        assert (line["episodes"], line["infrastructure_failures"], line["tokens"]) == (8, 0, 0)
        assert line["truncated"] == 1
        assert line["skipped"] == "no usable episode has a model token"
    assert all(item.truncated_by == "context" for item in store.read(run.rollouts(1)))
    assert check(run.checkpoints()[-1]) == 2


def test_one_episode_without_a_model_token_among_others(cold: Path, tmp_path: Path, say: str) -> None:
    run = Run.create(tmp_path / "run", saying("sdpo", cold, ""))
    recipe = load_recipe("sdpo")
    with assemble(run, recipe, silent) as parts:
        play = parts.episodes

        def silenced(step: int) -> Any:
            first, *rest = play(step)
            row = first.rows[0]
            kept = int((row.origin == Origin.PROMPT).sum())
            cut = replace(row, **{name: value[:kept] for name, value in vars(row).items()})
            none = replace(first, rows=(cut,), turns=(), messages=first.messages[:1], reward=0.0, success=None)
            return [none, *rest]

        parts.episodes = silenced
        metrics = train_step(run, recipe, parts, 0, silent)
    assert metrics["episodes"] == 8
    assert metrics["infrastructure_failures"] == 0
    assert metrics["teacher_coverage"] == 1
    assert metrics["skipped"] == ""


def test_an_environment_without_training_tasks_is_refused(cold: Path, tmp_path: Path) -> None:
    class Empty(Say):
        def tasks(self) -> Sequence[TaskRef]:
            return []

    gymnasium.register("tests/Empty-v0", entry_point=Empty, disable_env_checker=True)
    try:
        config = configured("grpo", cold, env="tests/Empty-v0", env_args={})
        with pytest.raises(ConfigError, match="expected tasks in the train split, found none"):
            train(Run.create(tmp_path / "run", config))
    finally:
        del gymnasium.registry["tests/Empty-v0"]
