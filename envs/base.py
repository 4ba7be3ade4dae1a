"""The environment contract: text in, text out, and typed feedback beside the reward.

A `TextEnv` is a `gymnasium.Env[str, str]`. What it adds to Gymnasium is in `info`, under fixed keys:

    feedback           tuple[Feedback, ...]   what this step taught, each with its source
    reward_components  dict[str, float]       what the reward is made of
    success            bool | None            None until the episode has an outcome
    failure            Failure | None         whose fault it was, where it failed
    task               TaskRef                stable key, content digest, split
    tools              list[dict]             JSON schemas of tools, on reset (empty where there are none)
    invalid            bool                   the last action could not be read as one, such as a call that is no JSON;
                                              evaluations count them (optional: what is not in `action_space` always is)

Raising from `step` or `reset` means that the infrastructure broke: the episode leaves the batch and is counted, and
is never scored 0. What the policy did wrong is an ordinary step with a low reward.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shlex
import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium
import numpy as np

if TYPE_CHECKING:
    from retort.envs.harbor_format import HarborTask

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class UsageError(ValueError):
    """Something that the user can mend; the message says what was expected, what was found and the nearest choice."""


class NoGold(UsageError):
    """An environment knows no solution of its tasks; the message says how to give it one."""


class MissingPackage(UsageError, ImportError):
    """An environment's package is not installed; the message has the command that installs it."""


def needed(module: str, install: str) -> ModuleType:
    """Imports what an environment is built on. install: the exact command that adds it, "pip install NAME".

    Raises:
        MissingPackage: it is not installed; the message has the command with the pip of this interpreter.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error.name or module, install) from error


def missing(module: str, install: str) -> MissingPackage:
    """The error of a package that is not installed, with the command for the pip of this interpreter."""
    return MissingPackage(f"the package of {module!r} is not installed: {own_pip(install)}")


def own_pip(command: str) -> str:
    """A command as it is typed in a shell, each "pip" in it that of this interpreter."""
    return command.replace("pip install", f"{shlex.quote(sys.executable)} -m pip install")


class Source(StrEnum):
    """Where a piece of feedback comes from."""

    RUNTIME_ERROR = "runtime_error"
    TEST_FAILURE = "test_failure"
    TOOL_RESULT = "tool_result"
    TERMINAL_STATE = "terminal_state"
    VERIFIER = "verifier"
    JUDGE = "judge"
    USER_REPLY = "user_reply"
    HINT = "hint"
    ANSWER = "answer"
    SOLUTION = "solution"


@dataclass(frozen=True)
class Feedback:
    """One piece of text about one action.

    turn: the 0-based action that caused it.
    visible: whether the student read the same text in its observation. What is not visible may reach a teacher and
        never the student.
    """

    text: str
    source: Source
    turn: int
    visible: bool


class Failure(StrEnum):
    """Whose fault an episode without success is."""

    POLICY = "policy"
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True)
class TaskRef:
    """Names a task for ever: `key` is stable and readable, `digest` changes when its content does."""

    key: str
    digest: str
    split: Split
    family: str = ""


def step_info(
    task: TaskRef,
    *,
    feedback: Iterable[Feedback] = (),
    components: Mapping[str, float] | None = None,
    success: bool | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    invalid: bool = False,
) -> dict[str, Any]:
    """`info` with every key of the contract. success: None while the episode goes on; False is the policy's failure.
    invalid: the action could not be read as one."""
    return {
        "feedback": tuple(feedback),
        "reward_components": dict(components or {}),
        "success": success,
        "failure": Failure.POLICY if success is False else None,
        "task": task,
        "tools": list(tools),
        "invalid": invalid,
    }


def checked_split(split: str) -> Split:
    """The split of that name. Raises UsageError, with the nearest one."""
    for known in SPLITS:
        if split == known:
            return known
    raise UsageError(f"unknown split {split!r}; {nearest(str(split), SPLITS)}")


def checked_families(
    split: Split, asked: Sequence[str] | None, known: Iterable[str], held_out: Sequence[str]
) -> tuple[str, ...]:
    """The families that were asked for, in the order of `known`; None is all that the split has.

    Raises:
        UsageError: an unknown family, with the nearest one; one that training does not have; none at all.
    """
    offered = [name for name in known if split != "train" or name not in held_out]
    if asked is None:
        return tuple(offered)
    if isinstance(asked, str):
        raise UsageError(f"families: expected a tuple of names, found the text {asked!r}; write ({asked!r},)")
    for name in asked:
        if name in held_out and split == "train":
            raise UsageError(f"family {name!r} is held out of training; it is in validation and test")
        if name not in offered:
            raise UsageError(f"unknown family {name!r}; {nearest(str(name), offered)}")
    if not asked:
        raise UsageError(f"families: expected at least one name; valid: {', '.join(offered)}")
    return tuple(name for name in offered if name in asked)


def content_digest(content: Any) -> str:
    """A short stable hash of JSON-like content: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def allotted(digests: Iterable[str]) -> dict[str, Split]:
    """A split for each digest: 70% train, 10% validation, 20% test by the digest itself, and at least one in each.

    What joins later leaves the others where they are, except in the smallest collections.

    Raises:
        UsageError: fewer than three different digests.
    """
    ordered = sorted(set(digests))
    if len(ordered) < len(SPLITS):
        raise UsageError(f"expected at least {len(SPLITS)} different tasks, one a split, found {len(ordered)}")
    shares = [int(digest, 16) / 16 ** len(digest) for digest in ordered]
    train = min(max(sum(share < 0.7 for share in shares), 1), len(ordered) - 2)
    seen = min(max(sum(share < 0.8 for share in shares), train + 1), len(ordered) - 1)
    return {digest: SPLITS[(place >= train) + (place >= seen)] for place, digest in enumerate(ordered)}


