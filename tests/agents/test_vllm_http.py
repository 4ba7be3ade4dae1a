"""A vLLM server against our own scorer, from an interpreter that has no vLLM."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from retort.agents import serving, tiny
from retort.agents.base import ContextFull, EngineError, EnvironmentFault, Prompt, Sampling
from retort.agents.chat import Chat
from retort.agents.evaluate import evaluate
from retort.agents.hf import load_model
from retort.agents.scoring import score_tokens
from retort.agents.teacher_http import TeacherServer
from retort.agents.teachers import Pool
from retort.agents.teaching import TeacherSpec
from retort.agents.vllm_http import VLLMServers
from retort.agents.vllm_server import Serving, same
from retort.algos.config import preset, resolve
from retort.algos.runs import Run
from retort.algos.train import train
from retort.envs.base import UsageError

NATS = 1e-3
WORDS = ["say 3 and then done", "you said done my friend", "cat card.csv | wc -l > out.txt"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def learner(folder: Path) -> Any:
    model = load_model(folder)
    nudge(model, 0, size=0.1)
    return model


@pytest.fixture
def made(folder: Path, chat: Chat, tmp_path: Path) -> Callable[..., VLLMServers]:
    def make(*urls: str, **options: Any) -> VLLMServers:
        given = Serving(**{"shared": str(tmp_path / "shared"), "retries": 2, **options})
        return VLLMServers(urls, chat, name="tiny", expected=str(folder), options=given)

    return make


def nudge(model: Any, seed: int, *, size: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def prompt(chat: Chat, text: str = WORDS[0]) -> Prompt:
    message = {"role": "user", "content": text}
    return Prompt(tuple(chat.prompt([message])), (message,))


async def episodes(engine: VLLMServers, prompts: Sequence[Prompt], sampling: Sampling) -> list[Any]:
    async def one(number: int, asked: Prompt) -> Any:
        await engine.begin(str(number), None)  # type: ignore[arg-type]
        try:
            return await engine.generate(asked, sampling, episode=str(number), seed=number)
        finally:
            await engine.end(str(number))

    return await asyncio.gather(*(one(number, asked) for number, asked in enumerate(prompts)))


def play(engine: VLLMServers, prompts: Sequence[Prompt], sampling: Sampling) -> list[Any]:
    return asyncio.run(episodes(engine, prompts, sampling))


def ours(model: Any, ids: Sequence[int], at: Sequence[int]) -> Any:
    with torch.no_grad():
        return score_tokens(model, [ids], [at])[0].logp.numpy()


def far(first: Any, second: Any) -> float:
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


def conversation(engine: VLLMServers, chat: Chat, turns: int = 8) -> tuple[list[int], list[int], list[float]]:
    ids, at, logp = list(prompt(chat).token_ids), list[int](), list[float]()
    for turn in range(turns):
        (done,) = play(engine, [Prompt(tuple(ids), ())], Sampling(max_new_tokens=60))
        at += range(len(ids), len(ids) + len(done.token_ids))
        logp += done.logp
        ids += done.token_ids
        delta = chat.extend(ids, {"role": "user", "content": WORDS[turn % 3]}, sampled=len(done.token_ids))
        assert delta is not None
        ids += delta
    return ids, at, logp


# The first test meets the server as it was started: it has to stand before those that give it other weights.
def test_a_server_is_held_against_the_learner_before_it_plays(
    url: str, folder: Path, chat: Chat, learner: Any, made: Callable[..., VLLMServers], tmp_path: Path
) -> None:
    engine = made(url)
    assert engine.context == 1024
    engine.check(load_model(folder), "float32")
    with pytest.raises(EngineError, match=r"other weights than the learner: .* nats apart"):
        engine.check(learner, "float32")
    copied = serving.save_served(load_model(folder), chat, tmp_path / "copied")
    VLLMServers([url], chat, name="tiny", expected=str(copied))  # the same files are the same model
    other = tiny.build(tmp_path / "other", ["quite other words, and none of these\n"] * 30, seed=4)
    with pytest.raises(EngineError, match=f"serves the model .*expected {other}"):
        VLLMServers([url], chat, name="tiny", expected=str(other))
    with pytest.raises(EngineError, match=r"another tokenizer .*digest"):
        VLLMServers([url], Chat.load(other), name="tiny", expected=str(folder))
    twin = Chat.load(folder)
    twin.prompt = lambda *a, **k: [5, *chat.prompt(*a, **k)]  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"another chat template .*digest"):
        VLLMServers([url], twin, name="tiny", expected=str(folder))


def test_a_folder_without_digests_is_no_other_folders_twin(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    card = {"id": str(one), "root": str(one)}
    assert same(card, str(one))
    assert not same(card, str(two)), "neither has weights that could be compared"
    for folder, weights in ((one, b"a"), (two, b"b")):
        (folder / "model.safetensors").write_bytes(weights)
    assert not same(card, str(two))
    (two / "model.safetensors").write_bytes(b"a")
    assert same(card, str(two))


def test_training_and_evaluation_over_http(url: str, chat: Chat, folder: Path, tmp_path: Path) -> None:
    """Before any update of ours: `train` and `eval` hold the server against the folder that it was started with."""
    family = {"families": ["delete"]}
    small = {"steps": 3, "prompts": 2, "group_size": 4, "concurrency": 8, "checkpoint_every": 3, "threads": 1}
    command = [sys.executable, "-m", "retort", "eval", "--model", str(folder), "--engine", f"vllm:{url}", "--json"]
    command += ["--limit", "4", "--turn-tokens", "8", "--out", str(tmp_path / "eval")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["overall"]["episodes"] == 4
    config = resolve({**preset("grpo", str(folder)), "env_args": family, **small, "engine": f"vllm:{url}"}, ["lr=0.01"])
    run = Run.create(tmp_path / "run", config)
    train(run)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert max(line["sampler_gap_nats"] for line in lines) < NATS
    assert max(line["staleness_max"] for line in lines) == 0
    assert len(list((run.folder / "engine").glob("version-*"))) == 1
    with pytest.raises(UsageError, match=r"shared.*found none"):
        VLLMServers([url], chat, name="tiny", expected=str(folder)).update(load_model(folder), 1)


def test_sampled_and_scored_logps_are_our_own_through_ten_updates(
    url: str, chat: Chat, learner: Any, made: Callable[..., VLLMServers]
) -> None:
    engine = made(url)
    for version in range(1, 12):
        nudge(learner, version)
        engine.update(learner, version)
        if version in (1, 11):
            ids, at, logp = conversation(engine, chat)
            assert len(at) >= 200
            assert far(ours(learner, ids, at), logp) < NATS
            (told,) = asyncio.run(engine.score([ids], [at], k=4))
            assert far(told.logp, ours(learner, ids, at)) < NATS
            with torch.no_grad():
                (own,) = score_tokens(learner, [ids], [at], k=4)
            assert far(told.topk_logp, own.ids_logp) < NATS
            assert far(told.rest_logp, own.rest_logp) < NATS
            assert np.isfinite(told.logp).all()


def test_weights_that_change_midway_mark_each_token(
    url: str, chat: Chat, learner: Any, made: Callable[..., VLLMServers], changing: Callable[..., list[Any]]
) -> None:
    before, after = copy.deepcopy(learner), learner
    nudge(after, 101)
    done = changing(made(url), prompt(chat), before, after)
    midway = [item for item in done if len(set(item.versions)) > 1]
    assert midway
    start = len(prompt(chat).token_ids)
    for item in [*midway[:24], *done[:8]]:
        ids = [*prompt(chat).token_ids, *item.token_ids]
        at, odd = np.arange(start, len(ids)), np.asarray(item.versions) % 2 == 1
        for model, part in ((before, ~odd), (after, odd)):
            if part.any():
                assert far(ours(model, ids, at)[part], np.asarray(item.logp)[part]) < NATS


def test_seeds_and_stops(url: str, chat: Chat, learner: Any, made: Callable[..., VLLMServers]) -> None:
    engine = made(url)
    engine.update(learner, 1)
    first, second = (play(engine, [prompt(chat)] * 20, Sampling(max_new_tokens=60)) for _ in range(2))
    assert [item.token_ids for item in first] == [item.token_ids for item in second]
    assert len({item.token_ids for item in first}) == 20
    for item in first:
        assert not set(item.token_ids[:-1]) & chat.stop_ids
    with pytest.raises(ContextFull):
        play(engine, [Prompt((5,) * 1024, ())], Sampling())


def test_more_prompts_than_one_step_reads(url: str, made: Callable[..., VLLMServers]) -> None:
    draw = np.random.default_rng(0)
    prompts = [Prompt(tuple(draw.integers(3, 300, 900).tolist()), ()) for _ in range(12)]
    assert len(play(made(url), prompts, Sampling(max_new_tokens=3))) == 12


def test_other_weights_are_refused_and_change_nothing(
    url: str, chat: Chat, learner: Any, made: Callable[..., VLLMServers]
) -> None:
    engine = made(url)
    engine.update(learner, 1)
    engine.check(learner, "float32")
    other = copy.deepcopy(learner)
    del other.model.layers[1]
    with pytest.raises(EngineError, match="missing"):
        engine.update(other, 2)
    assert engine.version == 1
    assert play(engine, [prompt(chat)], Sampling(max_new_tokens=4))[0].versions[0] == 1


def test_what_passes_is_asked_again_and_concurrency_is_capped(
    url: str, link: Any, chat: Chat, learner: Any, made: Callable[..., VLLMServers]
) -> None:
    with link(url) as (near, state):
        engine = made(near, concurrency=3)
        engine.update(learner, 1)
        state.asked, state.most, state.fail, state.slow_s = 0, 0, [503, 429], 0.05
        done = play(engine, [prompt(chat)] * 12, Sampling(max_new_tokens=4))
        assert len(done) == 12
        assert state.asked == 14
        assert state.most == 3


def test_an_episode_goes_on_with_another_server_and_waits_where_none_is_left(
    url: str, link: Any, chat: Chat, learner: Any, made: Callable[..., VLLMServers], monkeypatch: pytest.MonkeyPatch
) -> None:
    with link(url) as (one, first), link(url) as (two, second):
        engine = made(one, two, retries=1, timeout_s=60, start_s=1)
        engine.update(learner, 1)
        first.asked = second.asked = 0
        play(engine, [prompt(chat)] * 4, Sampling(max_new_tokens=3))
        assert (first.asked, second.asked) == (2, 2)
        first.cut = True
        assert len(play(engine, [prompt(chat)] * 4, Sampling(max_new_tokens=3))) == 4
        assert [server.usable for server in engine.servers] == [False, True]
        engine.update(learner, 2)  # who is gone is left out
        assert [server.usable for server in engine.servers] == [False, True]
        assert play(engine, [prompt(chat)], Sampling(max_new_tokens=3))[0].versions[0] == 2
        second.cut = True
        with pytest.raises(EngineError, match="no vLLM server is left"):
            play(engine, [prompt(chat)], Sampling(max_new_tokens=3))
        with pytest.raises(EngineError, match="no vLLM server is left"):
            engine.update(learner, 3)
        engine.servers[0].options = engine.servers[1].options = engine.options = replace(engine.options, start_s=300)
        back = threading.Timer(1.0, lambda: setattr(second, "cut", False))
        back.start()
        (done,) = play(engine, [prompt(chat)], Sampling(max_new_tokens=3))  # who is back gets the weights first
        assert set(done.versions) == {3}
        assert [server.usable for server in engine.servers] == [False, True]
        first.cut = False
        monkeypatch.setattr("retort.agents.vllm_http.LOOK_AGAIN_S", 0.0)
        while not engine.servers[0].usable:  # nor does it need an update while others play
            assert set(play(engine, [prompt(chat)], Sampling(max_new_tokens=3))[0].versions) == {3}
        second.cut = True  # and nobody has noticed yet
        engine.update(learner, 4)
        assert [server.usable for server in engine.servers] == [True, False]


def test_a_slow_answer_is_given_up_and_costs_its_episode_alone(
    url: str, link: Any, chat: Chat, learner: Any, made: Callable[..., VLLMServers]
) -> None:
    with link(url) as (near, state):
        engine = made(near, retries=1)
        engine.update(learner, 1)
        engine.servers[0].options = Serving(timeout_s=1.0, retries=1)
        state.slow_s = 2.0
        with pytest.raises(EnvironmentFault, match="did not answer 2 times"):
            play(engine, [prompt(chat)], Sampling(max_new_tokens=3))
        state.slow_s = 0.0
        assert play(engine, [prompt(chat)], Sampling(max_new_tokens=3))


def test_a_sequence_that_no_server_scores_has_no_score(
    url: str, link: Any, chat: Chat, learner: Any, made: Callable[..., VLLMServers]
) -> None:
    with link(url) as (near, state):
        engine = made(near, retries=0)
        engine.update(learner, 1)
        bad, good = [7, 7, 7, 7], list(prompt(chat).token_ids)
        state.refuse = lambda body: b"[7, 7, 7, 7]" in body or b"[7,7,7,7]" in body
        long = [5] * 1030
        told, fits, over = asyncio.run(engine.score([bad, good, long], [[1, 3], [2], [4, 1029]]))
        assert np.isnan(told.logp).all()
        assert np.isfinite(fits.logp).all()
        assert np.isnan(over.logp).all()


def test_a_server_that_lost_its_weights_gets_them_before_it_plays_on(
    url: str, link: Any, chat: Chat, learner: Any, made: Callable[..., VLLMServers], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(prompt(chat).token_ids)
    with link(url) as (near, state):
        engine = made(near, url)
        engine.update(learner, 1)
        state.relabel = "default"  # as after a restart
        done = play(engine, [prompt(chat)] * 6, Sampling(max_new_tokens=3))
        assert {version for item in done for version in item.versions} == {1}
        monkeypatch.setattr("retort.agents.vllm_http.TRIES", 2)
        alone = made(near)
        alone.update(learner, 2)
        with pytest.raises(EngineError, match=r"2 times, and each time its server went: .*other weights now \(default"):
            asyncio.run(alone.score([ids], [[2]]))
        state.relabel = ""
        assert play(alone, [prompt(chat)], Sampling(max_new_tokens=3))[0].versions[0] == 2


def test_a_pool_of_teachers_asks_it_beside_others(
    url: str, link: Any, chat: Chat, folder: Path, learner: Any, made: Callable[..., VLLMServers]
) -> None:
    made(url).update(learner, 1)
    ids = np.asarray(prompt(chat).token_ids)
    at = np.arange(2, len(ids))
    with link(url) as (near, state):
        big = TeacherSpec(model=f"vllm:{near}", retries=0)
        small = TeacherSpec(model=str(folder), tasks=("move/*",))
        pool = Pool.make({"big": big, "small": small}, chat, "cpu")

        def scored() -> list[Any]:
            return pool.score(["move/1", "find/1"], [ids, ids], [at, at])

        for told in scored():
            assert far(told.logp, ours(learner, ids, at)) < NATS
        assert pool.by == ["big", "big"]
        asked = pool.metrics()["big"]
        assert (asked["requests"], asked["coverage"], asked["version"]) == (2, 1, "1")
        state.cut = True
        first, second = scored()
        assert far(first.logp, ours(load_model(folder), ids, at)) < NATS
        assert np.isnan(second.logp).all()
        assert pool.metrics()["small"]["fallbacks"] == 1
        assert np.isnan(scored()[1].logp).all()
        state.cut = False
        scored()
        assert pool.by == ["big", "big"]


def test_it_teaches_behind_a_card_that_says_what_it_gives(
    engine_python: str, teaching: Any, chat: Chat, folder: Path, tmp_path: Path
) -> None:
    arguments = ["--engine", "vllm"]
    with teaching(folder, tmp_path / "log.txt", *arguments, python=engine_python) as started:
        server = TeacherServer(started.url)
        server.card.hold(chat, "the teacher")
        assert server.card.gives == ()
        ids = list(prompt(chat).token_ids)
        at = list(range(1, len(ids)))
        (told,) = asyncio.run(server.score([ids], [at]))
        assert far(told.logp, ours(load_model(folder), ids, at)) < NATS
        with pytest.raises(NotImplementedError, match="cannot give the teacher's entropy"):
            asyncio.run(server.score([ids], [at], entropy=True))
        assert started.end() == 0


def test_a_server_with_the_weights_of_a_run_is_not_evaluated_as_its_model(
    url: str, link: Any, chat: Chat, folder: Path, learner: Any, made: Callable[..., VLLMServers]
) -> None:
    made(url).update(learner, 60)
    asked = partial(evaluate, "retort/Shell-v0", str(folder), limit=1)
    with pytest.raises(EngineError, match=r"holds weights 60 of a run, expected those of .*: start it again"):
        asked(model_args={"engine": f"vllm:{url}"})
    with pytest.raises(UsageError, match="takes no argument 'dtype'"):
        asked(model_args={"engine": f"vllm:{url}", "dtype": "bfloat16"})
    with link(url) as (near, state):
        state.relabel = "default"
        engine = VLLMServers([near], chat, name="tiny", expected=str(folder), follows=False)
        assert set(play(engine, [prompt(chat)], Sampling(max_new_tokens=3))[0].versions) == {0}
        state.relabel = ""  # a run takes the server over
        with pytest.raises(EngineError, match=r"holds weights 60 of a run"):
            play(engine, [prompt(chat)], Sampling(max_new_tokens=3))


def test_a_server_that_a_killed_run_left_in_an_update_is_taken_over(
    url: str, chat: Chat, learner: Any, made: Callable[..., VLLMServers], folder: Path
) -> None:
    engine = made(url)
    engine.update(learner, 1)
    httpx.post(f"{url}/pause", params={"mode": "keep"}).raise_for_status()
    again = made(url)
    again.update(learner, 2)
    assert set(play(again, [prompt(chat)], Sampling(max_new_tokens=3))[0].versions) == {2}


def test_where_nobody_is_the_advice_is_how_to_start_one(chat: Chat, folder: Path) -> None:
    with pytest.raises(EngineError, match=r"no healthy vLLM server at .*retort serve"):
        VLLMServers(["http://127.0.0.1:9"], chat, name="tiny", expected=str(folder), options=Serving(start_s=0))


@pytest.mark.parametrize("options", [{"ids": [np.zeros((1, 2), np.int64)]}, {"entropy": True}, {"temperature": 0.5}])
def test_what_it_cannot_score_is_refused(
    url: str, learner: Any, made: Callable[..., VLLMServers], options: dict[str, Any]
) -> None:
    with pytest.raises(NotImplementedError, match="nearest"):
        asyncio.run(made(url).score([[1, 2]], [[1]], **options))
