"""The tasks of `retort/Code-v0`: from a key to an instruction, tests and what they expect.

Everything is a function of the key. The split hangs on the *goal*, never on its phrasing or the inputs: what is asked
in one split is asked in no other. Inputs are drawn until each natural mistake fails on at least one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from retort.envs.base import Split, TaskRef, content_digest, nearest
from retort.envs.candidate import brief, called, same, same_text
from retort.envs.code_functions import FUNCTIONS
from retort.envs.code_nested import NESTED
from retort.envs.code_programs import PROGRAMS
from retort.envs.code_sketch import Sketch
from retort.envs.draw import Draw

FAMILIES = {**FUNCTIONS, **NESTED, **PROGRAMS}  # from easy to hard
HELD_OUT = ("windowed", "queue")  # never in training
DRAWS = 200  # tasks drawn for each family, over all splits
VISIBLE, TESTS = 2, 10  # tests shown in the instruction; tests in all, at least
TRIES = 200  # inputs drawn in search of one that a mistake fails on
_DRAWING = Lock()


@dataclass(frozen=True)
class Test:
    """given: arguments, or a program's input. expected: what is returned or printed."""

    given: Any
    expected: Any


@dataclass(frozen=True)
class Task:
    """One job.

    name: of the function, or None for a program. visible, hidden: tests. wrong: sources that fail at least one test.
    """

    ref: TaskRef
    name: str | None
    instruction: str
    visible: tuple[Test, ...]
    hidden: tuple[Test, ...]
    solution: str
    wrong: tuple[str, ...]
    hint: str

    @property
    def tests(self) -> tuple[Test, ...]:
        return self.visible + self.hidden

    def where(self, test: Test) -> str:
        """A test's input in words."""
        return called(self.name, test.given) if self.name else f"for the input\n{test.given.rstrip()}\n"

    def right(self, test: Test, found: Any) -> bool:
        """Whether what was found is what the test expects."""
        return same(test.expected, found) if self.name else same_text(test.expected, found)

    def verdict(self, test: Test, found: Any) -> str:
        """Expected and found, in words."""
        expected, got = brief(test.expected), brief(found)
        if self.name:
            return f"{brief(self.where(test))}: expected {expected}, found {got}"
        return f"{brief(self.where(test))}expected\n{expected.rstrip()}\nfound\n{got.rstrip() or 'nothing'}"


def answers(source: str, name: str | None) -> Callable[[Any], Any]:
    """What our own `source` makes of an input. Programs among it read with `input` and write with `print` alone."""
    code = compile(source, "<task>", "exec")

    def call(given: Any) -> Any:
        space: dict[Any, Any] = {}
        exec(code, space)
        return space[name](*copy.deepcopy(given))

    def play(given: Any) -> str:
        printed: list[str] = []
        lines: Iterator[str] = iter(given.split("\n"))
        exec(code, {"input": lambda: next(lines), "print": lambda *words: printed.append(" ".join(map(str, words)))})
        return "".join(f"{line}\n" for line in printed)

    return call if name else play


def _fails(answer: Callable[[Any], Any], test: Test, name: str | None) -> bool:
    try:
        found = answer(test.given)
    except Exception:  # a slip that raises has failed, whatever it raises
        return True
    return not (same if name else same_text)(test.expected, found)


def _tests(key: str, sketch: Sketch, name: str | None, wrong: Sequence[str]) -> tuple[Test, ...]:
    """The tests of a task, the visible ones first."""
    answer, found = answers(sketch.solution, name), dict[str, Test]()
    inputs = (sketch.case(Draw(f"{key}/{number}")) for number in range(TRIES))
    drawn = (Test(given, answer(given)) for given in inputs)

    def take(test: Test) -> None:
        found.setdefault(repr(test.given), test)

    while len(found) < VISIBLE:
        take(next(drawn))
    for given in sketch.edges:
        take(Test(given, answer(given)))
    for source in wrong:
        slip = answers(source, name)
        if not any(_fails(slip, test, name) for test in found.values()):
            take(next(test for test in drawn if _fails(slip, test, name)))
    while len(found) < TESTS:
        take(next(drawn))
    return tuple(found.values())


def split_of(family: str, goal: tuple[str, ...]) -> Split:
    """70% train, 10% validation, 20% test by a hash of the goal; of a held-out family a third is validation."""
    share = int(content_digest(["Code-v0", family, goal]), 16) / 16**16
    if family in HELD_OUT:
        return "validation" if share < 1 / 3 else "test"
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


def _sketch(family: str, index: int) -> tuple[Sketch, TaskRef, str]:
    """A task without its tests: what it asks for, its reference and its first sentence."""
    key = f"{family}/{index:04d}"
    sketch, kind = FAMILIES[family].draw(Draw(key)), FAMILIES[family]
    subject = f"a function {kind.call}" if kind.call else "a program"
    phrase = kind.phrasings[index % len(kind.phrasings)].format(*sketch.goal)
    sentence = f"Write {subject} that {phrase}."
    shown = [sketch.case(Draw(f"{key}/{number}")) for number in range(VISIBLE)]
    content = [sentence, sketch.solution, sketch.slips, sketch.edges, shown]
    return sketch, TaskRef(key, content_digest(content), split_of(family, sketch.goal), family), sentence


@lru_cache(4096)
def task_at(family: str, index: int) -> Task:
    """Task number `index` of a family."""
    sketch, ref, sentence = _sketch(family, index)
    name = FAMILIES[family].call.partition("(")[0] or None
    wrong = tuple(sketch.solution.replace(text, instead) for text, instead in sketch.slips)
    tests = _tests(ref.key, sketch, name, wrong)
    visible, hidden = tests[:VISIBLE], tests[VISIBLE:]
    examples = [
        f"{called(name, test.given)} returns {test.expected!r}"
        if name
        else f"input:\n{test.given.rstrip()}\noutput:\n{test.expected.rstrip() or '(nothing)'}"
        for test in visible
    ]
    instruction = "\n".join([sentence, *examples])
    return Task(ref, name, instruction, visible, hidden, sketch.solution, wrong, sketch.hint)


def family_refs(family: str) -> Mapping[str, TaskRef]:
    """Every task of a family by key, whatever its split. One that was drawn before is left out."""
    with _DRAWING:  # else every thread of a first batch would draw them all
        return _family_refs(family)


@cache
def _family_refs(family: str) -> Mapping[str, TaskRef]:
    found: dict[str, TaskRef] = {}
    for index in range(DRAWS):
        ref = _sketch(family, index)[1]
        found.setdefault(ref.digest, ref)
    return {ref.key: ref for ref in found.values()}


def task_refs(families: Sequence[str], split: Split) -> dict[str, TaskRef]:
    """The tasks of a split by key, family by family."""
    return {key: ref for family in families for key, ref in family_refs(family).items() if ref.split == split}


def task(key: str) -> Task:
    """The task with this key, as `TaskRef.key` has it.

    Raises:
        KeyError: no such task.
    """
    family, _, index = key.partition("/")
    if family not in FAMILIES:
        raise KeyError(f"unknown task family {family!r}; {nearest(family, FAMILIES)}")
    if key not in family_refs(family):
        raise KeyError(f"unknown task {key!r}; {nearest(key, family_refs(family))}")
    return task_at(family, int(index))