class TextSpace(gymnasium.Space[str]):
    """Any text of at most `max_length` characters. `gymnasium.spaces.Text` refuses newlines and accents."""

    def __init__(self, max_length: int = 1_000_000, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"max_length: expected at least 1 character, found {max_length}")
        self.max_length = max_length
        super().__init__(shape=None, dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """A short random line of printable ASCII, from the space's own generator."""
        del mask, probability
        length = int(self.np_random.integers(1, min(self.max_length, 16) + 1))
        return "".join(chr(int(code)) for code in self.np_random.integers(32, 127, size=length))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        return list(sample_n)

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        return [str(sample) for sample in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace) and other.max_length == self.max_length

    def __hash__(self) -> int:
        return hash((TextSpace, self.max_length))

    def __repr__(self) -> str:
        return f"TextSpace(max_length={self.max_length})"


class TextEnv(gymnasium.Env[str, str]):
    """An environment that an agent meets as text.

    A subclass implements `tasks`, `reset`, `step` and `gold`. `reset(options={"task": key})` picks a task; without it
    the environment's own generator (seeded by `reset(seed=...)`) draws one of `tasks()`.

    held_out: families that the train split never has; reports keep them apart.
    needs: arguments that it cannot be made without, although they have a default, and what each is.
    packages, programs: the optional packages that it imports, and what it runs in its sandbox, each with the command
        that installs it; counts: tasks of each split, made without arguments. With `counts` it is listed without being
        made: what is missing is then found from these alone, and from whether its default sandbox starts.
    blocking: whether `reset` and `step` wait for something outside of this process, such as a sandbox. Where they do
        not, say False, and a runner of many episodes saves the thread that it would wait in.
    verifier_version: raise it when grading changes, so that old rewards are not mixed with new ones.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it per instance)
    observation_space: gymnasium.Space[str]
    action_space: gymnasium.Space[str]
    blocking: ClassVar[bool] = True
    verifier_version: ClassVar[str] = "1"
    held_out: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Mapping[str, str]] = {}
    packages: ClassVar[Mapping[str, str]] = {}
    programs: ClassVar[Mapping[str, str]] = {}
    counts: ClassVar[Mapping[Split, int]] = {}

    @abstractmethod
    def tasks(self) -> Sequence[TaskRef]:
        """Every task of this environment's split, in a fixed order."""

    @abstractmethod
    def gold(self, observation: str) -> str:
        """The next action of a solution that scores 1, given the state the environment is in. Raises NoGold where none
        is known: then nothing shows that the tasks can be solved."""

    def near_misses(self) -> Sequence[Sequence[str]]:
        """Plausible wrong plans for the current task, each a list of actions that does not score 1. May be empty."""
        return ()

    def follow(self, plan: Sequence[str], turn: int, observation: str) -> str:
        """The action that a plan of `near_misses()` takes at the 0-based `turn`, after reading `observation`.

        An environment whose plans hold placeholders fills them in here, so that any script can play any plan.
        """
        del observation
        return plan[turn]

    def export(self, key: str) -> HarborTask | None:
        """The task of that key in Harbor's format, for other harnesses; None where it cannot be said in it."""
        del key
        return None

    def backend(self) -> str:
        """What the actions run in, for provenance: the sandbox backend's name, or "none"."""
        return "none"

    def pick(self, refs: Sequence[TaskRef], options: dict[str, Any] | None) -> int:
        """The index in `refs` of the task that `options` asks for, or of one drawn from the own generator.

        Raises:
            KeyError: an unknown task key, with the nearest valid ones.
            ValueError: an unknown option, or no tasks.
        """
        if unknown := sorted(set(options or {}) - {"task"}):
            raise ValueError(f"reset options: expected only 'task', found {unknown}")
        if not refs:
            raise ValueError("this environment has no tasks in its split")
        key = (options or {}).get("task")
        if key is None:
            return int(self.np_random.integers(len(refs)))
        for index, ref in enumerate(refs):
            if ref.key == key:
                return index
        raise KeyError(f"unknown task {key!r}; {nearest(str(key), [ref.key for ref in refs])}")


def nearest(word: str, valid: Iterable[str]) -> str:
    """Half a sentence that names the valid choice closest to `word`, for error messages."""
    import difflib

    choices = list(valid)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.4)
    shown = ", ".join(choices[:20]) + (", ..." if len(choices) > 20 else "")
    return f"did you mean {close[0]!r}? valid: {shown}" if close else f"valid: {shown}"
