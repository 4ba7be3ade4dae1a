import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retort.algos.divergences import jsd, k1, k2, k3, kl, restrict, straight_through, with_rest

seeds, betas = st.integers(0, 999), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


def pair(seed, size=7, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(4, size, generator=generator, dtype=torch.float64)).log_softmax(-1) for _ in range(2)]


def test_by_hand():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    m = [0.375, 0.625]
    expected = sum(
        0.5 * a * math.log(a / c) + 0.5 * b * math.log(b / c)
        for a, b, c in zip([0.5] * 2, [0.25, 0.75], m, strict=True)
    )
    assert jsd(p, q, 0.5).item() == pytest.approx(expected)
    # beta weighs the teacher, in the mixture and in the sum.
    m = [0.9 * 0.5 + 0.1 * 0.25, 0.9 * 0.5 + 0.1 * 0.75]
    expected = sum(
        0.1 * b * math.log(b / c) + 0.9 * a * math.log(a / c)
        for a, b, c in zip([0.5] * 2, [0.25, 0.75], m, strict=True)
    )
    assert jsd(p, q, 0.1).item() == pytest.approx(expected, rel=1e-5)


@given(seeds, betas)
def test_same_distribution_gives_zero_and_others_more(seed, beta):
    p, q = pair(seed)
    assert jsd(p, p, beta).abs().max() < 1e-12
    assert (jsd(p, q, beta) > 0).all()


@given(seeds)
def test_ends_and_symmetry(seed):
    student, teacher = pair(seed)
    torch.testing.assert_close(jsd(student, teacher, 0.0), kl(teacher, student))
    torch.testing.assert_close(jsd(student, teacher, 1.0), kl(student, teacher))
    half = jsd(student, teacher, 0.5)
    torch.testing.assert_close(half, jsd(teacher, student, 0.5))
    assert (half <= math.log(2) + 1e-12).all()


@given(seeds, betas, st.sampled_from(["tail", "renormalise"]))
def test_the_whole_vocabulary_as_support_changes_nothing(seed, beta, rest):
    student, teacher = pair(seed)
    student.requires_grad_()
    ids = student.topk(7).indices
    full = jsd(student, teacher, beta)
    some = jsd(restrict(student, ids, rest=rest), restrict(teacher, ids, rest=rest), beta)
    torch.testing.assert_close(some, full)
    if rest == "tail":  # Exactly nothing comes from the empty bucket.
        for a, b in zip(
            torch.autograd.grad(some.sum(), student), torch.autograd.grad(full.sum(), student), strict=True
        ):
            torch.testing.assert_close(a, b)


@given(seeds, st.integers(1, 6), betas)
def test_merging_entries_never_adds_divergence(seed, k, beta):
    student, teacher = pair(seed)
    ids = student.topk(k).indices
    s, t = restrict(student, ids), restrict(teacher, ids)
    torch.testing.assert_close(s.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    assert (jsd(s, t, beta) <= jsd(student, teacher, beta) + 1e-12).all()
    torch.testing.assert_close(with_rest(student.gather(-1, ids), s[..., -1]), s)
    torch.testing.assert_close(
        restrict(student, ids, rest="renormalise").exp().sum(-1), s.exp()[..., :-1].sum(-1) * 0 + 1
    )


@pytest.mark.parametrize("log_tail", [-5.0, -16.0, -25.0])
def test_small_tails_differ_in_value_and_gradient(log_tail):
    logits = torch.tensor([0.0, log_tail - math.log(2), log_tail - math.log(2)], requires_grad=True)
    tail = restrict(logits.log_softmax(-1), torch.tensor([0]))[-1]
    assert tail.item() == pytest.approx(log_tail - math.log1p(math.exp(log_tail)), rel=1e-6)
    teacher = torch.tensor([0.0, log_tail + 3]).log_softmax(-1)
    (gradient,) = torch.autograd.grad(kl(teacher, restrict(logits.log_softmax(-1), torch.tensor([0]))), logits)
    mass = math.exp(log_tail + 3)
    expected = math.exp(log_tail) - mass / (1 + mass)
    assert gradient[1:].sum().item() == pytest.approx(expected, rel=1e-2)


@settings(max_examples=20)
@given(seeds)
def test_estimator_gradients_by_exact_enumeration(seed):
    """METHODS 12: expectations over the student, summed over the whole vocabulary."""
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    teacher = pair(seed, 6)[0][0]
    student = logits.log_softmax(-1)
    p = student.detach().exp()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    reverse, forward = gradient(kl(student, teacher)), gradient(kl(teacher, student))
    naive = gradient((p * (student - teacher)).sum())
    assert naive.abs().max() < 1e-12
    for estimator in (k1, k2, lambda s, t: straight_through(k3(s, t), k2(s, t))):
        torch.testing.assert_close(gradient((p * estimator(student, teacher)).sum()), reverse)
    torch.testing.assert_close(gradient((p * k3(student, teacher)).sum()), forward)
    for estimator in (k1, k3):
        torch.testing.assert_close((p * estimator(student, teacher)).sum(), kl(student, teacher))


def test_beta_out_of_range():
    with pytest.raises(ValueError, match=r"from 0 to 1, found 1\.5"):
        jsd(torch.zeros(1), torch.zeros(1), 1.5)
