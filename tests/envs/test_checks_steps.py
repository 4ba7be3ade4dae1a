"""Each fault of the form is found in an environment that has it alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import pytest
from echo import Echo
from retort.envs import checks_steps
from retort.envs.base import Failure, Feedback, Split, TextSpace
from retort.envs.check import CheckError, check_env


class BothFlags(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.over, self.over, info


class NotANumber(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, reward or float("nan"), *rest  # type: ignore[return-value]


class MissingKey(Echo):
    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        info = super().info(feedback, success)
        del info["reward_components"]
        return info


class WrongType(Echo):
    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        return {**super().info(feedback, success), "feedback": list(feedback)}


class NoOutcome(Echo):
    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        return {**super().info(feedback, success), "failure": None}


class StepsOn(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.over:
            self.over, self.turn = False, 0
        return super().step(action)


class NeverEnds(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn = min(self.turn, 1)
        return super().step(action)


class ClosesOnce(Echo):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise ValueError("closed already")
        self.closed = True


class Outside(Echo):
    def __init__(self, split: Split = "train") -> None:
        super().__init__(split)
        self.observation_space = TextSpace(20)


class RaisesOnNoise(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not action:
            raise ValueError("say something")
        return super().step(action)


class TellsTooSoon(Echo):
    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        return super().info(feedback, bool(success))


class BlamesTheMachine(Echo):
    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        failure = Failure.INFRASTRUCTURE if success is False else None
        return {**super().info(feedback, success), "failure": failure}


class NamelessTool(Echo):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "tools": [{"function": {"description": "says it"}}]}


class ClosesSlowly(Echo):
    def close(self) -> None:
        time.sleep(0.3)


class FourValues(Echo):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class NoValues(Echo):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options=options)[0]


class GoldNotWritten(Echo):
    def gold(self, observation: str) -> str:
        raise NotImplementedError


class RunsInThisProcess(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        with contextlib.suppress(Exception):
            exec(action.strip("`").removeprefix("python\n"), {})
        return super().step(action)


BROKEN: list[tuple[type[Echo], str, str]] = [
    (BothFlags, "never_both_flags", "both true"),
    (NotANumber, "rewards_are_finite", "the reward is nan"),
    (MissingKey, "info_has_its_keys", "info has no 'reward_components'"),
    (WrongType, "info_has_its_keys", "info['feedback'] is []"),
    (NoOutcome, "outcomes_are_told", "failure is None"),
    (StepsOn, "no_step_after_the_end", "step after the end was taken"),
    (NeverEnds, "episodes_end", "not over after 256 actions"),
    (ClosesOnce, "close_is_idempotent", "close called twice raised"),
    (Outside, "observations_are_in_their_space", "observed 'you said"),
    (RaisesOnNoise, "nothing_raises", "raised ValueError: say something"),
    (TellsTooSoon, "outcomes_are_told", "success is False before the end"),
    (BlamesTheMachine, "outcomes_are_told", "an infrastructure failure was returned"),
    (NamelessTool, "tools_are_schemas", "says it'}} has no name"),
    (ClosesSlowly, "close_is_idempotent", "close took"),
    (FourValues, "nothing_raises", "action 0: step returned 4 values"),
    (NoValues, "nothing_raises", "reset: reset returned 'say word0'"),
    (GoldNotWritten, "nothing_raises", "gold, asked for action 0, raised NotImplementedError"),
    (RunsInThisProcess, "nothing_raises", "raised SystemExit: 0"),
]


@pytest.mark.parametrize(("kind", "check", "found"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_found(
    found_in: Any, kind: type[Echo], check: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks_steps, "CLOSE_S", 0.2)
    assert any(found in fault.found for fault in found_in(kind, check))


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in BROKEN} | {"components_are_numbers", "gymnasium_agrees"} == {
        check.__name__ for check in checks_steps.CHECKS
    }


@pytest.mark.parametrize("unwatched", [True, False], ids=["alone", "watched by Gymnasium"])
@pytest.mark.parametrize(
    ("kind", "mend"),
    [
        (FourValues, "return the 5 values observation, reward, terminated, truncated, info"),
        (NoValues, "return the 2 values observation, info"),
        (GoldNotWritten, "let gold return the next action of a solution, or raise NoGold"),
        (RaisesOnNoise, "raise only where the infrastructure broke"),
        (WrongType, "set info['feedback'] on every reset and step: a tuple of Feedback"),
    ],
)
def test_the_mend_names_what_to_change(
    register: Any, kind: type[Echo], mend: str, unwatched: bool, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(CheckError) as error:
        check_env(register(kind, unwatched=unwatched), name="mine:check/It")
    assert str(error.value).startswith("mine:check/It breaks the contract: ")
    assert any(fault.mend.startswith(mend) for fault in error.value.faults), error.value
    assert not [warning for warning in recwarn.list if "WARN" in str(warning.message)]


def test_components_and_gymnasiums_own_checker(register: Any) -> None:
    class Odd(Echo):
        def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
            return {**super().info(feedback, success), "reward_components": {"goal": "yes"}}

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
            observation, info = super().reset(seed=seed, options=options)
            self.kept = getattr(self, "kept", info)
            return observation, self.kept | info if options else self.kept

    with pytest.raises(CheckError) as error:
        check_env(register(Odd))
    found = {fault.check: fault.found for fault in error.value.faults}
    assert "component 'goal' is 'yes'" in found["components_are_numbers"]
    assert "gymnasium_agrees" in found


def test_what_raises_is_the_only_fault(register: Any) -> None:
    class Raises(Echo):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            raise ZeroDivisionError("by nothing")

    with pytest.raises(CheckError) as error:
        check_env(register(Raises))
    (fault,) = error.value.faults
    assert fault.check == "nothing_raises"
    assert "action 0 raised ZeroDivisionError: by nothing (tests/envs/test_checks_steps.py:" in fault.found
