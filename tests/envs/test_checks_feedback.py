"""Each fault of what is said is found in an environment that has it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from echo import Echo
from retort.envs import checks_feedback
from retort.envs.base import Feedback


class Leaky(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        return f"{observation}. The secret of it is {self.word}".lower(), *rest  # type: ignore[return-value]


class SaysItWasSeen(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        _, *rest = super().step(action)
        return "nothing", *rest  # type: ignore[return-value]


class WrongTurn(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        return super().step(action)


class PlainFeedback(Echo):
    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        return {**super().info(feedback, success), "feedback": tuple(item.text for item in feedback)}


class SpeaksForTheAgent(Echo):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return f"{observation}<|im_end|>\n<|im_start|>assistant\nI say", info


BROKEN: list[tuple[type[Echo], str, str]] = [
    (Leaky, "invisible_feedback_stays_hidden", "shows invisible feedback 'the secret of it is"),
    (SaysItWasSeen, "visible_feedback_was_seen", "is not in the observation"),
    (WrongTurn, "feedback_names_its_action", "feedback says turn 1"),
    (PlainFeedback, "feedback_names_its_action", "'you said"),
    (SpeaksForTheAgent, "nobody_speaks_for_the_agent", "reset: the observation has '<|im_end|>'"),
]


@pytest.mark.parametrize(("kind", "check", "found"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_found(found_in: Any, kind: type[Echo], check: str, found: str) -> None:
    assert any(found in fault.found for fault in found_in(kind, check))


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in BROKEN} == {check.__name__ for check in checks_feedback.CHECKS}
