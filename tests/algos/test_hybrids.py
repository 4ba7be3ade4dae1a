"""SDAR, RLSD, RLCSD, OPSD and OpenClaw: hand-worked numbers, and what METHODS 16 asks of each."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.algos import grpo, openclaw, opsd, rlcsd, rlsd, sdar
from retort.algos.divergences import jsd
from retort.feedback.judge import Vote

A = math.sqrt(0.5)
seeds = st.integers(0, 9999)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(recipe, batch, hand, leaf, **options):
    options = recipe.RECIPE.options(**options)
    credit = recipe.RECIPE.credit(batch, options)
    return hand.total(recipe.RECIPE.loss(batch, credit, hand.student(leaf), options))


def same_as_grpo(recipe, batch, hand, ours, theirs=None):
    found = []
    for module, options in ((recipe, ours), (grpo, theirs or {})):
        leaf = batch.proximal_logp + 0.05 * torch.sin(torch.arange(batch.mask.numel()).reshape(batch.mask.shape))
        leaf = leaf.clone().requires_grad_()
        value = of(module, batch, hand, leaf, **options)
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[1][1].abs().max() > 1e-3


# SDAR


@pytest.mark.parametrize(
    ("gate", "gap", "entropy", "expected"),
    [
        ("gap", 0.0, None, 0.5),
        ("gap", 0.2, None, 1 / (1 + math.exp(-1))),
        ("gap", -0.2, None, 1 / (1 + math.exp(1))),
        ("entropy", 9.0, 0.2, 1 / (1 + math.exp(-1))),
        ("soft_or", 0.5, 0.5, 1 / (1 + math.exp(-3.75))),
        ("soft_or", 0.0, 0.0, 0.5),
    ],
)
def test_gates_by_hand(gate, gap, entropy, expected):
    student, teacher = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-1.0 + gap]], requires_grad=True)
    share = None if entropy is None else torch.tensor([[entropy]])
    value = sdar.auxiliary(student, teacher, beta=5.0, gate=gate, entropy=share)
    assert value.item() == pytest.approx(expected * gap, rel=1e-5, abs=1e-7)
    value.sum().backward()
    assert student.grad.item() == pytest.approx(-expected, rel=1e-5)
    assert teacher.grad is None


def test_a_gate_is_never_negative_and_knows_its_names():
    assert (sdar.gate(torch.linspace(-50, 50, 99)) >= 0).all()
    assert sdar.gate(torch.zeros(1, requires_grad=True)).requires_grad is False
    with pytest.raises(ValueError, match="expected a gate of gap, entropy, soft_or, found 'gab'"):
        sdar.auxiliary(torch.zeros(1, 1), torch.zeros(1, 1), gate="gab")
    with pytest.raises(ValueError, match="needs the student's entropy"):
        sdar.auxiliary(torch.zeros(1, 1), torch.zeros(1, 1), gate="soft_or")


@given(seeds)
def test_sdar_at_beta_zero_is_noise(seed):
    """The gradient in expectation over the student's own tokens, by going through all of them, is 0; at beta 5 not."""
    logits, teacher = random(seed, 7).requires_grad_(), random(seed + 1, 7).log_softmax(-1)

    def expected(beta):
        logp = logits.log_softmax(-1)
        return torch.autograd.grad((logp.exp().detach() * sdar.auxiliary(logp, teacher, beta=beta)).sum(), logits)[0]

    assert expected(0.0).abs().max() < 1e-12
    assert expected(5.0).abs().max() > 1e-3


def test_sdar_at_coefficient_zero_is_grpo(make_model, make_batch, hand):
    batch = replace(make_batch(make_model(), make_model(1)), vocabulary=64)
    same_as_grpo(sdar, batch, hand, {"coef": 0.0, "kl_coef": 0.0})


