"""Arguments as the command line takes them, `key=value`: how they are read, and how an error spells one."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from retort.envs.base import UsageError


def parse(setting: str) -> tuple[str, Any]:
    """`key=value` as a key and a value, which is read as TOML where it can be and is text else.

    Raises:
        UsageError: there is no "=" in it.
    """
    key, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"expected key=value, found {setting!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()


def parsed(settings: Iterable[str] | None) -> dict[str, Any]:
    """Several of them; a later one takes the place of an earlier one with its key. None is none."""
    return dict(map(parse, settings or ()))


def spelled(names: Iterable[str]) -> str:
    """How arguments of an environment are given on the command line: in most commands, and where one trains."""
    listed = list(names)
    given = " ".join(f"--env-arg {name}=..." for name in listed)
    return f"{given} ({' '.join(f'--set env_args.{name}=...' for name in listed)} in train and preview)"


def typed(option: str, arguments: Mapping[str, Any]) -> str:
    """Arguments as they are typed in a shell, each after a space and its option; `parse` reads them back."""
    return "".join(f" {option} {shlex.quote(f'{name}={_written(value)}')}" for name, value in arguments.items())


def _written(value: Any) -> str:
    bare = isinstance(value, str) and parse(f"x={value}") == ("x", value)
    return str(value) if bare else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
