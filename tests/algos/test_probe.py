"""What takes a pass of its own: the distance from the start, and the overlap with the teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.agents.base import Origin, Row
from retort.algos.base import TeacherOptions, TokenBatch
from retort.algos.batch import Rows
from retort.algos.learner import Learner, LearnerOptions
from retort.algos.probe import Probe, shared
from retort.algos.teacher import Teacher
from retort.feedback.base import TeacherView


def views_of(batch: TokenBatch) -> tuple[Rows, list[TeacherView]]:
    """The rows of a batch, as the loop has them, and a view of each that shows nothing more."""
    made = [
        Row(tokens.astype(np.int32), np.where(mask, Origin.SAMPLED, Origin.PROMPT).astype(np.uint8), *[tokens] * 3)
        for tokens, mask in zip(batch.tokens.numpy(), batch.mask.numpy(), strict=True)
    ]
    rows = Rows(tuple(made), tuple((row,) for row in range(len(made))), tuple(np.flatnonzero(row.mask) for row in made))
    found = zip(rows.sequences, rows.positions, strict=True)
    return rows, [TeacherView(row, 0, ids, where, where) for row, (ids, where) in enumerate(found)]


def moved(learner: Learner) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_(0.2 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", [None, "fixed", "current", "trust_region"])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_start_is_the_start_however_it_is_kept(make_model: Any, make_batch: Any, kind: Any, rank: int) -> None:
    learner = Learner(make_model(), LearnerOptions(device="cpu", lora_rank=rank))
    pace = {"rate": 0.5} if kind == "ema" else {}
    teacher = Teacher(learner.model, TeacherOptions(kind=kind, **pace)) if kind else None
    probe = Probe(learner, teacher, None, 1)
    batch = make_batch(make_model())
    rows, _ = views_of(batch)
    assert probe(batch, rows, [])["kl_start"] == pytest.approx(0, abs=1e-6)
    moved(learner)
    far = make_batch(learner.model)
    # The same number through the whole vocabulary's log-probs of two models that stand side by side.
    logp = (make_model()(far.tokens).logits[:, :-1] / far.temperature[:, None, None]).log_softmax(-1)
    start = torch.cat([torch.zeros_like(logp[:, :1]), logp], 1).gather(-1, far.tokens[..., None])[..., 0]
    gap = (start - far.proximal_logp)[far.mask]
    assert probe(far, rows, [])["kl_start"] == pytest.approx((gap.exp() - 1 - gap).mean().item(), rel=1e-3)


def test_a_reference_in_the_batch_needs_no_second_pass(make_model: Any, make_batch: Any) -> None:
    learner = Learner(make_model(), LearnerOptions(device="cpu"))
    probe = Probe(learner, None, Teacher(learner.model, TeacherOptions()), 1)
    batch = make_batch(learner.model)
    assert probe.start is None
    assert probe(batch, views_of(batch)[0], []) == {}


def test_the_overlap_with_oneself_is_whole_and_with_another_is_not(make_model: Any, make_batch: Any) -> None:
    learner = Learner(make_model(), LearnerOptions(device="cpu"))
    batch = make_batch(learner.model)
    rows, views = views_of(batch)
    found = []
    for model in (learner.model, make_model(1)):
        teacher = Teacher(model, TeacherOptions())
        found.append(Probe(learner, teacher, None, 1)(batch, rows, views)["topk_overlap"])
    assert found[0] == 1
    student, other = (model(batch.tokens).logits[:, :-1].topk(16).indices for model in (learner.model, make_model(1)))
    counts = [
        len(set(student[row, at - 1].tolist()) & set(other[row, at - 1].tolist())) / 16
        for row, at in batch.mask.nonzero().tolist()
    ]
    assert found[1] == pytest.approx(sum(counts) / len(counts))


def test_it_speaks_when_asked_to(make_model: Any, make_batch: Any) -> None:
    learner = Learner(make_model(), LearnerOptions(device="cpu"))
    batch = make_batch(learner.model)
    rows = views_of(batch)[0]
    assert [bool(Probe(learner, None, None, 3)(replace(batch, step=step), rows, [])) for step in range(5)] == [
        True, False, False, True, False,
    ]  # fmt: skip
    never = Probe(learner, None, None, 0)
    assert never.start is None
    assert never(batch, rows, []) == {}


@given(st.lists(st.permutations(range(8)), min_size=2, max_size=2))
def test_shared_is_the_plain_count(orders: list[list[int]]) -> None:
    first, second = (torch.tensor([order[:5]]) for order in orders)
    assert shared(first, second).item() == pytest.approx(len(set(orders[0][:5]) & set(orders[1][:5])) / 5)
    assert torch.equal(shared(first, second), shared(second, first))
