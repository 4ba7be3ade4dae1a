"""Every recipe: hand-worked numbers, and what METHODS 16 asks of each."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.algos import grpo, sdpo, sft, srpo
from retort.algos.base import Student, TokenBatch
from retort.algos.divergences import jsd, kl
from retort.algos.surrogates import ppo

A = math.sqrt(0.5)  # the advantage of rewards 1 and 0: 0.5 over a std of sqrt(0.5)


def test_sft_by_hand(hand):
    batch, options = hand.batch(), sft.SFTOptions()
    student = hand.student(torch.tensor([[9.0, -1.0, -2.0], [9.0, -4.5, 9.0]]))
    assert hand.total(sft.loss(batch, sft.credit(batch, options), student, options)).item() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        # Values -A r: row 0 has r = 1 and 1.1, row 1 has r = 0.9 and A < 0.
        ("token_mean", A * (-1 - 1.1 + 0.9) / 3),
        ("sequence_mean", A * (-1.05 + 0.9) / 2),
        ("sequence_sum", A * (-2.1 + 0.9) / 2),
        ("dr_grpo", A * (-2.1 + 0.9) / 2 / 4),
    ],
)
def test_grpo_by_hand(hand, aggregate, expected):
    length = {"length": 4} if aggregate == "dr_grpo" else {}
    batch, options = hand.batch(), grpo.GRPOOptions(aggregate=aggregate, eps=1e-9, **length)
    student = hand.student(torch.tensor([[0, 1, 1.1], [0, 0.9, 0]]).log().nan_to_num(neginf=0))
    assert hand.total(grpo.loss(batch, grpo.credit(batch, options), student, options)).item() == pytest.approx(expected)


def test_grpo_corrects_for_the_policy_that_sampled(hand):
    batch = hand.batch(behaviour_logp=-torch.tensor([[0, 3.0, 1.5], [0, 1, 0]]).log().nan_to_num(neginf=0))
    student = hand.student(torch.zeros(2, 3))
    for outside, sum_of in (("truncate", -2 - 1.5 + 1), ("mask", -1.5 + 1)):
        options = grpo.GRPOOptions(eps=1e-9, correction=grpo.Correction(outside=outside))
        found = hand.total(grpo.loss(batch, grpo.credit(batch, options), student, options))
        assert found.item() == pytest.approx(A * sum_of / 3)


def test_grpo_towards_the_reference(hand):
    reference = torch.tensor([[0.0, -1, 0], [0, 0, 0]])
    batch, options = hand.batch(reference_logp=reference, reward=torch.zeros(2)), grpo.GRPOOptions(kl_coef=0.5)
    logp = torch.zeros(2, 3, requires_grad=True)
    found = hand.total(grpo.loss(batch, grpo.credit(batch, options), hand.student(logp), options))
    assert found.item() == pytest.approx(0.5 * math.exp(-1) / 3)  # k3: e^-1 - 1 + 1
    assert torch.autograd.grad(found, logp)[0][0, 1].item() == pytest.approx(0.5 * 1 / 3)  # of k2: log s - log t
    with pytest.raises(ValueError, match="expected reference_logp"):
        grpo.loss(hand.batch(), grpo.credit(batch, options), hand.student(logp), options)


def test_a_group_of_equal_rewards_has_no_gradient_but_counts(hand):
    batch, options = hand.batch(reward=torch.ones(2)), grpo.GRPOOptions()
    credit, logp = grpo.credit(batch, options), torch.zeros(2, 3, requires_grad=True)
    (term,) = grpo.loss(batch, credit, hand.student(logp), options)
    assert not term.active.any()
    assert term.mask.sum() == 3
    assert (torch.autograd.grad(hand.total([term]), logp)[0] == 0).all()


HALF, QUARTER = math.log(0.5), math.log(0.25)


def support_batch(hand, **changes) -> TokenBatch:
    """The student has (1/2, rest 1/2), the teacher (1/4, rest 3/4), at every token."""
    return hand.batch(
        support_ids=torch.zeros(2, 3, 1, dtype=torch.long),
        proximal_support_logp=torch.full((2, 3, 1), HALF),
        proximal_rest_logp=torch.full((2, 3), HALF),
        teacher_support_logp=torch.full((1, 2, 3, 1), QUARTER),
        teacher_rest_logp=torch.full((1, 2, 3), math.log(0.75)),
        teacher_entropy=torch.tensor([[[0.0, 1.0, 2.0], [0.0, 3.0, 0.0]]]),
        **changes,
    )


def support_student(hand, logp=None) -> Student:
    logp = torch.zeros(2, 3) if logp is None else logp
    return hand.student(logp, torch.full((2, 3, 1), HALF, requires_grad=True), torch.full((2, 3), HALF))


D = 0.5 * (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)) + 0.5 * (
    0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
)


def test_sdpo_by_hand(hand):
    batch, options = support_batch(hand), sdpo.SDPOOptions(k=1)
    credit = sdpo.credit(batch, options)
    assert hand.total(sdpo.loss(batch, credit, support_student(hand), options)).item() == pytest.approx(D, rel=1e-5)
    # Ratios 1.5, 4 (clipped at 2) and 1.
    moved = support_student(hand, torch.tensor([[1, 1.5, 4], [1, 1, 1]]).log())
    assert hand.total(sdpo.loss(batch, credit, moved, options)).item() == pytest.approx(D * 4.5 / 3, rel=1e-5)
    for alpha, value in ((0.0, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)), (1.0, 0.5 * math.log(4 / 3))):
        ends = sdpo.SDPOOptions(k=1, alpha=alpha)
        found = hand.total(sdpo.loss(batch, credit, support_student(hand), ends))
        assert found.item() == pytest.approx(value, rel=1e-5)


def test_srpo_by_hand(hand):
    batch, options = support_batch(hand), srpo.SRPOOptions(k=1, eps=1e-9)
    credit = srpo.credit(batch, options)
    # Row 0 won: two GRPO tokens. Row 1 failed and has a teacher: one SDPO token, whose weight is then 1.
    assert credit.share == {"grpo": pytest.approx(2 / 3), "sdpo": pytest.approx(1 / 3)}
    found = hand.total(srpo.loss(batch, credit, support_student(hand), options))
    assert found.item() == pytest.approx((-2 * A + D) / 3, rel=1e-5)


def test_routes():
    success, taught = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    to_grpo, to_sdpo = srpo.route(success, taught)
    assert to_sdpo.tolist() == [False, False, True, False]
    assert torch.equal(to_grpo, ~to_sdpo)


def test_routing_ignores_the_advantage(hand):
    """All failed: every advantage is 0, and yet all go to the teacher. All won: none does."""
    for success, tokens in ((False, 3), (True, 0)):
        batch = support_batch(hand, reward=torch.full((2,), float(success)), success=torch.full((2,), success))
        assert srpo.credit(batch, srpo.SRPOOptions(k=1)).mask["taught"].sum() == tokens


@given(st.integers(0, 999), st.floats(0, 4))
def test_entropy_weights_have_mean_one(seed, beta):
    generator = torch.Generator().manual_seed(seed)
    entropy = 30 * torch.rand(3, 5, generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.5
    weight = srpo.entropy_weight(entropy, mask, beta=beta)
    assert (weight[~mask] == 0).all()
    if mask.any():
        assert weight[mask].mean().item() == pytest.approx(1, rel=1e-4)
    assert not srpo.entropy_weight(entropy.requires_grad_(), mask).requires_grad


def test_entropy_weight_by_hand():
    found = srpo.entropy_weight(torch.tensor([[0.0, math.log(3)]]), torch.ones(1, 2).bool())
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.5]]))


def leaves(batch):
    """The student as it stood before the update, as leaves."""
    names = ("proximal_logp", "proximal_support_logp", "proximal_rest_logp")
    logp, support, rest = (getattr(batch, name).clone().requires_grad_() for name in names)
    return Student(logp=logp, support_logp=support, rest_logp=rest), [logp, support, rest]


def test_srpo_without_a_teacher_is_grpo(hand, make_model, make_batch):
    batch = make_batch(make_model())
    student, (logp, *_) = leaves(batch)
    found = []
    for recipe in (grpo, srpo):
        options = recipe.RECIPE.options()
        value = hand.total(recipe.loss(batch, recipe.credit(batch, options), student, options))
        found.append((value, torch.autograd.grad(value, logp)[0]))
    assert found[0][0].item() == found[1][0].item() != 0
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().sum() > 0


def test_nothing_but_the_student_gets_a_gradient(hand, make_model, make_batch):
    batch = make_batch(make_model(), make_model(1))
    fixed = ("teacher_logp", "teacher_entropy", "teacher_support_logp", "teacher_rest_logp", "behaviour_logp")
    batch = replace(batch, **{name: getattr(batch, name).clone().requires_grad_() for name in fixed})
    for recipe in (grpo, sdpo, srpo):
        options = recipe.RECIPE.options()
        student, inputs = leaves(batch)
        credit = recipe.credit(batch, options)
        hand.total(recipe.loss(batch, credit, student, options)).backward()
        assert any(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in inputs)
        assert all(getattr(batch, name).grad is None for name in fixed)
        assert not any(weight.requires_grad for weight in credit.weight.values())


def test_importance_weight_of_sdpo_has_no_gradient(hand, make_model, make_batch):
    batch, options = make_batch(make_model(), make_model(1)), sdpo.SDPOOptions()
    student, (logp, support, _) = leaves(batch)
    value = hand.total(sdpo.loss(batch, sdpo.credit(batch, options), student, options))
    assert torch.autograd.grad(value, [logp, support], allow_unused=True)[0] is None


def test_a_teacher_mask_without_scores_is_refused(hand):
    batch, options = hand.batch(), sdpo.SDPOOptions()
    with pytest.raises(ValueError, match="expected teacher_support_logp"):
        sdpo.loss(batch, sdpo.credit(batch, options), support_student(hand), options)
    with pytest.raises(ValueError, match="expected teacher_entropy"):
        srpo.credit(batch, srpo.SRPOOptions())


@given(st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0]))
def test_token_divergence_over_all_entries_is_the_divergence(seed, alpha):
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, 3, 11).requires_grad_(), torch.randn(2, 3, 11).requires_grad_()
    found = sdpo.token_divergence(student, teacher, k=11, alpha=alpha)
    expected = jsd(student.log_softmax(-1), teacher.log_softmax(-1), alpha)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), student, retain_graph=True)[0],
        torch.autograd.grad(expected.sum(), student)[0],
        atol=1e-6,
        rtol=1e-5,
    )
    assert torch.autograd.grad(found.sum(), teacher, allow_unused=True)[0] is None
    same = sdpo.token_divergence(student, student, k=4, alpha=alpha)
    assert same.abs().max() < 1e-6
    assert torch.autograd.grad(same.sum(), student)[0].abs().max() < 1e-6
    if alpha == 1.0:
        few = sdpo.token_divergence(student, teacher, k=4, alpha=alpha)
        assert (few <= kl(student.log_softmax(-1), teacher.log_softmax(-1)) + 1e-6).all()


def test_ppo_in_grpo_uses_the_options(hand):
    batch = hand.batch()
    options = grpo.GRPOOptions(clip_low=0.1, clip_high=0.3, dual_clip=2.0, eps=1e-9)
    credit, logp = grpo.credit(batch, options), torch.tensor([[0.0, 0.9, -0.9], [0, 0.9, 0]])
    (term,) = grpo.loss(batch, credit, hand.student(logp), options)
    expected = ppo(logp, batch.proximal_logp, credit.advantage, clip_low=0.1, clip_high=0.3, dual_clip=2.0)
    torch.testing.assert_close(term.value, expected)


@pytest.mark.parametrize("recipe", [sft, grpo, sdpo, srpo])
def test_unknown_options_are_refused(recipe):
    with pytest.raises(ValueError, match="extra"):
        recipe.RECIPE.options(no_such_option=1)
