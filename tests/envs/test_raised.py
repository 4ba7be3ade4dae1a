"""Where somebody's own code raised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from retort.envs.base import checked_split
from retort.envs.raised import own_place, told


def caught(code: str, file: str) -> BaseException:
    with pytest.raises(Exception) as error:
        exec(compile(code, file, "exec"), {"__name__": "mine", "json": json, "checked_split": checked_split})
    # What a test's own frames are to `exec`, Retort's are to somebody's module.
    assert error.value.__traceback__ is not None
    error.value.__traceback__ = error.value.__traceback__.tb_next
    return error.value


def test_the_innermost_line_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = str(tmp_path / "mine.py")
    assert told(caught("\n\n1 / 0", mine)) == f"ZeroDivisionError: division by zero ({mine}:3)"
    monkeypatch.chdir(tmp_path)
    assert told(caught("\n\n1 / 0", mine)) == "ZeroDivisionError: division by zero (mine.py:3)"
    assert own_place(caught("def ask():\n  json.loads('')\nask()", mine)) == "mine.py:2", "inside an installed module"
    assert own_place(caught("checked_split('tests')", mine)) == "mine.py:1", "inside one of ours"


def test_what_cannot_be_compiled(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    with pytest.raises(SyntaxError) as error:
        compile("x = 1\nx =", str(mine), "exec")
    assert told(error.value) == f"SyntaxError: invalid syntax ({mine}:2)"


def test_nobodys_own() -> None:
    error = caught("checked_split('tests')", "<string>")
    assert own_place(error) is None
    assert told(error).startswith("UsageError: unknown split 'tests'")
