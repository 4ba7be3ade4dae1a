"""The conversations of `retort/BFCL-v0`, its simulated services and its checker, all from the package `bfcl-eval`.

The package keeps services in a global table and runs calls as Python text. Here each conversation has services of its
own, looked up by the name of a public method and called with literal arguments; the checker gets those calls written
out again from what was read, never an agent's text.
"""

from __future__ import annotations

import ast
import copy
import decimal
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import getmembers, isfunction, signature
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any

from retort.envs.base import TaskRef, content_digest, nearest, needed
from retort.envs.calls import Call

INSTALL = "pip install mpmath && pip install --no-deps bfcl-eval==2026.3.23"
FAMILIES = ("base", "miss_func", "miss_param", "long_context")
ENDING = "done"  # an action without a call
FAILS = "no_such_function()"  # how the checker reads a call that was not made: an error, and nothing done
LARGEST = 1000
WORK = 100_000  # Python calls that an answer may take; the longest of the gold ones takes under a hundredth
# Arguments of mathematics that take for ever, or all memory, above LARGEST.
COSTLY = {"power": "exponent", "logarithm": "precision", "square_root": "precision", "round_number": "decimal_places"}
# The services take microseconds, but the precision of numbers and a table of theirs are global.
_ONE_AT_A_TIME = Lock()
_NUMBERS = itertools.count()

Turns = Sequence[Sequence[Sequence[str]]]  # user's turns, an agent's actions in it, the calls in an action


@dataclass(frozen=True)
class Entry:
    """One conversation. data: as the package has it. gold: the calls of each user's turn."""

    ref: TaskRef
    data: Mapping[str, Any]
    gold: tuple[tuple[str, ...], ...]

    @property
    def long(self) -> bool:
        return self.ref.family == "long_context"

    @property
    def plan(self) -> tuple[str, ...]:
        return plan_of([[calls] if calls else [] for calls in self.gold])


def plan_of(turns: Turns) -> tuple[str, ...]:
    """The actions that make these calls."""
    return tuple(action for turn in turns for action in (*(f"[{', '.join(calls)}]" for calls in turn), ENDING))


@cache
def package(module: str) -> Any:
    """A module of `bfcl_eval`. Raises MissingPackage where it is not installed."""
    return needed(f"bfcl_eval.{module}", INSTALL)


@cache
def entries(family: str) -> Mapping[str, Entry]:
    """The conversations of a category by key."""
    data, answers = (_rows(f"{place}BFCL_v4_multi_turn_{family}.json") for place in ("", "possible_answer/"))
    found = {}
    for number, (entry, known) in enumerate(zip(data, answers, strict=True)):
        gold = tuple(map(tuple, known["ground_truth"]))
        ref = TaskRef(f"{family}/{number:03d}", content_digest([entry, gold]), "test", family)
        found[ref.key] = Entry(ref, entry, gold)
    return found


def _rows(name: str) -> list[dict[str, Any]]:
    path = Path(next(iter(needed("bfcl_eval", INSTALL).__path__))) / "data" / name
    return [json.loads(line) for line in path.read_text().splitlines()]


@cache
def _documents(service: str) -> tuple[dict[str, Any], ...]:
    files = package("constants.executable_backend_config").MULTI_TURN_FUNC_DOC_FILE_MAPPING
    return tuple(_rows(f"multi_turn_func_doc/{files[service]}"))


def functions(entry: Entry) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """What is offered from the start, and what later, by the user's turn, as the package documents it."""
    offered = [document for service in entry.data["involved_classes"] for document in _documents(service)]
    later: dict[int, list[dict[str, Any]]] = {}
    for turn, names in entry.data.get("missed_function", {}).items():
        later[int(turn)] = [next(each for each in offered if each["name"] == name) for name in names]
        for document in later[int(turn)]:
            offered.remove(document)
    return offered, later


@cache
def tools_of(key: str, family: str) -> tuple[dict[str, Any], ...]:
    """What a conversation offers from the start, in OpenAI's form."""
    return tuple(map(tool_of, functions(entries(family)[key])[0]))


def tool_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A function's documentation in OpenAI's form."""
    names = package("constants.type_mappings").GORILLA_TO_OPENAPI

    def converted(value: Any) -> Any:
        if isinstance(value, list):
            return [converted(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: names.get(item, item) if key == "type" and isinstance(item, str) else converted(item)
            for key, item in value.items()
        }

    fields = {"name": document["name"], "description": document["description"]}
    return {"type": "function", "function": {**fields, "parameters": converted(document["parameters"])}}


def message(entry: Entry, turn: int) -> str:
    """What the user says at the start of a turn; where functions are added, those and that they are."""
    added = functions(entry)[1].get(turn)
    if added is None:
        return "\n".join(said["content"] for said in entry.data["question"][turn])
    text: str = package("constants.default_prompts").DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING
    return text.format(functions="\n".join(json.dumps(tool_of(document)) for document in added))


@contextmanager
def _alone() -> Iterator[str]:
    """The package to oneself. Gives a name for its global table of services; what is left there, and the precision
    that was set for numbers, is undone."""
    mpmath = needed("mpmath", INSTALL)
    table = vars(package("eval_checker.multi_turn_eval.multi_turn_utils"))
    name = f"retort{next(_NUMBERS)}"
    with _ONE_AT_A_TIME, decimal.localcontext(), mpmath.workdps(15):
        try:
            yield name
        finally:
            for left in [key for key in table if key.startswith(f"{name}_")]:
                del table[left]


def methods_of(entry: Entry) -> dict[str, Any]:
    """The public methods of services of one's own, in the state that the conversation starts with."""
    known = package("constants.executable_backend_config")
    found: dict[str, Any] = {}
    with _alone():
        for kind in entry.data["involved_classes"]:
            service = getattr(needed(known.CLASS_FILE_PATH_MAPPING[kind], INSTALL), kind)()
            if kind not in known.STATELESS_CLASSES:
                start = copy.deepcopy(entry.data["initial_config"].get(kind, {}))
                service._load_scenario(start, long_context=entry.long)
            found |= {name: getattr(service, name) for name in _public(service.__class__)}
    return found


