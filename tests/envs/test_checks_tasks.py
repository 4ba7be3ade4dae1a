"""Each fault of tasks is found in an environment that has it alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from echo import Echo
from retort.envs import checks_tasks
from retort.envs.base import Split, TaskRef, content_digest


class Unseeded(Echo):
    def pick(self, refs: Sequence[TaskRef], options: dict[str, Any] | None) -> int:
        return super().pick(refs, options) if options else int(np.random.default_rng().integers(len(refs)))


class DrawsGlobally(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        random.random()
        return super().step(action)


class OneTask(Echo):
    def pick(self, refs: Sequence[TaskRef], options: dict[str, Any] | None) -> int:
        return super().pick(refs, options) if options else 0


class AnyTask(Echo):
    def pick(self, refs: Sequence[TaskRef], options: dict[str, Any] | None) -> int:
        return super().pick(refs, options if options and options["task"] in {ref.key for ref in refs} else None)


class SharedSplits(Echo):
    def __init__(self, split: Split = "train") -> None:
        super().__init__(split)
        self.refs = [TaskRef(ref.key, content_digest(index), split, "echo") for index, ref in enumerate(self.refs)]


class Restless(Echo):
    """Another order on every call."""

    calls = 0

    def tasks(self) -> Sequence[TaskRef]:
        type(self).calls += 1
        at = self.calls % len(self.refs)
        return self.refs[at:] + self.refs[:at]


class Moody(Echo):
    """The same actions, another observation."""

    steps = 0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        type(self).steps += 1
        observation, *rest = super().step(action)
        return f"{observation} {self.steps}", *rest  # type: ignore[return-value]


class SameKeys(Echo):
    def __init__(self, split: Split = "train") -> None:
        super().__init__(split)
        self.refs[1] = self.refs[0]


class UsesUpItsTasks(Echo):
    """What was played before begins differently."""

    def __init__(self, split: Split = "train") -> None:
        super().__init__(split)
        self.played: set[str] = set()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        again = self.word in self.played
        self.played.add(self.word)
        return f"{'once more' if again else 'please'} {observation}", info


class Shuffled(Echo):
    """The phrasing hangs on the seed, and not on the task alone."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return f"{observation}{'!' * int(self.np_random.integers(1, 9)) if seed == 5 else ''}", info


class OneDigest(Echo):
    def __init__(self, split: Split = "train") -> None:
        super().__init__(split)
        self.refs = [TaskRef(ref.key, content_digest(split), split, "echo") for ref in self.refs]


class Shared(Echo):
    """Its word is everybody's."""

    @property
    def word(self) -> str:
        return type(self).held

    @word.setter
    def word(self, word: str) -> None:
        type(self).held = word

    held = ""


BROKEN: list[tuple[type[Echo], str, str]] = [
    (Unseeded, "seeds_decide", "the same seed starts another"),
    (DrawsGlobally, "global_generators_untouched", "global generator of random"),
    (OneTask, "seeds_decide", "16 seeds start the same task"),
    (AnyTask, "task_can_be_chosen", "a task key that does not exist"),
    (SharedSplits, "splits_are_disjoint", "has the content of a task of train"),
    (Restless, "task_order_is_stable", "differs from one call to the next"),
    (Moody, "same_actions_same_outcome", "the same actions gave another outcome"),
    (SameKeys, "tasks_are_named", "two tasks have one key"),
    (
        UsesUpItsTasks,
        "tasks_stay_what_they_are",
        "starts with 'please say word0' in another instance, before with 'once more",
    ),
    (Shuffled, "tasks_stay_what_they_are", "starts with 'say word0!"),
    (OneDigest, "tasks_stay_what_they_are", "have one digest and start differently"),
    (Shared, "instances_are_apart", "another outcome while another instance played"),
]


@pytest.mark.parametrize(("kind", "check", "found"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_found(found_in: Any, kind: type[Echo], check: str, found: str) -> None:
    assert any(found in fault.found for fault in found_in(kind, check))


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in BROKEN} == {check.__name__ for check in checks_tasks.CHECKS}
