"""Arguments as the command line takes them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.arguments import parse, parsed, spelled, typed
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


def test_what_is_typed() -> None:
    assert typed("--env-arg", {"sandbox": "docker:x", "explain": True, "families": ("move", "copy"), "word": "1"}) == (
        " --env-arg sandbox=docker:x --env-arg explain=true"
        """ --env-arg 'families=["move", "copy"]' --env-arg 'word="1"'"""
    )
    assert typed("--set", {}) == ""


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
VALUES = st.recursive(
    TEXTS | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["a", "b_c", "env_args.d"]), VALUES))
def test_what_is_typed_is_read_back(arguments: dict[str, Any]) -> None:
    words = shlex.split(typed("--set", arguments))
    assert words[::2] == ["--set"] * len(arguments)
    assert parsed(words[1::2]) == arguments
