"""Warm sandboxes, lent and taken back: a reset costs a small part of a start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from retort.sandboxes.base import Sandbox, SandboxClosed, SandboxError


class Pool:
    """Up to `size` sandboxes, made when first needed; safe to use from threads.

    make: starts one sandbox.
    """

    def __init__(self, make: Callable[[], Sandbox], size: int) -> None:
        if size < 1:
            raise ValueError(f"size: expected at least 1, found {size}")
        self._make, self._size = make, size
        self._idle: list[Sandbox] = []
        self._out: list[Sandbox] = []
        self._making = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, timeout: float | None = None) -> Sandbox:
        """A clean sandbox; waits up to `timeout` seconds while all are out.

        Raises:
            SandboxClosed: the pool was closed.
            TimeoutError: none came back in time.
            SandboxError: a new one could not be started.
        """
        with self._changed:
            if not self._changed.wait_for(self._may_take, timeout):
                raise TimeoutError(f"all {self._size} sandboxes were out for {timeout} s")
            if self._closed:
                raise SandboxClosed("the pool was closed")
            if self._idle:
                self._out.append(self._idle.pop())
                return self._out[-1]
            self._making += 1
        made = None
        try:
            made = self._make()
        finally:
            with self._changed:
                self._making -= 1
                if made and not self._closed:
                    self._out.append(made)
                self._changed.notify()
        if self._closed:
            made.close()
            raise SandboxClosed("the pool was closed")
        return made

    def _may_take(self) -> bool:
        return self._closed or bool(self._idle) or len(self._out) + self._making < self._size

    def give_back(self, sandbox: Sandbox) -> None:
        """Reset it for the next user; one that cannot be made clean is closed, and a new one takes its place.

        Raises:
            ValueError: it is not out on loan from this pool.
        """
        with self._changed:
            if not any(sandbox is out for out in self._out):
                if self._closed:
                    return
                raise ValueError("this sandbox is not out on loan from this pool")
        try:
            sandbox.reset()
            clean = True
        except (SandboxError, OSError):
            sandbox.close()
            clean = False
        with self._changed:
            self._out = [out for out in self._out if out is not sandbox]
            if clean and not self._closed:
                self._idle.append(sandbox)
            self._changed.notify()
        if self._closed:
            sandbox.close()

    @contextmanager
    def lend(self) -> Iterator[Sandbox]:
        """`take` and `give_back` around a block."""
        sandbox = self.take()
        try:
            yield sandbox
        finally:
            self.give_back(sandbox)

    def close(self) -> None:
        """Close every sandbox, lent ones too. May be called again."""
        with self._changed:
            self._closed = True
            ending, self._idle, self._out = [*self._idle, *self._out], [], []
            self._changed.notify_all()
        for sandbox in ending:
            sandbox.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
