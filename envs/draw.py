"""Choices made from a text: the same on every machine and every Python, and no generator is touched.

A procedural task is a function of its key, so what is random in it is drawn from the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
SPARE = 1 << 64  # what must be left of a digest for a draw to be fair


class Draw:
    """As many draws as are asked for; each takes its share of a digest's 512 bits, and a new digest follows."""

    def __init__(self, text: str) -> None:
        self._text, self._digests = text, 0
        self._state, self._left = _digest(text), 1 << 512

    def number(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        size = high - low + 1
        if self._left < size * SPARE:
            self._digests += 1
            self._state, self._left = _digest(f"{self._text}\0{self._digests}"), 1 << 512
        self._state, rest = divmod(self._state, size)
        self._left //= size
        return low + rest

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items, in random order."""
        pool = list(items)
        return [pool.pop(self.number(0, len(pool) - 1)) for _ in range(count)]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha512(text.encode()).digest(), "big")
