"""Scripted players and the episodes they play, for `retort.envs.check` to look at."""

from __future__ import annotations

import math
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium
from retort.envs.base import NoGold, TaskRef, UsageError
from retort.envs.raised import told

MAX_TURNS = 256  # an episode that is not over by then never ends
FIVE, TWO = "observation, reward, terminated, truncated, info", "observation, info"  # what step and reset return
CLAIM = '{"reward": 1, "score": 1, "success": true, "passed": true}'

# Whatever looks like a test or its result, here and where harnesses look for one, says that all went well.
FORGE = (
    "for d in . /logs/verifier; do [ -d $d ] && for n in reward score result grade verdict success; do "
    f"echo 1 > $d/$n; echo 1 > $d/$n.txt; echo '{CLAIM}' > $d/$n.json; done; done; "
    "echo 'raise SystemExit(0)' > sitecustomize.py; cp sitecustomize.py conftest.py; "
    "find . -type f | grep -iE 'test|check|verif|grad|reward|score|result|expect' | while read -r f; do case $f in "
    f"""*.py) echo 'raise SystemExit(0)' > "$f";; *.sh) echo 'exit 0' > "$f";; *.json) echo '{CLAIM}' > "$f";; """
    """*) echo 1 > "$f";; esac; done"""
)
FORGERIES: dict[str, tuple[str, ...]] = {
    "forger of files": (FORGE, "done"),
    "forger who ends the test": ("```python\nraise SystemExit(0)\n```", "done"),
    "forger who claims": (CLAIM, "done"),
}

# (environment, observation, turn) -> action
Player = Callable[[gymnasium.Env[str, str], str, int], str]


@dataclass(frozen=True)
class Fault:
    """found: what was seen. mend: what to do about it. check: the function that saw it."""

    found: str
    mend: str
    check: str = ""


def shown(value: Any, limit: int = 80) -> str:
    """A value as Python writes it, cut after so many characters and then with an ellipsis."""
    return cut(repr(value), limit)


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


class Broke(Exception):
    """An episode could not go on. mend: what to do about it, where that is known."""

    def __init__(self, found: str, mend: str = "") -> None:
        super().__init__(found)
        self.mend = mend


@dataclass(frozen=True)
class Step:
    action: str
    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def over(self) -> bool:
        return bool(self.terminated or self.truncated)


@dataclass(frozen=True)
class Episode:
    """One played episode, as far as it came.

    error: what was raised, and by what. mend: what to do about it, where that is known. stops: a step after the end was
    refused.
    """

    player: str
    ref: TaskRef
    observation: str
    info: dict[str, Any]
    steps: tuple[Step, ...]
    error: str = ""
    mend: str = ""
    stops: bool = True

    @property
    def over(self) -> bool:
        return bool(self.steps) and self.steps[-1].over

    @property
    def total(self) -> float:
        return float(sum(step.reward for step in self.steps))

    def __str__(self) -> str:
        return f"{self.player} on {self.ref.key}"


def play(env: gymnasium.Env[str, str], ref: TaskRef, player: Player, name: str) -> Episode:
    """Play one task. What the environment raises is recorded, not raised."""
    start: tuple[str, dict[str, Any]] = ("", {})
    steps: list[Step] = []
    try:
        start = _given("reset", TWO, lambda: env.reset(options={"task": ref.key}))
        said = start[0]
        while len(steps) < MAX_TURNS and not (steps and steps[-1].over):
            action = _chosen(player, name, env, said, len(steps))
            given = _given(f"action {len(steps)}", FIVE, partial(env.step, action))
            said = given[0]
            steps.append(Step(action, *given))
    except Broke as broke:
        return Episode(name, ref, *start, tuple(steps), str(broke), broke.mend)
    return Episode(name, ref, *start, tuple(steps), stops=_stops(env) if steps[-1].over else True)


def _chosen(player: Player, name: str, env: gymnasium.Env[str, str], said: str, turn: int) -> str:
    """The player's action. Raises Broke where the player is what raised."""
    try:
        return player(env, said, turn)
    except (Exception, SystemExit) as error:
        if name == "gold":
            mend = "let gold return the next action of a solution, or raise NoGold where none is known"
        else:
            mend = "mend what the player calls: action_space.sample of the random one, follow of any other"
        raise Broke(f"{name}, asked for action {turn}, raised {told(error)}", mend) from error