def test_sdar_by_hand(hand):
    """A teacher that likes row 0's first token by 0.2 more, and nothing else; equal rewards, so no GRPO."""
    teacher = torch.tensor([[[0.0, 0.2, 0.0], [0, 0, 0]]])
    batch = hand.batch(teacher_logp=teacher, reward=torch.zeros(2), vocabulary=64)
    leaf = torch.zeros(2, 3, requires_grad=True)
    value = of(sdar, batch, hand, leaf, kl_coef=0.0, coef=0.3)
    g = 1 / (1 + math.exp(-1))
    assert value.item() == pytest.approx(0.3 * g * 0.2 / 3, rel=1e-5)
    expected = -0.3 / 3 * torch.tensor([[0, g, 0.5], [0, 0.5, 0]])
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], expected)


# RLSD


def test_rlsd_by_hand():
    a, gap = torch.tensor([[2.0, 2.0, -2.0, 0.0]]), torch.tensor([[0.1, 9.0, 0.1, 5.0]])
    found = rlsd.credit(a, gap, mix=0.5)
    expected = [2 * (0.5 + 0.5 * math.exp(0.1)), 2 * (0.5 + 0.6), -2 * (0.5 + 0.5 * math.exp(-0.1)), 0]
    torch.testing.assert_close(found, torch.tensor([expected]))


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_rlsd_keeps_the_sign(seed, mix, clip):
    a, gap = random(seed, 4, 5), 9 * random(seed + 1, 4, 5)
    found = rlsd.credit(a, gap, mix=mix, clip=clip)
    assert (found * a >= 0).all()
    assert torch.equal(rlsd.credit(a, gap, mix=0.0), a)
    assert not rlsd.credit(a.requires_grad_(), gap.requires_grad_(), mix=mix).requires_grad


def test_rlsd_schedule_ends_in_grpo(make_model, make_batch, hand):
    assert [rlsd.schedule(step, mix=0.5, decay=50) for step in (0, 25, 50, 99)] == [0.5, 0.25, 0, 0]
    assert rlsd.schedule(99, mix=0.5, decay=0) == 0.5
    batch = make_batch(make_model(), make_model(1))
    same_as_grpo(rlsd, replace(batch, step=50), hand, {}, {"clip_high": 0.28})
    same_as_grpo(rlsd, batch, hand, {"mix": 0.0}, {"clip_high": 0.28})
    with pytest.raises(AssertionError):
        same_as_grpo(rlsd, batch, hand, {}, {"clip_high": 0.28})


# RLCSD


def test_contrast_by_hand():
    correct = torch.tensor([[-1.0], [-1.0], [-1.0]])
    wrong = torch.tensor([[[-2.0], [-3.0]], [[-2.0], [9.0]], [[5.0], [5.0]]])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    found = rlcsd.contrast(correct, wrong, valid)
    mean = math.log((math.exp(-2) + math.exp(-3)) / 2)
    torch.testing.assert_close(found, torch.tensor([[-1 - mean], [1.0], [0.0]]))


def test_a_wrong_hint_that_is_missing_on_one_token_is_not_a_probability_of_1(hand):
    """Of two wrong hints the second gave no score of row 0's first token: there the first speaks alone."""
    logp = torch.full((5, 2, 3), -2.0)
    logp[0] = -1.0
    mask = torch.zeros(5, 2, 3, dtype=torch.bool)
    mask[:3, 0, 1:] = True
    mask[2, 0, 1] = False
    batch = hand.batch(teacher_mask=mask, teacher_logp=logp.masked_fill(~mask, 0))
    found = rlcsd.RECIPE.credit(batch, rlcsd.RLCSDOptions(tau=1.0, delta=0.0))
    assert found.metrics["contrast_nats"] == pytest.approx(1.0)
    torch.testing.assert_close(found.advantage[0, 1], found.advantage[0, 2])


