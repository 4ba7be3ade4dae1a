"""The pipes between the supervisor and one running command."""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from collections.abc import Sequence

BLOCK = 65536
FLOOD = 8  # times the bytes kept, and the output counts as endless
LEAST_FLOOD = 1 << 20


class Streams:
    """The pipes of one running command: feeds stdin, keeps the first bytes of each stream, learns the status."""

    def __init__(self, fds: list[int], stdin: bytes, limit: int) -> None:
        self.stdin, *self.outputs, self.status = fds
        self.left = memoryview(stdin)
        self.limit = limit
        self.kept = [bytearray(), bytearray()]
        self.total = [0, 0]
        self.cut = [False, False]
        self.flooded = False
        self.code: int | None = None
        self.open = set(fds)
        for fd in fds:
            os.set_blocking(fd, False)
        if not stdin:
            self._shut(self.stdin)

    def wait(self, deadline: float) -> bool:
        """Until the command has ended and its pipes hold no more; False at the deadline or when it floods."""
        while self.code is None:
            left = deadline - time.monotonic()
            if left <= 0 or self.flooded:
                return False
            self._turn(left)
        self.drain()
        return True

    def drain(self) -> None:
        """Take what is in the pipes already; who still holds them is not waited for."""
        if self.code is None:
            self._turn(1.0, [self.status])
        for place, fd in enumerate(self.outputs):
            while fd in self.open and self._read(place, fd) and not self.flooded:
                pass

    def _turn(self, left: float, only: Sequence[int] = ()) -> None:
        poll = select.poll()
        for fd in only or self.open:
            poll.register(fd, select.POLLOUT if fd == self.stdin else select.POLLIN)
        for fd, _ in poll.poll(left * 1000):
            if fd == self.stdin:
                self._feed()
            elif fd == self.status:
                data = os.read(fd, 4)
                self.code = struct.unpack("!i", data)[0] if data else -signal.SIGKILL
                self._shut(fd)
            else:
                self._read(self.outputs.index(fd), fd)

    def _feed(self) -> None:
        try:
            self.left = self.left[os.write(self.stdin, self.left[:BLOCK]) :]
        except BrokenPipeError:
            self.left = self.left[:0]
        if not self.left:
            self._shut(self.stdin)

    def _read(self, place: int, fd: int) -> bool:
        try:
            data = os.read(fd, BLOCK)
        except BlockingIOError:
            return False
        if not data:
            self._shut(fd)
            return False
        self.total[place] += len(data)
        kept = self.kept[place]
        kept += data[: self.limit - len(kept)]
        self.cut[place] = self.total[place] > self.limit
        self.flooded = self.total[place] > max(FLOOD * self.limit, LEAST_FLOOD)
        return True

    def _shut(self, fd: int) -> None:
        self.open.discard(fd)
        os.close(fd)

    def close(self) -> None:
        for fd in list(self.open):
            self._shut(fd)
