"""`retort trace` on a run that was really trained."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from retort.agents import store
from retort.algos.config import TrainConfig, preset, resolve
from retort.algos.launch import launch
from retort.algos.runs import Run
from retort.envs.base import UsageError
from rich.console import Console
from typer.testing import CliRunner

from retort.cli import app
from retort.trace import load, show

DOCS = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
FAMILIES = ("truncated", "loss", "weight", "tokens", "slope", "clip", "share")
ENV = {"env_args": {"families": ["delete"]}, "threads": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of SRPO, the first and the third stored, on a model that solves something now and then."""
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("trace")
    small = {"traces": {"tasks": 60, "per_task": 3, "skill": 0.5}, "steps": 40, "prompts": 16, "checkpoint_every": 40}
    cold = launch(resolve({**preset("sft", "tiny"), **ENV, **small}), folder / "cold")
    asked = {"steps": 3, "prompts": 4, "group_size": 4, "signals_every": 2}
    made = launch(resolve({**preset("srpo", str(cold.checkpoints()[-1])), **ENV, **asked}), folder / "run")
    torch.set_num_threads(before)
    return made


def printed(run: Run, *options: str, colour: bool = False) -> str:
    held = io.StringIO()
    system = "standard" if colour else None
    show(load(run.folder, 3, *options), Console(file=held, force_terminal=colour, color_system=system, width=160))
    return held.getvalue()


def test_an_episode_that_a_teacher_spoke_of(run: Run) -> None:
    trace = load(run.folder, 3)
    assert all(row["success"] is False for row in trace.rows)
    assert {row["branch"] for row in trace.rows} == {"distil"}
    said = printed(run)
    first = trace.rows[0]
    assert f"srpo, step 3, episode {first['episode']}: task {first['task']}, reward 0, failed" in said
    assert "Teacher: ema: the policy's moving average, rate 0.05 every 1 updates, after 2 updates." in said
    assert "Terms of the loss: policy x 0." in said
    assert re.search(r"Teacher 0 read:\n.*<\|im_start\|>user\n", said, re.DOTALL)
    assert ("A solution that worked:" in said) or ("Feedback on a failed attempt:" in said)
    (played,) = [item for item in store.read(run.rollouts(3)) if item.episode == first["episode"]]
    for turn in played.turns:
        assert turn.observation in said
    assert "".join(row["text"] for row in trace.rows if row["turn"] == 0).startswith(played.turns[0].action)
    lines = [line for line in said.splitlines() if line.endswith(("distil", "distil (clipped)"))]
    assert len(lines) == len(trace.rows) == played.sampled_tokens
    assert any(f"{first['gap']:+.{digits}f}" in lines[0] for digits in (3, 4, 6))
    assert "\x1b[" not in said
    assert "Green and + pull a token up" in said


def test_colour_says_which_way_a_token_is_pulled(run: Run) -> None:
    trace = load(run.folder, 3)
    strongest = max(trace.rows, key=lambda row: abs(row["push"]))
    style = "32" if strongest["push"] > 0 else "31"
    assert f"\x1b[1;{style}m{strongest['text']}" in printed(run, colour=True)


def test_every_token_of_the_step_is_there_once(run: Run) -> None:
    rows = pq.read_table(run.signals(3)).to_pylist()
    played = [item for item in store.read(run.rollouts(3)) if item.usable]
    assert len(rows) == sum(item.sampled_tokens for item in played)
    assert len({(row["row"], row["position"]) for row in rows}) == len(rows)
    own = {item.episode: item.rows[0] for item in played if len(item.rows) == 1}
    for row in rows:
        assert own[row["episode"]].token_ids[row["position"]] == row["token_id"]
        assert own[row["episode"]].behaviour_logp[row["position"]] == row["behaviour_logp"]


def test_json_and_other_episodes(run: Run) -> None:
    names = list(dict.fromkeys(pq.read_table(run.signals(3)).column("episode").to_pylist()))
    command = ["trace", str(run.folder), "--step", "3", "--json", "--episode"]
    by_name, by_place = (json.loads(CliRunner().invoke(app, [*command, which]).stdout) for which in (names[5], "5"))
    assert by_name == by_place
    assert {token["episode"] for token in by_name["tokens"]} == {names[5]}
    assert by_name["step"] == 3
    assert set(by_name["weights"]) <= {"policy", "distil"}


def test_what_is_not_there_names_what_is(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"step 2 of .* has no signals; the nearest are of 1 and 3"):
        load(run.folder, 2)
    with pytest.raises(UsageError, match=r"unknown episode '2-0-9' .*did you mean '2-0-"):
        load(run.folder, 3, "2-0-9")
    with pytest.raises(UsageError, match="expected a run folder"):
        load(tmp_path, 1)
    bare = tmp_path / "bare"
    shutil.copytree(run.folder, bare)
    shutil.rmtree(bare / "signals")
    with pytest.raises(UsageError, match="has no signals: it was trained with signals_every=2, up to step 3"):
        load(bare, 1)
    broken = tmp_path / "broken"
    shutil.copytree(run.folder, broken)
    path = Run.open(broken).signals(1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="is corrupted"):
        load(broken, 1)
    shutil.copy(run.rollouts(1), path)
    with pytest.raises(UsageError, match="expected the signals of a step"):
        load(broken, 1)


def test_the_page_names_every_metric_and_every_option_of_a_run(run: Run) -> None:
    for line in run.metrics():
        for name in line:
            family = name.partition("_")[0]
            named = f"`{name}`" in DOCS or (family in FAMILIES and f"`{family}_" in DOCS)
            assert named, f"docs/training.md does not say what {name} is"
    taught = {"recipe", "env", "env_args", "model", "seed", "options"}  # said in words, or on the command line
    for name in set(TrainConfig.model_fields) - taught:
        assert re.search(rf"`{name}(\.\*)?`", DOCS), f"docs/training.md does not say what {name} is"
