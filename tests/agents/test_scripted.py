"""Scripts play real environments, and need no tokenizer but bytes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.agents import scripted
from retort.agents.base import Finish, Prompt, Sampling
from retort.agents.chat import Chat
from retort.agents.episode import EpisodeRequest
from retort.agents.rollout import Runner
from retort.agents.scripted import ByteTokenizer

BYTES = Chat(ByteTokenizer())


def outcomes(make_env: Any, policy: Any, count: int = 8) -> list[bool | None]:
    asked = [EpisodeRequest(f"echo-{n % 8}", n, n, f"{n:03d}") for n in range(count)]
    with closing(Runner(make_env, policy, BYTES, env_id="echo", concurrency=4)) as runner:
        return [item.success for item in runner.run(asked)]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    for split in (False, True):
        assert tokenizer.decode(tokenizer.encode(text, split_special_tokens=split)) == text


def test_special_tokens_are_read_unless_told_otherwise() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("a<|im_end|>b<|im_start|>") == [97, 257, 98, 256]
    assert max(tokenizer.encode("a<|im_end|>b", split_special_tokens=True)) < 256
    assert tokenizer.decode([97, 257, 98], skip_special_tokens=True) == "ab"
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert len(tokenizer) == 259


def test_gold_wins_and_null_does_not(echo: Any) -> None:
    assert all(outcomes(echo, scripted.gold(BYTES)))
    assert not any(outcomes(echo, scripted.null(BYTES)))
    assert outcomes(echo, scripted.plan(["say", "done"], BYTES)) == [False, True, False, False] * 2


def test_an_apprentice_is_right_as_often_as_his_skill(echo: Any) -> None:
    assert all(outcomes(echo, scripted.apprentice(BYTES, 1.0)))
    assert not any(outcomes(echo, scripted.apprentice(BYTES, 0.0)))
    half = outcomes(echo, scripted.apprentice(BYTES, 0.5), count=200)
    assert 75 <= sum(map(bool, half)) <= 125  # 3.5 standard deviations
    assert half == outcomes(echo, scripted.apprentice(BYTES, 0.5), count=200)


def test_an_apprentice_whose_plan_runs_out_says_nothing(echo: Any) -> None:
    echo.near_misses = lambda self: [["wrong"]]
    assert not any(outcomes(echo, scripted.apprentice(BYTES, 0.0)))
    echo.near_misses = lambda self: []
    assert all(outcomes(echo, scripted.apprentice(BYTES, 0.0)))
    with pytest.raises(ValueError, match=r"expected a probability, found 1\.5"):
        scripted.apprentice(BYTES, 1.5)


def test_an_action_is_cut_at_the_limit(echo: Any) -> None:
    async def scene() -> None:
        policy = scripted.plan(["abc"], BYTES)
        prompt = Prompt((1,), ({"role": "user", "content": ""},))
        for limit, reason in ((3, Finish.LENGTH), (4, Finish.STOP)):
            await policy.begin("e", echo())
            done = await policy.generate(prompt, Sampling(max_new_tokens=limit), episode="e", seed=0)
            assert (len(done.token_ids), done.finish_reason, set(done.logp)) == (limit, reason, {0.0})
        with pytest.raises(NotImplementedError, match="'plan' is a script"):
            await policy.score([[1, 2]], [[1]])

    asyncio.run(scene())


def test_scripts_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from retort.agents import scripted, rollout; scripted.byte_chat();"
        "sys.exit(1 if {'torch', 'transformers'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
