"""What a task family of `retort/Code-v0` is, and the draws that families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from retort.envs.draw import Draw

T = TypeVar("T")


@dataclass(frozen=True)
class Sketch:
    """A task before it is phrased.

    goal: what fills the phrasing; no other goal of the family asks for the same. solution: Python source. slips:
    (text, replacement), each of which makes the solution wrong. case: draws arguments, or a program's input. edges:
    inputs that every task is tested on. hint: the way in few words.
    """

    goal: tuple[str, ...]
    solution: str
    slips: tuple[tuple[str, str], ...]
    case: Callable[[Draw], Any]
    edges: tuple[Any, ...]
    hint: str


@dataclass(frozen=True)
class Family:
    """Tasks of one kind. call: how the function is called, or "" for programs. phrasings: filled with the goal."""

    draw: Callable[[Draw], Sketch]
    call: str
    phrasings: tuple[str, ...]


def choice(draw: Draw, items: Sequence[T]) -> T:
    """One of the items."""
    return items[draw.number(0, len(items) - 1)]


def bound(draw: Draw) -> tuple[str, str, str, int]:
    """A bound in words, as a comparison, as the comparison one off, and its number. No two ask for the same."""
    k = draw.number(2, 31)
    return choice(draw, ((f"above {k}", f"> {k}", f">= {k}", k), (f"below {k}", f"< {k}", f"<= {k}", k)))


def some_numbers(draw: Draw, low: int = 1, high: int = 32, fewest: int = 3, most: int = 6) -> list[int]:
    """Numbers from `low` to `high`, which may be equal."""
    return [draw.number(low, high) for _ in range(draw.number(fewest, most))]


def some_letters(draw: Draw, letters: str, fewest: int, most: int) -> str:
    """A word of these letters."""
    return "".join(choice(draw, letters) for _ in range(draw.number(fewest, most)))