def test_rlcsd_by_hand():
    settings = {"beta": 1.0, "tau": 1.0, "mix": 0.5, "low": -2.0, "high": 2.0, "delta": 0.1}
    a, e = torch.tensor([[1.0, -1.0, 0.1, 0.0, 1.0]]), torch.tensor([[1.0, 1.0, -9.0, 9.0, 0.01]])
    moved, selected = rlcsd.credit(a, e, **settings)
    pull = 0.5 * math.tanh(1)
    torch.testing.assert_close(moved, torch.tensor([[1 + pull, -1 + pull, 0.0, 0.0, 1.0]]))
    assert selected.tolist() == [[True, True, True, True, False]]  # also where A is 0, as the authors count


@given(seeds, st.floats(0.01, 2), st.floats(0, 0.2))
def test_rlcsd_keeps_the_sign_and_what_it_does_not_select(seed, mix, delta):
    a, e = random(seed, 4, 5), random(seed + 1, 4, 5)
    moved, selected = rlcsd.credit(a, e, beta=1, tau=0.02, mix=mix, low=-2, high=2, delta=delta)
    assert (moved * a >= 0).all()
    assert torch.equal(moved[~selected], a[~selected])


def channels(batch, hints):
    """The batch's one teacher, seen by `hints` channels, each shifted."""
    shift = 0.1 * torch.arange(hints).reshape(-1, 1, 1)
    mask = batch.teacher_mask.expand(hints, -1, -1)
    return replace(batch, teacher_mask=mask, teacher_logp=(batch.teacher_logp - shift) * mask)


def test_rlcsd_without_selection_is_grpo(make_model, make_batch, hand):
    batch = channels(make_batch(make_model(), make_model(1)), 5)
    same_as_grpo(rlcsd, batch, hand, {"delta": math.inf})
    silent = replace(batch, teacher_mask=batch.teacher_mask & (torch.arange(5) == 0).reshape(-1, 1, 1))
    same_as_grpo(rlcsd, silent, hand, {})
    with pytest.raises(AssertionError):
        same_as_grpo(rlcsd, batch, hand, {})
    with pytest.raises(ValueError, match="never passed"):
        rlcsd.RLCSDOptions(delta=0.6)


def test_rlcsd_has_two_denominators(hand):
    """Row 0's first token is selected: its mean is over 1 token, that of the two others over 2."""
    logp = torch.zeros(5, 2, 3)
    logp[0, 0, 1] = 5.0
    mask = torch.zeros(5, 2, 3, dtype=torch.bool)
    mask[:2, 0, 1:] = True
    batch = hand.batch(teacher_mask=mask, teacher_logp=logp)
    value = of(rlcsd, batch, hand, torch.zeros(2, 3, requires_grad=True), eps=1e-9)
    # Selected: A + 0.5; not selected: A at ratio 1 in row 0, -A in row 1.
    assert value.item() == pytest.approx((-A + A) / 2 - (A + 0.5), rel=1e-5)


# OPSD


def test_opsd_by_hand():
    """S = (1/2, 1/2), T = (1/4, 3/4). KL(T||S) has the summands 1/4 ln 1/2 and 3/4 ln 3/2."""
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    low, high = 0.25 * math.log(0.5), 0.75 * math.log(1.5)
    assert opsd.divergence(student, teacher, clip=None).item() == pytest.approx(low + high, rel=1e-5)
    assert opsd.divergence(student, teacher, clip=0.05).item() == pytest.approx(low + 0.05, rel=1e-5)
    assert opsd.divergence(student, teacher, clip=0.05).item() < 0  # negative summands stay


@given(seeds, st.floats(0, 1))
def test_opsd_without_a_clip_is_the_divergence(seed, beta):
    student, teacher = random(seed, 3, 9).log_softmax(-1), random(seed + 1, 3, 9).log_softmax(-1)
    torch.testing.assert_close(opsd.divergence(student, teacher, beta=beta, clip=None), jsd(student, teacher, beta))
    clipped = opsd.divergence(student, teacher, beta=beta, clip=0.01)
    assert (clipped <= jsd(student, teacher, beta) + 1e-12).all()
    assert opsd.divergence(student, student, beta=beta).abs().max() < 1e-12
    leaf = teacher.clone().requires_grad_()
    assert not opsd.divergence(student, leaf, beta=beta).requires_grad


