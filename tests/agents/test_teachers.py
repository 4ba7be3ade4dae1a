"""A pool of real teachers: who is asked for what, who steps in, and what is counted."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from retort.agents import tiny
from retort.agents.base import EngineError, TokenScores
from retort.agents.chat import Chat
from retort.agents.hf import load_model
from retort.agents.scoring import score_tokens
from retort.agents.teachers import Pool, Tally
from retort.agents.teaching import TeacherSpec, meet
from retort.envs.base import UsageError

TASKS = ["move/1", "find/1", "move/2", "copy/1", "move/3"]
RANDOM = np.random.default_rng(1)
SEQUENCES = [RANDOM.integers(0, 300, length) for length in (30, 8, 20, 44, 12)]
POSITIONS = [np.arange(len(ids) // 2, len(ids)) for ids in SEQUENCES]
TOKENS = [len(where) for where in POSITIONS]


@pytest.fixture(scope="module")
def other(folder: Path, chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the same tokenizer and other weights."""
    place = tmp_path_factory.mktemp("other")
    model = load_model(folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(place)
    chat.save(place)
    return place


@pytest.fixture(scope="module")
def servers(teaching: Any, folder: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Processes that teach with the weights of `folder` and of `other`."""
    logs = tmp_path_factory.mktemp("logs")
    with (
        teaching(folder, logs / "0.txt") as first,
        teaching(other, logs / "1.txt") as second,
    ):
        assert first.url
        assert second.url
        yield [first, second]


@pytest.fixture
def pool_of(chat: Chat) -> Callable[..., Pool]:
    """A pool from specs as a configuration has them."""

    def make(**specs: dict[str, Any]) -> Pool:
        return Pool.make({name: TeacherSpec.model_validate(spec) for name, spec in specs.items()}, chat, "cpu")

    return make


def asked(pool: Pool, **options: Any) -> list[TokenScores]:
    return pool.score(TASKS, SEQUENCES, POSITIONS, **options)


def ours(folder: Path, **options: Any) -> list[Any]:
    with torch.no_grad():
        return [item.logp.numpy() for item in score_tokens(load_model(folder), SEQUENCES, POSITIONS, **options)]


def agree(told: list[TokenScores], expected: list[Any]) -> None:
    for one, two in zip(told, expected, strict=True):
        if two is None:
            assert np.isnan(one.logp).all()
        else:
            np.testing.assert_allclose(one.logp, two, atol=1e-5)


def test_tasks_are_routed_by_the_order_of_the_configuration(
    servers: list[Any], pool_of: Callable[..., Pool], folder: Path, other: Path
) -> None:
    pool = pool_of(
        mover={"model": servers[1].url, "tasks": ["move/*"]},
        two={"model": str(folder), "tasks": ["*/1"]},
    )
    one, two = ours(folder), ours(other)
    agree(asked(pool), [two[0], one[1], two[2], one[3], two[4]])
    assert pool.by == ["mover", "two", "mover", "two", "mover"]
    version = pool.teachers["mover"].version
    assert f"scored by mover (version {version}): 3, two (version " in pool.provenance
    told = pool.metrics()
    assert {name: told["mover"][name] for name in ("requests", "failures", "fallbacks", "tokens", "coverage")} == {
        "requests": 1,
        "failures": 0,
        "fallbacks": 0,
        "tokens": TOKENS[0] + TOKENS[2] + TOKENS[4],
        "coverage": 1.0,
    }
    assert told["two"]["tokens"] == TOKENS[1] + TOKENS[3]
    assert told["mover"]["seconds"] > 0
    assert told["mover"]["version"] == version != told["two"]["version"]
    assert pool.metrics()["mover"] == {"requests": 0, "failures": 0, "fallbacks": 0, "tokens": 0, "version": version}


def test_a_task_of_nobody_has_no_teacher(pool_of: Callable[..., Pool], folder: Path) -> None:
    pool = pool_of(only={"model": str(folder), "tasks": ["copy/*"]})
    expected = ours(folder)
    agree(asked(pool), [None, None, None, expected[3], None])
    assert pool.by == ["", "", "", "only", ""]
    assert pool.provenance.endswith("by nobody: 4")
    assert pool.metrics()["only"]["coverage"] == 1


def test_support_entropy_and_temperature_by_whoever_scores(
    servers: list[Any], pool_of: Callable[..., Pool], folder: Path
) -> None:
    """The same numbers from a process and from here, and the same shapes from nobody."""
    ids = [np.stack([RANDOM.permutation(300)[:4] for _ in where]) for where in POSITIONS]
    pool = pool_of(
        far={"model": servers[0].url, "tasks": ["move/*"]},
        near={"model": str(folder), "tasks": ["find/*"]},
    )
    told = asked(pool, ids=ids, entropy=True, temperature=0.7)
    assert pool.by == ["far", "near", "far", "", "far"]
    with torch.no_grad():
        own = score_tokens(load_model(folder), SEQUENCES, POSITIONS, ids=ids, entropy=True, temperature=0.7)
    for number, (mine, theirs) in enumerate(zip(own, told, strict=True)):
        if number == 3:
            for value in (theirs.logp, theirs.entropy, theirs.topk_logp, theirs.rest_logp):
                assert np.isnan(value).all()
            assert theirs.topk_logp.shape == mine.ids_logp.shape
            continue
        np.testing.assert_allclose(theirs.logp, mine.logp, atol=1e-5)
        np.testing.assert_allclose(theirs.entropy, mine.entropy, atol=1e-5)
        np.testing.assert_allclose(theirs.topk_logp, mine.ids_logp, rtol=2**-10)
        np.testing.assert_allclose(theirs.rest_logp, mine.rest_logp, atol=1e-5)


def test_a_teacher_that_stands_still_is_stepped_in_for_and_asked_again(
    servers: list[Any], pool_of: Callable[..., Pool], folder: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(
        first={"model": servers[0].url, "tasks": ["move/*", "find/*"], "timeout_s": 1, "retries": 0},
        second={"model": servers[1].url, "tasks": ["move/*"]},
    )
    one, two = ours(folder), ours(other)
    servers[0].process.send_signal(signal.SIGSTOP)
    try:
        with caplog.at_level(logging.WARNING):
            agree(asked(pool), [two[0], None, two[2], None, two[4]])
        told = pool.metrics()
        assert told["first"]["failures"] == 1
        assert told["first"]["coverage"] == 0
        assert told["first"]["tokens"] == sum(TOKENS) - TOKENS[3]
        assert "seconds" not in told["first"]
        assert told["second"]["fallbacks"] == 3
        assert "the teacher 'first' is left alone for this step: " in caplog.text
        assert "no answer in 1 s" in caplog.text
        agree(asked(pool), [two[0], None, two[2], None, two[4]])  # the next step: a short look, and not a request
        assert "it shows no sign of life" in caplog.text
        assert pool.metrics()["first"]["failures"] == 1
    finally:
        servers[0].process.send_signal(signal.SIGCONT)
    pool.teachers["first"].timeout_s = 60  # type: ignore[attr-defined]
    agree(asked(pool), [one[0], one[1], one[2], None, one[4]])
    assert pool.metrics()["second"]["fallbacks"] == 0


def test_a_damaged_payload_is_no_score(
    servers: list[Any], pool_of: Callable[..., Pool], link: Any, other: Path, folder: Path
) -> None:
    with link(servers[0].url) as (near, state):
        pool = pool_of(near={"model": near, "retries": 1}, far={"model": str(other), "tasks": ["find/*"]})
        state.flip = 1
        agree(asked(pool), ours(folder))
        state.flip = 9
        two = ours(other)
        agree(asked(pool), [None, two[1], None, None, None])
        assert pool.metrics()["near"]["failures"] == 1


def test_another_tokenizer_is_an_error_before_anything_is_scored(
    servers: list[Any], folder: Path, tmp_path: Path
) -> None:
    stranger = tiny.build(tmp_path / "stranger", ["quite other words, and none of these\n"] * 30, seed=4)
    chat = Chat.load(stranger)
    for model in (servers[0].url, str(folder)):
        specs = {"big": TeacherSpec(model=model)}
        for make in (lambda specs=specs: meet(specs, chat), lambda specs=specs: Pool.make(specs, chat, "cpu")):
            with pytest.raises(EngineError, match=rf"the teacher .*another tokenizer .*{chat.tokenizer_digest}"):
                make()
    with pytest.raises(UsageError, match=r"expected a checkpoint folder with config\.json, found nothing"):
        meet({"big": TeacherSpec(model=str(tmp_path / "nothing"))}, chat)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"model": "vllm"}, "expected vllm:URL"),
        ({"model": "vllm:here"}, "vllm:http://HOST:PORT"),
        ({"model": "x", "timeout_s": 3}, "timeout_s and retries are for servers"),
        ({"model": "http://x", "dtype": "float32"}, "dtype is for a model in this process"),
        ({"model": "x", "tasks": []}, "at least 1 item"),
        ({"tasks": ["*"]}, "Field required"),
    ],
)
def test_what_cannot_be_meant_is_said(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TeacherSpec.model_validate(spec)


def test_where_weights_are() -> None:
    kinds = {"http://a:1": "http", "https://a": "http", "vllm:http://a:1,http://b:2": "vllm", "runs/x": "here"}
    assert {model: TeacherSpec(model=model).serves for model in kinds} == kinds


def test_shares_by_hand() -> None:
    assert Tally().metrics("v") == {"requests": 0, "failures": 0, "fallbacks": 0, "tokens": 0, "version": "v"}
    told = Tally(requests=4, seconds=1.0, failures=1, fallbacks=2, asked=200, scored=150).metrics("v")
    assert (told["seconds"], told["coverage"], told["failures"], told["fallbacks"]) == (0.25, 0.75, 1, 2)


# The last test: it kills a process.
def test_a_teacher_that_is_killed_amid_a_step_is_stepped_in_for(
    servers: list[Any], pool_of: Callable[..., Pool], link: Any, folder: Path, other: Path
) -> None:
    """A request a sequence: it dies at the third of five, and what it said before stands."""
    with link(servers[1].url) as (near, state):
        pool = pool_of(first={"model": near, "retries": 1}, second={"model": servers[0].url, "tasks": ["*/1"]})
        pool.teachers["first"].request_tokens = 1  # type: ignore[misc]

        def kill(number: int) -> None:
            if number == 3:
                servers[1].process.kill()
                servers[1].process.wait()

        state.before = kill
        one, two = ours(folder), ours(other)
        # Longest first: 3, 0, then 2 is lost with what follows, of which the second teaches 1 alone.
        agree(asked(pool), [two[0], one[1], None, two[3], None])
        assert pool.by == ["first", "second", "", "first", ""]
        told = pool.metrics()
        assert (told["first"]["requests"], told["first"]["failures"]) == (2, 1)
        assert told["first"]["coverage"] == (TOKENS[0] + TOKENS[3]) / sum(TOKENS)
        assert told["second"]["fallbacks"] == 1
        assert state.asked == 4  # with one more try, and none for what was left
        assert asyncio.run(pool.teachers["second"].wake())
