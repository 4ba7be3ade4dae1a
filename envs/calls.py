"""Tool calls as models write them, read leniently and without running anything.

Two forms are read: JSON objects `{"name": ..., "arguments": {...}}`, one after another or in a list, with or without
`<tool_call>` tags, Markdown fences and prose around them; and Python calls with literal arguments, `[f(a=1), g("b")]`.
What was meant as a call and cannot be read is `Unreadable`, with a reason for the model. Other text holds no calls.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
FENCED = re.compile(r"```[\w-]*(.*?)(?:```|\Z)", re.DOTALL)
OBJECT = re.compile(r'\{\s*"(?:name|function|arguments|parameters|type)"\s*:')
OPENING = re.compile(r"\{|\[\s*(?:\{|[A-Za-z_][\w.]*\s*\()")
BETWEEN = re.compile(r"[\s,;]*")
FORM = '{"name": ..., "arguments": {...}}'
DEEPEST = 100  # lists and objects within each other in an argument: whoever reads them recurses


@dataclass(frozen=True)
class Call:
    """arguments: by name, JSON-like and finite. positional: those without a name, which only Python calls have."""

    name: str
    arguments: Mapping[str, Any]
    positional: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        """The call as an action: compact JSON."""
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


@dataclass(frozen=True)
class Unreadable:
    """What was meant as a call; reason: what is wrong with it, for the one who wrote it."""

    reason: str


def spoken(action: str) -> str:
    """What an action says, without the thoughts before it and without halves of characters."""
    return action.encode(errors="replace").decode().rpartition("</think>")[2].strip()


def read_calls(text: str, names: Collection[str]) -> list[Call | Unreadable]:
    """Every call in `text`, in order; none where it is plain text.

    names: of the tools. A Python call that stands alone, outside a list, is one only where it names a tool, since
    prose may look like one.
    """
    try:
        if bodies := TAGGED.findall(text):
            return [call for body in bodies for call in _read(_bare(body), names) or [Unreadable(f"expected {FORM}")]]
        fenced = [call for body in FENCED.findall(text) for call in _read(body, names)]
        return fenced or _read(text, names)
    except RecursionError:
        return [Unreadable(f"expected {FORM}; found a knot of more levels than can be read")]


def _bare(body: str) -> str:
    fence = FENCED.search(body)
    return fence[1] if fence else body


def _read(body: str, names: Collection[str]) -> list[Call | Unreadable]:
    body = body.strip()
    opened = OPENING.match(body) or OBJECT.search(body)
    error = ""
    if opened:
        values, error = _json_values(body, opened.start())
        if values:
            return [_from_json(value) for value in values] + [Unreadable(error)] * bool(error)
    python = _python_calls(body, names)
    return python or [Unreadable(error)] * bool(error)


def _json_values(text: str, at: int) -> tuple[list[Any], str]:
    """JSON objects one after another from `at`, those of lists among them, and what is wrong with the next one."""
    values: list[Any] = []
    while text.startswith(("{", "["), at):
        try:
            value, at = DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            return values, f"not JSON: {error.msg} at character {error.pos}"
        except (ValueError, RecursionError) as error:
            return values, f"not JSON: {str(error)[:80]}"
        if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
            break
        values += value if isinstance(value, list) else [value]
        between = BETWEEN.match(text, at)
        at = between.end() if between else at
    return values, ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _from_json(value: Any) -> Call | Unreadable:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):  # as in OpenAI's `tool_calls`
        value = value["function"]
    if not isinstance(value, dict):
        return Unreadable(f"expected {FORM}; found {_short(value)}")
    name = value.get("name", value.get("function"))
    if not isinstance(name, str):
        return Unreadable(f"expected {FORM}; found no name of a tool")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = DECODER.decode(arguments)
        except (ValueError, RecursionError) as error:
            return Unreadable(f"{name}: arguments are not JSON: {str(error)[:80]}")
    if arguments is not None and not isinstance(arguments, dict):
        return Unreadable(f"{name}: arguments: expected an object; found {_short(arguments)}")
    return _sound(Call(name, arguments or {}))


def _python_calls(body: str, names: Collection[str]) -> list[Call | Unreadable]:
    """The calls of Python text that holds nothing else."""
    try:
        statements = ast.parse(body).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[ast.Call] = []
    for statement in statements:
        value = statement.value if isinstance(statement, ast.Expr) else None
        listed = isinstance(value, ast.List | ast.Tuple)
        for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(node, ast.Call) or not (listed or ast.unparse(node.func) in names):
                return []
            found.append(node)
    return [_from_python(node) for node in found]


def _from_python(node: ast.Call) -> Call | Unreadable:
    name, positional, arguments = ast.unparse(node.func), list[Any](), dict[str, Any]()
    try:
        for value in node.args:
            positional.append(ast.literal_eval(value))
        for item in node.keywords:
            if item.arg is None:
                return Unreadable(f"{name}: expected arguments by name; found **{ast.unparse(item.value)[:40]}")
            value = item.value
            arguments[item.arg] = ast.literal_eval(value)
    except (ValueError, TypeError):
        return Unreadable(f"{name}: expected literal arguments; found {ast.unparse(value)[:40]}")
    return _sound(Call(name, arguments, tuple(positional)))


def _sound(call: Call) -> Call | Unreadable:
    """The call, if its arguments are finite JSON that UTF-8 can hold, and of not too many levels."""
    if _is_deep([*call.arguments.values(), *call.positional]):
        return Unreadable(f"{_short(call.name)}: expected arguments of at most {DEEPEST} levels; found more")
    try:
        json.dumps([call.name, call.arguments, call.positional], allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        return Unreadable(f"{_short(call.name)}: arguments that JSON cannot hold: {type(error).__name__}")
    return call


def _is_deep(level: Sequence[Any]) -> bool:
    """Whether there are more than DEEPEST levels, this one among them."""
    for _ in range(DEEPEST):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [part for item in inner if isinstance(item, Iterable) and not isinstance(item, str) for part in item]
    return bool(level)


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:40]