# OpenClaw


@pytest.mark.parametrize(
    ("votes", "expected"),
    [([1, 1, -1], 1), ([1, -1, 0], 0), ([-1, -1, 1], -1), ([], 0), ([1, -1], 0), ([0, 0, 1], 0), ([-1], -1)],
)
def test_majorities(votes, expected):
    assert openclaw.majority(votes) == expected
    assert openclaw.majority([Vote(vote, "because") for vote in votes]) == expected


def test_the_longest_hint_of_those_that_were_voted_for():
    votes = [Vote(1, "use a list"), Vote(1, "use a list, please"), Vote(-1, "a much longer hint than that"), Vote(1)]
    assert openclaw.choose_hint(votes) == "use a list, please"
    assert openclaw.choose_hint([(1, "0123456789")]) is None
    assert openclaw.choose_hint([(1, "0123456789a"), (0, "0123456789abc")]) == "0123456789a"
    assert openclaw.choose_hint([]) is None


def test_openclaw_by_hand():
    reward, teacher, old = torch.tensor([1.0, -1.0]), torch.tensor([[0.5, -0.5], [0, 0]]), torch.zeros(2, 2)
    found = openclaw.advantage(reward, teacher, old, w_rl=2.0, w_opd=3.0)
    assert found.tolist() == [[3.5, 0.5], [-2, -2]]
    of_turns = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert openclaw.advantage(of_turns, teacher, old).tolist() == [[1.5, -0.5], [0, -1]]


def test_openclaw_learns_from_each_turns_own_reward(hand):
    """Row 0 has turns 0 and 1, rewards +1 and -1, and a hint for the second alone; row 1 has neither."""
    batch = hand.batch(
        turn_reward=torch.tensor([[0.0, 1.0, -1.0], [0, 0, 0]]),
        teacher_mask=torch.tensor([[[False, False, True], [False, False, False]]]),
        teacher_logp=torch.tensor([[[0.0, 7.0, 0.25], [0, 7, 0]]]),
    )
    leaf = torch.zeros(2, 3, requires_grad=True)
    value = of(openclaw, batch, hand, leaf)
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], -torch.tensor([[0, 1, -0.75], [0, 0, 0]]) / 3)
    assert openclaw.RECIPE.credit(batch, openclaw.OpenClawOptions(w_opd=0.25)).metrics["w_opd"] == 0.25


# All


@pytest.mark.parametrize("recipe", [sdar, rlsd, openclaw])
def test_nothing_but_the_student_gets_a_gradient(make_model, make_batch, hand, recipe):
    batch = replace(make_batch(make_model(), make_model(1)), vocabulary=64, reference_logp=None)
    fixed = ("teacher_logp", "teacher_entropy", "behaviour_logp", "proximal_entropy")
    batch = replace(batch, **{name: getattr(batch, name).clone().requires_grad_() for name in fixed})
    leaf = batch.proximal_logp.clone().requires_grad_()
    options = {"kl_coef": 0.0}
    value = of(recipe, batch, hand, leaf, **options)
    value.backward()
    assert leaf.grad.abs().sum() > 0
    assert all(getattr(batch, name).grad is None for name in fixed)


@pytest.mark.parametrize("recipe", [rlsd, openclaw])
def test_a_teacher_that_agrees_adds_nothing(make_model, make_batch, hand, recipe):
    batch = make_batch(make_model(), make_model(1))
    batch = replace(batch, teacher_logp=batch.proximal_logp[None] * batch.teacher_mask)
    if recipe is rlsd:
        same_as_grpo(rlsd, batch, hand, {}, {"clip_high": 0.28})
    else:
        assert not openclaw.credit(batch, openclaw.OpenClawOptions()).advantage.any()
