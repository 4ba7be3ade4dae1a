import copy

import pytest
import torch
from retort.algos.muon import Muon, orthogonalise
from torch import nn


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    made = orthogonalise(torch.randn(shape), steps=5)
    values = torch.linalg.svdvals(made)
    assert made.dtype == torch.float32
    assert values[..., :-1].min() > 0.3
    assert values.max() < 1.3
    exact = orthogonalise(torch.randn(shape), coefficients=(1.5, -0.5, 0.0), steps=60)
    small = exact @ exact.mT if shape[1] <= shape[2] else exact.mT @ exact
    torch.testing.assert_close(small, torch.eye(small.shape[-1]).expand_as(small), atol=1e-3, rtol=0)


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_follows_the_one_in_torch(adjust):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(s)) for s in [(8, 8), (8, 8), (16, 4)]]
    theirs = copy.deepcopy(mine)
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    a, b = Muon(mine, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=5e-3, rtol=0)  # torch's rounds to bfloat16


def test_resumes_bit_for_bit():
    torch.manual_seed(0)
    gradients = torch.randn(6, 2, 8, 8)
    straight = [nn.Parameter(torch.ones(8, 8)) for _ in range(2)]
    stopped = copy.deepcopy(straight)

    def run(parameters, optimiser, steps):
        for gradient in gradients[steps]:
            for parameter, own in zip(parameters, gradient, strict=True):
                parameter.grad = own.clone()
            optimiser.step()

    run(straight, Muon(straight, lr=0.1), slice(0, 6))
    first = Muon(stopped, lr=0.1)
    run(stopped, first, slice(0, 3))
    second = Muon(stopped, lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(stopped, second, slice(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, stopped, strict=True))


def test_refuses_what_is_not_a_matrix():
    with pytest.raises(ValueError, match="Muon takes matrices"):
        Muon([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="found 'rms'"):
        Muon([nn.Parameter(torch.ones(3, 3))], adjust_lr_fn="rms")
    with pytest.raises(ValueError, match="0 or more"):
        Muon([nn.Parameter(torch.ones(3, 3))], lr=-1)
