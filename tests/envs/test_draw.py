"""Draws hang on their text alone, and never run out."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from retort.envs.draw import Draw

PINNED = (1, 33, ["y", "x"])


def test_the_same_text_gives_the_same_draws() -> None:
    # Pinned: tasks are functions of their keys, on every machine.
    draw = Draw("a")
    assert (draw.number(0, 99), draw.number(0, 99), draw.some(["x", "y", "z"], 2)) == PINNED


@given(st.text(), st.integers(-5, 5), st.integers(0, 100))
def test_draws_are_within_their_bounds(text: str, low: int, width: int) -> None:
    draw = Draw(text)
    assert all(low <= draw.number(low, low + width) <= low + width for _ in range(20))


@given(st.text(), st.lists(st.integers(), unique=True, max_size=8))
def test_some_are_different(text: str, items: list[int]) -> None:
    assert sorted(Draw(text).some(items, len(items))) == sorted(items)


def test_draws_do_not_run_out() -> None:
    draw = Draw("many")
    counts = Counter(draw.number(0, 3) for _ in range(4000))
    assert all(900 < count < 1100 for count in counts.values()), counts
