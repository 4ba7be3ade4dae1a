"""Comparing two evaluations: hand-worked tables, exact counts against brute force, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product
from math import comb, sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.agents import compare as module
from retort.agents.base import Provenance, Sampling, Trajectory
from retort.agents.compare import compare, sign_flip_p
from retort.agents.evaluate import evaluate
from retort.agents.evaluation import EvalConfig, Evaluation, Facts
from retort.agents.report import report
from retort.envs.base import Failure, TaskRef, UsageError

TOLD = Provenance("x", "x", 0, "", "", Sampling(), 0, "none", "1")
shares = st.builds(Fraction, st.integers(-4, 4), st.sampled_from([1, 2, 3, 4]))


def by_hand(differences: Sequence[Fraction]) -> float:
    """Every flip of signs, one by one."""
    far = abs(sum(differences))
    flips = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    return sum(found >= far for found in flips) / len(flips)


@given(st.lists(shares, max_size=9))
def test_flips_are_counted_exactly(differences: list[Fraction]) -> None:
    assert sign_flip_p(differences) == pytest.approx(by_hand(differences))


def test_one_rollout_a_task_is_mcnemars_exact_test() -> None:
    """9 tasks got better and 2 worse: twice the binomial tail of at most 2 out of 11."""
    differences = [Fraction(1)] * 9 + [Fraction(-1)] * 2 + [Fraction(0)] * 50
    assert sign_flip_p(differences) == pytest.approx(2 * sum(comb(11, k) for k in range(3)) / 2**11)
    assert sign_flip_p([Fraction(1)] * 400 + [Fraction(-1)] * 380) == pytest.approx(
        2 * sum(comb(780, k) for k in range(381)) / 2**780
    )
    assert sign_flip_p([]) == sign_flip_p([Fraction(0)] * 3) == 1


def test_drawn_flips_agree_with_counted_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [Fraction(n % 5 - 1, 4) for n in range(40)]
    exact = sign_flip_p(differences)
    monkeypatch.setattr(module, "COUNTABLE", 0)
    drawn = sign_flip_p(differences)
    assert drawn == sign_flip_p(differences)  # a fixed seed
    assert drawn == pytest.approx(exact, abs=4 * sqrt(exact * (1 - exact) / module.DRAWS))
    assert sign_flip_p([Fraction(1)] * 60) == pytest.approx(1 / (module.DRAWS + 1))  # never 0


def folder(path: Path, wins: dict[str, tuple[int, int]], version: str = "1", digest: str = "", **settings: Any) -> Path:
    """An evaluation with (won, played) rollouts of each task; -1 won is one that the infrastructure broke."""
    refs = {key: TaskRef(key, digest or key, "test", key[0]) for key in wins}
    facts = Facts(tuple(refs.values()), ("z",), version)
    config = EvalConfig(**{"env": "some/Env-v0", "model": path.name, **settings})
    evaluation = Evaluation.create(path, config, facts)
    played = [
        Trajectory(
            f"{key}-{n}",
            0,
            refs[key],
            (),
            (),
            (),
            0.0,
            n < won if won >= 0 else None,
            None if won >= 0 else Failure.INFRASTRUCTURE,
            won >= 0,
            False,
            TOLD,
        )
        for key, (won, count) in wins.items()
        for n in range(count)
    ]
    evaluation.finish(played, report(played))
    return path


def test_a_table_by_hand(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {"a1": (0, 2), "a2": (1, 2), "b1": (2, 2), "z1": (0, 2), "c1": (1, 2)})
    two = folder(
        tmp_path / "two",
        {"a1": (2, 2), "a2": (2, 4), "b1": (1, 2), "z1": (1, 1), "c1": (-1, 2), "d1": (2, 2)},
        temperature=0.0,
    )
    found = compare(one, two)
    all_tasks = found.overall
    assert all_tasks is not None
    assert (all_tasks.n, all_tasks.wins, all_tasks.losses, all_tasks.ties) == (3, 1, 1, 1)
    assert all_tasks.first == pytest.approx((0 + 0.5 + 1) / 3)
    assert all_tasks.second == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert all_tasks.difference == pytest.approx(0.5 / 3)
    assert all_tasks.stderr == pytest.approx(stdev([1, 0, -0.5]) / sqrt(3))
    assert all_tasks.p == by_hand([Fraction(1), Fraction(0), Fraction(-1, 2)]) == 1
    assert [(row.name, row.n, row.difference) for row in found.families] == [("a", 2, 0.5), ("b", 1, -0.5), ("z", 1, 1)]
    assert [row.held_out for row in found.families] == [False, False, True]
    assert found.held_out is not None
    assert (found.held_out.n, found.held_out.difference) == (1, 1)
    assert (found.only_first, found.only_second) == (1, 1)  # the second's c1 broke; d1 it has alone
    assert found.settings == {"model": ("one", "two"), "temperature": (1.0, 0.0)}
    swapped = compare(two, one).overall
    assert swapped is not None
    assert (swapped.difference, swapped.p) == (-all_tasks.difference, all_tasks.p)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"env": "other/Env-v0"}, "expected two evaluations of one env, found 'some/Env-v0' in .*one and 'other/Env"),
        ({"split": "train"}, "of one split, found 'test'"),
        ({"version": "2"}, "of one verifier version, found '1'"),
        ({"digest": "new"}, "1 of 1 tasks have changed between .*one and .*two, 'a1' among them"),
        ({"wins": {"a9": (1, 1)}}, "share no task"),
        ({"wins": {"a1": (-1, 1)}}, "share no task"),
    ],
)
def test_what_is_not_alike_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    one = folder(tmp_path / "one", {"a1": (1, 1)})
    two = folder(tmp_path / "two", **{"wins": {"a1": (1, 1)}, **changed})
    with pytest.raises(UsageError, match=said):
        compare(one, two)


def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected the folder of an evaluation"):
        compare(tmp_path, tmp_path)


@pytest.fixture
def registered(echo: Any) -> Iterator[str]:
    gymnasium.register("tests/Echo-v0", entry_point=echo, disable_env_checker=True)
    yield "tests/Echo-v0"
    del gymnasium.registry["tests/Echo-v0"]


def test_real_evaluations(tmp_path: Path, registered: str) -> None:
    for name in ("gold", "null"):
        evaluate(registered, name, split="train", n=2, out=tmp_path / name)
    found = compare(tmp_path / "null", tmp_path / "gold").overall
    assert found is not None
    assert (found.difference, found.stderr, found.wins) == (1.0, 0.0, 8)
    assert found.p == pytest.approx(2 / 2**8)
    same = compare(tmp_path / "gold", tmp_path / "gold")
    assert same.overall is not None
    assert (same.overall.p, same.overall.ties, same.settings) == (1.0, 8, {})
    assert json.loads((tmp_path / "gold" / "report.json").read_text())["success"] == 1
