"""Arguments as the command line takes them."""

from __future__ import annotations

import pytest
from retort.envs.arguments import parse, parsed, spelled
from retort.envs.base import UsageError


def test_values_are_read_as_toml_where_they_can_be() -> None:
    assert parse("a=1") == ("a", 1)
    assert parse("a=1e-3") == ("a", 1e-3)
    assert parse("a=true") == ("a", True)
    assert parse('a=["x", "y"]') == ("a", ["x", "y"])
    assert parse('a="1"') == ("a", "1")
    assert parse(" a = runs/x ") == ("a", "runs/x")
    assert parse("a=b=c") == ("a", "b=c")
    assert parse("a=") == ("a", "")


def test_several_and_none() -> None:
    assert parsed(["a=1", "b=x", "a=2"]) == {"a": 2, "b": "x"}
    assert parsed(None) == {}
    with pytest.raises(UsageError, match="expected key=value, found 'steps'"):
        parsed(["a=1", "steps"])


def test_what_is_spelled_can_be_read_back() -> None:
    said = spelled(["folder", "word"])
    assert said == (
        "--env-arg folder=... --env-arg word=... "
        "(--set env_args.folder=... --set env_args.word=... in train and preview)"
    )
