"""Gymnasium's own toy texts, and one of Text spaces, as text environments."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from retort.envs.base import SPLITS, Source, UsageError
from retort.envs.check import check_env
from retort.envs.wrap import Wrap, by_seed, read_action, wrap

import retort  # noqa: F401

LAKE = {"left": 0, "down": 1, "right": 2, "up": 3}
TAXI = {"south": 0, "north": 1, "east": 2, "west": 3, "pick up": 4, "drop": 5}
PLACES = ("Red", "Green", "Yellow", "Blue")


def planned(env: Any, start: int, words: dict[str, int], goal: float) -> str:
    """The first word of a shortest way through the environment's own table to a reward of `goal`."""
    table, queue, seen = env.unwrapped.P, deque([(start, "")]), {start}
    while queue:
        state, first = queue.popleft()
        for word, action in words.items():
            _, following, reward, over = table[state][action][0]
            if reward == goal and over:
                return first or word
            if following not in seen and not over:
                seen.add(following)
                queue.append((following, first or word))
    raise AssertionError("there is no way")


def lake_text(state: int, env: Any) -> str:
    side = env.unwrapped.ncol
    rows = ["".join(cell.decode() for cell in row) for row in env.unwrapped.desc]
    return "\n".join([*rows, f"you are at row {state // side}, column {state % side}"])


def taxi_text(state: int, env: Any) -> str:
    row, column, passenger, goal = env.unwrapped.decode(state)
    where = "in the taxi" if passenger == 4 else f"at {PLACES[passenger]}"
    return f"taxi at {row} {column}, passenger {where}, goal {PLACES[goal]}"


frozen_lake = wrap(
    partial(gymnasium.make, "FrozenLake-v1", is_slippery=False),
    text=lake_text,
    actions=LAKE,
    gold=lambda env: planned(env, int(env.unwrapped.s), LAKE, 1),
    content=by_seed,
    instruction="Walk to G; H is a hole.",
    seeds=30,
)
taxi = wrap(
    "Taxi-v4",
    text=taxi_text,
    actions=TAXI,
    gold=lambda env: planned(env, int(env.unwrapped.s), TAXI, 20),
    feedback=lambda info: {Source.HINT: f"{int(info['action_mask'].sum())} of the moves would change something"},
    max_turns=30,
)


class Reverse(gymnasium.Env[str, str]):
    """Say the word backwards: text both ways, in Gymnasium's own space."""

    observation_space = gymnasium.spaces.Text(20)
    action_space = gymnasium.spaces.Text(20)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abcdefgh"), size=5))
        return self.word, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action == self.word[::-1]
        return "yes" if right else "no", float(right), right, False, {"told": f"the word begins with {self.word[-1]}"}


reverse = wrap(
    Reverse, gold=lambda env: env.unwrapped.word[::-1], feedback=lambda info: info["told"], max_turns=3, seeds=40
)


@pytest.fixture
def register() -> Iterator[Any]:
    made: list[gymnasium.Env[str, str]] = []

    def make(entry: Wrap, **options: Any) -> gymnasium.Env[str, str]:
        gymnasium.register("tests/Wrapped-v0", entry_point=entry)
        made.append(gymnasium.make("tests/Wrapped-v0", **options))
        return made[-1]

    yield make
    gymnasium.registry.pop("tests/Wrapped-v0", None)
    for env in made:
        env.close()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("entry", [frozen_lake, taxi, reverse], ids=["lake", "taxi", "reverse"])
def test_it_keeps_the_contract(register: Any, entry: Wrap, split: str) -> None:
    check_env(register(entry, split=split))


