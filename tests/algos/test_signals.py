"""What is stored of every token: the push against autograd through the logits, and a table by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from retort.agents.scripted import byte_chat
from retort.algos import signals
from retort.algos.base import Student, Term, TokenBatch
from retort.algos.config import load_recipe, resolve
from retort.algos.signals import table, terms_and_push
from retort.feedback.base import TeacherView

ROWS, LENGTH, WORDS, K, N = 6, 5, 7, 3, 5
ALL = ("grpo", "dr_grpo", "gspo", "cispo", "sdpo", "opsd", "srpo", "sdar", "rlsd", "rlcsd", "openclaw", "opd")


def said(logits: torch.Tensor, tokens: torch.Tensor, ids: torch.Tensor) -> Student:
    logp = logits.log_softmax(-1)
    outside = torch.ones_like(logp).scatter(-1, ids, 0).bool()
    return Student(
        logp=logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1),
        entropy=-(logp.exp() * logp).sum(-1),
        rest_logp=logp.masked_fill(~outside, -torch.inf).logsumexp(-1),
        support_logp=logp.gather(-1, ids),
    )


def random_batch(seed: int, channels: int) -> tuple[TokenBatch, torch.Tensor]:
    """Two groups of three with unlike rewards, and the student's logits; some sampled tokens are of the rest."""
    torch.manual_seed(seed)
    logits, teacher = torch.randn(ROWS, LENGTH, WORDS), torch.randn(channels, ROWS, LENGTH, WORDS)
    tokens = torch.randint(WORDS, (ROWS, LENGTH))
    ids = logits.topk(K).indices
    mask = torch.rand(ROWS, LENGTH) < 0.8
    mask[:, 0], mask[:, 1] = False, True
    heat = torch.linspace(0.5, 1.5, ROWS)
    own = said(logits / heat[:, None, None], tokens, ids)
    told = [said(one, tokens, ids) for one in teacher]
    success = torch.tensor([True, False, False, True, True, False])
    spoke = mask & (torch.rand(channels, ROWS, LENGTH) < 0.9)

    def of(name: str) -> torch.Tensor | None:
        return torch.stack([getattr(one, name) for one in told]) if told else None

    batch = TokenBatch(
        tokens=tokens,
        mask=mask,
        turn=mask.long() - 1,
        turn_reward=torch.randn(ROWS, 1).expand(ROWS, LENGTH) * mask,
        behaviour_logp=own.logp + 0.1 * torch.randn(ROWS, LENGTH),
        proximal_logp=own.logp,
        episode=torch.arange(ROWS),
        group=torch.arange(ROWS) // 3,
        reward=success + 0.1 * torch.arange(ROWS),
        success=success,
        temperature=heat,
        teacher_mask=spoke,
        teacher_logp=torch.zeros(0, ROWS, LENGTH) if not told else of("logp"),
        teacher_entropy=of("entropy"),
        teacher_rest_logp=of("rest_logp"),
        teacher_support_logp=of("support_logp"),
        support_ids=ids,
        proximal_support_logp=own.support_logp,
        proximal_rest_logp=own.rest_logp,
        proximal_entropy=own.entropy,
        vocabulary=WORDS,
    )
    return batch, logits


