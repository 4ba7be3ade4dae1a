"""The teacher's weights: hand-worked averages, cadence, and a state that comes back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.agents.base import TokenScores
from retort.agents.scoring import score_tokens
from retort.algos.base import TeacherOptions
from retort.algos.taught import teacher_scores
from retort.algos.teacher import Teacher
from retort.feedback.base import TeacherView
from torch import nn


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def moved(teacher: Teacher, student: Scalar, values: list[float]) -> list[float]:
    found = []
    for value in values:
        student.weight.data.fill_(value)
        teacher.follow()
        found.append(teacher.model.weight.item())
    return found


def test_ema_by_hand() -> None:
    student = Scalar(0.0)
    teacher = Teacher(student, TeacherOptions(kind="ema", rate=0.25))
    # 0 -> 0.75 * 0 + 0.25 * 4 = 1; 0.75 * 1 + 0.25 * 8 = 2.75; 0.75 * 2.75 + 0.25 * 0 = 2.0625
    assert moved(teacher, student, [4.0, 8.0, 0.0]) == [1.0, 2.75, 2.0625]
    assert student.weight.item() == 0


def test_cadence_by_hand() -> None:
    student = Scalar(0.0)
    teacher = Teacher(student, TeacherOptions(kind="ema", rate=0.5, every=3))
    assert moved(teacher, student, [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]) == [0, 0, 2.0, 2.0, 2.0, 6.0]


def test_the_ends_of_the_rate() -> None:
    student = Scalar(3.0)
    assert moved(Teacher(student, TeacherOptions(kind="ema", rate=1)), student, [5.0, 7.0]) == [5.0, 7.0]
    student = Scalar(3.0)
    assert moved(Teacher(student, TeacherOptions(kind="ema", rate=0)), student, [5.0, 7.0]) == [3.0, 3.0]


@given(st.lists(st.floats(-100, 100), max_size=20))
def test_fixed_never_moves(values: list[float]) -> None:
    student = Scalar(1.5)
    teacher = Teacher(student, TeacherOptions(kind="fixed"))
    assert moved(teacher, student, values) == [1.5] * len(values)


def test_current_is_the_student() -> None:
    student = Scalar(1.5)
    teacher = Teacher(student, TeacherOptions(kind="current"))
    assert teacher.model is student
    assert student.weight.requires_grad
    assert moved(teacher, student, [2.0]) == [2.0]
    assert set(teacher.state_dict()) == {"updates"}


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = Teacher(Scalar(1.0), TeacherOptions(kind="ema"))
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training


@pytest.mark.parametrize("kind", ["fixed", "ema", "current"])
def test_the_state_comes_back_and_goes_on(kind: str, tmp_path) -> None:
    pace = {"rate": 0.5, "every": 2} if kind == "ema" else {}
    options = TeacherOptions(kind=kind, **pace)  # type: ignore[arg-type]
    student = Scalar(0.0)
    straight = Teacher(student, options)
    moved(straight, student, [1.0, 2.0, 3.0])
    torch.save(straight.state_dict(), tmp_path / "teacher.pt")
    other = Scalar(3.0)
    resumed = Teacher(other, options)
    resumed.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    assert resumed.model.weight.item() == straight.model.weight.item()
    assert moved(resumed, other, [4.0, 5.0, 6.0]) == moved(straight, student, [4.0, 5.0, 6.0])
    if kind != "current":
        with pytest.raises(RuntimeError, match="Missing key"):
            resumed.load_state_dict({"updates": torch.tensor(1)})


def test_views_are_scored_by_the_teachers_weights(make_model) -> None:
    student, other = make_model(0), make_model(1)
    teacher = Teacher(student, TeacherOptions(kind="ema", rate=1.0))
    with torch.no_grad():
        for mine, theirs in zip(student.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    view = TeacherView(row=0, channel=0, token_ids=ids, at=np.array([4, 6]), covers=np.array([2, 4]))
    support = torch.tensor([[5, 1, 0], [2, 7, 8]])

    def scored():
        (found,) = teacher.score([view], ids=[support], entropy=True, temperature=[0.7], max_tokens=64)
        return found

    def expected(model):
        with torch.no_grad():
            (found,) = score_tokens(
                model, [ids], [[4, 6]], ids=[support], entropy=True, temperature=[0.7], max_tokens=64
            )
        return found

    torch.testing.assert_close(scored().logp, expected(make_model(0)).logp)
    teacher.follow()
    for name in ("logp", "entropy", "ids_logp", "rest_logp"):
        torch.testing.assert_close(getattr(scored(), name), getattr(expected(other), name))
    assert not scored().logp.requires_grad
    (plain,) = teacher.logp([ids], [np.array([4, 6])], temperature=[0.7], max_tokens=64)
    torch.testing.assert_close(plain.logp, expected(other).logp)


class Asked:
    """An engine that notes whether the learner's precision reaches it."""

    inside: bool

    async def score(self, sequences, positions):
        self.inside = torch.is_autocast_enabled("cpu")
        return [TokenScores(np.zeros(len(at), np.float32)) for at in positions]


def test_the_learners_precision_is_for_a_teacher_in_this_process_alone() -> None:
    view = TeacherView(row=0, channel=0, token_ids=np.arange(4), at=np.array([2]), covers=np.array([2]))
    engine, entered = Asked(), []

    def arithmetic():
        entered.append(1)
        return torch.autocast("cpu", torch.bfloat16)

    (found,) = teacher_scores(None, None, engine, [view], None, [], arithmetic)
    assert found.logp.tolist() == [0.0]
    assert (engine.inside, entered) == (False, [])


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_trust_region_mixes_the_logits_of_then_and_now(make_model, rate: float) -> None:
    student = make_model()
    teacher = Teacher(student, TeacherOptions(kind="trust_region", rate=rate))
    then = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    teacher.follow()
    tokens = np.array([3, 1, 4, 1, 5, 9])
    view = TeacherView(0, 0, tokens, np.arange(1, 6), np.arange(1, 6))
    ids = torch.arange(5 * 4).reshape(5, 4)
    (found,) = teacher.score([view], ids=[ids], entropy=True, temperature=[0.7], max_tokens=64)
    with torch.no_grad():
        mixed = [
            weight * model(torch.from_numpy(tokens)[None]).logits[0, :-1]
            for weight, model in ((1 - rate, then), (rate, student))
        ]
    expected = ((mixed[0] + mixed[1]) / 0.7).log_softmax(-1)
    torch.testing.assert_close(found.logp, expected.gather(-1, torch.from_numpy(tokens[1:, None]))[:, 0])
    torch.testing.assert_close(found.ids_logp, expected.gather(-1, ids))
    torch.testing.assert_close(found.entropy, -(expected.exp() * expected).sum(-1))
    (plain,) = teacher.logp([tokens], [np.arange(1, 6)], temperature=[0.7], max_tokens=64)
    torch.testing.assert_close(plain.logp, found.logp)
