"""Known failures, told from sequences of metrics that were worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from retort.algos import srpo
from retort.algos.symptoms import SYMPTOMS, dead, onset

SOUND: dict[str, Any] = {
    "response_tokens": 10.0,
    "truncated": 0.0,
    "repetition": 0.0,
    "reward": 0.5,
    "success": 0.5,
    "entropy": 0.4,
    "groups_of_equal_reward": 0.2,
    "groups_all_failed": 0.1,
    "groups_all_succeeded": 0.1,
    "rows_live": 0.8,
    "weight_policy": 1.0,
    "weight_distil": 0.5,
    "topk_overlap": 0.75,
    "gap_won": -0.1,
    "gap_lost": -0.4,
    "sampler_gap_nats": 1e-5,
    "importance_bounded": 0.0,
    "gap": -0.2,
}


def told(*parts: tuple[int, dict[str, Any]]) -> list[list[str]]:
    """What sets in at each step of a run: so many steps of each part, which is sound but for what it changes."""
    lines: list[dict[str, Any]] = []
    for count, changed in parts:
        for _ in range(count):
            lines.append({"step": len(lines) + 1, **SOUND, **changed})
            lines[-1]["warnings"] = onset(lines)
    return [line["warnings"] for line in lines]


def the_one(found: list[list[str]]) -> tuple[int, str]:
    """The step at which the only warning of a run came, and the warning."""
    ((step, text),) = [(step, text) for step, texts in enumerate(found, 1) for text in texts]
    return step, text


def test_a_sound_run_is_not_warned_of() -> None:
    assert told((60, {})) == [[]] * 60


def test_a_mean_gap_below_zero_is_no_fault() -> None:
    """It is minus a divergence, so that the best of teachers has it."""
    assert told((30, {"gap": -5.0, "gap_won": -4.0, "gap_lost": -6.0})) == [[]] * 30


@pytest.mark.parametrize(
    ("name", "sick", "step", "said"),
    [
        # Means of five: 10, 10, 10, 10, 13 is 10.6; 10, 10, 10, 13, 13 is 11.2, with 0.04 repeated; then 11.8 and 0.06.
        ("length inflation", {"response_tokens": 13.0, "repetition": 0.1}, 23, ("11.8 tokens", "10.0", "19 to 23")),
        # 16 after two, three, four and five steps: 12.4, 13.6, 14.8, 16; half as much again only with the fifth.
        ("length inflation", {"response_tokens": 16.0}, 25, ("16.0 tokens", "reward of 0.50 (0.50)", "21 to 25")),
        ("entropy collapse", {"entropy": 0.01}, 25, ("0.010 nats", "0.400", "50% of episodes")),
        # 0.4 and twice 1.2: (3 * 0.4 + 2 * 1.2) / 5 = 0.72.
        ("entropy explosion", {"entropy": 1.2}, 22, ("0.72 nats", "0.40")),
        # (3 * 0.2 + 2 * 1) / 5 = 0.52.
        ("zero-variance groups", {"groups_of_equal_reward": 1.0}, 22, ("52% of groups", "dapo", "18 to 22")),
        ("overlap falling", {"topk_overlap": 0.6}, 21, ("68% of", "75%", "20 to 21")),
        # (7 * 0.3 - 3 * 0.6) / 10 = 0.03, and a tenth of (7 * 0.4 + 3 * 0.4) / 10 is 0.04.
        ("teacher no better", {"gap_won": -1.0}, 23, ("-0.37 and -0.40", "14 to 23")),
        ("sampler mismatch", {"sampler_gap_nats": 2.0}, 23, ("up to 1.20 nats",)),
        ("sampler mismatch", {"importance_bounded": 0.2}, 21, ("4.0% of tokens",)),
    ],
)
def test_each_failure_is_said_once_when_it_sets_in(
    name: str, sick: dict[str, Any], step: int, said: tuple[str, ...]
) -> None:
    found, text = the_one(told((20, {}), (40, sick)))
    assert (found, text.partition(":")[0]) == (step, name)
    assert "What usually helps: " in text
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    "changed",
    [
        {"response_tokens": 20.0, "reward": 0.9},  # longer and better
        {"response_tokens": 10.5, "repetition": 0.2},  # repeats itself and is no longer
        {"entropy": 0.01, "success": 0.95},  # sure, and right to be
        {"groups_of_equal_reward": 1.0, "weight_policy": 0.0},  # nothing hangs on the groups
        {"gap_won": -1.0, "weight_distil": 0.0},  # nobody listens to the teacher
        {"gap_won": -1.0, "mix": 0.0},
        {"gap_won": -1.0, "w_opd": 0.0},
        {"gap_lost": None},  # it spoke of won episodes alone
        {"gap_won": None, "gap_lost": -1.0},  # nothing was won
    ],
)
def test_what_only_looks_like_a_failure(changed: dict[str, Any]) -> None:
    assert told((20, {}), (20, changed)) == [[]] * 40


def test_steps_without_the_measurement_are_passed_over() -> None:
    """Overlap is measured every tenth step; two of those make a warning."""
    none = {"topk_overlap": None}
    probes = [(1, {"topk_overlap": value}) for value in (0.8, 0.8, 0.6, 0.6)]
    found, text = the_one(told(*[part for probe in probes for part in (probe, (9, none))]))
    assert found == 21
    assert "(steps 11 to 21)" in text


def test_recipes_without_groups_or_teacher() -> None:
    """What a line does not have cannot be told of: here that of expert traces."""
    lines: list[dict[str, Any]] = [{"step": 1, "success": 0.4, "reward": 0.4, "groups_of_equal_reward": 1.0}]
    assert onset(lines * 20) == []


def test_names_are_apart() -> None:
    assert len({item.name for item in SYMPTOMS}) == len(SYMPTOMS)
    assert not [item.name for item in SYMPTOMS if ":" in item.name]


LIVE: dict[str, Any] = {
    "success": 0.5,
    "skipped": "",
    "tokens_read": 90,
    "weight_policy": 1.0,
    "tokens_policy": 0.4,
    "slope_policy": 0.1,
    "weight_distil": 0.5,
    "tokens_distil": 0.3,
    "slope_distil": 0.2,
    "teacher_coverage": 0.3,
    "rows_equal_reward": 8,
    "rows_without_teacher": 4,
}


def steps(*parts: tuple[int, dict[str, Any]]) -> list[dict[str, Any]]:
    every = [changed for count, changed in parts for _ in range(count)]
    return [{"step": number, **LIVE, **changed} for number, changed in enumerate(every, 1)]


def test_a_dead_term_is_named_with_its_causes() -> None:
    still = {"tokens_policy": 0.0, "slope_policy": 0.0, "rows_equal_reward": 32}
    assert dead(steps((9, {}), (4, still)), 5, taught=True) is None
    found = dead(steps((9, {}), (5, still)), 5, taught=True)
    assert found is not None
    assert "the term 'policy' has taught nothing for 5 steps, 10 to 14" in found
    assert "30% of tokens had a teacher" in found
    assert "32 rows a step were in groups of equal rewards" in found
    assert dead(steps((9, {}), (5, still), (1, {})), 5, taught=True) is None


def test_a_term_without_gradient_is_dead_too() -> None:
    found = dead(steps((5, {"slope_distil": 0.0})), 5, taught=True)
    assert found is not None
    assert "'distil'" in found
    assert "at most 30% of the tokens, with a gradient of at most 0" in found


@pytest.mark.parametrize(
    "excuse",
    [
        {"weight_distil": 0.0},
        {"success": 1.0},
        {"slope_distil": float("nan"), "tokens_distil": 0.3},
    ],
)
def test_what_excuses_a_term(excuse: dict[str, Any]) -> None:
    assert dead(steps((30, {"tokens_distil": 0.0, "slope_distil": 0.0, **excuse})), 5, taught=True) is None


def test_steps_that_cannot_tell_do_not_break_a_row_of_dead_ones() -> None:
    still = {"tokens_distil": 0.0, "slope_distil": 0.0}
    mixed = [(1, still), (1, {"weight_distil": 0.0}), (1, {"success": 1.0})]
    assert dead(steps(*mixed * 4), 5, taught=True) is None
    assert dead(steps(*mixed * 5), 5, taught=True) is not None


def test_a_teacher_that_is_never_heard() -> None:
    bare = {key: value for key, value in LIVE.items() if not key.endswith("_distil")}
    lines = [{"step": number, **bare, "teacher_coverage": 0.0} for number in range(1, 6)]
    found = dead(lines, 5, taught=True)
    assert found is not None
    assert "the teacher has had nothing to say for 5 steps, 1 to 5" in found
    assert "0% of tokens had a teacher" in found
    assert dead(lines, 5, taught=False) is None
    assert dead(lines, 6, taught=True) is None
    lines[2]["teacher_coverage"] = 0.1
    assert dead(lines, 5, taught=True) is None


def test_srpo_is_told_of_groups_that_teach_nothing(hand: Any) -> None:
    """Its credit says, as GRPO's does, that there are groups to tell of."""
    credit = srpo.credit(hand.batch(teacher_entropy=torch.zeros(1, 2, 3)), srpo.SRPOOptions())
    assert credit.metrics["rows_live"] == 1
    own = {key: value for key, value in SOUND.items() if key != "rows_live"}
    sick = {"groups_of_equal_reward": 1.0, "weight_policy": credit.share["grpo"]}
    (text,) = onset([{"step": step, **own, **credit.metrics, **sick} for step in range(5)])
    assert text.startswith("zero-variance groups")
