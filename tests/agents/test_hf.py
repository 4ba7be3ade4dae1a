"""The in-process engine: its barrier, its cohorts, its versions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from retort.agents import hf
from retort.agents.base import Prompt, Sampling, Trajectory
from retort.agents.chat import Chat
from retort.agents.episode import Budget, EpisodeRequest
from retort.agents.hf import HFPolicy, load_model
from retort.agents.rollout import Runner

Make = Callable[..., HFPolicy]
SHORT = Sampling(max_new_tokens=6)
GOES_ON = Budget(act_on_cut=True)


def requests(count: int = 14) -> list[EpisodeRequest]:
    return [EpisodeRequest(f"echo-{n // 2 % 8}", 50 + n, n // 2, f"{n:03d}") for n in range(count)]


def play(make_env: Any, policy: HFPolicy, chat: Chat, concurrency: int = 5) -> list[Trajectory]:
    with closing(
        Runner(make_env, policy, chat, env_id="echo", concurrency=concurrency, sampling=SHORT, budget=GOES_ON)
    ) as runner:
        return runner.run(requests())


def prompt(*ids: int) -> Prompt:
    return Prompt(ids, ({"role": "user", "content": "x"},))


def watched(policy: HFPolicy, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The seeds of every batch that runs from now on."""
    batches: list[list[int]] = []
    real = policy.complete

    def complete(calls: Any) -> Any:
        batches.append([call.seed for call in calls])
        return real(calls)

    monkeypatch.setattr(policy, "complete", complete)
    return batches