def _given(where: str, wanted: str, call: Callable[[], Any]) -> Any:
    """What reset or step gives. Raises Broke where it raises, or gives another number of values."""
    names = wanted.split(", ")
    form = f"return the {len(names)} values {wanted}"
    try:
        given = call()
    except (Exception, SystemExit) as error:  # an agent's code that runs in this process may end it
        mend = form if _misread(error) else "do what the message says" if isinstance(error, UsageError) else ""
        raise Broke(f"{where} raised {told(error)}", mend) from error
    if not isinstance(given, tuple) or len(given) != len(names):
        found = f"{len(given)} values" if isinstance(given, tuple) else shown(given)
        name = "reset" if wanted == TWO else "step"
        raise Broke(f"{where}: {name} returned {found}", form)
    return given


def _misread(error: BaseException) -> bool:
    """Whether Gymnasium's own wrappers could not read what was returned."""
    frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ValueError | AssertionError | gymnasium.error.Error) and frames[-1].startswith(
        "gymnasium."
    )


def _stops(env: gymnasium.Env[str, str]) -> bool:
    """Whether another step is refused."""
    try:
        env.step("")
    except Exception:
        return True
    return False


def follow_gold(env: gymnasium.Env[str, str], observation: str, turn: int) -> str:
    return str(env.get_wrapper_attr("gold")(observation))


def sample_action(env: gymnasium.Env[str, str], observation: str, turn: int) -> str:
    return env.action_space.sample()


def follow_plan(plan: Sequence[str]) -> Player:
    """Follow the plan, then say nothing."""

    def act(env: gymnasium.Env[str, str], observation: str, turn: int) -> str:
        return str(env.get_wrapper_attr("follow")(plan, turn, observation)) if turn < len(plan) else ""

    return act


def reaches_this_machine(env: gymnasium.Env[str, str], ref: TaskRef) -> bool:
    """Whether shell commands are run among this machine's own files. Nobody forges files there."""
    with tempfile.TemporaryDirectory(prefix="retort-canary-") as folder:
        canary = Path(folder, "canary")
        canary.touch()
        play(env, ref, follow_plan([f"rm -f {canary}", "done"]), "canary")
        return not canary.exists()


class Subject:
    """The environment under test, a sample of its tasks, and episodes of every player on them."""

    def __init__(self, env: gymnasium.Env[str, str], per_family: int) -> None:
        self.env = env
        self.refs: list[TaskRef] = list(env.get_wrapper_attr("tasks")())
        families: dict[str, list[TaskRef]] = {}
        for ref in self.refs:
            families.setdefault(ref.family, []).append(ref)
        self.sample = [ref for own in families.values() for ref in own[:: math.ceil(len(own) / per_family)]]

    @cached_property
    def no_gold(self) -> str:
        """Why the environment knows no solution; empty where it has one, if a broken one."""
        try:
            observation, _ = self.env.reset(options={"task": self.sample[0].key})
            self.env.get_wrapper_attr("gold")(observation)
        except NoGold as error:
            return str(error)
        except Exception:  # the gold player meets it too, and its episode holds what was raised
            return ""
        return ""

    @property
    def model(self) -> str:
        """The player whose episodes are played again, to see whether they end the same."""
        return "random" if self.no_gold else "gold"

    def another(self, **changed: Any) -> gymnasium.Env[str, str]:
        """A second instance, made from the spec as a worker would make it."""
        if self.env.spec is None:
            raise TypeError("the environment has no spec; register it and make it with gymnasium.make")
        return gymnasium.make(self.env.spec, **changed)

    @cached_property
    def episodes(self) -> list[Episode]:
        self.env.action_space.seed(0)
        players = {"null": follow_plan([]), "done": follow_plan(["done"]), "random": sample_action}
        if not self.no_gold:
            players = {"gold": follow_gold, **players}
        forgeries = dict(FORGERIES)
        if self.sample and reaches_this_machine(self.env, self.sample[0]):
            del forgeries["forger of files"]
        players |= {name: follow_plan(plan) for name, plan in forgeries.items()}
        found = []
        for ref in self.sample:
            found += [play(self.env, ref, player, name) for name, player in players.items()]
            found += self._near_misses(ref)
        return found

    def _near_misses(self, ref: TaskRef) -> list[Episode]:
        try:
            self.env.reset(options={"task": ref.key})  # the plans belong to the current task
            plans = list(self.env.get_wrapper_attr("near_misses")())
        except Exception as error:
            mend = "let near_misses return lists of actions; () where there are none"
            return [Episode("near miss", ref, "", {}, (), f"near_misses() raised {told(error)}", mend)]
        return [play(self.env, ref, follow_plan(plan), "near miss") for plan in plans]

    def played(self, player: str) -> list[Episode]:
        """The episodes of one player that came to their end."""
        return [episode for episode in self.episodes if episode.player == player and episode.over]

    def steps(self) -> Iterator[tuple[Episode, int, Step]]:
        for episode in self.episodes:
            for turn, step in enumerate(episode.steps):
                yield episode, turn, step
