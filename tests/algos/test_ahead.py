"""Episodes played ahead: in turn, bounded, each step once, and what breaks is heard where it is asked for."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from retort.agents.episode import EpisodeRequest
from retort.agents.rollout import Runner
from retort.agents.scripted import byte_chat
from retort.algos.ahead import played_ahead, shared_loop
from retort.algos.config import ConfigError, preset, resolve
from retort.envs.catalogue import make


class Played:
    """Episodes that say which step they are of, and wait to be let go."""

    def __init__(self, breaks: int = -1) -> None:
        self.steps: list[int] = []
        self.breaks = breaks
        self.free = threading.Semaphore(0)

    def __call__(self, step: int) -> Any:
        self.free.acquire()
        self.steps.append(step)
        if step == self.breaks:
            raise OSError("the host went away")
        return [step]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_each_step_is_played_once_in_turn_and_at_most_so_far_ahead(ahead: int) -> None:
    played = Played()
    played.free.release(1000)
    with played_ahead([played] * (ahead + 1), steps=6) as episodes:
        for step in range(6):
            assert episodes(step) == [step]
            assert max(played.steps) <= step + ahead
    assert sorted(played.steps) == [0, 1, 2, 3, 4, 5]


def test_the_next_step_is_played_while_this_one_is_worked_on() -> None:
    first, second = Played(), Played()
    with played_ahead([first, second], steps=3) as episodes:
        second.free.release()
        first.free.release()
        assert episodes(0) == [0]
        while second.steps != [1]:  # nobody asked for it yet
            time.sleep(0.001)
        assert first.steps == [0]
        first.free.release()
        assert episodes(1) == [1]
        assert episodes(2) == [2]


def test_what_broke_is_raised_at_its_step_and_nothing_more_is_begun() -> None:
    played = Played(breaks=1)
    played.free.release(1000)
    with played_ahead([played] * 2, steps=9) as episodes:
        assert episodes(0) == [0]
        with pytest.raises(OSError, match="went away"):
            episodes(1)
    assert max(played.steps) <= 2


class Endless:
    """A policy that never answers, and takes its time to let an episode go."""

    name, version, barrier = "endless", 0, False

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.let_go = False

    async def begin(self, episode: str, env: Any) -> None:
        pass

    async def generate(self, prompt: Any, sampling: Any, *, episode: str, seed: int) -> Any:
        self.asked.set()
        await asyncio.Event().wait()

    async def end(self, episode: str) -> None:
        await asyncio.sleep(0.05)
        self.let_go = True


def test_a_run_that_ends_breaks_off_the_steps_that_are_under_way() -> None:
    policy = Endless()
    shell = partial(make, "retort/Shell-v0", split="train", sandbox="unsafe")
    runner = Runner(shell, policy, byte_chat(), env_id="retort/Shell-v0", concurrency=1)  # type: ignore[arg-type]
    played = Played()
    played.free.release()

    def stuck(step: int) -> Any:
        return runner.run([EpisodeRequest(None, step, 0, str(step))])

    with closing(runner), shared_loop() as runner.loop:
        with played_ahead([played, stuck], steps=9, breaks=[runner.stop]) as episodes:
            assert episodes(0) == [0]
            assert policy.asked.wait(60)
        with pytest.raises(CancelledError):
            stuck(3)  # nor is another begun
    assert policy.let_go


@pytest.mark.parametrize(
    ("recipe", "settings", "word"),
    [
        ("grpo", ["max_staleness=1"], "needs engine=vllm"),
        ("openclaw", ["max_staleness=1", "engine=vllm"], "openclaw asks the engine"),
    ],
)
def test_what_cannot_be_stale_is_refused(recipe: str, settings: list[str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        resolve(preset(recipe, "some/model"), settings)
