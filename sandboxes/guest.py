"""The supervisor's end of a sandbox: everything that a backend offers once its init answers.

A backend starts `init.py` in its own way, hands over the socket and says how to end it by force; the rest is here.
"""

from __future__ import annotations

import io
import json
import marshal
import os
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from retort.sandboxes.base import (
    ExecResult,
    ExecTimeout,
    FileState,
    Limits,
    OutputLimitExceeded,
    Preferred,
    SandboxClosed,
    UnsupportedLimit,
)
from retort.sandboxes.init import receive, send
from retort.sandboxes.streams import Streams
from retort.sandboxes.terminal import BashTerminal

MiB = 1 << 20
PYTHON = "/usr/bin/python3"  # what runs the init of a sandbox
ANSWER_S = 30.0  # the longest that init may take over one request
TREE_BYTES = 256 * MiB  # the most that is read out at once where `disk_mb` sets no bound


class Guest:
    """A started sandbox, seen from outside. Backends derive from it and add how to start, to end and what is active."""

    def __init__(self, limits: Limits, channel: socket.socket) -> None:
        self.limits = limits
        self._channel = channel
        self._lock = threading.Lock()
        self._closed = ""
        self._terminals: list[BashTerminal] = []
        self._spare: BashTerminal | None = None
        channel.settimeout(ANSWER_S)

    # What a backend supplies.

    def _kill(self) -> None:
        """End everything inside by force, and free what the host holds."""
        raise NotImplementedError

    def _oom_kills(self) -> int:
        """How many processes the memory limit has killed so far."""
        return 0

    def capabilities(self) -> Mapping[str, str]:
        raise NotImplementedError

    # The conversation with init.

    def _ask(
        self, name: str, *arguments: object, blobs: Sequence[bytes] = (), fds: Sequence[int] = ()
    ) -> tuple[Any, list[bytes], list[int]]:
        with self._lock:
            if self._closed:
                raise SandboxClosed(self._closed)
            try:
                send(self._channel, [name, arguments], blobs, fds, encode)
                reply, data, got = receive(self._channel, _tree_bytes(self.limits) + 64 * MiB, json.loads)
            except (EOFError, OSError, ValueError, KeyboardInterrupt) as error:
                self._closed = f"the sandbox's init is gone or does not answer ({name}: {error!r})"
                self._end()
                if isinstance(error, KeyboardInterrupt):
                    raise  # the answer will never be read, so nothing more can be asked
                raise SandboxClosed(self._closed) from error
        if isinstance(reply, dict) and "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]), reply["path"])
        return reply, data, got

    def _end(self) -> None:
        self._channel.close()
        self._kill()

    # Commands.

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
        argv = ["bash", "-c", cmd] if isinstance(cmd, str) else list(cmd)
        limit = self.limits.wall_s if timeout is None else timeout
        start, kills = time.monotonic(), self._oom_kills()
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(4)]
        ours = [pipes[0][1], *(reader for reader, _ in pipes[1:])]
        theirs = [pipes[0][0], *(writer for _, writer in pipes[1:])]
        try:
            reply, _, _ = self._ask("execute", argv, dict(env or {}), cwd or ".", fds=theirs)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        if "refused" in reply:
            for fd in ours:
                os.close(fd)
            words = f"{argv[0]}: {os.strerror(reply['refused'])}\n".encode()
            result = ExecResult(b"", words, 126 if reply["refused"] != 2 else 127, duration_s=time.monotonic() - start)
        else:
            streams = Streams(ours, stdin, self.limits.output_bytes)
            try:
                ended = streams.wait(start + limit)
                if not ended:
                    self.freeze()
                    streams.drain()
            finally:
                streams.close()
            code = streams.code
            result = ExecResult(
                bytes(streams.kept[0]),
                bytes(streams.kept[1]),
                code if code is not None and code >= 0 else None,
                -code if code is not None and code < 0 else None,
                time.monotonic() - start,
                timed_out=not ended and not streams.flooded,
                oom_killed=self._oom_kills() > kills,
                stdout_truncated=streams.cut[0],
                stderr_truncated=streams.cut[1],
            )
            if result.timed_out:
                raise ExecTimeout(f"the command ran for more than {limit} s and was ended: {cmd!r}", result)
        if check and (result.stdout_truncated or result.stderr_truncated):
            raise OutputLimitExceeded(f"more than {self.limits.output_bytes} bytes of output from {cmd!r}")
        if check and result.exit_code != 0:
            code = result.exit_code if result.exit_code is not None else -(result.signal or signal.SIGKILL)
            raise subprocess.CalledProcessError(code, argv, result.stdout, result.stderr)
        return result

    def open_terminal(self, rows: int = 24, cols: int = 200) -> BashTerminal:
        spare, self._spare = self._spare, None
        if spare and (spare.rows, spare.cols) == (rows, cols):
            terminal = spare
        else:
            if spare:
                spare.close()
            terminal = BashTerminal(self, rows, cols)
        self._terminals.append(terminal)
        return terminal

    def open_shell(self, rows: int, cols: int, startup: str) -> tuple[int, int, int]:
        """For terminals, as in `Shells`."""
        status, status_in = os.pipe2(os.O_CLOEXEC)
        try:
            reply, _, fds = self._ask("terminal", rows, cols, startup, fds=[status_in])
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(status_in)
        return fds[0], status, reply["pid"]

    def kill_foreground(self, master: int) -> None:
        """For terminals, as in `Shells`."""
        self._ask("kill_foreground", fds=[master])

    def end_session(self, pid: int) -> None:
        """For terminals, as in `Shells`."""
        if not self._closed:
            self._ask("end_session", pid)

    def freeze(self) -> None:
        self._ask("freeze")

    def reset(self) -> None:
        last = self._terminals[-1] if self._terminals else None
        self._drop_terminals()
        try:
            self._ask("reset")
        except OSError as error:
            self.close()
            raise SandboxClosed(f"the sandbox could not be made clean and was closed: {error}") from error
        if last:  # whoever used a terminal will want one: let it start while they set the scene
            self._spare = BashTerminal(self, last.rows, last.cols)

    def _drop_terminals(self) -> None:
        for terminal in (*self._terminals, *filter(None, [self._spare])):
            terminal.drop()
        self._terminals.clear()
        self._spare = None

    # Files.

    def read_file(self, path: str) -> bytes:
        return self._ask("read", path)[1][0]

    def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        self.write_files({path: data}, mode=mode)

    def write_files(self, files: Mapping[str, bytes | str], *, mode: int = 0o644) -> None:
        """Write several whole files in one go; as `write_file`."""
        blobs = [data.encode() if isinstance(data, str) else data for data in files.values()]
        self._ask("write", [(path, mode) for path in files], blobs=blobs)

    def list_dir(self, path: str = ".") -> list[str]:
        return cast(list[str], self._ask("names", path)[0])

    def tree(self, path: str = ".") -> dict[str, FileState]:
        entries, contents, _ = self._ask("tree", path)
        return {
            name: FileState(kind, mode, data) for (name, kind, mode, _), data in zip(entries, contents, strict=True)
        }

    def upload(self, source: Path, target: str) -> None:
        inside = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in (source, *inside) if source.is_dir() else inside:
            place = os.path.normpath(os.path.join(target, path.relative_to(source)))
            mode = path.stat().st_mode & 0o777
            if path.is_dir():
                self._ask("make_folder", place, mode)
            else:
                self.write_file(place, path.read_bytes(), mode=mode)

    def download(self, source: str, target: Path) -> None:
        try:
            tree = self.tree(source)
        except NotADirectoryError:
            target.write_bytes(self.read_file(source))
            return
        for name, found in tree.items():
            inside = os.path.normpath(os.path.join(os.path.dirname(name), os.fsdecode(found.data)))
            leads_out = found.kind == "link" and (found.data.startswith(b"/") or inside.split("/")[0] == "..")
            if leads_out or found.kind == "other":
                raise PermissionError(f"{name}: a {found.kind} that is not taken out of a sandbox")
        target.mkdir(parents=True, exist_ok=True)
        for name, found in tree.items():
            path = target / name
            if found.kind == "directory":
                path.mkdir(exist_ok=True)
            elif found.kind == "file":
                path.write_bytes(found.data)
                path.chmod(found.mode & 0o777)
        for name, found in tree.items():
            if found.kind == "link":  # last, so that nothing is written through one
                (target / name).symlink_to(os.fsdecode(found.data))

    def snapshot(self) -> bytes:
        entries, contents, _ = self._ask("tree", ".")
        return archive((*entry, data) for entry, data in zip(entries, contents, strict=True))

    def restore(self, snapshot: bytes) -> None:
        """Raises ValueError for bytes that `snapshot` did not make; FIFOs and sockets are not in a snapshot."""
        entries, contents = [], []
        try:
            with tarfile.open(fileobj=io.BytesIO(snapshot), mode="r:") as tar:
                for info in tar:
                    kind = "directory" if info.isdir() else "link" if info.issym() else "file"
                    entries.append((info.name, kind, info.mode, int(info.pax_headers["RETORT.mtime_ns"])))
                    file = tar.extractfile(info) if kind == "file" else None
                    contents.append(file.read() if file else os.fsencode(info.linkname))
        except (tarfile.TarError, KeyError) as error:
            raise ValueError(f"not a snapshot of a sandbox: {error}") from error
        self._ask("restore", entries, blobs=contents)

    # The end.

    def close(self) -> None:
        self._drop_terminals()
        with self._lock:
            if not self._closed:
                self._closed = "the sandbox was closed"
                self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def archive(entries: Iterable[tuple[str, str, int, int, bytes]]) -> bytes:
    """What `Sandbox.restore` takes. entries: (path, kind, mode, mtime in ns, content or target)."""
    made = io.BytesIO()
    kinds = {"directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "file": tarfile.REGTYPE}
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode, mtime, data in entries:
            if kind not in kinds:
                continue
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.pax_headers = kinds[kind], mode, {"RETORT.mtime_ns": str(mtime)}
            if kind == "link":
                info.linkname = os.fsdecode(data)
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def configuration(
    limits: Limits,
    channel: Mapping[str, int | str],
    work: str,
    scratch: Sequence[str],
    *,
    alone: bool,
    env: Mapping[str, str],
    own_users: bool = False,
    bash: Sequence[str] = (),
) -> str:
    """What init is told at its start. Resource limits hold for each process; only NPROC counts them together.

    channel: {"fd": inherited} or {"socket": path}. alone: the only user of its PID namespace. own_users: of its user
    namespace too, which is where NPROC counts. bash: how to start one where the sandbox has none of its own.
    """
    rlimits = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 1024, "RLIMIT_MSGQUEUE": 0}
    if limits.pids is not None and own_users:
        rlimits["RLIMIT_NPROC"] = limits.pids + 1
    if limits.memory_mb is not None:
        rlimits["RLIMIT_DATA"] = limits.memory_mb * MiB
    sizes = [size for size in (limits.file_bytes, limits.disk_mb and limits.disk_mb * MiB) if size is not None]
    if sizes:
        rlimits["RLIMIT_FSIZE"] = min(sizes)
    return encode(
        {
            **channel,
            "work": work,
            "scratch": list(scratch),
            "alone": alone,
            "tree_bytes": _tree_bytes(limits),
            "env": dict(env),
            "bash": list(bash),
            "rlimits": rlimits,
        }
    ).hex()


def encode(value: Any) -> bytes:
    """Plain objects, as any Python inside reads them. Raises TypeError for others.

    By way of JSON, which makes plain text and numbers of those that derive from them; marshal does not.
    """
    return marshal.dumps(json.loads(json.dumps(value)), 2)


def demand(limits: Limits, name: str, why: str) -> str:
    """What `capabilities` says of a limit that cannot be held here.

    Raises:
        UnsupportedLimit: it was not merely preferred.
    """
    value = getattr(limits, name)
    if value is None:
        return "inactive: not asked for"
    if not isinstance(value, Preferred):
        raise UnsupportedLimit(f"{name}={value} cannot be enforced: {why}. Leave it out, or ask for Preferred({value})")
    return f"inactive: {why}"


def _tree_bytes(limits: Limits) -> int:
    return limits.disk_mb * MiB if limits.disk_mb is not None else TREE_BYTES
