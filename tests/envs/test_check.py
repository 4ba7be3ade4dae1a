"""check_env passes on what is sound, and says all that is wrong, with how to mend it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import pytest
from echo import Echo
from retort.envs.base import Split, TaskRef
from retort.envs.check import CheckError, Fault, Subject, check_env, faults_of
from retort.envs.shell import ShellEnv
from retort.envs.shell_tasks import task

import retort  # noqa: F401  (registers the environment)


def test_a_sound_environment_passes(register: Any) -> None:
    checked = check_env(register(Echo))
    assert (checked.tasks, checked.unchecked) == (2, "")
    assert checked.players[:4] == ("gold", "null", "done", "random")
    assert checked.remark.startswith("every prompt holds its answer, such as 'word0': sound only where copying")


def test_all_faults_are_listed_with_how_to_mend_them(register: Any) -> None:
    class Worse(Echo):
        """Not a number, a draw from the global generator, and no second close."""

        closed = False

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            observation, reward, *rest = super().step(action)
            return observation, reward or random.random() * float("nan"), *rest  # type: ignore[return-value]

        def close(self) -> None:
            if self.closed:
                raise ValueError("closed already")
            self.closed = True

    with pytest.raises(CheckError) as error:
        check_env(register(Worse))
    assert {"rewards_are_finite", "close_is_idempotent", "global_generators_untouched"} <= {
        fault.check for fault in error.value.faults
    }
    message = str(error.value)
    assert message.startswith(f"check/Worse-v0 breaks the contract: {len(error.value.faults)} faults\n")
    assert message.count("mend: ") == len(error.value.faults)


def test_the_same_advice_is_given_once(register: Any) -> None:
    def three(subject: Subject) -> Iterator[Fault]:
        for number in range(3):
            yield Fault(f"fault {number}", "mend it")
        raise RuntimeError("and no further")

    found = faults_of(three, Subject(register(Echo), 1))
    assert found[0].found == "fault 0 (and 2 more)"
    assert found[1].found.startswith("RuntimeError: and no further (tests/envs/test_check.py:")
    assert {fault.check for fault in found} == {"three"}


def test_what_is_no_text_environment() -> None:
    with gymnasium.make("CartPole-v1") as env, pytest.raises(CheckError, match="derive it from"):
        check_env(env)


def test_without_a_spec() -> None:
    with pytest.raises(CheckError, match="the environment has no spec"):
        check_env(Echo())


def test_tasks_that_raise(register: Any) -> None:
    class NoTasks(Echo):
        def tasks(self) -> Sequence[TaskRef]:
            raise OSError("no data")

    with pytest.raises(CheckError, match="no data"):
        check_env(register(NoTasks))


class TestOnly(Echo):
    """As a benchmark is: nothing to train on."""

    __test__ = False

    def __init__(self, split: Split = "train") -> None:
        super().__init__(split)
        self.split = split
        self.refs = self.refs if split == "test" else []


class Empty(Echo):
    def __init__(self) -> None:
        super().__init__()
        self.refs = []


class EmptyEverywhere(Empty):
    def __init__(self, split: Split = "train") -> None:
        super().__init__()
        self.split = split


@pytest.mark.parametrize(
    ("kind", "found", "mend"),
    [
        (TestOnly, "tasks() is empty in the train split; it has tasks in test", "--env-arg split=..."),
        (EmptyEverywhere, "tasks() is empty in the train split; nor has it any in another split", "a TaskRef for each"),
        (Empty, "tasks() is empty", "a TaskRef for each"),
    ],
)
def test_no_tasks_are_one_fault(register: Any, kind: type[Echo], found: str, mend: str) -> None:
    with pytest.raises(CheckError) as error:
        check_env(register(kind))
    (fault,) = error.value.faults
    assert (fault.check, fault.found) == ("tasks_are_named", found)
    assert mend in fault.mend


def test_the_split_that_has_tasks_passes(register: Any) -> None:
    assert check_env(register(TestOnly, split="test")).tasks == 2


@pytest.mark.parametrize(("split", "sandbox"), [("train", "bwrap"), ("test", "bwrap"), ("validation", "unsafe")])
def test_shell_passes(split: str, sandbox: str) -> None:
    with gymnasium.make("retort/Shell-v0", split=split, sandbox=sandbox) as env:
        check_env(env, per_family=1)
        check_env(gymnasium.wrappers.RecordEpisodeStatistics(env), per_family=1)


def test_a_shell_task_whose_gold_fails_is_reported(register: Any) -> None:
    class Wrong(ShellEnv):
        def gold(self, observation: str) -> str:
            return super().gold(observation).replace("mv ", "cp ")

    env = register(Wrong, split="test", families=("move", "copy"))
    with pytest.raises(CheckError) as error:
        check_env(env)
    env.close()
    (fault,) = [fault for fault in error.value.faults if fault.check == "gold_scores_one"]
    key = next(ref.key for ref in env.get_wrapper_attr("tasks")() if ref.family == "move")
    assert f"gold on {key} (move): expected reward 1 and success True, found reward 0, success False" in fault.found
    assert task(key).gold[0].replace("mv ", "cp ") in fault.found
