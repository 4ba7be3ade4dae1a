"""A vLLM server that takes adapters apart, and one that dies and comes back."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model  # type: ignore[attr-defined, unused-ignore]
from retort.agents import store
from retort.agents.base import EngineError, Prompt, Sampling
from retort.agents.chat import Chat
from retort.agents.hf import load_model
from retort.agents.scoring import score_tokens
from retort.agents.vllm_http import VLLMServers
from retort.agents.vllm_server import Serving
from retort.algos.config import preset, resolve
from retort.algos.runs import Run
from retort.algos.train import train
from retort.envs.base import UsageError

NATS = 1e-3
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def made(folder: Path, chat: Chat, tmp_path: Path) -> Callable[..., VLLMServers]:
    def make(*urls: str, place: str = "shared", **options: Any) -> VLLMServers:
        given = Serving(**{"shared": str(tmp_path / place), "retries": 2, **options})
        return VLLMServers(urls, chat, name="tiny", expected=str(folder), options=given)

    return make


@pytest.fixture
def adapted(folder: Path, url: str, made: Callable[..., VLLMServers]) -> Callable[[int], Any]:
    """Makes models with an adapter of a rank; the server has the weights below it, whatever it had before."""
    made(url, place="whole").update(load_model(folder), 0)

    def make(rank: int) -> Any:
        layout = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(load_model(folder), layout).eval()

    return make


def nudge(model: Any, seed: int) -> None:
    """Moves the adapter, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def prompt(chat: Chat) -> Prompt:
    return Prompt(tuple(chat.prompt([{"role": "user", "content": "say 3 and then done"}])), ())


async def episodes(engine: VLLMServers, prompts: Sequence[Prompt], sampling: Sampling) -> list[Any]:
    async def one(number: int, asked: Prompt) -> Any:
        await engine.begin(str(number), None)  # type: ignore[arg-type]
        try:
            return await engine.generate(asked, sampling, episode=str(number), seed=number)
        finally:
            await engine.end(str(number))

    return await asyncio.gather(*(one(number, asked) for number, asked in enumerate(prompts)))


def apart(model: Any, asked: Prompt, done: Any, part: Any = slice(None)) -> float:
    """Nats between what the engine says of what it sampled, and what the model does."""
    ids = [*asked.token_ids, *done.token_ids]
    at = np.arange(len(asked.token_ids), len(ids))[part]
    with torch.no_grad():
        own = score_tokens(model, [ids], [at])[0].logp.numpy()
    return float(np.abs(own - np.asarray(done.logp)[part]).max(initial=0))


def test_an_adapter_goes_over_alone_and_stays_exact_through_ten_updates(
    url: str, chat: Chat, adapted: Callable[[int], Any], made: Callable[..., VLLMServers], tmp_path: Path
) -> None:
    engine, learner, asked = made(url), adapted(3), [prompt(chat)] * 6
    engine.check(learner, "float32")
    first: list[Any] = []
    for version in range(1, 12):
        nudge(learner, version)
        engine.update(learner, version)
        if version in (1, 2, 11):
            done = asyncio.run(episodes(engine, asked, Sampling(max_new_tokens=60)))
            first = first or done
            assert sum(len(item.token_ids) for item in done) >= 200
            assert {number for item in done for number in item.versions} == {version}
            assert max(apart(learner, asked[0], item) for item in done) < NATS
    assert apart(learner, asked[0], first[0]) > 10 * NATS, "an update must show, or this test shows nothing"
    assert [item.name for item in (tmp_path / "shared").iterdir() if not item.is_symlink()] == ["adapter-11"]
    ids = [*asked[0].token_ids, *done[0].token_ids]
    # Several at once, of several lengths: a step of the engine then has more positions to score than requests.
    several = [ids[: len(ids) - cut] for cut in range(12)]
    where = [list(range(1, len(part))) for part in several]
    told = asyncio.run(engine.score(several, where))
    with torch.no_grad():
        own = score_tokens(learner, several, where)
    assert max(np.abs(one.logp - two.logp.numpy()).max() for one, two in zip(told, own, strict=True)) < NATS
    # Another run takes the server over, and so does one without an adapter.
    other, twin = made(url, place="another"), adapted(4)
    for seed in (20, 21):
        nudge(twin, seed)
        other.update(twin, seed)
        (done,) = asyncio.run(episodes(other, asked[:1], Sampling(max_new_tokens=30)))
        assert apart(twin, asked[0], done) < NATS


def test_an_adapter_that_changes_midway_marks_each_token(
    url: str,
    chat: Chat,
    adapted: Callable[[int], Any],
    made: Callable[..., VLLMServers],
    changing: Callable[..., list[Any]],
) -> None:
    before = adapted(4)
    nudge(before, 1)
    after, asked = copy.deepcopy(before), prompt(chat)
    nudge(after, 2)
    done = changing(made(url), asked, before, after)
    midway = [item for item in done if len(set(item.versions)) > 1]
    assert midway
    for item in [*midway[:24], *done[:8]]:
        odd = np.asarray(item.versions) % 2 == 1
        assert apart(before, asked, item, ~odd) < NATS
        assert apart(after, asked, item, odd) < NATS


def test_weights_below_an_adapter_must_be_the_learners(
    url: str, adapted: Callable[[int], Any], made: Callable[..., VLLMServers], folder: Path
) -> None:
    learner = adapted(4)
    other = load_model(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made(url, place="whole").update(other, 5)
    with pytest.raises(EngineError, match="other weights than the learner"):
        made(url).check(learner, "float32")


def test_an_adapter_that_is_too_large_is_refused_by_the_server(
    url: str, adapted: Callable[[int], Any], made: Callable[..., VLLMServers]
) -> None:
    with pytest.raises(EngineError, match="rank 16 is greater than max_lora_rank 8"):
        made(url).update(adapted(16), 1)


def test_without_a_gpu_nccl_is_refused_and_what_is_no_way_named(url: str, made: Callable[..., VLLMServers]) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"transfer=nccl goes from GPU to GPU.*transfer=path"):
            made(url, transfer="nccl")
    with pytest.raises(UsageError, match=r"transfer: found 'ncl'.*nccl"):
        made(url, transfer="ncl")


# The last test of this folder that needs the server: it is another process afterwards.
def test_a_run_outlives_its_only_server(server: Any, folder: Path, tmp_path: Path) -> None:
    small = {"steps": 4, "prompts": 2, "group_size": 4, "concurrency": 8, "checkpoint_every": 4, "threads": 1}
    base = {**preset("grpo", str(folder)), "env_args": {"families": ["delete"]}, **small}
    asked = {"engine": f"vllm:{server.url}", "engine_args": {"start_s": 600, "retries": 1}, "max_staleness": 1}
    run = Run.create(tmp_path / "run", resolve({**base, **asked}, ["lr=0.01"]))
    again: list[threading.Thread] = []

    def watch(stage: str, done: int, _: Any) -> None:
        if stage == "step" and done == 2 and not again:
            server.kill()
            again.append(threading.Thread(target=server.start))
            again[0].start()

    train(run, watch)
    again[0].join()
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["episodes"] for line in lines] == [8] * 4
    assert [line["infrastructure_failures"] for line in lines] == [0] * 4
    assert max(line["sampler_gap_nats"] for line in lines if line["staleness_max"] == 0) < NATS
    for step in range(4):
        played = store.read(run.rollouts(step + 1))
        assert [item.episode for item in played] == [f"{step}-{g}-{m}" for g in range(2) for m in range(4)]
        versions = {int(version) for item in played for row in item.rows for version in row.version} - {-1}
        assert versions <= {max(0, step - 1), step}
