"""Sandboxes by bubblewrap: namespaces, a seccomp filter, sized tmpfs and, where it may, cgroups and a uid of its own.

Nothing of the host is mounted but /usr, read-only; files go in and out through the init inside.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from retort.sandboxes import init, seccomp
from retort.sandboxes.base import Limits, SandboxStartupError, SandboxUnavailable, UnsupportedLimit
from retort.sandboxes.guest import Guest, MiB, configuration

START_S = 30.0
UIDS = itertools.count(200_000)
PATH = "/usr/local/bin:/usr/bin:/bin"
ENV = {"PATH": PATH, "HOME": "/work", "USER": "agent", "LOGNAME": "agent", "LANG": "C.UTF-8", "PWD": "/work"}
ETC = {
    "/etc/passwd": b"agent:x:1000:1000::/work:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
    "/etc/group": b"agent:x:1000:\nnogroup:x:65534:\n",
    "/etc/hosts": b"127.0.0.1 localhost sandbox\n::1 localhost\n",
}


class BwrapSandbox(Guest):
    """A bubblewrap sandbox with a warm init in it.

    Raises:
        SandboxUnavailable: bubblewrap or what it needs is not here.
        UnsupportedLimit: a limit cannot be enforced here.
        SandboxStartupError: bubblewrap refused to start; the message has its words.
    """

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 (frozen)
        if limits.network != "none":
            raise UnsupportedLimit(f"network={limits.network!r}: only 'none' exists")
        ours, theirs = socket.socketpair()
        info, info_in = os.pipe2(os.O_CLOEXEC)
        files = [_memfd(data) for data in (seccomp.program(), Path(init.__file__).read_bytes(), *ETC.values())]
        command = _command(limits, theirs.fileno(), info_in, files)
        log = os.memfd_create("bwrap", os.MFD_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={"PATH": PATH},
                pass_fds=[theirs.fileno(), info_in, *files],
                cwd="/",
            )
        finally:
            theirs.close()
            for fd in (info_in, *files):
                os.close(fd)
        self._inner = -1
        try:
            ours.settimeout(START_S)
            init.receive(ours, MiB)
            self._inner = os.pidfd_open(json.loads(_until_end(info))["child-pid"])
        except (EOFError, OSError, ValueError) as error:
            ours.close()
            self._kill()
            words = os.pread(log, 4096, 0).decode(errors="replace").strip()
            raise SandboxStartupError(f"bubblewrap did not start: {words or error!r}") from error
        finally:
            os.close(info)
            os.close(log)
        super().__init__(limits, ours)

    def _kill(self) -> None:
        if self._inner >= 0:
            try:
                signal.pidfd_send_signal(self._inner, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(self._inner)
            self._inner = -1
        else:
            self._process.kill()
        self._process.wait(START_S)

    def capabilities(self) -> Mapping[str, str]:
        return {"namespaces": "active", "seccomp": "active"}


def _until_end(fd: int) -> bytes:
    data = b""
    while part := os.read(fd, 4096):
        data += part
    return data


def _memfd(data: bytes) -> int:
    fd = os.memfd_create("retort", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _command(limits: Limits, channel: int, info: int, files: list[int]) -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailable(
            "bubblewrap is missing: `apt-get install bubblewrap`. Without it only UnsafeSandbox(i_understand=True) works, "
            "which isolates nothing"
        )
    command: list[str] = []
    if os.geteuid() == 0:
        uid = str(next(UIDS))
        command += ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs"]
    command += [
        bwrap,
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup",
        "--unshare-net",
    ]
    command += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    command += ["--disable-userns", "--as-pid-1", "--cap-drop", "ALL", "--clearenv", "--setenv", "PATH", PATH]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64", "sbin"):
        if os.path.islink(f"/{name}"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            command += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in ("/etc/alternatives", "/etc/ld.so.cache"):
        command += ["--ro-bind-try", name, name]
    for place, fd in zip(ETC, files[2:], strict=True):
        command += ["--perms", "0644", "--ro-bind-data", str(fd), place]
    command += ["--ro-bind-data", str(files[1]), "/init.py"]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    size = ["--size", str(limits.disk_mb * MiB)] if limits.disk_mb is not None else []
    for place in ("/dev/shm", "/tmp", "/work"):
        command += ["--perms", "0755", *size, "--tmpfs", place]
    command += ["--chdir", "/work", "--remount-ro", "/", "--seccomp", str(files[0]), "--info-fd", str(info), "--"]
    config = configuration(limits, channel, "/work", ["/work", "/tmp", "/dev/shm"], alone=True, env=ENV)
    return [*command, "/usr/bin/python3", "-I", "-S", "/init.py", config]
