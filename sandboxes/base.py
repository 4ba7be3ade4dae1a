"""The sandbox contract: what every backend offers and how it fails.

A sandbox runs commands that nobody vouches for. Calls block; concurrent episodes call from threads. A backend that
cannot enforce a requested limit refuses it with `UnsupportedLimit` and never ignores it.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable


class Preferred(int):
    """A limit to hold as far as this machine can; `capabilities()` says how far. A plain number is a demand instead."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use. `None` means that no limit is asked for.

    The defaults are `Preferred`: `Limits()` works on a laptop without root, where nothing can hold the memory of all
    processes together, and says so in `capabilities()`, while `Limits(memory_mb=512)` is refused there.

    memory_mb: MiB, all processes together, files in memory included.
    pids: processes and threads, all together.
    cpus: cores, as a quota over all processes.
    disk_mb: MiB of files, for each writable place.
    wall_s: seconds for one `exec` or one `Terminal.run` that names no timeout of its own.
    output_bytes: bytes kept of each stream; the rest is dropped and flagged, and endless output ends the command.
    file_bytes: bytes in any one file.
    network: only "none" exists.
    """

    memory_mb: int | None = Preferred(512)
    pids: int | None = Preferred(128)
    cpus: float | None = None
    disk_mb: int | None = Preferred(64)
    wall_s: float = 30.0
    output_bytes: int = 1_000_000
    file_bytes: int | None = None
    network: Literal["none"] = "none"

    def __post_init__(self) -> None:
        """Raises UnsupportedLimit for a number that is not above 0, and for a network other than "none"."""
        for name in ("memory_mb", "pids", "cpus", "disk_mb", "wall_s", "output_bytes", "file_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UnsupportedLimit(f"{name}: expected a number above 0 or None, found {value!r}")
        if self.network != "none":
            raise UnsupportedLimit(f"network: expected 'none', the only one there is, found {self.network!r}")


SEARCHED = {"PATH", "LD_LIBRARY_PATH"}
NO_PLACES = ("/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/.retort")


@dataclass(frozen=True)
class Layout:
    """Where in a sandbox one works and may write.

    work: the work folder, an absolute path. Commands start there, and it is the home folder.
    places: further folders that may be written; like /tmp and /dev/shm they are empty after a reset.
    root: whoever is inside is root of a whole machine, of which every file may be changed. No reset undoes that: the
        sandbox is closed by one. Only containers can be such a machine.
    env: variables for every command.

    Raises:
        UnsupportedLimit: a folder that cannot be a writable one.
    """

    work: str = "/work"
    places: tuple[str, ...] = ()
    root: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in () if self.root else (self.work, *self.places):
            top = "/" + path.strip("/").split("/")[0]
            if not path.startswith("/") or path != os.path.normpath(path) or path == "/" or top in NO_PLACES:
                raise UnsupportedLimit(f"{path}: expected the absolute path of a folder that may be made writable")

    @property
    def scratch(self) -> tuple[str, ...]:
        """The writable folders, none within another, sorted."""
        found: list[str] = []
        for path in sorted({"/dev/shm", "/tmp", self.work, *self.places}):
            if not any(path.startswith(f"{top}/") for top in found):
                found.append(path)
        return tuple(found)

    def environment(self, default: Mapping[str, str], own: Mapping[str, str] | None = None) -> dict[str, str]:
        """The variables of commands: an image's `own` over the default ones, the layout's, and who one is.

        Search paths lose what somebody inside can write; an empty part would be the working folder.
        """
        found = {**(own or {}), **self.env}
        for name in SEARCHED & found.keys():
            parts = [os.path.normpath(part) for part in found[name].split(":") if part.startswith("/")]
            closed = [part for part in parts if not any(f"{part}/".startswith(f"{top}/") for top in self.scratch)]
            found[name] = ":".join(parts if self.root else closed)
        kept = {name: value for name, value in found.items() if value or name not in SEARCHED}
        if self.root:
            who = {"HOME": kept.get("HOME", "/root"), "USER": "root", "LOGNAME": "root"}
        else:
            who = {"HOME": self.work, "USER": "agent", "LOGNAME": "agent"}
        return {**default, **kept, **who, "LANG": "C.UTF-8", "PWD": self.work}


@dataclass(frozen=True)
class ExecResult:
    """What one command did. `stdout` and `stderr` are the exact bytes, cut to `Limits.output_bytes`.

    exit_code: the status, or None where a signal ended the command.
    signal: the number of that signal, or None.
    duration_s: seconds from start to end.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int | None
    signal: int | None = None
    duration_s: float = 0.0
    timed_out: bool = False
    oom_killed: bool = False
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    @property
    def text(self) -> str:
        """`stdout` as text; bytes that are no UTF-8 become U+FFFD."""
        return self.stdout.decode(errors="replace")


class SandboxError(Exception):
    """A sandbox could not do its part; never the fault of the command inside."""


