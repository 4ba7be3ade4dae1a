"""vLLM in this process against our own scorer: run by `test_vllm_in_process.py` with the interpreter that has vLLM."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model  # type: ignore[attr-defined, unused-ignore]
from retort.agents import serving
from retort.agents.base import ContextFull, EngineError, Finish, Prompt, Sampling
from retort.agents.chat import Chat
from retort.agents.hf import load_model
from retort.agents.scoring import score_tokens
from retort.agents.vllm import VLLMPolicy
from retort.envs.base import UsageError

NATS = 1e-3
WORDS = ["say 3 and then done", "you said done my friend", "cat card.csv | wc -l > out.txt"]


@pytest.fixture(scope="module")
def engine(folder: Path, chat: Chat) -> Iterator[VLLMPolicy]:
    made = VLLMPolicy(folder, chat, name="tiny")
    yield made
    made.close()


@pytest.fixture
def learner(folder: Path) -> Any:
    """A model whose logits are far apart, so that a wrong weight shows."""
    model = load_model(folder)
    nudge(model, 0, size=0.1)
    return model


def nudge(model: Any, seed: int, *, size: float = 0.02) -> None:
    """Moves every weight, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def prompt(chat: Chat, text: str = WORDS[0]) -> Prompt:
    message = {"role": "user", "content": text}
    return Prompt(tuple(chat.prompt([message])), (message,))


