"""A tiny model with its tokenizer, and a deterministic environment whose faults can be chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from retort.agents import tiny
from retort.agents.chat import Chat
from retort.agents.hf import HFPolicy, load_model
from retort.envs.base import Failure, Feedback, Source, TaskRef, TextEnv, TextSpace

TEXTS = ["say 3 and then done\n", "you said done my friend\n", "cat card.csv | wc -l > out.txt\n"] * 30


class Echo(TextEnv):
    """Task number i lasts 1 + i % 4 turns and wants its last action to be "done". It can be told to break."""

    observation_space = TextSpace()
    action_space = TextSpace()
    made = 0
    closed = 0

    def __init__(self, breaks: Sequence[tuple[str, int]] = (), unclean: bool = False) -> None:
        type(self).made += 1
        self.breaks = set(breaks)
        self.unclean = unclean

    def tasks(self) -> Sequence[TaskRef]:
        return [TaskRef(f"echo-{number}", f"{number:016d}", "train", f"family-{number % 2}") for number in range(8)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        number = self.pick(self.tasks(), options)
        self.task, self.turns, self.turn = self.tasks()[number], 1 + number % 4, 0
        self._maybe_break()
        return f"say {number} and then done", {"task": self.task, "tools": []}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        self._maybe_break()
        last = self.turn == self.turns
        won = last and action == "done"
        lesson = Feedback(f"lesson of {self.turn - 1}", Source.VERIFIER, self.turn - 1, visible=False)
        info: dict[str, Any] = {"task": self.task, "feedback": (lesson,), "reward_components": {"done": float(won)}}
        if last:
            info |= {"success": won, "failure": None if won else Failure.POLICY}
        return f"you said {action[:12]}", float(won), last, False, info

    def gold(self, observation: str) -> str:
        return "done" if self.turn == self.turns - 1 else "say"

    def near_misses(self) -> Sequence[Sequence[str]]:
        return [["wrong"] * self.turns]

    def close(self) -> None:
        type(self).closed += 1
        if self.unclean:
            raise OSError("it will not close")

    def _maybe_break(self) -> None:
        if (self.task.key, self.turn) in self.breaks:
            raise OSError(f"the host of {self.task.key} went away")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def echo() -> type[Echo]:
    """A fresh class, whose counters start at 0."""
    return type("FreshEcho", (Echo,), {"made": 0, "closed": 0})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return tiny.build(tmp_path_factory.mktemp("tiny"), TEXTS, seed=3)


@pytest.fixture(scope="session")
def chat(folder: Path) -> Chat:
    return Chat.load(folder)


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    return load_model(folder)


@pytest.fixture
def policy_of(model: Any, chat: Chat) -> Callable[..., HFPolicy]:
    """Makes policies of the tiny model."""
    return partial(HFPolicy, model, chat, name="tiny")
