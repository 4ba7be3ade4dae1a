"""A room lends one clean sandbox at a time, and shows what fits a budget."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import UsageError
from retort.envs.room import Room, run_line, shown
from retort.sandboxes.base import ExecResult, Limits, SandboxClosed


def test_a_room_is_clean_each_time_and_replaced_where_it_is_gone() -> None:
    room = Room("bwrap", Limits())
    with pytest.raises(SandboxClosed, match="fresh"):
        room.held  # noqa: B018
    try:
        first = room.fresh()
        first.write_file("left", "x")
        assert room.fresh() is first is room.held
        assert first.list_dir() == []
        first.close()
        assert room.fresh() is not first
    finally:
        room.close()
        room.close()


def test_a_line_that_ends_the_sandbox() -> None:
    room = Room("bwrap", Limits(wall_s=5))
    try:
        sandbox = room.fresh()
        terminal = sandbox.open_terminal()
        assert run_line(sandbox, terminal, "echo a\0b\ud800", 5).text == "ab?\n"
        assert run_line(sandbox, terminal, "chmod 0 . && echo locked", 5).text == "locked\n"
        sandbox.close()
        with pytest.raises(SandboxClosed):
            run_line(sandbox, terminal, "echo on", 5)
    finally:
        room.close()


def test_an_unknown_sandbox() -> None:
    with pytest.raises(UsageError, match="did you mean 'bwrap'"):
        Room("bwrp", Limits())


def result(out: bytes = b"", **fields: Any) -> ExecResult:
    return ExecResult(out, b"", **{"exit_code": 0, **fields})


def test_shown() -> None:
    assert shown(result(b"red\n"), 64) == "red"
    assert shown(result(), 64) == ""
    assert shown(result(b"no\n", exit_code=2), 64) == "no\nexit 2"
    assert shown(result(exit_code=1), 64) == "exit 1"
    assert shown(result(exit_code=None, signal=9), 64) == "signal 9"
    assert shown(result(exit_code=None, timed_out=True), 64) == "timed out"
    assert shown(result(exit_code=None), 64) == "new shell"
    assert shown(result(b"abcdefghij"), 5) == "abc ... ij"
    assert shown(result(b"abcdefghij"), 1) == "a ... "


@given(st.binary(max_size=300), st.integers(1, 100))
def test_shown_keeps_to_its_budget(out: bytes, limit: int) -> None:
    text = shown(result(out), limit)
    assert len(text) <= limit + len(" ... ")
    text.encode()
