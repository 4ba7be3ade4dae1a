"""A persistent bash on a private PTY, driven without guessing where one command's output ends.

The shell prints a random end marker with the exit status from PROMPT_COMMAND, to the terminal itself, after each
command; it is never typed behind a command, where `cat` would eat it. Commands are typed as `eval $'...'`, so that several lines, quotes
and control characters arrive exactly and an unfinished quote is an error instead of a wait.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import struct
import termios
import time
from collections.abc import Callable

from retort.sandboxes.base import ExecResult, Limits, SandboxClosed

START_S = 10.0  # for a shell to show its first prompt
GRACE_S = 0.5  # between Ctrl-C and the kill
QUIET_S = 0.25  # at a prompt without a marker, before it counts as lost
TYPED_AT_ONCE = 4000  # bytes that a terminal in line mode takes (the kernel's limit is 4095)
BLOCK = 65536
SEEN = 1 << 18  # bytes of output kept for `screen`

Open = Callable[[int, int, str], tuple[int, int, int]]


class BashTerminal:
    """The `Terminal` of every backend whose init can open a PTY.

    A shell that ends (`exit`, `set -e; false`), loses its marker (`unset PROMPT_COMMAND`) or cannot be interrupted is replaced by a fresh
    one in the work folder, and `restarts` counts it.
    """

    def __init__(self, open_shell: Open, rows: int, cols: int, limits: Limits) -> None:
        self._open, self._rows, self._cols, self._limits = open_shell, rows, cols, limits
        self.restarts = 0
        self._closed = False
        self._master = self._status = -1
        self._start()

    def _start(self) -> None:
        nonce = secrets.token_hex(8)
        self._marker = re.compile(rb"\x1e" + nonce.encode() + rb" (\d+)\x1f")
        self._prefix = b"\x1e" + nonce.encode()
        startup = (
            "exec 9<&-; PS1=; PS2=; unset HISTFILE MAIL; set +o history +H\n"
            "bind 'set enable-bracketed-paste off'; bind 'set disable-completion on'\n"
            f'PROMPT_COMMAND=\'printf "\\036%s %d\\037" {nonce} "$?" >/dev/tty\'\n'
        )
        self._master, self._status, self._pid = self._open(self._rows, self._cols, startup)
        os.set_blocking(self._master, False)
        self._buffer = bytearray()  # output not yet given to anybody
        self._seen = bytearray()
        self._ready = False  # the first prompt was seen
        self._gone = False

    def run(self, command: str, *, timeout: float | None = None) -> ExecResult:
        start = time.monotonic()
        limit = self._limits.wall_s if timeout is None else timeout
        line = f"eval {_quoted(command)}\n".encode()
        self._prepare(len(line))
        self._buffer.clear()
        self._type(line)
        return self._finish(start, start + limit)

    def _prepare(self, size: int) -> None:
        """Get a shell that waits at its prompt and takes `size` bytes."""
        if self._closed:
            raise SandboxClosed("the terminal was closed")
        if self._gone or self._at_end():
            self._restart()
        if not self._ready:
            deadline = time.monotonic() + START_S
            while not self._marker.search(self._buffer):
                if time.monotonic() > deadline or not self._pump(deadline - time.monotonic()):
                    raise SandboxClosed("the terminal's shell did not start")
            self._ready = True
        deadline = time.monotonic() + START_S
        while size > TYPED_AT_ONCE and not self._editing() and time.monotonic() < deadline:
            time.sleep(0.0005)

    def _finish(self, start: float, deadline: float) -> ExecResult:
        output, total, cap = bytearray(), 0, self._limits.output_bytes
        code: int | None = None
        timed_out = flooded = False
        quiet_since: float | None = None
        stage = 0
        while True:
            found = self._marker.search(self._buffer)
            end = found.start() if found else self._buffer.rfind(b"\x1e")
            take = len(self._buffer) if end < 0 else end
            code = int(found.group(1)) if found else None  # before the buffer moves on under the match
            total += take
            output += self._buffer[:take][: cap + 1 - len(output) if len(output) <= cap else 0]
            del self._buffer[: found.end() if found else take]
            if found:
                break
            if len(self._buffer) > len(self._prefix) + 8:  # a \x1e of the command's own
                total += 1
                output += self._buffer[:1] if len(output) <= cap else b""
                del self._buffer[:1]
                continue
            now = time.monotonic()
            flooded = flooded or total > max(8 * cap, 1 << 20)
            if now >= deadline or flooded:
                timed_out = timed_out or not flooded
                if stage == 2:
                    self._restart()
                    break
                self.interrupt() if stage == 0 else self._kill_foreground()
                stage += 1
                deadline = now + GRACE_S
                flooded_before, flooded = flooded, False
                total = 0 if flooded_before else total
                continue
            if not self._pump(min(deadline - now, 0.1)):
                code = self._exit_code()
                self._restart()
                break
            if self._buffer or not self._editing():
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            elif now - quiet_since > QUIET_S:
                self._restart()
                break
        clean = bytes(output).replace(b"\r\n", b"\n")
        return ExecResult(
            clean[:cap],
            b"",
            code if code is None or code >= 0 else None,
            -code if code is not None and code < 0 else None,
            time.monotonic() - start,
            timed_out=timed_out,
            stdout_truncated=total > cap,
        )

    def _pump(self, timeout: float) -> bool:
        """Wait for output and take it; False when the shell is gone."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        if not poll.poll(max(timeout, 0) * 1000):
            return True
        try:
            data = os.read(self._master, BLOCK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: nobody holds the other side
            data = b""
        if not data:
            self._gone = True
            return False
        self._buffer += data
        self._seen += data
        if len(self._seen) > 2 * SEEN:
            del self._seen[:-SEEN]
        return True

    def _type(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._master, view[:BLOCK]) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._master, select.POLLOUT | select.POLLIN)
                poll.poll(1000)
                self._pump(0)
            except OSError:
                self._gone = True
                return

    def _editing(self) -> bool:
        """The shell itself is in the foreground and reads keys, as it does at a prompt."""
        try:
            return not termios.tcgetattr(self._master)[3] & termios.ICANON
        except termios.error:
            return False

    def _at_end(self) -> bool:
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        return bool(poll.poll(0))

    def _exit_code(self) -> int | None:
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        if not poll.poll(1000):
            return None
        data = os.read(self._status, 4)
        return int(struct.unpack("!i", data)[0]) if data else -signal.SIGKILL

    def _kill_foreground(self) -> None:
        try:
            os.killpg(os.tcgetpgrp(self._master), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            pass

    def _restart(self) -> None:
        self._release()
        self.restarts += 1
        self._start()

    def send(self, data: str | bytes) -> None:
        if self._closed:
            raise SandboxClosed("the terminal was closed")
        self._type(data.encode() if isinstance(data, str) else data)

    def read(self, timeout: float = 0.0) -> bytes:
        if self._closed:
            raise SandboxClosed("the terminal was closed")
        if not self._buffer:
            self._pump(timeout)
        while self._buffer and not self._gone:
            before = len(self._buffer)
            self._pump(0)
            if len(self._buffer) == before:
                break
        data = self._marker.sub(b"", bytes(self._buffer))
        self._buffer.clear()
        return data

    def interrupt(self) -> None:
        self.send(b"\x03")

    def screen(self) -> str:
        import pyte

        self._pump(0)
        screen = pyte.Screen(self._cols, self._rows)
        pyte.ByteStream(screen).feed(self._marker.sub(b"", bytes(self._seen)))
        return "\n".join(line.rstrip() for line in screen.display).rstrip("\n")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        """Hang up: the kernel sends SIGHUP to the session."""
        for fd in (self._master, self._status):
            if fd >= 0:
                os.close(fd)
        self._master = self._status = -1


def _quoted(command: str) -> str:
    """As one bash word of printable ASCII. Raises ValueError for a NUL, which no shell can take."""
    data = command.encode()
    if b"\0" in data:
        raise ValueError("a command cannot hold a NUL character")
    special = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n"}
    body = "".join(special.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in data)
    return f"$'{body}'"
