"""GRPO's relatives: hand-worked numbers, and where each is GRPO again."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.algos import cispo, dapo, dr_grpo, grpo, gspo
from retort.algos.surrogates import cispo as cispo_loss
from retort.algos.surrogates import clipped, sequence_ratio

finite = st.floats(-2, 2)


def of(recipe, batch, student, **options):
    options = recipe.RECIPE.options(**options)
    return recipe.RECIPE.loss(batch, recipe.RECIPE.credit(batch, options), student, options)


def value_and_slope(recipe, batch, hand, logp, **options):
    leaf = logp.clone().requires_grad_()
    value = hand.total(of(recipe, batch, hand.student(leaf), **options))
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def test_dr_grpo_by_hand(hand):
    """Advantages are 1/2 and -1/2; row 0 has two tokens, row 1 one; the constant is 4."""
    student = hand.student(torch.tensor([[0, 1, 1.1], [0, 0.9, 0]]).log().nan_to_num(neginf=0))
    found = hand.total(of(dr_grpo, hand.batch(), student, length=4))
    assert found.item() == pytest.approx(0.5 * (-2.1 + 0.9) / 2 / 4)


def test_overlong_by_hand():
    found = dapo.overlong(torch.tensor([1, 6, 8, 10, 30]), limit=10, buffer=4)
    assert found.tolist() == [0, 0, -0.5, -1, -1]
    with pytest.raises(ValueError, match="expected a buffer of at most limit=3"):
        dapo.DAPOOptions(limit=3, buffer=4)


def test_dapo_counts_the_tokens_of_an_episode_over_its_rows(hand):
    """Three rows: the first two are one episode of three tokens."""
    batch = hand.batch()
    both = {name: torch.cat([value, value[:1]]) for name, value in vars(batch).items() if hasattr(value, "dim")}
    for name in ("teacher_mask", "teacher_logp"):
        both[name] = torch.cat([getattr(batch, name)] * 2, 1)[:, :3]
    three = replace(batch, **both)
    three = replace(three, episode=torch.tensor([0, 1, 0]), reward=torch.tensor([1.0, 0.0, 1.0]))
    plain = dapo.credit(three, dapo.DAPOOptions(eps=1e-9)).advantage
    assert plain.abs().max().item() == pytest.approx(math.sqrt(0.5))
    # Episode 0 has 4 tokens and is punished by 1; episode 1 has 1 and is not: rewards are 0 and 0.
    assert not dapo.credit(three, dapo.DAPOOptions(limit=4, buffer=2)).advantage.any()


def test_dapo_keeps_groups_whose_rewards_differ(hand):
    assert dapo.teaches([hand.episode(0.0), hand.episode(1.0)])
    assert not dapo.teaches([hand.episode(1.0), hand.episode(1.0)])
    assert not dapo.teaches([])


def test_gspo_by_hand(hand):
    """Row 0 has log-ratios 0.2 and -0.1: s = exp(0.05), within wide bounds; row 1 has s = exp(-0.3), A below 0."""
    logp = torch.tensor([[9.0, 0.2, -0.1], [9, -0.3, 9]])
    value, slope = value_and_slope(gspo, hand.batch(), hand, logp, eps=1e-9, clip_low=0.5, clip_high=0.5)
    a = math.sqrt(0.5)
    assert value.item() == pytest.approx((-a * math.exp(0.05) + a * math.exp(-0.3)) / 2, rel=1e-5)
    expected = [[0, -a * math.exp(0.05) / 4, -a * math.exp(0.05) / 4], [0, a * math.exp(-0.3) / 2, 0]]
    torch.testing.assert_close(slope, torch.tensor(expected))
    # Within the paper's narrow bounds row 0 is clipped, and so is row 1: nothing is left to learn.
    value, slope = value_and_slope(gspo, hand.batch(), hand, logp, eps=1e-9)
    assert value.item() == pytest.approx((-a * (1 + 4e-4) + a * (1 - 3e-4)) / 2, abs=1e-7)
    assert not slope.any()


@given(st.integers(0, 999))
def test_gspo_is_the_gradient_of_the_row_ratio(seed):
    """Against s differentiated as the paper writes it."""
    generator = torch.Generator().manual_seed(seed)
    logp, old, a = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(3, 5, generator=generator) < 0.7
    mask[:, 0] = True
    a = a[:, :1].expand(3, 5)
    ours, theirs = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    loss = clipped(sequence_ratio(ours, old, mask), a, clip_low=0.2, clip_high=0.3)
    (loss.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)).sum().backward()
    s = (((theirs - old) * mask).sum(-1) / mask.sum(-1)).exp()
    clipped(s, a[:, 0], clip_low=0.2, clip_high=0.3).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "weight"),
    [(1.1, 0, 5, 1.1), (7, 0, 5, 5), (0.1, 0, 5, 0.1), (0.1, 0.8, 1.28, 0.8), (7, 0.8, 1.28, 1.28)],
)
def test_cispo_by_hand(ratio, low, high, weight):
    logp = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = cispo_loss(logp, torch.zeros(1), torch.tensor([2.0]), low=low, high=high)
    assert loss.item() == pytest.approx(-weight * 2 * math.log(ratio), rel=1e-5)
    assert torch.autograd.grad(loss, logp)[0].item() == pytest.approx(-weight * 2, rel=1e-5)


def test_cispo_bounds():
    with pytest.raises(ValueError, match="expected low below high"):
        cispo.CISPOOptions(low=6)
    with pytest.raises(ValueError, match="0 <= low < high"):
        cispo_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), low=2, high=1)


@pytest.mark.parametrize("recipe", [dapo, gspo, cispo])
def test_at_ratio_one_all_have_grpos_gradient(make_model, make_batch, hand, recipe):
    """Each by GRPO's own mean over rows or tokens."""
    batch = make_batch(make_model())
    aggregate = "sequence_mean" if recipe is gspo else "token_mean"
    _, expected = value_and_slope(grpo, batch, hand, batch.proximal_logp, aggregate=aggregate)
    _, found = value_and_slope(recipe, batch, hand, batch.proximal_logp)
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 1e-3
