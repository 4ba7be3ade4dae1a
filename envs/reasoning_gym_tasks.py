"""The questions of `retort/ReasoningGym-v0`: drawn from a generator of the package, shared out between the splits.

Each split draws from seeds of its own, and keeps a question only if the hash of its text gives it to that split: with a
generator that knows a few questions alone, two seeds give the same one, and it still is in one split.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from retort.envs.base import (
    SPLITS,
    Feedback,
    Source,
    Split,
    TaskRef,
    UsageError,
    checked_split,
    content_digest,
    nearest,
    needed,
)
from retort.envs.checks_secrets import stands_in

INSTALL = "pip install reasoning-gym"
REFUSED = {
    "boxnet": "the package gives no solution of it, so that nobody can show that a task can be solved",
    "composite": "it mixes other generators: make an environment for each",
    "game_of_life_halting": "its verifier takes any text for the right answer",
    "rush_hour": "the package gives no solution of it, so that nobody can show that a task can be solved",
}
# Where `answer` is empty because many are right, one of them stands under this name in the metadata.
IN_METADATA = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
# The package draws these from sets of texts, whose order is another in each process.
HASHED = ("isomorphic_strings", "list_functions", "polynomial_multiplication", "ransom_note", "word_ladder")
CHUNK = 50  # questions from one data set of the package; a few generators draw all of theirs at once
SEEDS = 100_000_000  # a split's share
OWNERS: tuple[Split, ...] = ("train", "train", "validation", "test")
# The package draws some questions from numpy's global generator: nobody else may draw meanwhile.
_DRAWING = RLock()


@dataclass(frozen=True)
class Question:
    """ref: its name. entry: what the package made, and its verifier wants back. answer: one that scores 1."""

    ref: TaskRef
    entry: Mapping[str, Any]
    answer: str

    @property
    def text(self) -> str:
        return str(self.entry["question"])

    @cached_property
    def lessons(self) -> tuple[Feedback, ...]:
        """The answer, for a teacher; nothing where the question shows it, as it does a matrix turned by 360 degrees."""
        known = stands_in(self.text, self.answer)
        return () if known else (Feedback(self.answer, Source.ANSWER, 0, visible=False),)


class Score(NamedTuple):
    """worth: from 0 to 1. trouble: why the verifier gave no opinion, where it gave none. readable: whether it could."""

    worth: float
    trouble: str = ""
    readable: bool = True


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Alone with the global generators, which are afterwards as they were before."""
    with _DRAWING:
        python, numbers = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def checked_generator(name: str) -> str:
    """The generator of that name. Raises UsageError: unknown, with the nearest one, or refused, with the reason."""
    known = needed("reasoning_gym.factory", INSTALL).DATASETS
    if name in REFUSED:
        raise UsageError(f"generator {name!r} is not offered: {REFUSED[name]}")
    if name not in known:
        raise UsageError(f"unknown generator {name!r}; {nearest(str(name), sorted(set(known) - set(REFUSED)))}")
    return name


def dataset(generator: str, config: str, seed: int = 0) -> Any:
    """The package's data set of CHUNK questions. config: its own options, as JSON.

    Raises:
        UsageError: options that the generator does not take, with the nearest one.
    """
    factory = needed("reasoning_gym.factory", INSTALL)
    options = json.loads(config)
    fields = [field.name for field in dataclasses.fields(factory.DATASETS[generator][1])]
    for name in options:
        if name in ("seed", "size") or name not in fields:
            valid = [field for field in fields if field not in ("seed", "size")]
            raise UsageError(f"config: {generator} takes no {name!r} here; {nearest(name, valid)}")
    try:
        return factory.create_dataset(generator, **options, seed=seed, size=CHUNK)
    except (AssertionError, TypeError, ValueError) as error:
        raise UsageError(f"config: {generator} refuses {options}: {error}") from error


def questions(generator: str, config: str, split: Split, size: int) -> tuple[Question, ...]:
    """At most `size` different questions of a split, in a fixed order; a longer list begins with a shorter one.

    Raises:
        UsageError: the generator knows none.
    """
    with untouched_generators():
        found = (_drawn_apart if generator in HASHED else _drawn)(generator, config, split, size)
    if not found:
        raise UsageError(f"{generator} with {config} has no question for the split {split!r}; let it make harder ones")
    return found


