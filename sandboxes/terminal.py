"""A persistent bash on a private PTY, driven without guessing where one command's output ends.

The shell prints a random end marker with the exit status from PROMPT_COMMAND, to the terminal itself, after each
command; it is never typed behind a command, where `cat` would eat it. Commands are typed as `eval $'...'`, so that
several lines, quotes and control characters arrive exactly and an unfinished quote is an error instead of a wait.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import select
import signal
import struct
import termios
import time
from pathlib import Path
from typing import Literal, Protocol

from retort.sandboxes.base import ExecResult, Limits, SandboxClosed, SandboxError
from retort.sandboxes.streams import BLOCK, FLOOD, LEAST_FLOOD

START_S = 10.0  # for a shell to show its first prompt
GRACE_S = 0.5  # after Ctrl-C, and after the kill that follows it
QUIET_S = 0.25  # at a prompt with nothing left to read and no marker, before the marker counts as lost
LINE_MODE = 4000  # bytes that a terminal takes as one line (the kernel's limit is 4095)
SEEN = 1 << 18  # bytes of output kept for `screen`
TIOCGPTPEER = 0x5441  # opens the other side of a PTY, whoever has it

Why = Literal["end", "late", "flood", "gone", "lost"]


class Shells(Protocol):
    """Who opens shells: the sandbox."""

    limits: Limits

    def open_shell(self, rows: int, cols: int, startup: str) -> tuple[int, int, int]:
        """Start a bash: (PTY master, a pipe that gets its exit status, its pid as seen inside)."""
        ...

    def kill_foreground(self, master: int) -> None:
        """Kill the foreground job of a PTY."""
        ...

    def end_session(self, pid: int) -> None:
        """Kill a shell and the jobs in its session."""
        ...


class _Output:
    """The first bytes of an output, and how many there were."""

    def __init__(self, cap: int) -> None:
        self.cap, self.total, self.kept = cap, 0, bytearray()

    def add(self, data: bytes | bytearray) -> None:
        self.total += len(data)
        self.kept += data[: max(0, 2 * self.cap + 2 - len(self.kept))]

    def result(self) -> tuple[bytes, bool]:
        """(what the programs wrote, cut to the cap; whether it was cut). The terminal made \\r\\n of each \\n."""
        clean = bytes(self.kept).replace(b"\r\n", b"\n")
        return clean[: self.cap], len(clean) > self.cap or self.total > len(self.kept)


class BashTerminal:
    """The `Terminal` of every backend whose init can open a PTY.

    A shell that has ended (`exit`, `set -e; false`), lost its marker (`unset PROMPT_COMMAND`) or cannot be stopped
    is replaced by a fresh one in the work folder; `restarts` counts them. Where the status is unknown by that,
    `exit_code` is None. After `output_bytes` times 8 a command is ended like at its timeout, without `timed_out`.
    """

    def __init__(self, shells: Shells, rows: int, cols: int) -> None:
        self.rows, self.cols = rows, cols
        self.restarts = 0
        self._shells = shells
        self._closed = False
        self._start()

    def _start(self) -> None:
        nonce = secrets.token_hex(8)
        self._marker = re.compile(rb"\x1e" + nonce.encode() + rb" (\d+)\x1f")
        self._longest = len(nonce) + 6
        startup = (
            "exec 9<&-; PS1=; PS2=; unset HISTFILE MAIL; set +o history +H\n"
            "bind 'set enable-bracketed-paste off'; bind 'set disable-completion on'\n"
            f'PROMPT_COMMAND=\'printf "\\036%s %d\\037" {nonce} "$?" >/dev/tty\'\n'
        )
        try:
            self._master, self._status, self._pid = self._shells.open_shell(self.rows, self.cols, startup)
        except OSError as error:
            raise SandboxError(f"no shell could be started ({error}); `freeze` and `reset` make room") from error
        os.set_blocking(self._master, False)
        self._buffer = bytearray()  # output that nobody has had yet
        self._seen = bytearray()  # for `screen`
        self._group = 0  # the shell's own process group; 0 until the first prompt
        self._code = 0
        self._touched = False  # somebody has typed by hand since the last marker

    def run(self, command: str, *, timeout: float | None = None, interactive: bool = True) -> ExecResult:
        start, limits = time.monotonic(), self._shells.limits
        line = f"eval {_quoted(command)}{'' if interactive else ' </dev/null'}\n".encode()
        self._prepare(len(line))
        self._buffer.clear()
        self._type(line)
        output, code = _Output(limits.output_bytes), None
        first = why = self._await(output, start + (limits.wall_s if timeout is None else timeout))
        for stop in (self.interrupt, self._kill_foreground):
            if why in ("late", "flood"):
                stop()
                why = self._await(output, time.monotonic() + GRACE_S)
        if why == "end":
            code = self._code
        else:
            code = self._exit_code() if why == "gone" else None
            self._restart()
        text, cut = output.result()
        return ExecResult(
            stdout=text,
            stderr=b"",
            exit_code=code if code is None or code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            duration_s=time.monotonic() - start,
            timed_out=first == "late",
            stdout_truncated=cut,
        )

    def _prepare(self, size: int) -> None:
        """Get a shell that is at its prompt and takes a line of `size` bytes."""
        self._check()
        if _readable(self._status, 0):
            self._restart()
        self._first_prompt()
        if self._touched:  # its marker may still be on the way
            deadline = time.monotonic() + GRACE_S
            while not self._at_prompt() and time.monotonic() < deadline:
                self._pump(0.001)
            self.read()
            self._touched = False
        deadline = time.monotonic() + START_S
        # Long lines wait until bash edits them itself: in line mode the kernel drops what is past its limit.
        while size > LINE_MODE and not self._at_prompt():
            if time.monotonic() > deadline:
                self._restart()
                return self._prepare(size)
            time.sleep(0.0005)
        return None

    def _first_prompt(self) -> None:
        """Wait until a shell that has just been started takes what is typed."""
        if not self._group:
            why = self._await(_Output(0), time.monotonic() + START_S)
            if why != "end":
                raise SandboxError(f"the terminal's shell did not come to its prompt within {START_S} s ({why})")
            self._group = os.tcgetpgrp(self._master)

    def _await(self, output: _Output, deadline: float) -> Why:
        """Collect output until the marker, or until something else ends the wait."""
        cap = max(FLOOD * output.cap, LEAST_FLOOD) + output.total
        quiet = time.monotonic()
        while True:
            found = self._marker.search(self._buffer)
            code = int(found.group(1)) if found else 0  # read before the buffer moves
            start, end = found.span() if found else (max(0, len(self._buffer) - self._longest),) * 2
            output.add(self._buffer[:start])
            del self._buffer[:end]
            if found:
                self._code = code
                return "end"
            now = time.monotonic()
            if now >= deadline or output.total > cap:
                return "late" if now >= deadline else "flood"
            before = len(self._buffer)
            if not self._pump(min(deadline - now, QUIET_S / 4)):
                output.add(self._buffer)
                return "gone"
            if len(self._buffer) > before or not self._at_prompt() or self._unread() or not self._asleep():
                quiet = time.monotonic()
            elif time.monotonic() - quiet > QUIET_S:
                output.add(self._buffer)
                return "lost"

    def _pump(self, timeout: float) -> bool:
        """Wait for output and take it; False when the shell is gone."""
        if not _readable(self._master, timeout):
            return True
        try:
            data = os.read(self._master, BLOCK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: nobody holds the other side
            return False
        self._buffer += data
        self._seen += data
        if len(self._seen) > 2 * SEEN:
            del self._seen[:-SEEN]
        return True

    def _type(self, data: bytes) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + START_S
        while view:
            try:
                view = view[os.write(self._master, view[:BLOCK]) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SandboxError("nothing inside takes what is typed into the terminal") from None
                self._pump(0.01)  # a reader that waits for its output to be taken would never read
            except OSError:  # EIO: the shell is gone, which the wait for output will tell
                return

    def _at_prompt(self) -> bool:
        """The shell itself is in the foreground and reads single keys."""
        try:
            raw = not termios.tcgetattr(self._master)[3] & termios.ICANON
            return raw and self._group != 0 and os.tcgetpgrp(self._master) == self._group
        except (OSError, termios.error):
            return False

    def _unread(self) -> int:
        """Bytes typed that nobody has read yet: on a busy machine a shell at its prompt may take its time."""
        try:
            peer = fcntl.ioctl(self._master, TIOCGPTPEER, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # EIO: the shell is gone, which the next read will tell
            return 0
        try:
            return int(struct.unpack("i", fcntl.ioctl(peer, termios.FIONREAD, bytes(4)))[0])
        finally:
            os.close(peer)

    def _asleep(self) -> bool:
        """Whether the shell waits for something. One that has read what was typed, and has no core to go on with, does
        not; where nobody can tell, it does."""
        try:
            stat = Path(f"/proc/{self._group}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] == "S"

    def _exit_code(self) -> int | None:
        data = os.read(self._status, 4) if _readable(self._status, 1.0) else b""
        return int(struct.unpack("!i", data)[0]) if data else -signal.SIGKILL

    def _kill_foreground(self) -> None:
        self._shells.kill_foreground(self._master)

    def _restart(self) -> None:
        self._closed = True  # unless all of this works
        self._release()
        self.restarts += 1
        self._start()
        self._closed = False

    def _check(self) -> None:
        if self._closed:
            raise SandboxClosed("the terminal was closed")

    def send(self, data: str | bytes) -> None:
        self._check()
        self._first_prompt()
        self._touched = True
        self._type(data.encode() if isinstance(data, str) else data)

    def read(self, timeout: float = 0.0) -> bytes:
        self._check()
        if not self._buffer:
            self._pump(timeout)
        size = -1
        while len(self._buffer) != size and size < self._shells.limits.output_bytes:
            size = len(self._buffer)
            self._pump(0)
        data = self._marker.sub(b"", bytes(self._buffer))
        self._buffer.clear()
        return data

    def interrupt(self) -> None:
        self.send(b"\x03")

    def screen(self) -> str:
        import pyte

        self._check()
        self._pump(0)
        screen = pyte.Screen(self.cols, self.rows)
        pyte.ByteStream(screen).feed(self._marker.sub(b"", bytes(self._seen)))
        return "\n".join(line.rstrip() for line in screen.display).rstrip("\n")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def drop(self) -> None:
        """Close without a word to the shell, which is known to be dead or about to be."""
        if not self._closed:
            self._closed = True
            os.close(self._master)
            os.close(self._status)

    def _release(self) -> None:
        os.close(self._master)
        os.close(self._status)
        self._shells.end_session(self._pid)


def _readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(timeout, 0) * 1000))


def _quoted(command: str) -> str:
    """As one bash word of printable ASCII. Raises ValueError for a NUL, which no shell can take."""
    data = command.encode()
    if b"\0" in data:
        raise ValueError("a command cannot hold a NUL character")
    special = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n"}
    body = "".join(special.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in data)
    return f"$'{body}'"
