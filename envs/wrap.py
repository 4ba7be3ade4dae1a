"""Any Gymnasium environment as text: words for its actions, text for its observations, tasks from its seeds.

    gymnasium.register("me/Taxi-v0", wrap(
        "Taxi-v4",
        text=lambda state, env: describe(*env.unwrapped.decode(state)),
        actions={"south": 0, "north": 1, "east": 2, "west": 3, "pick up": 4, "drop": 5},
        gold=lambda env: next_word_of_a_plan(env.unwrapped.s),
    ))

A task is a seed of the wrapped environment. The reward is 1 when an episode ends in success and 0 else; what the
environment itself paid is the component `inner`. An action that cannot be read is a turn that changes nothing and says
which actions there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from retort.envs.base import (
    Feedback,
    NoGold,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    allotted,
    checked_split,
    content_digest,
    step_info,
)

Inner = gymnasium.Env[Any, Any]
Text = Callable[[Any, Inner], str]
Said = str | Mapping[Source, str] | None


def said(observation: Any, env: Inner) -> str:
    """The observation itself, where it is text."""
    if not isinstance(observation, str):
        raise UsageError(
            f"{env.spec.id if env.spec else env}: its observation {observation!r:.80} is no text; give text="
        )
    return observation


def won(reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
    """The environment came to its own end with a positive reward."""
    return terminated and reward > 0


def by_seed(text: str, env: Inner) -> str:
    """For `content`: every seed is a task of its own, however alike two of them start."""
    return str(env.np_random_seed)


def by_start(text: str, env: Inner) -> str:
    """For `content`: what starts with the same text is the same task, and is in one split."""
    return text


@dataclass(frozen=True, eq=False)
class Wrap:
    """An entry point: called with a split, it makes the environment of it. `wrap` says what the fields are."""

    env: str | EnvSpec | Callable[[], Inner]
    text: Text
    actions: Mapping[str, Any] | Callable[[str], Any] | None
    gold: Callable[[Inner], str] | None
    success: Callable[[float, bool, Mapping[str, Any]], bool]
    feedback: Callable[[Mapping[str, Any]], Said] | None
    content: Text
    seeds: int
    max_turns: int
    instruction: str

    def __call__(self, split: Split = "train") -> TextWrapper:
        return TextWrapper(self, split)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: gymnasium copies an environment's spec each time that it makes one, and nothing here ever changes."""
        return self

    def inner(self) -> Inner:
        """Another one of the wrapped environment."""
        return self.env() if callable(self.env) else gymnasium.make(self.env)

    @cached_property
    def refs(self) -> tuple[TaskRef, ...]:
        """Every task, whatever its split. Each seed is reset once, to see what it starts with.

        Raises:
            UsageError: the seeds do not give a task for each split.
        """
        env = self.inner()
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        digests = []
        for seed in range(self.seeds):
            observation, _ = env.reset(seed=seed)
            digests.append(content_digest([name, self.content(self.text(observation, env), env)]))
        env.close()
        try:
            splits = allotted(digests)
        except UsageError as error:
            raise UsageError(
                f"{name}: {error} in {self.seeds} seeds; where what differs does not show at the start, "
                "give content=by_seed, or more seeds="
            ) from error
        return tuple(TaskRef(f"seed/{seed}", digest, splits[digest]) for seed, digest in enumerate(digests))


def wrap(
    env: str | EnvSpec | Callable[[], Inner],
    *,
    text: Text = said,
    actions: Mapping[str, Any] | Callable[[str], Any] | None = None,
    gold: Callable[[Inner], str] | None = None,
    success: Callable[[float, bool, Mapping[str, Any]], bool] = won,
    feedback: Callable[[Mapping[str, Any]], Said] | None = None,
    content: Text = by_start,
    seeds: int = 300,
    max_turns: int = 100,
    instruction: str = "",
) -> Wrap:
    """Makes any Gymnasium environment into a text environment: the entry point to register.

    env: an id, a spec, or a function that makes one, such as `partial(gymnasium.make, "Taxi-v4", is_rainy=True)`.
    text: `(observation, env) -> str`, what the agent reads; not needed where the observation is text.
    actions: words and the actions they stand for; or a function of the agent's text that raises ValueError, saying what
        it expected, where it cannot read it; or None to hand the text on as it is.
    gold: `env -> str`, the next action of a solution, in the agent's words.
    success: `(reward, terminated, info) -> bool`, asked when an episode is over.
    feedback: `info -> text`, or texts by `Source`, which a teacher may read and the agent does not.
    content: `(first text, env) -> str`, what makes a task; equal ones share a split. `by_start` or `by_seed`, or yours.
    seeds: how many tasks there are, over all splits. max_turns: actions in an episode, unreadable ones included.
    instruction: stands before the first observation.

    Raises:
        UsageError: an instance instead of what makes one, or no words for actions that are no text.
    """
    if isinstance(env, gymnasium.Env):
        raise UsageError(
            "wrap: expected an id, a spec or a function that makes one, found an environment; give env.spec"
        )
    if min(seeds, max_turns) < 1:
        raise UsageError(f"expected seeds and max_turns of at least 1, found {seeds} and {max_turns}")
    if isinstance(actions, Mapping) and not actions:
        raise UsageError("actions: expected at least one word, found none")
    return Wrap(env, text, actions, gold, success, feedback, content, seeds, max_turns, instruction)