def test_a_walk_on_the_lake(register: Any) -> None:
    env = register(frozen_lake)
    observation, _ = env.reset(seed=0)
    assert observation == "Walk to G; H is a hole.\nSFFF\nFHFH\nFFFH\nHFFG\nyou are at row 0, column 0"
    observation, reward, terminated, truncated, info = env.step("I go **down** now.")
    assert observation.endswith("row 1, column 0")
    assert (reward, terminated, truncated, info["success"]) == (0, False, False, None)
    assert [(item.source, item.visible, item.text) for item in info["feedback"]] == [
        (Source.TOOL_RESULT, True, observation)
    ]
    observation, *_, info = env.step("jump")
    assert observation == "expected one of: left, down, right, up"
    assert info["feedback"][0].source == Source.RUNTIME_ERROR
    observation, reward, terminated, truncated, info = env.step("right")  # into the hole
    assert (reward, terminated, truncated, info["success"]) == (0, True, False, False)
    with pytest.raises(ResetNeeded):
        env.step("left")


def test_the_limit_truncates_whatever_is_said(register: Any) -> None:
    env = register(reverse)
    env.reset(seed=0)
    ends = [env.step(word)[2:4] for word in ("never", "é\n", "ever")]
    assert ends == [(False, False), (False, False), (False, True)]


def test_what_is_no_action_of_the_space(register: Any) -> None:
    env = register(reverse)
    env.reset(seed=0)
    observation, reward, *_ = env.step("two words\nand more")
    assert observation.startswith("expected an action in Text(1, 20")
    assert reward == 0


def test_starts_that_are_alike_share_a_split(register: Any) -> None:
    texts: dict[str, set[str]] = {}
    for split in SPLITS:
        env = register(taxi, split=split)
        texts[split] = {env.reset(options={"task": ref.key})[0] for ref in env.get_wrapper_attr("tasks")()}
        assert texts[split]
        gymnasium.registry.pop("tests/Wrapped-v0")
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]


@pytest.mark.parametrize(
    ("text", "action"),
    [("left", 0), (" LEFT.\n", 0), ("```\npick  up\n```", 4), ("up", 3), ("leftover", None), ("left or up", None)],
)
def test_words_are_found(text: str, action: int | None) -> None:
    words, space = {"left": 0, "up": 3, "Pick up": 4}, gymnasium.spaces.Discrete(6)
    if action is not None:
        assert read_action(text, words, space) == action
        return
    with pytest.raises(ValueError, match="expected one of: left, up, Pick up"):
        read_action(text, words, space)


def test_a_function_reads_actions() -> None:
    space = gymnasium.spaces.Discrete(6)
    assert read_action("3", int, space) == 3
    with pytest.raises(ValueError, match="expected an action in Discrete"):
        read_action("7", int, space)
    with pytest.raises(ValueError, match="invalid literal"):
        read_action("three", int, space)


def test_bad_input(register: Any) -> None:
    with (
        gymnasium.make("FrozenLake-v1") as env,
        pytest.raises(UsageError, match=r"found an environment; give env\.spec"),
    ):
        wrap(env)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected seeds and max_turns of at least 1"):
        wrap("FrozenLake-v1", seeds=0)
    with pytest.raises(UsageError, match="expected at least one word"):
        wrap("FrozenLake-v1", actions={})
    with pytest.raises(UsageError, match=r"the actions are Discrete\(4\): expected actions="):
        wrap("FrozenLake-v1")()
    with pytest.raises(UsageError, match=r"expected 'fly' to be in Discrete\(4\), found 4"):
        wrap("FrozenLake-v1", actions={"fly": 4})()
    with pytest.raises(UsageError, match="did you mean 'test'"):
        reverse("tests")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="its observation 0 is no text; give text="):
        wrap("FrozenLake-v1", actions=LAKE)().tasks()
    with pytest.raises(UsageError, match=r"found 1 in 300 seeds.*content=by_seed"):
        wrap("FrozenLake-v1", actions=LAKE, text=lake_text)().tasks()
    env = register(wrap(Reverse, seeds=20))
    env.reset(seed=0)
    assert "give wrap its gold=" in check_env(env).unchecked


def test_an_action_is_text(register: Any) -> None:
    env = register(wrap(Reverse, seeds=20))
    env.reset(seed=0)
    with pytest.raises(TypeError, match="action: expected text, found NoneType"):
        env.step(None)


def test_a_wrap_travels() -> None:
    assert copy.deepcopy(taxi) is taxi
    made = wrap(Reverse, seeds=20)
    assert pickle.loads(pickle.dumps(made)).env is Reverse