def play(engine: VLLMPolicy, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        calls = (
            engine.generate(asked, sampling, episode=str(seed), seed=seed)
            for asked, seed in zip(prompts, seeds, strict=True)
        )
        return await asyncio.gather(*calls)

    return asyncio.run(all_of_them())


def conversation(engine: VLLMPolicy, chat: Chat, sampling: Sampling, seed: int, turns: int = 4) -> tuple[Any, ...]:
    """(ids, positions, log-probs) of one episode of several turns, each extending the last."""
    ids, at, logp = list(prompt(chat, WORDS[seed % 3]).token_ids), list[int](), list[float]()
    for turn in range(turns):
        (done,) = play(engine, [Prompt(tuple(ids), ())], sampling, [seed * 100 + turn])
        at += range(len(ids), len(ids) + len(done.token_ids))
        logp += done.logp
        ids += done.token_ids
        delta = chat.extend(ids, {"role": "user", "content": WORDS[turn % 3]}, sampled=len(done.token_ids))
        assert delta is not None
        ids += delta
    return ids, at, logp


def ours(model: Any, ids: Sequence[int], at: Sequence[int], **options: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return score_tokens(model, [ids], [at], **options)[0].logp.numpy()


def padded(model: Any, rows: Sequence[Sequence[int]], at: Sequence[Sequence[int]], *, left: bool) -> list[Any]:
    """Log-probs from one batch of rows that are padded on one side."""
    width = max(map(len, rows))
    tokens, seen = torch.zeros((len(rows), width), dtype=torch.long), torch.zeros((len(rows), width), dtype=torch.long)
    for line, mask, row in zip(tokens, seen, rows, strict=True):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        line[part], mask[part] = torch.tensor(row), 1
    places = (seen.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logp = model(input_ids=tokens, attention_mask=seen, position_ids=places).logits.float().log_softmax(-1)
    found = []
    for number, row in enumerate(rows):
        shift = width - len(row) if left else 0
        where = torch.tensor(at[number])
        found.append(logp[number, where + shift - 1, torch.tensor(row)[where]].numpy())
    return found


def far(first: Any, second: Any) -> float:
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_and_scored_logps_are_our_own(engine: VLLMPolicy, chat: Chat, learner: Any, temperature: float) -> None:
    engine.update(learner, 1)
    sampling = Sampling(temperature=temperature, max_new_tokens=24)
    played = [conversation(engine, chat, sampling, seed) for seed in range(4)]
    rows, places, logps = zip(*played, strict=True)
    assert sum(map(len, places)) >= 200
    for ids, at, logp in played:
        assert far(ours(learner, ids, at, temperature=temperature), logp) < NATS
    if temperature == 1.0:
        for left in (True, False):
            for told, logp in zip(padded(learner, rows, places, left=left), logps, strict=True):
                assert far(told, logp) < NATS
    scored = asyncio.run(engine.score(rows, places))
    for item, (ids, at, _) in zip(scored, played, strict=True):
        assert far(item.logp, ours(learner, ids, at)) < NATS


def test_ten_updates_later_it_still_agrees(engine: VLLMPolicy, chat: Chat, learner: Any) -> None:
    for version in range(2, 12):
        nudge(learner, version)
        engine.update(learner, version)
    ids, at, logp = conversation(engine, chat, Sampling(max_new_tokens=60), 7, turns=12)
    assert len(at) >= 200
    assert far(ours(learner, ids, at), logp) < NATS
    assert engine.version == 11
    behind = copy.deepcopy(learner)
    nudge(learner, 12)
    assert far(ours(learner, ids, at), logp) > 10 * NATS, "an update must show, or this test shows nothing"
    assert far(ours(behind, ids, at), logp) < NATS


def test_the_same_seed_gives_the_same_tokens_in_any_company(engine: VLLMPolicy, chat: Chat) -> None:
    asked, sampling = prompt(chat), Sampling(max_new_tokens=12)
    (alone,) = play(engine, [asked], sampling, [5])
    together = play(engine, [asked] * 9, sampling, range(9))
    assert together[5].token_ids == alone.token_ids
    assert len({done.token_ids for done in together}) == 9


def test_more_prompts_than_one_step_reads(engine: VLLMPolicy) -> None:
    draw = np.random.default_rng(0)
    prompts = [Prompt(tuple(draw.integers(3, 300, 1000).tolist()), ()) for _ in range(9)]
    done = play(engine, prompts, Sampling(max_new_tokens=3), range(9))
    (alone,) = play(engine, prompts[7:8], Sampling(max_new_tokens=3), [7])
    assert done[7].token_ids == alone.token_ids


def test_each_stop_token_ends_an_answer_and_is_its_last_token(engine: VLLMPolicy, chat: Chat, learner: Any) -> None:
    engine.update(learner, engine.version + 1)
    done = play(engine, [prompt(chat)] * 60, Sampling(temperature=1.5, max_new_tokens=120), range(60))
    ends = {item.token_ids[-1] for item in done if item.finish_reason is Finish.STOP}
    assert ends == set(chat.stop_ids)
    assert len(chat.stop_ids) == 2
    for item in done:
        assert not set(item.token_ids[:-1]) & chat.stop_ids
        assert len(item.token_ids) == len(item.logp) == len(item.versions)
        assert (item.finish_reason is Finish.LENGTH) == (item.token_ids[-1] not in chat.stop_ids)


def test_greedy_repeats_itself_with_logp_zero(engine: VLLMPolicy, chat: Chat) -> None:
    first, second = play(engine, [prompt(chat)] * 2, Sampling(temperature=0, max_new_tokens=8), [1, 2])
    assert first == second
    assert set(first.logp) == {0.0}


def test_weights_that_change_midway_mark_each_token_with_what_sampled_it(
    engine: VLLMPolicy, chat: Chat, learner: Any
) -> None:
    engine.update(learner, 20)
    before = copy.deepcopy(learner)
    nudge(learner, 21)

    async def change() -> Any:
        sampling = Sampling(max_new_tokens=60)
        calls = [engine.generate(prompt(chat), sampling, episode=str(n), seed=n) for n in range(4)]
        tasks = [asyncio.create_task(call) for call in calls]
        while not any(len(asked.ids) >= 5 for asked in engine._asked.values()):
            await asyncio.sleep(0)
        engine.update(learner, 21)
        return await asyncio.gather(*tasks)

    done = asyncio.run(change())
    assert any(set(item.versions) == {20, 21} for item in done)
    start = len(prompt(chat).token_ids)
    for item in done:
        ids = [*prompt(chat).token_ids, *item.token_ids]
        at = np.arange(start, len(ids))
        old = np.asarray(item.versions) == 20
        assert far(ours(before, ids, at)[old], np.asarray(item.logp)[old]) < NATS
        assert far(ours(learner, ids, at)[~old], np.asarray(item.logp)[~old]) < NATS


def test_the_top_k_and_what_is_left(engine: VLLMPolicy, chat: Chat, learner: Any) -> None:
    engine.update(learner, 30)
    ids = list(prompt(chat).token_ids)
    at = list(range(1, len(ids)))
    (told,) = asyncio.run(engine.score([ids], [at], k=5))
    with torch.no_grad():
        (own,) = score_tokens(learner, [ids], [at], k=5)
    assert told.topk_ids is not None
    assert own.ids is not None
    assert (told.topk_ids == own.ids.numpy()).mean() > 0.99  # near ties may change places
    assert far(told.topk_logp, own.ids_logp) < NATS
    assert far(told.rest_logp, own.rest_logp) < NATS
    assert told.entropy is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ids": [np.zeros((1, 2), np.int64)]}, "student's support"),
        ({"entropy": True}, "entropy"),
        ({"temperature": 0.7}, "temperature 0.7"),
        ({"k": 65}, "top 65"),
    ],
)
def test_what_it_cannot_score_is_refused_by_name(engine: VLLMPolicy, options: Any, word: str) -> None:
    with pytest.raises(NotImplementedError, match=f"tiny cannot score .*{word}.*nearest"):
        asyncio.run(engine.score([[1, 2]], [[1]], **options))


def test_what_does_not_fit_has_no_score(engine: VLLMPolicy) -> None:
    long = [5] * (engine.context + 1)
    told, fits = asyncio.run(engine.score([long, long], [[3, engine.context], [3]]))
    assert np.isnan(told.logp).all()
    assert np.isfinite(fits.logp).all()


def test_a_full_context_is_said_so(engine: VLLMPolicy) -> None:
    with pytest.raises(ContextFull):
        play(engine, [Prompt((5,) * engine.context, ())], Sampling(), [0])
    (done,) = play(engine, [Prompt((5,) * (engine.context - 3), ())], Sampling(max_new_tokens=50), [0])
    assert len(done.token_ids) <= 3


def test_other_weights_are_refused_and_change_nothing(engine: VLLMPolicy, chat: Chat, learner: Any) -> None:
    engine.check(learner, "float32")
    engine.update(learner, 40)
    before = play(engine, [prompt(chat)], Sampling(max_new_tokens=6), [1])
    other = copy.deepcopy(learner)
    del other.model.layers[1]
    with pytest.raises(EngineError, match=r"missing: model\.layers\.1"):
        engine.update(other, 41)
    assert engine.version == 40
    assert play(engine, [prompt(chat)], Sampling(max_new_tokens=6), [1]) == before


async def under_way(engine: VLLMPolicy, asked: Prompt, tokens: int = 60) -> list[asyncio.Task[Any]]:
    """Four answers of which some tokens are there."""
    sampling = Sampling(max_new_tokens=tokens)
    tasks = [asyncio.create_task(engine.generate(asked, sampling, episode=str(seed), seed=seed)) for seed in range(4)]
    while not any(len(item.ids) >= 3 for item in engine._asked.values()):
        await asyncio.sleep(0)
    return tasks


def distance(model: Any, asked: Prompt, done: Any) -> float:
    ids = [*asked.token_ids, *done.token_ids]
    return far(ours(model, ids, range(len(asked.token_ids), len(ids))), done.logp)


def test_a_reload_that_fails_midway_makes_the_engine_anew_and_what_was_under_way_is_asked_again(
    engine: VLLMPolicy, chat: Chat, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(model: Any) -> Iterator[Any]:
        for number, item in enumerate(serving.served(model)):
            if number == 4:
                raise OSError("the link went down")
            yield item

    async def update() -> list[Any]:
        tasks = await under_way(engine, prompt(chat), 900)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_weights", breaks)
            engine.update(learner, 50)
        return await asyncio.gather(*tasks)

    done = asyncio.run(update())
    assert any(set(item.versions) == {50} for item in done)
    assert max(distance(learner, prompt(chat), item) for item in done if set(item.versions) == {50}) < NATS
    nudge(learner, 51)
    engine.update(learner, 51)
    (done,) = play(engine, [prompt(chat)], Sampling(max_new_tokens=12), [3])
    assert distance(learner, prompt(chat), done) < NATS


def test_a_step_that_fails_makes_the_engine_anew_and_the_same_answers_come(
    engine: VLLMPolicy, chat: Chat, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.update(learner, 60)
    expected = play(engine, [prompt(chat)] * 4, Sampling(max_new_tokens=60), range(4))
    first = engine._engine

    async def fails() -> list[Any]:
        tasks = await under_way(engine, prompt(chat))
        monkeypatch.setattr(engine._engine, "step", raises)
        return await asyncio.gather(*tasks)

    assert [item.token_ids for item in asyncio.run(fails())] == [item.token_ids for item in expected]
    assert engine._engine is not first
    (told,) = asyncio.run(engine.score([prompt(chat).token_ids], [[1, 2]]))
    assert far(told.logp, ours(learner, prompt(chat).token_ids, [1, 2])) < NATS


def raises(*_: Any) -> Any:
    raise OSError("the device went away")


def test_a_learner_that_has_moved_on_brings_the_weights_of_its_next_update(
    engine: VLLMPolicy, chat: Chat, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.update(learner, 70)

    async def moves_on() -> list[Any]:
        tasks = await under_way(engine, prompt(chat))
        monkeypatch.setattr(engine._engine, "step", raises)
        nudge(learner, 71)
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in tasks)
        engine.update(learner, 71)
        return await asyncio.gather(*tasks)

    for item in asyncio.run(moves_on()):
        assert set(item.versions) == {71}
        assert distance(learner, prompt(chat), item) < NATS


def test_an_engine_that_always_fails_ends_with_its_cause(
    engine: VLLMPolicy, chat: Chat, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.llm_engine import LLMEngine

    engine.update(learner, 80)
    with monkeypatch.context() as patch:
        patch.setattr("retort.agents.vllm.MENDS", 1)
        patch.setattr(LLMEngine, "step", raises)
        with pytest.raises(EngineError, match="vLLM failed: OSError: the device went away"):
            play(engine, [prompt(chat)] * 2, Sampling(max_new_tokens=3), [1, 2])
    engine.update(learner, 81)
    assert play(engine, [prompt(chat)], Sampling(max_new_tokens=3), [1])[0].versions == (81, 81, 81)


def test_a_second_engine_in_one_process_is_refused(engine: VLLMPolicy, folder: Path, chat: Chat) -> None:
    with pytest.raises(EngineError, match="one engine in a process"):
        VLLMPolicy(folder, chat, name="tiny")


def test_an_unknown_argument_names_the_nearest(folder: Path, chat: Chat) -> None:
    with pytest.raises(UsageError, match="max_num_seqs"):
        VLLMPolicy(folder, chat, name="tiny", arguments={"max_num_seq": 3})


def test_cancelled_requests_leave_the_engine(engine: VLLMPolicy, chat: Chat) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(engine.generate(prompt(chat), Sampling(max_new_tokens=1000), episode="x", seed=1))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine._engine.has_unfinished_requests()

    asyncio.run(give_up())
    assert play(engine, [prompt(chat)], Sampling(max_new_tokens=3), [1])


# The last test: there is one engine in a process, and this one is another.
def test_an_adapter_takes_the_place_of_the_last_one(
    engine: VLLMPolicy, folder: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.close()
    layout = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(folder), layout).eval()
    arguments = {"enable_lora": True, "max_lora_rank": 8}
    with closing(VLLMPolicy(folder, chat, name="tiny", arguments=arguments)) as other:
        with monkeypatch.context() as patch:
            patch.setattr(other, "_weights", raises)  # all that may go over is the adapter
            for version in range(1, 12):
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.requires_grad:
                            parameter.add_(0.1 * torch.randn_like(parameter))
                before = play(other, [prompt(chat)], Sampling(max_new_tokens=60), [1]) if version > 1 else []
                assert not before or distance(model, prompt(chat), before[0]) > 10 * NATS
                other.update(model, version)
                (done,) = play(other, [prompt(chat)], Sampling(max_new_tokens=60), [1])
                assert distance(model, prompt(chat), done) < NATS
            # Several at once, of several lengths: a step of the engine then has more positions to score than requests.
            whole = [*prompt(chat).token_ids, *done.token_ids]
            several = [whole[: len(whole) - cut] for cut in range(12)]
            where = [list(range(1, len(part))) for part in several]
            for ids, at, told in zip(several, where, asyncio.run(other.score(several, where)), strict=True):
                assert far(ours(model, ids, np.asarray(at)), told.logp) < NATS
            midway = asyncio.run(changed(other, chat, model))
        assert any(set(item.versions) == {11, 12} for item in midway)
        broken = asyncio.run(failing(other, chat))
        assert max(distance(model, prompt(chat), item) for item in broken) < NATS


async def changed(engine: VLLMPolicy, chat: Chat, model: Any) -> list[Any]:
    """Answers whose adapter changes midway, each token held against the one that sampled it."""
    before = copy.deepcopy(model)
    tasks = await under_way(engine, prompt(chat))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    engine.update(model, 12)
    done = await asyncio.gather(*tasks)
    start = len(prompt(chat).token_ids)
    for item in done:
        ids = [*prompt(chat).token_ids, *item.token_ids]
        for version, weights in ((11, before), (12, model)):
            part = np.asarray(item.versions) == version
            if part.any():
                told = ours(weights, ids, np.arange(start, len(ids)))
                assert far(told[part], np.asarray(item.logp)[part]) < NATS
    return done


async def failing(engine: VLLMPolicy, chat: Chat) -> list[Any]:
    tasks = await under_way(engine, prompt(chat))
    engine._engine.step = raises
    return await asyncio.gather(*tasks)
