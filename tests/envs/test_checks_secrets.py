"""Each way to tell an answer is found in an environment that has it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from echo import Echo
from retort.envs import checks_secrets
from retort.envs.base import Feedback, Source
from retort.envs.check import check_env


class TellsTheAnswer(Echo):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        return f"Which word do I think of?\nAnswer: {self.word}.", info


class Lock(Echo):
    """Sound: it asks for a word, and tells it to whoever looks."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        return f"open lock {int(self.word.removeprefix('word')) + 1}", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        said, *rest = super().step(action)
        return f"{said}{self.told(action)}", *rest  # type: ignore[return-value]

    def told(self, action: str) -> str:
        return f" (the code is {self.word})" if action == "look" else ""


class TellsWhoeverAsks(Lock):
    def told(self, action: str) -> str:
        return f" (the code is {self.word})"


class ListsTheChoices(Lock):
    """Sound: what it tells is the same for every task."""

    def told(self, action: str) -> str:
        return f", valid: {', '.join(ref.key.removeprefix('echo/') for ref in self.refs)}"


class Hints(Lock):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return f"{observation} (hint: {self.word})", info


class ShowsTheSolution(Echo):
    """The whole solution, eight words long, in the prompt."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        return f"do as told ({self.solution()})", info

    def solution(self) -> str:
        return f"open the box, then say {self.word} to it"

    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        told = [*feedback, *([Feedback(self.solution(), Source.SOLUTION, self.turn - 1, False)] if success else [])]
        return super().info(told, success)


BROKEN: list[tuple[type[Echo], str, str]] = [
    (TellsTheAnswer, "the_answer_is_not_in_the_prompt", "holds the answer 'word0'"),
    (TellsWhoeverAsks, "the_answer_is_not_told_for_nothing", "action 0: the observation tells 'word0', which wins"),
    (Hints, "the_answer_is_not_in_the_prompt", "holds the answer 'word0'"),
    (ShowsTheSolution, "the_answer_is_not_in_the_prompt", "holds the answer 'open the box, then say word0"),
]


@pytest.mark.parametrize(("kind", "check", "found"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_found(found_in: Any, kind: type[Echo], check: str, found: str) -> None:
    assert any(found in fault.found for fault in found_in(kind, check))


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in BROKEN} == {check.__name__ for check in checks_secrets.CHECKS}


@pytest.mark.parametrize("kind", [Lock, ListsTheChoices])
def test_what_tells_the_answer_and_is_sound(register: Any, kind: type[Echo]) -> None:
    assert check_env(register(kind)).remark == ""


@pytest.mark.parametrize(
    ("prompt", "answer", "announced"),
    [
        ("What is 2 + 2? The answer is 4.", "4", True),
        ("Solution:\n  mv a b\n", "mv a b", True),
        ("work\n#### 42", "42", True),
        ("Open it. Hint: 203", "203", True),
        ("a lock (the code is 203)", "203", True),
        ("Enter code 203", "203", False),
        ("password: 203", "203", False),
        ("Answer yes or no", "yes", False),
        ("Answer yes or no", "no", False),
        ("say word1", "word1", False),
        ("Is the answer 4?", "4", False),
        ("the answer is 42", "4", False),
    ],
)
def test_an_announced_answer(prompt: str, answer: str, announced: bool) -> None:
    assert checks_secrets._announced(answer, prompt) is announced