@cache
def _public(service: Any) -> tuple[str, ...]:
    """The names of a service's public methods."""
    return tuple(name for name, _ in getmembers(service, isfunction) if not name.startswith("_"))


@cache
def _arguments(function: Any) -> tuple[str, ...]:
    """The names of a method's arguments."""
    return tuple(signature(function).parameters)[1:]


def fault_of(call: Call, methods: Mapping[str, Any]) -> str:
    """Why a call is not made: no such function, a name that is none, or numbers that would take for ever."""
    if call.name not in methods:
        return f"name {call.name[:40]!r} is not defined; {nearest(call.name[:40], methods)}"
    known = _arguments(methods[call.name].__func__)
    for name in call.arguments:
        if name not in known:
            return f"{call.name} has no argument {name[:40]!r}; {nearest(name[:40], known)}"
    given = dict(zip(known, call.positional, strict=False)) | dict(call.arguments)
    number = given.get(COSTLY.get(call.name, ""))
    if isinstance(number, int | float) and abs(number) > LARGEST:
        return f"{COSTLY[call.name]}: expected at most {LARGEST}, found {number}"
    return ""


@contextmanager
def _bounded(calls: int) -> Iterator[None]:
    """Ends work that makes more Python calls than that, as walking through folders that were copied into each other.

    Raises:
        RecursionError: in the midst of that work.
    """

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise RecursionError("too much work")

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def answer(method: Any, call: Call) -> tuple[str, bool]:
    """What a service answers, as the package writes it, and whether the call came to an end."""
    with _alone():
        try:
            with _bounded(WORK):
                return _written(method(*call.positional, **call.arguments)), True
        except RecursionError:
            return "Error during execution: too much work", False
        except Exception as error:  # of a service, about what it was given
            return f"Error during execution: {error}", True


def _written(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


def apart(name: str, right: Any, left: Any) -> tuple[str, str]:
    """Where two unequal values first differ, as text: a key or a file of the first, and what the second has there."""
    try:
        with _bounded(WORK):
            wanted, found = dict(_leaves(name, right)), dict(_leaves(name, left))
    except RecursionError:
        return name, "a knot"
    place = next(path for path in [*wanted, *found, name] if path == name or wanted.get(path) != found.get(path))
    first, second = wanted.get(place, "nothing"), found.get(place, "nothing")
    same = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
    start = max(same - 12, 0)
    dots = "..." * bool(start)
    return f"{place} {dots}{first[start : start + 60]}", f"{dots}{second[start : start + 60]}"


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """What a value is made of, by path: the items of dictionaries, the files of folders, anything else as one."""
    inner = getattr(value, "contents", value)
    if isinstance(inner, dict) and inner:
        for key, item in inner.items():
            yield from _leaves(f"{path}/{key}", item)
    else:
        yield path, "a folder" if inner is not value else repr(getattr(value, "content", value))


def source(call: Call) -> str:
    """A call that `fault_of` found sound as Python text, literals only: what the checker takes."""
    arguments = [*map(repr, call.positional), *(f"{name}={value!r}" for name, value in call.arguments.items())]
    return f"{call.name}({', '.join(arguments)})"


def judged(entry: Entry, turns: Turns) -> dict[str, Any]:
    """The verdict of the package's checker on the calls of all turns: `valid`, and where it is not, `error_type`."""
    checker = package("eval_checker.multi_turn_eval.multi_turn_checker").multi_turn_checker
    with _alone() as name:
        verdict: dict[str, Any] = checker(turns, entry.gold, entry.data, entry.data["id"].rpartition("_")[0], name)
    return verdict


def mistakes(entry: Entry) -> tuple[Turns, ...]:
    """Three wrong traces: nothing called in the last turn, its last call forgotten, the first argument changed."""
    turns = [[list(calls)] if calls else [] for calls in entry.gold]
    last = max(number for number, calls in enumerate(entry.gold) if calls)
    first = min(number for number, calls in enumerate(entry.gold) if calls)
    silent, short, other = ([list(turn) for turn in turns] for _ in range(3))
    silent[last] = []
    short[last] = [list(entry.gold[last][:-1])] if len(entry.gold[last]) > 1 else []
    other[first] = [[_changed(entry.gold[first][0]), *entry.gold[first][1:]]]
    return silent, short, other


def _changed(text: str) -> str:
    """A call with its first argument, if it has one, made another of its kind."""
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.Call)
    for place in (*node.args, *(item.value for item in node.keywords)):
        if isinstance(place, ast.Constant):
            place.value = f"{place.value}x" if isinstance(place.value, str) else 1
            break
    return ast.unparse(node)
