import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.algos.surrogates import importance, ppo

finite = st.floats(-3, 3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "expected", "slope"),
    [
        (1.1, 2.0, None, -2.2, -2.2),  # inside: -A r
        (1.5, 2.0, None, -2.4, 0.0),  # clipped from above
        (0.5, 2.0, None, -1.0, -1.0),  # a good token that fell is pulled back
        (0.5, -2.0, None, 1.6, 0.0),  # clipped from below
        (5.0, -2.0, None, 10.0, 10.0),  # a bad token that rose is pushed back
        (5.0, -2.0, 3.0, 6.0, 0.0),  # unless the dual clip caps it
        (5.0, 2.0, 3.0, -2.4, 0.0),  # which leaves good tokens alone
    ],
)
def test_by_hand(ratio, advantage, dual, expected, slope):
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, a = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    loss = ppo(logp, old, a, clip_low=0.2, clip_high=0.2, dual_clip=dual)
    assert loss.item() == pytest.approx(expected)
    assert torch.autograd.grad(loss, logp)[0].item() == pytest.approx(slope)


@given(finite, finite, st.sampled_from([None, 3.0]))
def test_at_ratio_one_the_gradient_is_reinforce(logp, advantage, dual):
    leaf, a = torch.tensor([logp], requires_grad=True), torch.tensor([advantage])
    (ours,) = torch.autograd.grad(ppo(leaf, leaf.detach(), a, dual_clip=dual), leaf)
    (theirs,) = torch.autograd.grad(-a * leaf, leaf)
    torch.testing.assert_close(ours, theirs)


def test_no_gradient_to_old_or_advantage():
    old, a, logp = (torch.zeros(2, requires_grad=True) for _ in range(3))
    ppo(logp, old, a + 1, dual_clip=2.0).sum().backward()
    assert old.grad is None
    assert a.grad is None
    assert (logp.grad != 0).all()


def test_importance_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    new, old = torch.tensor([[0.5, 1.0, 3.0, 9.0]]).log().requires_grad_(), torch.zeros(1, 4)
    check = torch.testing.assert_close
    check(importance(new, old, mask, high=2), torch.tensor([[0.5, 1, 2, 1]]))
    check(importance(new, old, mask, high=2, outside="mask"), torch.tensor([[0.5, 1, 0, 1]]))
    check(importance(new, old, mask, low=0.8, high=2, outside="mask"), torch.tensor([[0.0, 1, 0, 1]]))
    check(importance(new, old, mask, low=0.8, high=2), torch.tensor([[0.8, 1, 2, 1]]))
    check(importance(new, old, mask, high=9, level="sequence"), torch.tensor([[1.5, 1.5, 1.5, 1]]))
    assert not importance(new, old, mask).requires_grad
    assert (importance(new.detach(), new.detach(), mask) == 1).all()


def test_bad_bounds():
    with pytest.raises(ValueError, match="0 <= low < high"):
        importance(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), low=2, high=1)
    with pytest.raises(ValueError, match="dual_clip above 1"):
        ppo(torch.zeros(1), torch.zeros(1), torch.zeros(1), dual_clip=0.5)
