"""The first process inside a sandbox: it starts commands, serves files and makes the place clean again.

It runs as a script (`python3 -I -S init.py CONFIG`), needs the standard library alone, and answers one supervisor on
a private socket, inherited or connected to by its path, request by request. The commands it starts never get that
socket. As PID 1 of its own namespace it cannot be killed, stopped or traced from inside; when the socket closes it
exits, and the namespace goes with it.

A message is a header (sizes), an object and raw bytes; file descriptors travel beside it. What it is asked comes by
marshal, which needs no import; it answers in JSON, since marshal must not read what comes from inside.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import marshal
import os
import resource
import select
import stat
import struct
import sys
import termios
import time
from _json import encode_basestring_ascii as quoted

TYPE_CHECKING = False  # importing typing takes a tenth of a start; json, and what makes enums of numbers, a third
if TYPE_CHECKING:
    import signal
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any
else:
    import _signal as signal
    import _socket as socket

HEADER, INT = struct.Struct("!IQ"), struct.Struct("i")
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
TOO_MANY = 100_000  # entries in one tree


def text(value: Any) -> bytes:
    """Plain objects as JSON."""
    return _text(value).encode()


def _text(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join([f"{quoted(name)}:{_text(below)}" for name, below in value.items()]) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join([_text(below) for below in value]) + "]"
    return str(int(value))


def send(
    channel: socket.socket,
    message: object,
    blobs: Sequence[bytes] = (),
    fds: Sequence[int] = (),
    encode: Callable[[Any], bytes] = text,
) -> None:
    """Send one message; `fds` arrive as duplicates."""
    told = encode([message, [len(blob) for blob in blobs]])
    data = b"".join([HEADER.pack(len(told), sum(map(len, blobs))), told, *blobs])
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    sent = channel.sendmsg([data], beside)
    if sent < len(data):
        channel.sendall(memoryview(data)[sent:])


def receive(
    channel: socket.socket, limit: int, decode: Callable[[bytes], Any] = marshal.loads
) -> tuple[Any, list[bytes], list[int]]:
    """Take one message: (object, blobs, fds). Raises EOFError at the end, ValueError past `limit` bytes."""
    head, beside, _, _ = channel.recvmsg(HEADER.size, socket.CMSG_SPACE(8 * INT.size), socket.MSG_CMSG_CLOEXEC)
    fds = [number for _, _, data in beside for (number,) in INT.iter_unpack(data[: len(data) // INT.size * INT.size])]
    head += _exactly(channel, HEADER.size - len(head)) if len(head) < HEADER.size else b""
    size, blob_size = HEADER.unpack(head)
    if size + blob_size > limit:
        raise ValueError(f"a message of {size + blob_size} bytes, more than {limit}")
    message, sizes = decode(bytes(_exactly(channel, size)))
    body, blobs, start = memoryview(_exactly(channel, blob_size)), [], 0
    for size in sizes:
        blobs.append(bytes(body[start : start + size]))
        start += size
    return message, blobs, fds


def _exactly(channel: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = channel.recv_into(view)
        if not got:
            raise EOFError("the other side is gone")
        view = view[got:]
    return data


class Init:
    """What the supervisor may ask for: the public methods, by name."""

    def __init__(self, channel: socket.socket, config: dict[str, Any]) -> None:
        self.channel = channel
        self.work: str = config["work"]
        self.scratch: list[str] = config["scratch"]
        self.alone: bool = config["alone"]  # the only user of this PID namespace
        self.tree_bytes: int = config["tree_bytes"]
        self.env: dict[str, str] = config["env"]
        self.bash: list[str] = config.get("bash", [])  # for images that have none
        self.watched: dict[int, int] = {}  # pid -> pipe that gets its status
        self.proc = os.stat("/proc").st_dev
        self.oom_score: int = config["oom_score"]
        self.oom_base = int(os.pread(self.oom_score, 16, 0))  # what the supervisor was started with

    def serve(self) -> None:
        """Answer until the supervisor closes its end."""
        wake, wake_in = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_in, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if wake in ready:
                os.read(wake, 4096)
                self.reap()
            if self.channel.fileno() in ready:
                self.answer()

    def answer(self) -> None:
        (name, arguments), blobs, fds = receive(self.channel, 1 << 40)
        try:
            reply = getattr(self, name)(*arguments, blobs=blobs, fds=fds)
            send(self.channel, *reply)
            for fd in reply[2] if len(reply) > 2 else ():
                os.close(fd)
        except (OSError, ValueError, MemoryError) as error:
            number = {ValueError: errno.EINVAL, MemoryError: errno.ENOMEM}.get(type(error), errno.EINVAL)
            path = getattr(error, "filename", None) or ""
            send(self.channel, {"errno": getattr(error, "errno", number), "path": str(path)})
        finally:
            for fd in fds:
                os.close(fd)

    # --- processes

    def reap(self) -> bool:
        """Collect the dead and report those that were asked for; False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if (pipe := self.watched.pop(pid, None)) is not None:
                try:
                    os.write(pipe, struct.pack("!i", os.waitstatus_to_exitcode(status)))
                except BrokenPipeError:
                    pass  # nobody waits for it any more
                os.close(pipe)

    def spawn(self, argv: list[str], env: dict[str, str], cwd: str, actions: list[tuple[Any, ...]], pipe: int) -> int:
        """Start a session of its own; its exit status will be written to a duplicate of `pipe`."""
        os.chdir(os.path.join(self.work, cwd))
        try:
            try:
                program = _find(argv[0], env.get("PATH", ""))
            except FileNotFoundError:
                if argv[0] != "bash" or not self.bash:
                    raise
                program, argv = self.bash[0], [*self.bash, *argv[1:]]
            self.first_to_go(500)  # when memory runs out, this one goes before init does
            pid = os.posix_spawn(
                program, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=range(1, 32)
            )
        finally:
            self.first_to_go(0)
            os.chdir("/")
        self.watched[pid] = os.dup(pipe)
        return pid

    def first_to_go(self, score: int) -> None:
        """What is started now inherits it: written for a child afterwards, its own children might come first."""
        if self.alone:
            try:
                os.pwrite(self.oom_score, b"%d" % max(score, self.oom_base), 0)
            except OSError:
                pass  # the host may forbid it; then the kernel chooses by size alone

    def execute(
        self, argv: list[str], env: dict[str, str], cwd: str, *, blobs: list[bytes], fds: list[int]
    ) -> tuple[object]:
        """fds: stdin, stdout, stderr, status."""
        os.stat(os.path.join(self.work, cwd, "."))
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds[:3])]
        try:
            return ({"pid": self.spawn(argv, self.env | env, cwd, actions, fds[3])},)
        except OSError as error:
            return ({"refused": error.errno},)

    def terminal(
        self, rows: int, cols: int, startup: str, *, blobs: list[bytes], fds: list[int]
    ) -> tuple[object, list[bytes], list[int]]:
        """A bash on a fresh PTY, which `startup` sets up; replies with the PTY's master. fds: status."""
        master, slave = os.openpty()
        script, script_in = os.pipe()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            modes = termios.tcgetattr(slave)
            modes[3] &= ~termios.ECHO
            termios.tcsetattr(slave, termios.TCSANOW, modes)
            os.write(script_in, startup.encode())
            # A session's leader that opens a terminal gets it as its controlling terminal.
            actions: list[tuple[Any, ...]] = [
                (os.POSIX_SPAWN_DUP2, script, 9),
                (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ]
            argv = ["bash", "--noprofile", "--rcfile", "/dev/fd/9", "-i"]
            env = self.env | {"TERM": "xterm-256color"}
            pid = self.spawn(argv, env, ".", actions, fds[0])
        except OSError:
            os.close(master)
            raise
        finally:
            for fd in (slave, script, script_in):
                os.close(fd)
        return {"pid": pid}, [], [master]

    def freeze(self, *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        """Kill everybody else and collect them until none is left."""
        while self.reap():
            for pid in self.others():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                pass
        return ({},)

    def others(self) -> list[int]:
        """Whom to kill: everybody in the namespace or, in a shared one, all descendants."""
        if self.alone:
            return [-1]
        found, todo = [], [os.getpid()]
        while todo:
            pid = todo.pop()
            try:
                with open(f"/proc/{pid}/task/{pid}/children") as children:
                    below = [int(child) for child in children.read().split()]
            except OSError:
                continue
            found += below
            todo += below
        return found

    def end_session(self, session: int, *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        """Kill a shell and its jobs, stopped and nohup'd ones too, and see them gone."""
        deadline = time.monotonic() + 1
        while (living := in_session(session)) and time.monotonic() < deadline:
            for pid in living:
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
            time.sleep(0.0005)
        return ({},)

    def kill_foreground(self, *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        """fds: the master of a PTY. From in here its group's number cannot mean anybody outside."""
        group = os.tcgetpgrp(fds[0])
        if group > 1:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return ({},)

    def reset(self, *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        """No process and no file."""
        self.freeze(blobs=[], fds=[])
        for folder in self.scratch:
            empty(folder)
        os.makedirs(self.work, exist_ok=True)  # it may lie within one of them
        return ({},)

    def oom_kills(self, *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        """How many processes the memory limit of this container has killed."""
        for path in ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events"):
            try:
                with open(path) as file:
                    return (sum(int(line.split()[1]) for line in file if line.startswith("oom_kill ")),)
            except FileNotFoundError:
                continue
        return (0,)

    # --- files

    def read(self, path: str, *, blobs: list[bytes], fds: list[int]) -> tuple[object, list[bytes]]:
        return {}, [self._read(os.path.join(self.work, path), self.tree_bytes)]

    def _read(self, path: str, limit: int) -> bytes:
        # O_NONBLOCK: a FIFO must not hang us; /proc is refused because there the words are about us.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            self._regular(found, path)
            data = file.read(min(limit, found.st_size) + 1)  # a buffer of `limit` may be more than there is memory
        if len(data) > limit:
            raise OSError(errno.EFBIG, "too large", path)
        return data

    def _regular(self, found: os.stat_result, path: str) -> None:
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, "a directory", path)
        if not stat.S_ISREG(found.st_mode) or found.st_dev == self.proc:
            raise OSError(errno.EACCES, "not a regular file", path)

    def write(self, files: list[tuple[str, int]], *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        """files: (path, mode), one blob each."""
        for (name, mode), data in zip(files, blobs, strict=True):
            self._write(os.path.join(self.work, name), mode, data)
        return ({},)

    def _write(self, path: str, mode: int, data: bytes) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.unlink(path)  # a new file: never through a link, FIFO or closed file that somebody inside laid
        except FileNotFoundError:
            pass
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fchmod(fd, mode)

    def make_folder(self, path: str, mode: int, *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        os.makedirs(os.path.join(self.work, path), exist_ok=True)
        os.chmod(os.path.join(self.work, path), mode)
        return ({},)

    def names(self, path: str, *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        return (sorted(os.listdir(os.path.join(self.work, path))),)

    def tree(self, path: str, *, blobs: list[bytes], fds: list[int]) -> tuple[object, list[bytes]]:
        """Entries (path, kind, mode, mtime_ns), one blob each."""
        entries, contents, left = [], [], self.tree_bytes
        top = os.path.join(self.work, path)
        for name, found in walk(top):
            where, kind, data = os.path.join(top, name), "other", b""
            try:
                if stat.S_ISDIR(found.st_mode):
                    kind = "directory"
                elif stat.S_ISLNK(found.st_mode):
                    kind, data = "link", os.fsencode(os.readlink(where))
                elif stat.S_ISREG(found.st_mode):
                    kind = "file"
                    data = self._read(where, left)
            except FileNotFoundError:
                continue  # gone since it was listed
            except PermissionError:
                os.chmod(where, stat.S_IMODE(found.st_mode) | 0o400)
                try:
                    data = self._read(where, left)
                finally:
                    os.chmod(where, stat.S_IMODE(found.st_mode))
            left -= len(data)
            entries.append((name, kind, stat.S_IMODE(found.st_mode), found.st_mtime_ns))
            contents.append(data)
        return entries, contents

    def restore(self, entries: list[tuple[str, str, int, int]], *, blobs: list[bytes], fds: list[int]) -> tuple[object]:
        """Make the work folder hold these entries and no others."""
        empty(self.work)
        for (name, kind, mode, _), data in zip(entries, blobs, strict=True):
            path = os.path.join(self.work, name)
            if kind == "directory":
                os.makedirs(path, exist_ok=True)
            elif kind == "link":
                os.symlink(os.fsdecode(data), path)
            else:
                self._write(path, mode, data)
        for name, kind, mode, mtime in reversed(entries):
            path = os.path.join(self.work, name)
            if kind == "directory":
                os.chmod(path, mode)
            os.utime(path, ns=(mtime, mtime), follow_symlinks=False)
        return ({},)


def in_session(session: int) -> list[int]:
    """The pids of a session that are not dead yet."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat_file:
                state, _, _, of = stat_file.read().rpartition(b")")[2].split()[:4]
        except OSError:  # gone, or hidden from us
            continue
        if int(of) == session and state not in (b"Z", b"X"):
            found.append(int(name))
    return found


def walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below `top`, a directory before what is in it.

    Closed directories are opened as long as it lasts, but not `top`: that its own user has locked it is an error.
    """
    todo, opened, count = [""], [], 0
    try:
        while todo:
            folder = todo.pop()
            below = os.path.join(top, folder) if folder else top
            mode = os.lstat(below).st_mode
            if folder and mode & 0o500 != 0o500:
                os.chmod(below, stat.S_IMODE(mode) | 0o700)
                opened.append((below, stat.S_IMODE(mode)))
            for name in sorted(os.listdir(below)):
                count += 1
                if count > TOO_MANY:
                    raise OSError(errno.EFBIG, "too many entries", top)
                path = os.path.join(folder, name)
                try:
                    found = os.lstat(os.path.join(top, path))
                except FileNotFoundError:
                    continue  # gone since it was listed
                yield path, found
                if stat.S_ISDIR(found.st_mode):
                    todo.append(path)
    finally:
        for below, mode in reversed(opened):
            os.chmod(below, mode)


def empty(top: str) -> None:
    """Remove everything below `top`, however deep and whatever its permissions: directories move up, then go."""
    os.chmod(top, 0o755)
    base = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    moved = 0
    try:
        while names := os.listdir(base):
            for name in names:
                try:
                    os.unlink(name, dir_fd=base)
                    continue
                except (IsADirectoryError, PermissionError):
                    os.chmod(name, 0o700, dir_fd=base)
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=base)
                try:
                    for below in os.listdir(folder):
                        if stat.S_ISDIR(os.stat(below, dir_fd=folder, follow_symlinks=False).st_mode):
                            os.chmod(below, 0o700, dir_fd=folder)
                            moved += 1
                            os.rename(below, f".{moved}.{os.urandom(8).hex()}", src_dir_fd=folder, dst_dir_fd=base)
                        else:
                            os.unlink(below, dir_fd=folder)
                finally:
                    os.close(folder)
                os.rmdir(name, dir_fd=base)
    finally:
        os.close(base)


def _find(program: str, path: str) -> str:
    if "/" in program:
        return program
    for folder in path.split(":"):
        if os.access(os.path.join(folder, program), os.X_OK):
            return os.path.join(folder, program)
    raise FileNotFoundError(errno.ENOENT, "no such program", program)


def main() -> None:
    config = marshal.loads(bytes.fromhex(sys.argv[1]))
    if "socket" in config:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.connect(config["socket"])
    else:
        channel = socket.socket(fileno=config["fd"])
        os.set_inheritable(config["fd"], False)
    # While it may: what cannot be traced cannot open its own either.
    config["oom_score"] = os.open("/proc/self/oom_score_adj", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    option, value = (PR_SET_DUMPABLE, 0) if config["alone"] else (PR_SET_CHILD_SUBREAPER, 1)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name, limit in config["rlimits"].items():
        number = getattr(resource, name)
        resource.setrlimit(number, (limit, limit))
    os.chdir("/")
    os.umask(0o022)
    init = Init(channel, config)
    os.makedirs(init.work, exist_ok=True)
    send(channel, {"ready": os.getpid()})
    try:
        init.serve()
    except EOFError:
        if not init.alone:
            init.reset(blobs=[], fds=[])
            os.rmdir(init.work)


if __name__ == "__main__":
    main()
