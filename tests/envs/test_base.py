"""The contract's own parts: the text space, picking tasks, errors that name the nearest choice."""

import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import (
    Failure,
    Feedback,
    MissingPackage,
    Source,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    checked_split,
    content_digest,
    nearest,
    needed,
    step_info,
)

from retort import BUILT_IN

REFS = [TaskRef(f"say/{number}", f"{number}", "train") for number in range(5)]


class Silent(TextEnv):
    def tasks(self) -> Sequence[TaskRef]:
        return REFS

    def gold(self, observation: str) -> str:
        return ""


@given(st.text(), st.integers(1, 50))
def test_the_space_bounds_the_length_alone(text: str, length: int) -> None:
    assert TextSpace(length).contains(text) == (len(text) <= length)


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_samples_are_inside_and_seeded(length: int, seed: int) -> None:
    space = TextSpace(length, seed=seed)
    samples = [space.sample() for _ in range(5)]
    assert all(space.contains(sample) for sample in samples)
    space.seed(seed)
    assert [space.sample() for _ in range(5)] == samples
    assert space.from_jsonable(space.to_jsonable(samples)) == samples


def test_spaces_refuse_what_is_no_text() -> None:
    assert not TextSpace().contains(3)
    assert TextSpace(3) == TextSpace(3) != TextSpace(4)
    with pytest.raises(ValueError, match="at least 1 character, found 0"):
        TextSpace(0)


def test_pick() -> None:
    env = Silent()
    env.np_random.bit_generator.state = type(env.np_random.bit_generator)(3).state
    assert env.pick(REFS, {"task": "say/3"}) == 3
    assert {env.pick(REFS, None) for _ in range(50)} == set(range(5))
    with pytest.raises(KeyError, match="did you mean 'say/1'"):
        env.pick(REFS[1:2], {"task": "sya/1"})
    with pytest.raises(ValueError, match="expected only 'task', found \\['tsak'\\]"):
        env.pick(REFS, {"tsak": "say/1"})
    with pytest.raises(ValueError, match="no tasks"):
        env.pick([], None)


def test_a_plan_is_followed_word_for_word() -> None:
    assert Silent().follow(["ls", "done"], 1, "anything") == "done"
    assert list(Silent().near_misses()) == []
    assert Silent().backend() == "none"


def test_nearest() -> None:
    assert nearest("trian", ["train", "test"]) == "did you mean 'train'? valid: train, test"
    assert nearest("zzz", ["train", "test"]) == "valid: train, test"
    assert nearest("zzz", map(str, range(30))).endswith("19, ...")


def test_digest_is_of_the_content() -> None:
    one: dict[str, Any] = {"a": 1, "b": ["é"]}
    assert content_digest(one) == content_digest(dict(reversed(one.items())))
    assert content_digest(one) != content_digest({"a": 2, "b": ["é"]})
    assert content_digest([]) == "4f53cda18c2baa0c"  # SHA-256 of "[]"


def test_what_a_step_says() -> None:
    going, won, lost = (step_info(REFS[0], success=success) for success in (None, True, False))
    assert set(going) == {"feedback", "reward_components", "success", "failure", "task", "tools", "invalid"}
    assert [step_info(REFS[0], invalid=bad)["invalid"] for bad in (False, True)] == [False, True]
    assert [info["failure"] for info in (going, won, lost)] == [None, None, Failure.POLICY]
    hint = Feedback("so", Source.HINT, 0, False)
    assert step_info(REFS[0], feedback=[hint], components={"goal": 1.0})["feedback"] == (hint,)


def test_a_split_by_name() -> None:
    assert checked_split("test") == "test"
    with pytest.raises(UsageError, match="did you mean 'train'"):
        checked_split("trian")


def test_a_package_that_is_missing_names_its_command() -> None:
    assert needed("json", "pip install nothing").dumps([]) == "[]"
    with pytest.raises(MissingPackage) as error:
        needed("no_such_package.inner", "pip install 'retort-rl[x]' && pip install y")
    pip = f"{sys.executable} -m pip install"
    assert str(error.value).endswith(f"'no_such_package' is not installed: {pip} 'retort-rl[x]' && {pip} y")


FENCES = "```sh\nls\n```\nor\n```sh\npwd\n```"
# By environment: its options, then actions that cannot be read, and wrong ones that can, each in an episode of its own.
ACTIONS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "retort/Shell-v0": ({}, ["", "I would look first"], ["false", "ls none", "done"]),
    "retort/Repair-v0": ({}, [" \n", "I would look first", FENCES], ["false", "```sh\nfalse\n```", "done"]),
    "retort/AgentBenchOS-v0": (
        {"only": ["test-0032"], "split": "test"},
        ["", "I would look first", "submit 3", "x" * 200_001],
        ["false", "```sh\nfalse\n```", "done"],
    ),
    "retort/Code-v0": (
        {}, ["", "I do not know.", "``` python\n\n```", "<think>x = 1</think>", "x" * 20_001],
        ["def f(:\n", "I say\n```\nno\n```", "x = 1", "return 3", "import none", "print('a"],
    ),
    "retort/HumanEval-v0": ({"split": "test"}, ["", "I do not know."], ["    pass", "return x", "x = 1\n return x"]),
    "retort/Reply-v0": ({}, ["", " \n"], ["no", "```\n```"]),
    "retort/Tools-v0": ({}, ["", "<think>find_orders</think>", '{"name": "find'], ["done", '{"name": "none"}', "no"]),
    "retort/BFCL-v0": ({"split": "test"}, ["", '{"name": "cd", "arg'], ["done", "[none()]", "no"]),
    "retort/ReasoningGym-v0": ({}, ["", "<answer> </answer>", "x" * 20_001], ["-1", "no", "<answer>-1</answer>"]),
    "retort/TextWorld-v0": ({}, ["", "save", "```", "hello", "..."], ["look", "go nowhere", "take moon", "take"]),
}  # fmt: skip


@pytest.mark.parametrize("env_id", sorted(ACTIONS))
def test_what_cannot_be_read_is_told_from_what_is_wrong(env_id: str) -> None:
    options, unread, read = ACTIONS[env_id]
    with gymnasium.make(env_id, **{"split": "train", **options}) as env:
        key = env.get_wrapper_attr("tasks")()[0].key
        for expected, actions in ((True, unread), (False, read)):
            for action in actions:
                env.reset(options={"task": key})
                _, reward, _, _, info = env.step(action)
                assert (info["invalid"], reward) == (expected, 0.0), action


def test_every_environment_is_among_them() -> None:
    assert ACTIONS.keys() | {"retort/Harbor-v0"} == BUILT_IN.keys()