class SandboxUnavailable(SandboxError):
    """This machine lacks what the backend needs; the message says how to get it and what works without."""


class SandboxStartupError(SandboxError):
    """The backend is here but this sandbox did not start; the message has the backend's own words."""


class UnsupportedLimit(SandboxError, ValueError):
    """A limit that was asked for cannot be enforced here; the message names it and why."""


class ExecTimeout(SandboxError, TimeoutError):
    """A command ran past its time and its whole process tree was ended. `partial` has its output so far."""

    def __init__(self, message: str, partial: ExecResult) -> None:
        super().__init__(message)
        self.partial = partial


class OutputLimitExceeded(SandboxError):
    """Asked for with `check=True`: a stream grew past `Limits.output_bytes`."""


class SandboxClosed(SandboxError):
    """The sandbox was closed, or its inside died; it cannot be used again."""


class Terminal(Protocol):
    """A persistent interactive shell on a private PTY: `cd`, variables and functions last between commands."""

    def run(self, command: str, *, timeout: float | None = None, interactive: bool = True) -> ExecResult:
        """Run one command line (several lines are allowed) and wait for its end.

        stdout and stderr come interleaved in `stdout`, as a terminal shows them. At the timeout (seconds) the
        foreground job is ended, `timed_out` is set and the shell is usable again. interactive: whether the command may
        read what is typed; if not, it reads an empty input, and ends where it would wait for ever.

        Raises:
            SandboxClosed: the sandbox is gone.
        """
        ...

    def send(self, data: str | bytes) -> None:
        """Type bytes, as they are (no newline is added)."""
        ...

    def read(self, timeout: float = 0.0) -> bytes:
        """What has been printed since the last read, waiting up to `timeout` seconds for the first byte."""
        ...

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        ...

    def screen(self) -> str:
        """The screen as a person would see it, full-screen programs included."""
        ...

    def close(self) -> None:
        """End the shell and what it started. May be called again."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """One isolated machine-let. Paths are those inside; relative ones start at the work folder, `/work` by default."""

    limits: Limits

    def exec(
        self,
        cmd: str | Sequence[str],
        *,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        """Run a fresh process (a string goes through `bash -c`) and wait for it.

        Raises:
            ExecTimeout: after `timeout` seconds (default `limits.wall_s`); the whole tree has been ended.
            OutputLimitExceeded: with `check`, when a stream was cut.
            subprocess.CalledProcessError: with `check`, when the command failed.
            SandboxClosed: the sandbox is gone.
        """
        ...

    def read_file(self, path: str) -> bytes:
        """Raises FileNotFoundError, IsADirectoryError, PermissionError, SandboxClosed."""
        ...

    def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Write a whole file; parents are made. Raises IsADirectoryError, PermissionError, OSError when full."""
        ...

    def write_files(self, files: Mapping[str, bytes | str], *, mode: int = 0o644) -> None:
        """Write several whole files in one go; as `write_file`."""
        ...

    def list_dir(self, path: str = ".") -> list[str]:
        """Names in a directory, sorted. Raises FileNotFoundError, NotADirectoryError."""
        ...

    def upload(self, source: Path, target: str) -> None:
        """Copy a host file or folder in."""
        ...

    def download(self, source: str, target: Path) -> None:
        """Copy a file or folder out; links that would lead outside `target` are refused."""
        ...

    def freeze(self) -> None:
        """End every process inside, at once and for good, so that no agent's code runs while its work is graded."""
        ...

    def tree(self, path: str = ".") -> dict[str, FileState]:
        """Every file, directory and link below `path`, by path relative to it, read by trusted code.

        Closed directories and files below it are read too. Raises FileNotFoundError, NotADirectoryError,
        PermissionError where `path` itself is closed; OSError (EFBIG, ENAMETOOLONG) where there is too much or too
        deep to take out. All of these are the doing of whoever is inside.
        """
        ...

    def snapshot(self) -> bytes:
        """The work folder as an archive that `restore` takes."""
        ...

    def restore(self, snapshot: bytes) -> None:
        """Make the work folder what it was; anything else in it is removed."""
        ...

    def reset(self) -> None:
        """As new: no process, file, shell state or IPC object of the last user is left.

        Raises:
            SandboxClosed: it could not be made clean; throw it away.
        """
        ...

    def open_terminal(self, rows: int = 24, cols: int = 200) -> Terminal:
        """A fresh shell in the work folder."""
        ...

    def capabilities(self) -> Mapping[str, str]:
        """Layer to "active", or to "inactive: why"."""
        ...

    def close(self) -> None:
        """End everything inside and free what the host holds for it. May be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class FileState:
    """One entry of a tree. `mode` has the permission bits; `data` is a file's content or a link's target."""

    kind: Literal["file", "directory", "link", "other"]
    mode: int
    data: bytes = b""