@pytest.mark.parametrize("chunk", [1 << 16, 2 * LENGTH])
@pytest.mark.parametrize("name", ALL)
def test_push_is_the_gradient_for_the_sampled_logit(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a recipe looks at, and however the batch is cut."""
    monkeypatch.setattr(signals, "CHUNK", chunk)
    recipe = load_recipe(name)
    options = recipe.options(**({"kl_coef": 0.0} if "kl_coef" in recipe.options.model_fields else {}))
    for seed in range(3):
        batch, logits = random_batch(seed, recipe.channels)
        credit = recipe.credit(batch, options)

        def loss(*told: Any) -> tuple[Term, ...]:
            """The recipe's, and a bonus for entropy, which somebody's own may have."""
            first, *others = recipe.loss(*told)
            return replace(first, value=first.value - 0.1 * told[2].entropy), *others

        _, push = terms_and_push(batch, credit, loss, options)
        leaf = logits.clone().requires_grad_()
        student = said(leaf / batch.temperature[:, None, None], batch.tokens, batch.support_ids)
        found = loss(batch, credit, student, options)
        sum(term.weight * term.aggregate(term.value, term.mask) for term in found).backward()
        expected = -leaf.grad.gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1) * batch.mask.sum()
        torch.testing.assert_close(push[batch.mask], expected[batch.mask], atol=1e-5, rtol=1e-4)
        assert push[batch.mask].abs().max() > 1e-3


def test_a_policy_gradient_pushes_by_advantage_and_doubt(hand: Any) -> None:
    """Row 0 won, row 1 lost, each token had probability 1/4: push is (1 - 1/4) A, and A is half the distance over the
    standard deviation of (1, 0), which is 0.7071."""
    batch = hand.batch(
        proximal_logp=torch.full((2, 3), math.log(0.25)), behaviour_logp=torch.full((2, 3), math.log(0.25))
    )
    recipe = load_recipe("grpo")
    options = recipe.options()
    terms, push = terms_and_push(batch, recipe.credit(batch, options), recipe.loss, options)
    assert [term.name for term in terms] == ["policy"]
    up = 0.75 * 0.5 / 0.70710678
    assert push[batch.mask].tolist() == pytest.approx([up, up, -up], rel=1e-4)


class Episode:
    def __init__(self, episode: str, key: str) -> None:
        self.episode, self.task = episode, self
        self.key = key


def test_a_table_by_hand(hand: Any, tmp_path: Path) -> None:
    """SDAR, whose teacher speaks of the first token of each row, likes the one better and the other worse."""
    quarter = torch.full((2, 3), math.log(0.25))
    batch = hand.batch(
        tokens=torch.tensor([[65, 66, 10], [65, 67, 0]]),
        turn=torch.tensor([[-1, 0, 1], [-1, 0, -1]]),
        proximal_logp=quarter,
        behaviour_logp=quarter,
        teacher_mask=torch.tensor([[[False, True, False], [False, True, False]]]),
        teacher_logp=torch.tensor([[[0, math.log(0.5), 0], [0, math.log(0.125), 0]]]),
        step=4,
    )
    recipe = load_recipe("sdar")
    options = resolve({"recipe": "sdar"}, ["kl_coef=0", "coef=0.5"]).options
    read = np.frombuffer(b"knowB", np.uint8).astype(np.int64)
    view = TeacherView(0, 0, read, np.array([4]), np.array([1]))
    other = TeacherView(1, 0, np.array([104, 105, 67]), np.array([2]), np.array([1]))
    played: Any = [Episode("4-0-0", "t/1"), Episode("4-0-1", "t/1")]
    credit = recipe.credit(batch, options)
    made = table(played, batch, credit, [view, other], byte_chat(), recipe.loss, options, "current: itself")
    signals.write(tmp_path / "deep" / "step.parquet", made)
    found = pq.read_table(tmp_path / "deep" / "step.parquet")
    assert json.loads(found.schema.metadata[b"retort.about"]) == {
        "step": 5,
        "weights": {"policy": 1.0, "sdar": 0.5},
        "teacher": "current: itself",
        "channels": 1,
    }
    first, second, third = found.to_pylist()
    assert [row["episode"] for row in (first, second, third)] == ["4-0-0", "4-0-0", "4-0-1"]
    assert (first["task"], first["group"], first["reward"], first["success"]) == ("t/1", 0, 1.0, True)
    assert [(row["row"], row["turn"], row["position"]) for row in (first, second, third)] == [
        (0, 0, 1),
        (0, 1, 2),
        (1, 0, 1),
    ]
    assert [(row["token_id"], row["text"]) for row in (first, second, third)] == [(66, "B"), (10, "\n"), (67, "C")]
    assert [row["branch"] for row in (first, second, third)] == ["policy+sdar", "policy", "policy+sdar"]
    assert [row["mask"] for row in (first, second, third)] == [True, True, True]
    assert [row["gap"] for row in (first, second, third)] == [
        pytest.approx(math.log(2)),
        None,
        pytest.approx(-math.log(2)),
    ]
    assert [row["teacher_context"] for row in (first, second, third)] == ["know", None, "hi"]
    opened = 1 / (1 + 2**-5)  # sigmoid(5 ln 2)
    assert [row["gate"] for row in (first, second, third)] == [pytest.approx(opened), None, pytest.approx(1 - opened)]
    a = 0.5 / 0.70710678
    assert [row["credit"] for row in (first, second, third)] == pytest.approx([a, a, -a], rel=1e-4)
    # The second term's mean is over two tokens, the first one's over three.
    pull = 0.5 * 3 / 2
    pushes = [0.75 * (a + pull * opened), 0.75 * a, 0.75 * (-a + pull * (1 - opened))]
    assert [row["push"] for row in (first, second, third)] == pytest.approx(pushes, rel=1e-4)
    assert [row["value_sdar"] for row in (first, second, third)] == [
        pytest.approx(opened * math.log(2)),
        None,
        pytest.approx(-(1 - opened) * math.log(2)),
    ]
    assert [row["importance"] for row in (first, second, third)] == [1, 1, 1]


def test_who_scored_stands_beside_each_token(hand: Any) -> None:
    """Of two views one was scored by somebody."""
    batch = hand.batch(teacher_mask=torch.tensor([[[False, True, True], [False, False, False]]]))
    recipe = load_recipe("sdar")
    options = resolve({"recipe": "sdar"}, ["kl_coef=0"]).options
    ids = np.array([104, 105, 67])
    views = [
        TeacherView(1, 0, ids, np.array([1]), np.array([1])),
        TeacherView(0, 0, ids, np.arange(1, 3), np.arange(1, 3)),
    ]
    played: Any = [Episode("a", "t"), Episode("b", "t")]
    credit = recipe.credit(batch, options)
    made = table(played, batch, credit, views, byte_chat(), recipe.loss, options, "a pool", ["", "big"])
    assert [row["teacher"] for row in made.to_pylist()] == ["big", "big", None]
    assert [row["gap"] is None for row in made.to_pylist()] == [False, False, True]


def test_a_token_that_nothing_moves(hand: Any) -> None:
    """Equal rewards: it counts in the term and has no gradient; and no recipe's weights mean no gate."""
    batch = hand.batch(reward=torch.ones(2), teacher_mask=torch.zeros(0, 2, 3, dtype=torch.bool))
    batch = replace(batch, teacher_logp=torch.zeros(0, 2, 3))
    recipe = load_recipe("grpo")
    options = recipe.options()
    played: Any = [Episode("a", "t"), Episode("b", "t")]
    made = table(played, batch, recipe.credit(batch, options), [], byte_chat(), recipe.loss, options, "")
    for row in made.to_pylist():
        assert (row["branch"], row["mask"], row["push"], row["gate"]) == ("policy", False, 0, None)
        assert "gap" not in row