class TextWrapper(TextEnv):
    """One split of a wrapped environment, which is its `inner`. Made by a `Wrap`, through `gymnasium.make`."""

    def __init__(self, made: Wrap, split: Split = "train") -> None:
        self.split = checked_split(split)
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        self.inner = made.inner()
        _readable(made.actions, self.inner.action_space)
        self._made = made
        self._ref: TaskRef | None = None
        self._turn, self._over = 0, True

    def tasks(self) -> Sequence[TaskRef]:
        return [ref for ref in self._made.refs if ref.split == self.split]

    def gold(self, observation: str) -> str:
        """The next action of a solution. Raises NoGold where `wrap` was given none."""
        if self._made.gold is None:
            raise NoGold("there is no gold solution: give wrap its gold=, from the environment to its next action")
        return self._made.gold(self.inner)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        refs = self.tasks()
        ref = refs[self.pick(refs, options)]
        observation, _ = self.inner.reset(seed=int(ref.key.removeprefix("seed/")))
        self._ref, self._turn, self._over = ref, 0, False
        text = self._made.text(observation, self.inner)
        return f"{self._made.instruction}\n{text}".strip("\n"), step_info(ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._ref is None or self._over:
            raise ResetNeeded("the episode has ended, or none has begun: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        turn, self._turn = self._turn, self._turn + 1
        try:
            move = read_action(action, self._made.actions, self.inner.action_space)
        except ValueError as error:
            return self._unread(str(error), turn)
        observation, reward, terminated, truncated, info = self.inner.step(move)
        self._over = bool(terminated or truncated) or self._turn >= self._made.max_turns
        success = bool(self._made.success(float(reward), bool(terminated), info)) if self._over else None
        text = self._made.text(observation, self.inner)
        feedback = (*self._told(info, turn), *([Feedback(text, Source.TOOL_RESULT, turn, True)] if text else []))
        told = step_info(self._ref, feedback=feedback, components={"inner": float(reward)}, success=success)
        ended = bool(terminated) or bool(success)
        return text, float(success or 0), ended, self._over and not ended, told

    def close(self) -> None:
        self.inner.close()

    def _unread(self, why: str, turn: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert self._ref is not None
        self._over = self._turn >= self._made.max_turns
        seen = Feedback(why, Source.RUNTIME_ERROR, turn, True)
        info = step_info(self._ref, feedback=[seen], success=False if self._over else None, invalid=True)
        return why, 0.0, False, self._over, info

    def _told(self, info: Mapping[str, Any], turn: int) -> tuple[Feedback, ...]:
        told = self._made.feedback(info) if self._made.feedback is not None else None
        by_source = {Source.VERIFIER: told} if isinstance(told, str) else told or {}
        return tuple(Feedback(text, source, turn, False) for source, text in by_source.items() if text)


def read_action(
    text: str, actions: Mapping[str, Any] | Callable[[str], Any] | None, space: gymnasium.Space[Any]
) -> Any:
    """The action that a text stands for. A word is found in prose too, where it is the only one of them there.

    Raises:
        ValueError: none, or not one alone; the message is for the agent.
    """
    if isinstance(actions, Mapping):
        named = {" ".join(word.lower().split()): action for word, action in actions.items()}
        plain = " ".join(text.lower().split())
        if plain in named:
            return named[plain]
        there = [word for word in named if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain)]
        there = [word for word in there if not any(word != other and word in other for other in there)]
        if len(there) != 1:
            raise ValueError(f"expected one of: {', '.join(actions)}")
        return named[there[0]]
    move = actions(text) if actions is not None else text
    if not space.contains(move):
        raise ValueError(f"expected an action in {space}")
    return move


def _readable(actions: Mapping[str, Any] | Callable[[str], Any] | None, space: gymnasium.Space[Any]) -> None:
    """Raises UsageError where no text can become an action."""
    if actions is None and not isinstance(space, gymnasium.spaces.Text | TextSpace):
        raise UsageError(f"the actions are {space}: expected actions=, a dict from words to them")
    for word, action in actions.items() if isinstance(actions, Mapping) else ():
        if not space.contains(action):
            raise UsageError(f"actions: expected {word!r} to be in {space}, found {action!r}")
