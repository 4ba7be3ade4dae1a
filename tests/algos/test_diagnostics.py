"""What a step measures, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.agents.base import Finish, Origin, Provenance, Row, Sampling, Trajectory, Turn
from retort.algos.base import Credit
from retort.algos.batch import flatten
from retort.algos.diagnostics import flat, left_out, markers, of_student, of_teacher, outcome, repetition
from retort.algos.grpo import Correction
from retort.envs.base import Failure, TaskRef
from retort.feedback.base import TeacherView


def episode(*actions: Sequence[int], group: int = 0, reward: float = 0.0, **changed: Any) -> Trajectory:
    """Two prompt tokens, then each action behind one token of observation; sampled by version 3."""
    ids, turn, turns = [1, 2], [-1, -1], []
    for number, action in enumerate(actions):
        start = len(ids)
        ids, turn = [*ids, *action, 9], [*turn, *[number] * len(action), -1]
        last = reward if number + 1 == len(actions) else 0.0
        turns.append(Turn("seen", "maybe do it", 0, start, start + len(action), last, Finish.STOP))
    sampled = np.array(turn) >= 0
    row = Row(
        np.array(ids, np.int32),
        np.where(sampled, Origin.SAMPLED, Origin.PROMPT).astype(np.uint8),
        np.array(turn, np.int32),
        np.where(sampled, -1.0, np.nan).astype(np.float32),
        np.where(sampled, 3, -1).astype(np.int32),
    )
    made = Trajectory(
        "e", group, TaskRef("toy/1", "0", "train"), (row,), tuple(turns), (), reward, reward > 0, None, True, False,
        Provenance("toy", "hand", 0, "", "", Sampling(), 0, "none", "1"),
    )  # fmt: skip
    return replace(made, **changed)


def test_outcome_by_hand() -> None:
    played = [
        episode([5, 6], [7], reward=1.0),
        episode([5], reward=1.0),
        episode([5, 6, 7], group=1, truncated=True, truncated_by="turn_tokens"),
        episode([5, 6, 7, 8], group=1, truncated=True, truncated_by="env"),
        episode([5], group=2, reward=0.5),
        episode([5], group=2),
        episode([5] * 50, group=3, failure=Failure.INFRASTRUCTURE, success=None),
    ]
    found = outcome(played)
    assert (found["episodes"], found["infrastructure_failures"], found["tokens"]) == (7, 1, 13)
    assert found["reward"] == pytest.approx(2.5 / 6)
    assert found["success"] == pytest.approx(3 / 6)
    assert found["truncated"] == pytest.approx(2 / 6)
    causes = {name: value for name, value in found.items() if name.startswith("truncated_")}
    assert causes == {
        "truncated_turn_tokens": pytest.approx(1 / 6),
        "truncated_trajectory_tokens": 0,
        "truncated_context": 0,
        "truncated_env": pytest.approx(1 / 6),
    }
    assert (found["response_tokens"], found["response_tokens_max"]) == (pytest.approx(13 / 6), 4)
    assert found["turns"] == pytest.approx(7 / 6)
    assert found["groups_of_equal_reward"] == pytest.approx(2 / 3)
    assert found["groups_all_failed"] == pytest.approx(1 / 3)
    assert found["groups_all_succeeded"] == pytest.approx(1 / 3)
    assert found["epistemic_markers"] == pytest.approx(100 / 3)
    assert found["invalid_actions"] == 0
    first, second = played[0].turns
    unread = replace(played[0], turns=(first, replace(second, invalid=True)))
    assert outcome([unread, *played[1:]])["invalid_actions"] == pytest.approx(1 / 7)
    assert outcome([])["reward"] == 0


def test_repetition_by_hand() -> None:
    assert repetition([]) == 0
    assert repetition([np.array([1, 2, 3])]) == 0
    assert repetition([np.arange(8)]) == 0
    # The run 1 2 3 4 stands twice: 8 of 9 tokens.
    assert repetition([np.array([1, 2, 3, 4, 0, 1, 2, 3, 4])]) == pytest.approx(8 / 9)
    # One token six times: three runs that overlap, and all tokens stand in one.
    assert repetition([np.full(6, 7)]) == 1
    # The same words in two actions are no repetition.
    assert repetition([np.arange(5), np.arange(5), np.array([3])]) == 0


@given(st.lists(st.lists(st.integers(0, 2), max_size=14), max_size=4))
def test_repetition_is_the_plain_count(actions: list[list[int]]) -> None:
    told = total = 0
    for action in actions:
        runs = [tuple(action[at : at + 4]) for at in range(len(action) - 3)]
        marked = {at + k for at, run in enumerate(runs) if runs.count(run) > 1 for k in range(4)}
        told, total = told + len(marked), total + len(action)
    assert repetition([np.array(action, np.int32) for action in actions]) == pytest.approx(told / max(total, 1))


def test_markers_count_whole_words() -> None:
    assert markers(["Wait, perhaps", "mighty waiters cat a.txt"]) == pytest.approx(100 * 2 / 7)
    assert markers(["", "123 >"]) == 0


def test_what_was_left_out(hand: Any) -> None:
    broken = episode([5], failure=Failure.INFRASTRUCTURE)
    mute = episode()
    kept = [episode([5, 6], reward=1.0), mute]
    played = [*kept, episode([5], group=1), episode([5], group=1), broken]
    batch = hand.batch(teacher_mask=torch.tensor([[[False, True, True], [False, False, False]]]))
    assert left_out(played, kept, batch) == {
        "dropped_infrastructure": 1,
        "dropped_equal_reward": 2,
        "groups_kept": 0.5,
        "dropped_no_token": 1,
        "rows": 2,
        "rows_equal_reward": 0,
        "rows_without_teacher": 1,
    }
    same = hand.batch(reward=torch.tensor([0.5, 0.5]), teacher_mask=torch.zeros(0, 2, 3, dtype=torch.bool))
    found = left_out(kept, kept, same)
    assert found["rows_equal_reward"] == 2
    assert "rows_without_teacher" not in found


def student_batch(hand: Any, **changed: Any) -> Any:
    """Log-ratios of ln 4, 0 and ln 1/2 between the learner and the policy that sampled."""
    behaviour = torch.tensor([[5.0, -2.0, -1.0], [5.0, -3.0, 5.0]])
    ratio = torch.tensor([[0.0, math.log(4), 0.0], [0.0, math.log(0.5), 0.0]])
    return hand.batch(behaviour_logp=behaviour, proximal_logp=behaviour + ratio, step=5, **changed)


def test_of_the_student_by_hand(hand: Any) -> None:
    rows = flatten([episode([5, 6]), episode([7])])
    batch, options = student_batch(hand), Correction(high=2.0, low=0.6)
    found = of_student(batch, rows, Credit(batch.reward, weight={"behaviour": options.weight(batch)}), options)
    assert found == pytest.approx(
        {
            "entropy": 2.0,  # (2 + 1 + 3) / 3
            "staleness": 2.0,  # step 5, sampled by version 3
            "staleness_max": 2.0,
            "importance": (2.0 + 1.0 + 0.6) / 3,
            "importance_max": 4.0,
            "importance_bounded": 2 / 3,
            "tokens_masked": 0.0,
        }
    )


def test_a_mask_for_what_the_learner_has_left_behind(hand: Any) -> None:
    rows, batch = flatten([episode([5, 6]), episode([7])]), student_batch(hand)
    options = Correction(high=2.0, low=0.6, outside="mask")
    found = of_student(batch, rows, Credit(batch.reward, weight={"behaviour": options.weight(batch)}), options)
    assert found["tokens_masked"] == pytest.approx(2 / 3)
    assert found["importance"] == pytest.approx(1 / 3)
    whole = of_student(batch, rows, Credit(batch.reward), Correction(level="sequence", high=3.0))
    assert whole["importance_max"] == pytest.approx(4.0)
    assert whole["importance_bounded"] == pytest.approx(2 / 3)  # both tokens of the first row
    assert "importance" not in of_student(batch, rows, Credit(batch.reward), None)


def test_the_distance_from_the_start_by_hand(hand: Any) -> None:
    rows = flatten([episode([5, 6]), episode([7])])
    batch = hand.batch(reference_logp=torch.tensor([[9.0, math.log(2), 0.0], [9.0, 0.0, 9.0]]), step=3)
    # k3 = t/s - 1 - log(t/s): 2 - 1 - ln 2 on the first token, 0 on the others
    assert of_student(batch, rows, Credit(batch.reward), None)["kl_start"] == pytest.approx((1 - math.log(2)) / 3)


def test_of_the_teacher_by_hand(hand: Any) -> None:
    support = torch.tensor([[[[0.5, 0.5], [0.2, 0.3], [0.5, 0.25]], [[0.1, 0.1]] * 3]]).log()
    batch = hand.batch(
        teacher_logp=torch.tensor([[[7.0, -1.0, 2.0], [7.0, 7.0, 7.0]]]),
        teacher_mask=torch.tensor([[[False, True, True], [False, False, False]]]),
        teacher_support_logp=support,
        turn=torch.tensor([[-1, 0, 2], [-1, 1, -1]]),
    )
    view = TeacherView(0, 0, np.arange(5), np.array([3, 4]), np.array([1, 2]), cut=4)
    found = of_teacher(batch, [view])
    assert found.pop("gap_by_turn") == [-1.0, None, 2.0]
    assert found == pytest.approx(
        {
            "teacher_coverage": 2 / 3,
            "context_tokens_cut": 4,
            "teacher_scores_missing": 0,
            "gap": 0.5,
            "gap_p10": -0.7,
            "gap_p50": 0.5,
            "gap_p90": 1.7,
            "gap_won": 0.5,
            "teacher_support_mass": (0.5 + 0.75) / 2,
        }
    )


def test_a_teacher_that_did_not_speak_gives_no_numbers(hand: Any) -> None:
    nobody = hand.batch(teacher_mask=torch.zeros(1, 2, 3, dtype=torch.bool))
    assert of_teacher(nobody, []) == {"teacher_coverage": 0, "context_tokens_cut": 0, "teacher_scores_missing": 0}
    none = hand.batch(teacher_mask=torch.zeros(0, 2, 3, dtype=torch.bool), teacher_logp=torch.zeros(0, 2, 3))
    assert of_teacher(none, [])["teacher_coverage"] == 0


def test_a_teacher_equal_to_its_student_has_no_gap(make_model: Any, make_batch: Any) -> None:
    model = make_model()
    found = of_teacher(make_batch(model, model), [])
    for name in ("gap", "gap_p10", "gap_p90", "gap_won", "gap_lost"):
        assert found[name] == pytest.approx(0, abs=1e-5)
    assert of_teacher(make_batch(model, make_model(1)), [])["gap"] < 0


def test_flat_numbers() -> None:
    nested = {"a": 1, "s": {"x": 0.5, "word": "w"}, "l": [1.0, None, 3], "skipped": ""}
    assert flat(nested) == {"a": 1, "s/x": 0.5, "l/0": 1.0, "l/2": 3}