@cache
def _drawn_apart(generator: str, config: str, split: Split, size: int) -> tuple[Question, ...]:
    """`_drawn` in a process in which texts have the same hashes as in any other."""
    dataset(generator, config)  # refuses here what it does not take
    command = [sys.executable, "-c", "from retort.envs.reasoning_gym_tasks import write; write()"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    asked = [generator, config, split, str(size)]
    done = subprocess.run([*command, *asked], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return tuple(Question(TaskRef(*ref), entry, answer) for ref, entry, answer in told)


def write() -> None:
    """Prints the questions that the command line asks for, as JSON."""
    generator, config, split, size = sys.argv[1:]
    drawn = _drawn(generator, config, checked_split(split), int(size))
    print(json.dumps([[dataclasses.astuple(question.ref), question.entry, question.answer] for question in drawn]))


@cache
def _drawn(generator: str, config: str, split: Split, size: int) -> tuple[Question, ...]:
    found: dict[str, Question] = {}
    for number in range(200 + 20 * size):
        if number % CHUNK == 0:
            made = dataset(generator, config, SPLITS.index(split) * SEEDS + number)
        entry = made[number % CHUNK]
        text = str(entry["question"])
        if text in found or owner(text) != split:
            continue
        answer = _reference(generator, entry)
        if score(generator, made, entry, answer).worth < 1:
            continue  # such as an integral that the package itself cannot solve
        ref = TaskRef(f"{generator}/{split}/{number:06d}", content_digest([text, answer]), split, generator)
        found[text] = Question(ref, entry, answer)
        if len(found) == size:
            break
    return tuple(found.values())


def owner(text: str) -> Split:
    """The split that a question belongs to: half of them to training, a quarter to each of the others."""
    return OWNERS[int(content_digest(text)[:8], 16) % len(OWNERS)]


def _reference(generator: str, entry: Mapping[str, Any]) -> str:
    given = entry["answer"] if generator not in IN_METADATA else entry["metadata"][IN_METADATA[generator]]
    return given if isinstance(given, str) else json.dumps(given)


def score(generator: str, verifier: Any, entry: Mapping[str, Any], answer: str) -> Score:
    """What the package's verifier says of an answer, if it may see it at all."""
    if generator in WORDS and not WORDS[generator](answer):
        return Score(0.0, "which is no answer of the kind", readable=False)
    if generator in GUARDS and not may_be_evaluated(generator, answer):
        return Score(0.0, "which is no formula", readable=False)
    try:
        worth = float(verifier.score_answer(answer=answer, entry=entry))
    except Exception as error:  # the verifier stumbled over what was written: over a right answer it does not
        return Score(0.0, f"which cannot be read: {type(error).__name__}", readable=False)
    return Score(worth if 0.0 <= worth <= 1.0 else min(max(worth, 0.0), 1.0))


def may_be_evaluated(generator: str, answer: str) -> bool:
    """Whether an answer may reach a verifier that evaluates it as Python: only if it cannot do anything but count."""
    guard = GUARDS.get(generator)
    if guard is None or is_plain(generator, answer):
        return True
    try:
        return guard(ast.parse(answer.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return generator in LISTS  # no expression: eval refuses it as well
    except (RecursionError, MemoryError):  # too deep to be looked at
        return False


def is_plain(generator: str, answer: str) -> bool:
    """Whether an answer is of the usual kind: short, and of nothing that could do anything else."""
    return generator in PLAIN and len(answer) <= 200 and PLAIN[generator](answer) is not None


def _literal(tree: ast.expr) -> bool:
    """Numbers, texts, bare words and lists of them."""
    kinds = (ast.Constant, ast.Name, ast.List, ast.Tuple, ast.UnaryOp, ast.USub, ast.Load)
    return all(isinstance(node, kinds) for node in ast.walk(tree))


def _sum(tree: ast.expr) -> bool:
    """Numbers, the four operations and signs."""
    kinds = (ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.UAdd)
    return all(isinstance(node, kinds) or _is_number(node) for node in ast.walk(tree))


def _formula(tree: ast.expr) -> bool:
    """Numbers, plain names, the usual functions, and powers that stay small."""
    kinds = (ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd, ast.Load)
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
                return False
        elif isinstance(node, ast.Name):
            if "_" in node.id or len(node.id) > 8:
                return False
        elif not isinstance(node, kinds) and not _is_number(node):
            return False
    return len(nodes) <= 400 and _power(tree) <= 1000


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _power(node: ast.AST) -> float:
    """How high the powers in a formula reach, at most: exponents multiply where powers are nested."""
    if not isinstance(node, ast.BinOp):
        return max((_power(child) for child in ast.iter_child_nodes(node)), default=1.0)
    if not isinstance(node.op, ast.Pow):
        return max(_power(node.left), _power(node.right))
    inside = list(ast.walk(node.right))
    if any(isinstance(child, ast.Pow) for child in inside):
        return math.inf
    sizes = [abs(ast.literal_eval(child)) for child in inside if isinstance(child, ast.Constant)]
    reach: float = math.prod(max(size, 1 / size) for size in sizes if size)
    return _power(node.left) * max(1.0, reach)


LISTS = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
# To look at these takes microseconds, where to parse them takes as long as some verifiers do.
SUMS = re.compile(r"(?:[\s\d()+-]|/(?!/)|\*(?!\*))*")
POLYNOMIALS = re.compile(
    r"(?:[\s+-]|/(?!/)|\*(?!\*)|\b\d{1,12}(?!\w)|(?<!\w)[a-zA-Z](?!\w)|(?<=\w)\*\*\d{1,2}(?!\w)(?!\s*\*\*))*"
)
PLAIN: dict[str, Callable[[str], re.Match[str] | None]] = {
    **dict.fromkeys(LISTS, re.compile(r"[\s\d,\[\]]*").fullmatch),
    **dict.fromkeys(("countdown", "puzzle24"), SUMS.fullmatch),
    **dict.fromkeys(
        ("intermediate_integration", "polynomial_multiplication", "simple_integration"), POLYNOMIALS.fullmatch
    ),
}
# These verifiers give a little for texts that only happen to hold, or to be, something right ("done" has "on" in it).
WORDS: dict[str, Callable[[str], re.Match[str] | None]] = {
    "acre": re.compile(r"\b(?:on|off|undetermined)\b").search,
    "propositional_logic": re.compile(r"[A-Z∨∧→↔¬()\s]+").fullmatch,
}
FUNCTIONS = re.findall(r"\w+", "exp log ln sqrt sin cos tan sec csc cot asin acos atan sinh cosh tanh Abs")
GUARDS: dict[str, Callable[[ast.expr], bool]] = {
    **dict.fromkeys(LISTS, _literal),
    **dict.fromkeys(("countdown", "puzzle24"), _sum),
    **dict.fromkeys(("intermediate_integration", "polynomial_multiplication", "simple_integration"), _formula),
}
