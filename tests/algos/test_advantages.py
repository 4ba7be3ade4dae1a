import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.algos.advantages import group_relative

REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0])
GROUP = torch.tensor([7, 7, 7, 3, 3])


def test_by_hand():
    std = math.sqrt(((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 2)
    other = math.sqrt((4 + 4) / 1)
    expected = [2 / 3 / std, -1 / 3 / std, -1 / 3 / std, -2 / other, 2 / other]
    torch.testing.assert_close(group_relative(REWARD, GROUP, eps=1e-12), torch.tensor(expected))
    centred = torch.tensor([2 / 3, -1 / 3, -1 / 3, -2.0, 2.0])
    torch.testing.assert_close(group_relative(REWARD, GROUP, scale="none"), centred)
    torch.testing.assert_close(group_relative(REWARD, GROUP, scale="batch", eps=1e-12), centred / REWARD.std())


@given(st.floats(-1e3, 1e3, width=32), st.integers(1, 9), st.sampled_from(["group", "batch", "none"]))
def test_equal_rewards_give_exactly_zero(reward, size, scale):
    found = group_relative(torch.full((size,), reward), torch.zeros(size, dtype=torch.long), scale=scale)
    assert (found == 0).all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_rows_of_one_episode_count_once(scale):
    rows = torch.tensor([0, 0, 0, 1, 2, 3, 4, 4])
    alone = group_relative(REWARD, GROUP, scale=scale)
    split = group_relative(REWARD[rows], GROUP[rows], scale=scale, episode=rows)
    torch.testing.assert_close(split, alone[rows])


def test_bad_input():
    with pytest.raises(ValueError, match="finite rewards, found"):
        group_relative(torch.tensor([torch.nan]), torch.tensor([0]))
    with pytest.raises(ValueError, match="found 'std'"):
        group_relative(REWARD, GROUP, scale="std")
    assert group_relative(torch.empty(0), torch.empty(0, dtype=torch.long)).shape == (0,)