@pytest.mark.parametrize("cohorts", [1, 2])
def test_the_same_run_twice_is_the_same_to_the_bit(
    echo: Any, policy_of: Make, chat: Chat, cohorts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for _ in range(2):
        policy = policy_of(cohorts=cohorts)
        batches = watched(policy, monkeypatch)
        runs.append((play(echo, policy, chat), sorted(batches)))
    (first, batches), (again, same) = runs
    assert batches == same
    for one, other in zip(first, again, strict=True):
        for mine, yours in zip(one.rows, other.rows, strict=True):
            assert mine.token_ids.tobytes() == yours.token_ids.tobytes()
            assert mine.behaviour_logp.tobytes() == yours.behaviour_logp.tobytes()
        assert (one.episode, one.reward, one.messages) == (other.episode, other.reward, other.messages)


def test_evaluation_mode_samples_the_same_tokens(echo: Any, policy_of: Make, chat: Chat) -> None:
    trained = play(echo, policy_of(), chat)
    evaluated = play(echo, policy_of(barrier=False), chat, concurrency=3)
    for one, other in zip(trained, evaluated, strict=True):
        assert one.messages == other.messages
        np.testing.assert_allclose(one.rows[0].behaviour_logp, other.rows[0].behaviour_logp, atol=1e-4)


def test_behaviour_log_probs_are_the_models_own(echo: Any, policy_of: Make, chat: Chat) -> None:
    policy = policy_of()
    rows = [row for item in play(echo, policy, chat) for row in item.rows]
    positions = [np.flatnonzero(row.mask).tolist() for row in rows]
    scores = asyncio.run(policy.score([row.token_ids.tolist() for row in rows], positions, k=3, entropy=True))
    for row, score in zip(rows, scores, strict=True):
        np.testing.assert_allclose(score.logp, row.behaviour_logp[row.mask], atol=1e-4)
        assert score.topk_logp is not None
        assert score.rest_logp is not None
        np.testing.assert_allclose(np.exp(score.topk_logp).sum(1) + np.exp(score.rest_logp), 1, atol=1e-5)


def test_the_barrier_waits_for_every_open_episode(echo: Any, policy_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    batches = watched(policy, monkeypatch)

    async def scene() -> None:
        for name in ("a", "b", "c"):
            await policy.begin(name, echo())
        late = asyncio.create_task(policy.generate(prompt(5), SHORT, episode="b", seed=2))
        early = asyncio.create_task(policy.generate(prompt(5), SHORT, episode="a", seed=1))
        await asyncio.sleep(0.05)
        assert batches == []
        await policy.end("c")  # an episode that leaves must not hold the others
        await asyncio.gather(late, early)
        assert batches == [[1, 2]]  # by name, whoever asked first

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_cancelled_episode_holds_nobody(echo: Any, policy_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    batches = watched(policy, monkeypatch)

    async def scene() -> None:
        for name in ("a", "b", "c"):
            await policy.begin(name, echo())
        gone = asyncio.create_task(policy.generate(prompt(5), SHORT, episode="a", seed=1))
        stays = asyncio.create_task(policy.generate(prompt(5), SHORT, episode="b", seed=2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await policy.end("a")
        await policy.end("c")
        await stays
        assert batches == [[2]]

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_raising_environments_hold_nobody(echo: Any, policy_of: Make, chat: Chat) -> None:
    played = play(lambda: echo(breaks=[("echo-1", 1), ("echo-3", 2), ("echo-5", 0)]), policy_of(), chat)
    broken = {item.task.key for item in played if not item.usable}
    assert broken == {"echo-1", "echo-3", "echo-5"}
    clean = {item.episode: item for item in play(echo, policy_of(), chat)}
    for item in played:
        if item.usable:
            assert item.messages == clean[item.episode].messages


def test_a_failing_model_ends_the_run_and_leaves_nothing_open(echo: Any, chat: Chat, folder: Path) -> None:
    policy = HFPolicy(load_model(folder), chat, name="tiny")
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError):
        play(echo, policy, chat)
    policy.version += 1


def test_weights_may_not_change_under_an_open_episode(echo: Any, policy_of: Make) -> None:
    policy = policy_of()

    async def scene() -> None:
        await policy.begin("a", echo())
        with pytest.raises(ValueError, match="'a' is already open"):
            await policy.begin("a", echo())
        with pytest.raises(RuntimeError, match="1 episodes were open, 'a' among them"):
            policy.version += 1
        first = await policy.generate(prompt(5), SHORT, episode="a", seed=1)
        await policy.end("a")
        await policy.end("a")
        policy.version += 1
        await policy.begin("a", echo())
        again = await policy.generate(prompt(5), SHORT, episode="a", seed=1)
        assert first.token_ids == again.token_ids
        assert (set(first.versions), set(again.versions)) == ({0}, {1})
        await policy.end("a")

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_calls_that_sample_differently_share_no_batch(echo: Any, policy_of: Make) -> None:
    policy = policy_of(max_batch=2)

    async def scene() -> None:
        kinds = [Sampling(0.0, max_new_tokens=3), SHORT, SHORT, SHORT, Sampling(top_k=1, max_new_tokens=3)]
        names = "abcde"
        for name in names:
            await policy.begin(name, echo())
        done = await asyncio.gather(
            *(
                policy.generate(prompt(9, 8), kind, episode=name, seed=4)
                for name, kind in zip(names, kinds, strict=True)
            )
        )
        assert done[1].token_ids == done[2].token_ids == done[3].token_ids
        assert done[0].token_ids == done[4].token_ids
        for name in names:
            await policy.end(name)

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_bad_options_are_named(model: Any, chat: Chat, folder: Path) -> None:
    with pytest.raises(ValueError, match="expected one of float32, bfloat16, float16, found 'int8'"):
        load_model(folder, dtype="int8")
    with pytest.raises(ValueError, match="found 0 and 1"):
        HFPolicy(model, chat, name="tiny", max_batch=0)


def test_bfloat16_generates_too(folder: Path, echo: Any, chat: Chat) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.warns(UserWarning, match="slower"):
            network = load_model(folder, dtype="bfloat16")
    else:
        network = load_model(folder, dtype="bfloat16")
    policy = HFPolicy(network, chat, name="half")
    assert all(item.usable for item in play(echo, policy, chat))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_in_slices_are_the_same_answers(
    policy_of: Make, chat: Chat, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Without a barrier an answer is sampled a few tokens at a time; seeds, caches and limits go on across them."""
    prompts = [prompt(*chat.prompt([{"role": "user", "content": "say " * n}])) for n in range(1, 5)]
    sampling = [Sampling(temperature, max_new_tokens=tokens) for tokens in (40, 3, 17, 64)]

    async def ask(policy: HFPolicy) -> list[Any]:
        for n in range(4):
            await policy.begin(str(n), None)  # type: ignore[arg-type]
        asked = [policy.generate(prompts[n], sampling[n], episode=str(n), seed=n) for n in range(4)]
        return await asyncio.gather(*asked)

    whole = asyncio.run(ask(policy_of(barrier=True)))
    monkeypatch.setattr(hf, "SLICE", 5)
    sliced = asyncio.run(ask(policy_of(barrier=False)))
    for one, other in zip(whole, sliced, strict=True):
        assert one.token_ids == other.token_ids
        assert (one.finish_reason, one.versions) == (other.finish_reason, other.versions)
        np.testing.assert_allclose(one.logp, other.logp, atol=1e-4)
    assert any(len(one.token_ids) > 10 for one in whole)
