"""Evaluation: hand-worked numbers, what leaves the denominator, and the real shell."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.agents import scripted
from retort.agents.base import Provenance, Sampling, Trajectory
from retort.agents.evaluate import evaluate, play, spread
from retort.agents.policies import PREFIXES, Player, load_player
from retort.agents.report import pass_at_k, pass_hat_k, rate, report
from retort.agents.rollout import Runner
from retort.envs.base import TaskRef, TextSpace, UsageError

SHELL = "retort/Shell-v0"
UNSAFE = {"sandbox": "unsafe"}


def test_a_player_is_closed_where_the_evaluation_cannot_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, closed = list[str](), list[str]()

    def load(name: str, given: Any) -> Player:
        loaded.append(name)
        return replace(load_player("gold"), close=lambda: closed.append(name))

    monkeypatch.setitem(PREFIXES, "mine", load)
    asked = partial(evaluate, SHELL, "mine:x", env_args=UNSAFE, limit=1)
    with pytest.raises(UsageError, match="context_tokens"):
        asked(context_tokens=100)
    assert (loaded, closed) == (["x"], ["x"])
    asked(out=tmp_path / "out")
    assert (loaded, closed) == (["x"] * 2, ["x"] * 2)
    with pytest.raises(UsageError, match="already holds an evaluation"):
        asked(out=tmp_path / "out")
    assert loaded == ["x"] * 2, "the folder is looked at before anything is loaded"


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == pytest.approx(1 - 3 / 6)
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)
    assert pass_at_k(3, 0, 2) == 0
    assert pass_at_k(3, 2, 2) == 1
    assert pass_hat_k(4, 3, 2) == pytest.approx(3 / 6)
    assert pass_hat_k(4, 1, 2) == 0
    for measure in (pass_at_k, pass_hat_k):
        with pytest.raises(ValueError, match="found n=2, c=1, k=3"):
            measure(2, 1, 3)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_counts_subsets(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    drawn = list(combinations([number < c for number in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))
    assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, drawn)) / len(drawn))


def test_errors_are_clustered_by_task() -> None:
    found = rate("x", [[True, True], [False, False], [True, False]])
    assert (found.success, found.n, found.episodes) == (0.5, 3, 6)
    assert found.stderr == pytest.approx(0.5 / sqrt(3))
    repeated = rate("x", [[True] * 50, [False] * 50, [True, False] * 25])
    assert repeated.stderr == pytest.approx(found.stderr)  # more rollouts of the same tasks prove nothing more
    assert rate("x", []).success == 0


def rollouts(task: str, wins: int, count: int) -> list[Trajectory]:
    """Episodes of one task, of which some are won."""
    told = Provenance("x", "x", 0, "", "", Sampling(), 0, "none", "1")
    ref = TaskRef(task, "", "test", "some")
    return [Trajectory(f"{task}-{n}", 0, ref, (), (), (), 0.0, n < wins, None, True, False, told) for n in range(count)]


@pytest.fixture
def played(echo: Any) -> list[Trajectory]:
    """Two episodes of each of 8 tasks; those of echo-3 break, and a plan of two actions wins tasks 1 and 5."""
    chat = scripted.byte_chat()
    policy = scripted.plan(["say", "done"], chat)
    make = lambda: echo(breaks=[("echo-3", 1)])  # noqa: E731
    with closing(Runner(make, policy, chat, env_id="echo", concurrency=4)) as runner:
        return play(runner, echo().tasks(), n=2, seed=5)


def test_what_a_watch_hears_is_what_the_report_says(echo: Any) -> None:
    heard: list[dict[str, Any]] = []
    chat = scripted.byte_chat()
    make = lambda: echo(breaks=[("echo-3", 1)])  # noqa: E731
    told = {"watch": lambda _, n, metrics: heard.append(metrics), "held_out": ("family-1",)}
    with closing(Runner(make, scripted.plan(["say", "done"], chat), chat, env_id="echo", concurrency=4)) as runner:
        found = report(play(runner, echo().tasks(), n=2, seed=5, **told), held_out=("family-1",))
    assert found.held_out is not None
    assert heard[0] == {"total": 16}
    assert heard[-1] == {"total": 16, "success": found.overall.success, "held_out": found.held_out.success}
    assert found.overall.success != found.held_out.success


def test_where_nothing_counted_there_is_no_success(echo: Any, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[dict[str, Any]] = []
    chat = scripted.byte_chat()
    make = lambda: echo(breaks=[(f"echo-{number}", 0) for number in range(8)])  # noqa: E731
    refusal = pytest.raises(UsageError, match="nothing counted: no episode could be played; the first of 8 failed with")
    with closing(Runner(make, scripted.gold(chat), chat, env_id="echo", concurrency=4)) as runner, refusal:
        play(runner, echo().tasks(), n=1, seed=5, watch=lambda _, n, metrics: heard.append(metrics))
    assert all(metrics == {"total": 8} for metrics in heard)
    first, last = (record.getMessage() for record in caplog.records)
    assert "failed and is not counted: reset: OSError: the host of echo-" in first
    assert last.startswith("8 episodes in all failed like that one: reset: OSError: the host of echo-")


def test_what_infrastructure_broke_leaves_the_denominator(played: list[Trajectory]) -> None:
    found = report(played, ks=(1, 2))
    assert (found.overall.n, found.overall.episodes, found.infrastructure_failures) == (7, 14, 2)
    assert found.overall.success == pytest.approx(2 / 7)
    assert found.pass_at_k == {1: pytest.approx(2 / 7), 2: pytest.approx(2 / 7)}
    assert [(row.name, row.n) for row in found.families] == [("family-0", 4), ("family-1", 3)]
    assert found.families[1].success == pytest.approx(2 / 3)
    assert found.turns == pytest.approx((1 + 2 + 3 + 1 + 2 + 3 + 4) / 7)
    told = json.loads(json.dumps(found.to_json()))
    assert {"success", "stderr", "n"} <= told.keys()
    assert (told["n"], told["success"]) == (7, pytest.approx(2 / 7))


def test_held_out_families_stand_apart(played: list[Trajectory]) -> None:
    found = report(played, held_out=("family-1",))
    assert (found.overall.success, found.overall.n) == (0, 4)
    assert found.held_out is not None
    assert found.held_out.success == pytest.approx(2 / 3)
    assert [(row.name, row.held_out) for row in found.families] == [("family-0", False), ("family-1", True)]
    told = json.loads(json.dumps(found.to_json()))
    assert [row["held_out"] for row in told["families"]] == [False, True]
    assert (told["held_out"]["n"], told["held_out"]["held_out"], told["overall"]["held_out"]) == (3, True, False)


def test_truncation_is_counted_and_is_no_success(played: list[Trajectory]) -> None:
    cut = [replace(item, truncated=True, success=None, failure=None) for item in played[:6]] + played[6:]
    found = report(cut)
    assert found.truncated == pytest.approx(6 / 14)
    assert found.overall.success == pytest.approx(1 / 7)  # task 1 was among them, task 5 is left


def test_failures_are_told_apart(played: list[Trajectory]) -> None:
    """Of 16 episodes 4 are won, 2 broke, 3 are cut by one limit or another; the other 7 are wrong."""
    limits = ["turn_tokens", "context", "env"]
    order = [item for item in played if item.usable and not item.success]
    cut = {
        item.episode: replace(item, truncated=True, truncated_by=limit)
        for item, limit in zip(order, limits, strict=False)
    }
    found = report([cut.get(item.episode, item) for item in played])
    counts = {share.name: share.episodes for share in found.failures}
    assert counts == {"wrong": 7, "env": 1, "turn_tokens": 1, "context": 1, "infrastructure": 2}
    assert sum(row.outcomes.get("won", 0) for row in found.families) == 4
    for kind, count in counts.items():
        assert sum(row.outcomes.get(kind, 0) for row in found.families) == count
    shares = {share.name: share for share in found.failures}
    one_of_two = [0.5] + [0.0] * 6  # a task has two rollouts, of which one was cut
    assert shares["env"].share == pytest.approx(0.5 / 7)
    assert shares["env"].stderr == pytest.approx(stdev(one_of_two) / sqrt(7))
    assert shares["infrastructure"].share == 0  # of those that count, none
    assert sum(share.share for share in found.failures) + found.overall.success == pytest.approx(1)


def test_an_error_for_every_k() -> None:
    """Three tasks of four rollouts, of which 0, 1 and 4 are won."""
    items = [item for task, wins in enumerate((0, 1, 4)) for item in rollouts(f"t{task}", wins, 4)]
    found = report(items, ks=(1, 2, 4))
    assert found.pass_at_k == {1: pytest.approx(5 / 12), 2: pytest.approx(0.5), 4: pytest.approx(2 / 3)}
    assert found.pass_hat_k == {1: pytest.approx(5 / 12), 2: pytest.approx(1 / 3), 4: pytest.approx(1 / 3)}
    assert found.pass_at_k_stderr[2] == pytest.approx(stdev([0, 0.5, 1]) / sqrt(3))
    assert found.pass_hat_k_stderr[4] == pytest.approx(stdev([0, 0, 1]) / sqrt(3))
    assert found.pass_at_k_stderr[1] == found.overall.stderr


def test_invalid_actions_and_seconds_are_counted(echo: Any) -> None:
    real = echo.step
    echo.action_space = TextSpace(5)
    echo.step = lambda self, action: (*real(self, action)[:4], {**real_info(self), "invalid": action == "say"})

    def real_info(env: Any) -> dict[str, Any]:
        last = env.turn == env.turns
        return {"task": env.task, "feedback": (), "success": False if last else None}

    chat = scripted.byte_chat()
    policy = scripted.plan(["say", "fine", "too long", "done"], chat)
    with closing(Runner(echo, policy, chat, env_id="echo")) as runner:
        played = play(runner, echo().tasks()[3:4], n=1, seed=0)
    assert [turn.invalid for turn in played[0].turns] == [True, False, True, False]
    found = report(played)
    assert found.invalid == 0.5
    assert found.env_s == played[0].env_s > 0
    assert found.policy_s == played[0].policy_s > 0
    assert found.prompt_tokens == sum(turn.start for turn in played[0].turns)
    assert replace(found, env_s=5.0) == found


def test_nothing_played_is_no_success() -> None:
    found = report([])
    assert (found.overall.n, found.overall.success, found.pass_at_k) == (0, 0.0, {})


def test_seeds_belong_to_tasks(played: list[Trajectory], echo: Any) -> None:
    chat = scripted.byte_chat()
    with closing(Runner(echo, scripted.gold(chat), chat, env_id="echo")) as runner:
        fewer = play(runner, echo().tasks()[4:6], n=1, seed=5)
    seeds = {(item.task.key, item.episode[-4:]): item.provenance.seed for item in played}
    assert [item.provenance.seed for item in fewer] == [seeds[item.task.key, "0000"] for item in fewer]
    assert len(set(seeds.values())) == 16


def test_a_limit_takes_from_every_family() -> None:
    tasks = [TaskRef(str(n), "", "test", "a" if n < 6 else "b") for n in range(9)]
    assert [task.key for task in spread(tasks, 4)] == ["0", "1", "6", "7"]
    assert spread(tasks, None) == tasks
    assert spread(tasks, 99) == tasks


def test_the_shells_gold_wins_everywhere() -> None:
    found = evaluate(SHELL, "gold", limit=28, env_args=UNSAFE, concurrency=4)
    assert found.infrastructure_failures == 0
    assert found.overall.success == 1
    assert all(row.success == 1 for row in found.families)
    assert len(found.families) >= 14
    assert found.held_out is not None
    assert found.held_out.success == 1


@pytest.mark.parametrize("script", ["null", "random"])
def test_without_a_plan_the_shell_is_not_won(script: str) -> None:
    found = evaluate(SHELL, script, limit=14, env_args=UNSAFE, concurrency=4)
    assert found.infrastructure_failures == 0
    assert found.overall.success <= 0.1


def test_a_model_plays_the_shell(folder: Path) -> None:
    ask = partial(evaluate, SHELL, str(folder), limit=6, n=2, ks=(1, 2), turn_tokens=8, env_args=UNSAFE, concurrency=4)
    found, again = ask(), ask()
    assert found == again
    assert found.overall.episodes + (found.held_out.episodes if found.held_out else 0) == 12
    assert found.tokens > 0


def test_wrong_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'test'"):
        evaluate(SHELL, "gold", split="tests")
    with pytest.raises(UsageError, match="did you mean 'gold'"):
        load_player("golds")
    with pytest.raises(UsageError, match=r"expected a model folder with config\.json"):
        load_player(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load_player(str(tmp_path))
    with pytest.raises(UsageError, match="n=2"):
        evaluate(SHELL, "gold", n=2, ks=(4,))
