"""Each step's episodes are a function of its number and the seed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.agents.chat import Chat
from retort.agents.rollout import Runner
from retort.agents.scripted import ByteTokenizer, gold
from retort.algos.episodes import drawn, expert_traces, own_rollouts, seed_of
from retort.envs.base import UsageError
from retort.envs.catalogue import make

import retort  # noqa: F401  (registers the environment)


@given(size=st.integers(1, 30), count=st.integers(1, 12), steps=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_all_come_before_any_comes_again(size: int, count: int, steps: int, seed: int) -> None:
    stream = [item for step in range(steps) for item in drawn(range(size), count, step, seed)]
    assert len(stream) == steps * count
    for start in range(0, len(stream), size):
        epoch = stream[start : start + size]
        assert len(set(epoch)) == len(epoch)
        if len(epoch) == size:
            assert set(epoch) == set(range(size))


@given(size=st.integers(1, 30), count=st.integers(1, 12), step=st.integers(0, 50), seed=st.integers(0, 2**32))
def test_a_step_depends_on_its_number_alone(size: int, count: int, step: int, seed: int) -> None:
    drawn(range(size), count, step + 1, seed)
    assert drawn(range(size), count, step, seed) == drawn(range(size), count, step, seed)
    assert expert_traces(range(size), count=count, seed=seed)(step) == drawn(range(size), count, step, seed)  # type: ignore[arg-type]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(drawn(range(50), 50, step, seed)) for step in (0, 1) for seed in (0, 1)]
    assert len(set(orders)) == 4


def test_seeds_differ_by_place_and_repeat() -> None:
    places = [
        (seed, step, group, member) for seed in (0, 1) for step in (0, 1) for group in (0, 1) for member in (0, 1)
    ]
    seeds = [seed_of(*place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [seed_of(*place) for place in places]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_groups_share_a_task_and_no_two_episodes_a_seed() -> None:
    chat = Chat(ByteTokenizer())
    env = make("retort/Shell-v0", families=["delete"])
    tasks = env.get_wrapper_attr("tasks")()[:5]
    env.close()
    runner = Runner(lambda: make("retort/Shell-v0", families=["delete"]), gold(chat), chat, env_id="retort/Shell-v0")
    try:
        episodes = own_rollouts(runner, tasks, prompts=3, group_size=4, seed=7)
        steps = [episodes(step) for step in range(5)]
        again = own_rollouts(runner, tasks, prompts=3, group_size=4, seed=7)(3)
    finally:
        runner.close()
    played = [item for step in steps for item in step]
    assert len({item.provenance.seed for item in played}) == len({item.episode for item in played}) == 60
    for step in steps:
        assert [item.group for item in step] == [0] * 4 + [1] * 4 + [2] * 4
        assert all(len({item.task.key for item in step[start : start + 4]}) == 1 for start in (0, 4, 8))
        assert all(item.success for item in step)
    assert steps[4][7].episode == "4-1-3"
    assert [(item.task, item.provenance.seed) for item in again] == [
        (item.task, item.provenance.seed) for item in steps[3]
    ]


def test_a_step_of_which_nothing_can_be_played_is_an_error() -> None:
    chat = Chat(ByteTokenizer())
    env = make("retort/Shell-v0", families=["delete"])
    tasks = env.get_wrapper_attr("tasks")()
    env.close()

    class Broken(type(env.unwrapped)):  # type: ignore[misc]
        def reset(self, **options: Any) -> Any:
            raise OSError("no room")

    runner = Runner(lambda: Broken(families=["delete"]), gold(chat), chat, env_id="broken", concurrency=2)
    try:
        with pytest.raises(UsageError, match=r"no episode could be played; the first of 4 failed with .*no room"):
            own_rollouts(runner, tasks, prompts=2, group_size=2, seed=0)(0)
    finally:
        runner.close()
