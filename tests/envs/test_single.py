"""A function as an environment: what it says becomes reward and feedback, in this process and in workers."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import SPLITS, Feedback, NoGold, Source, UsageError, allotted, content_digest
from retort.envs.check import CheckError, check_env
from retort.envs.single import SingleTurn, single_turn

import retort  # noqa: F401

SUMS = [f"{a} + {b} =" for a in range(6) for b in range(6)]


def total(prompt: str) -> str:
    return str(sum(int(word) for word in prompt.split() if word.isdigit()))


def verify(prompt: str, answer: str) -> tuple[float, str | None]:
    right = answer.strip() == total(prompt)
    return float(right), None if right else f"it is not {answer.strip() or 'nothing'}"


def off_by_one(prompt: str) -> list[str]:
    return [str(int(total(prompt)) + 1)]


@pytest.fixture
def register() -> Iterator[Any]:
    made: list[gymnasium.Env[str, str]] = []

    def make(entry: SingleTurn, **options: Any) -> gymnasium.Env[str, str]:
        gymnasium.register("tests/Single-v0", entry_point=entry)
        made.append(gymnasium.make("tests/Single-v0", **options))
        return made[-1]

    yield make
    gymnasium.registry.pop("tests/Single-v0", None)
    for env in made:
        env.close()


def played(env: gymnasium.Env[str, str], key: str, action: str) -> tuple[Any, ...]:
    env.reset(options={"task": key})
    return env.step(action)


@pytest.mark.parametrize("split", SPLITS)
def test_it_keeps_the_contract(register: Any, split: str) -> None:
    check_env(register(single_turn(SUMS, verify, answers=total, near_misses=off_by_one), split=split))


def test_right_and_wrong(register: Any) -> None:
    env = register(single_turn({"train": SUMS[:20], "test": SUMS[20:]}, verify, answers=total, family="sum"))
    ref = next(ref for ref in env.get_wrapper_attr("tasks")() if ref.key == "sum/train/9")
    assert env.reset(options={"task": ref.key})[0] == "1 + 3 ="
    assert env.get_wrapper_attr("gold")("") == "4"
    observation, reward, terminated, truncated, info = env.step(" 4\n")
    assert (observation, reward, terminated, truncated, info["success"]) == ("", 1.0, True, False, True)
    assert [item.source for item in info["feedback"]] == [Source.ANSWER, Source.SOLUTION]
    observation, reward, *_, info = played(env, ref.key, "5")
    assert (observation, reward, info["success"], info["reward_components"]) == ("", 0.0, False, {"verify": 0.0})
    assert info["feedback"][0] == Feedback("it is not 5", Source.VERIFIER, 0, False)
    with pytest.raises(ResetNeeded):
        env.step("4")


def test_an_action_is_text(register: Any) -> None:
    env = register(single_turn(SUMS, verify))
    env.reset(seed=0)
    with pytest.raises(TypeError, match="action: expected text, found int"):
        env.step(4)


def test_feedback_of_ones_own_may_be_shown(register: Any) -> None:
    shown = Feedback("Traceback: too short", Source.RUNTIME_ERROR, 7, True)
    env = register(single_turn(["a", "b", "c"], lambda prompt, answer: (0.5, shown)))
    observation, reward, *_, info = played(env, env.get_wrapper_attr("tasks")()[0].key, "x")
    assert (observation, reward, info["success"]) == ("Traceback: too short", 0.5, False)
    assert info["feedback"] == (Feedback(shown.text, shown.source, 0, True),)


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        ((float("nan"), None), "verify of the prompt 'who': expected a finite reward, found nan"),
        ((float("inf"), None), "finite reward, found inf"),
        (("good", None), "expected a number as the reward, found 'good'"),
        ((1.0, 3), "expected a text, a Feedback or None as feedback, found 3"),
        (1.0, r"expected \(reward, feedback\), found 1.0"),
    ],
)
def test_a_verdict_that_is_none_is_an_error(register: Any, verdict: Any, error: str) -> None:
    env = register(single_turn({"train": ["who"]}, lambda prompt, answer: verdict))
    env.reset(seed=0)
    with pytest.raises(UsageError, match=error):
        env.step("me")


def test_a_verifier_that_raises_is_a_broken_episode(register: Any) -> None:
    def broken(prompt: str, answer: str) -> tuple[float, str]:
        raise ConnectionError("the judge does not answer")

    env = register(single_turn({"train": ["who"]}, broken))
    env.reset(seed=0)
    with pytest.raises(ConnectionError, match="the judge does not answer"):
        env.step("me")


def test_without_answers_there_is_no_gold(register: Any) -> None:
    env = register(single_turn(SUMS, verify))
    env.reset(seed=0)
    with pytest.raises(NoGold, match="give single_turn its answers="):
        env.get_wrapper_attr("gold")("")


def test_without_answers_the_rest_is_checked(register: Any) -> None:
    assert "give single_turn its answers=" in check_env(register(single_turn(SUMS, verify))).unchecked


def test_a_verdict_of_one_value_says_how_to_mend_it(register: Any) -> None:
    with pytest.raises(CheckError) as error:
        check_env(register(single_turn(SUMS, lambda prompt, answer: 1.0)))  # type: ignore[arg-type,return-value]
    (fault,) = error.value.faults
    assert "expected (reward, feedback), found 1.0; return both, such as (1.0, None)" in fault.found
    assert fault.mend == "do what the message says"


@pytest.mark.parametrize(
    ("verdict", "check"),
    [
        (lambda prompt, answer: (1.0, None), "doing_nothing_scores_nothing"),
        (lambda prompt, answer: (0.0, str(object())), "same_actions_same_outcome"),
        (lambda prompt, answer: (float(answer), None), "nothing_raises"),
    ],
)
def test_without_answers_faults_are_found(register: Any, verdict: Any, check: str) -> None:
    with pytest.raises(CheckError) as error:
        check_env(register(single_turn(SUMS, verdict)))
    assert check in {fault.check for fault in error.value.faults}


@pytest.mark.parametrize(
    ("prompts", "answers", "error"),
    [
        ("one text", None, "prompts: expected a list of texts, found one text 'one text'"),
        (["a", "b"], None, r"expected at least 3 different tasks.*give the prompts by split"),
        (["a", "a", "a"], None, "found 1"),
        (["a", "b", 3], None, "prompt 2: expected texts, found 3"),
        (["a", "b", None], None, "prompt 2: expected texts, found None"),
        (["a", "b", "c"], ["1", "2"], "expected 3, one for each prompt, found 2"),
        (["a", "b", "c"], ["1", "2", 3], "prompt 2: expected texts, found 3"),
        (["a", "b", "c"], "123", "answers: expected a list of texts"),
        (["a", "b", "c"], {"test": ["1"]}, "expected a list as long as the prompts"),
        ({"train": ["a"]}, ["1"], "expected them by split"),
        ({"train": ["a"]}, {"test": ["1"]}, r"expected the splits \['train'\], found \['test'\]"),
        ({"trian": ["a"]}, None, "did you mean 'train'"),
        ({"train": ["a", "b"], "test": ["c", "b"]}, None, "'b' is question/train/1 and question/test/1"),
    ],
)
def test_bad_input(prompts: Any, answers: Any, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        single_turn(prompts, verify, answers=answers)


def test_tasks_keep_their_split_and_their_digest() -> None:
    first = {question.ref.key: question.ref for question in single_turn(SUMS, verify, answers=total).questions}
    more = single_turn([*SUMS, "7 + 7 =", "9 + 9 ="], verify, answers=total).questions
    assert {question.ref.key: question.ref for question in more}.items() >= first.items()
    other = single_turn(SUMS, verify, answers=lambda prompt: "12").questions
    assert all(
        question.ref.digest != first[question.ref.key].digest for question in other if total(question.prompt) != "12"
    )


@given(st.sets(st.integers(), min_size=3, max_size=200))
def test_every_split_has_something(content: set[int]) -> None:
    digests = [content_digest(number) for number in content]
    split = allotted(digests)
    assert set(split) == set(digests)
    assert set(split.values()) == set(SPLITS)
    assert allotted(reversed(digests)) == split


def test_shares() -> None:
    found = list(allotted(content_digest(number) for number in range(5000)).values())
    assert {name: round(found.count(name) / 5000, 1) for name in SPLITS} == {
        "train": 0.7,
        "validation": 0.1,
        "test": 0.2,
    }


def test_copies_share_the_questions() -> None:
    made = single_turn(SUMS, verify, answers=total)
    assert copy.deepcopy(made) is made
    again = pickle.loads(pickle.dumps(made))
    assert again.questions == made.questions


MODULE = """
import gymnasium
from retort.envs.single import single_turn

def verify(prompt, answer):
    return float(answer == prompt[::-1]), "turn it round"

words = [f"word{n}" for n in range(40)]
gymnasium.register("me/Turn-v0", single_turn(words, verify, answers=lambda word: word[::-1]))
"""
WORKERS = """
import functools, json, multiprocessing
import gymnasium
from gymnasium.vector import AsyncVectorEnv

def reward(env_id):
    env = gymnasium.make(env_id, split="test")
    env.reset(seed=0)
    return env.step(env.unwrapped.gold(""))[1]

if __name__ == "__main__":
    make = functools.partial(gymnasium.make, "mine:me/Turn-v0", split="test")
    vector = AsyncVectorEnv([make, make], context="spawn", shared_memory=False)
    observations, _ = vector.reset(seed=[3, 4])
    rewards = vector.step([word[::-1] for word in observations])[1]
    vector.close()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(json.dumps([[float(reward) for reward in rewards], pool.map(reward, ["mine:me/Turn-v0"])]))
"""


def test_by_id_in_worker_processes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "workers.py").write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "workers.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1.0, 1.0], [1.0]]
