"""Sandboxes by bubblewrap: namespaces, a seccomp filter, sized tmpfs and, where it may, cgroups and a uid of its own.

Nothing of the host is mounted but /usr, read-only, without the folders that this Python finds its packages in: tasks
and their solutions are among them. Files go in and out through the init inside.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from sysconfig import get_path

from retort.sandboxes import cgroups, init, seccomp
from retort.sandboxes.base import Layout, Limits, SandboxStartupError, SandboxUnavailable
from retort.sandboxes.guest import PYTHON, Guest, MiB, configuration, demand

START_S = 30.0
FIRST_UID = 200_000
NO_UID: tuple[int | None, socket.socket | None] = (None, None)
PATH = "/usr/local/bin:/usr/bin:/bin"
DEBIANS = "/usr/lib/python3/dist-packages"
# What holds programs is never covered, though somebody may have it on their Python's path.
ROOTS = {"/usr", *(f"/usr{local}/{name}" for local in ("", "/local") for name in ("bin", "sbin", "lib", "lib64"))}
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

    def __init__(self, limits: Limits = Limits(), layout: Layout = Layout()) -> None:  # noqa: B008 (frozen)
        if layout.root:
            raise SandboxUnavailable("bubblewrap has no machine to be root of: use docker:IMAGE")
        where = cgroups.tree()
        self._layers = _layers(limits, where)
        self._group: cgroups.Group | None = None
        self._inner = -1
        files = [_memfd(data) for data in (seccomp.program(), _init(), *ETC.values())]
        ours, theirs = socket.socketpair()
        info, info_in = os.pipe2(os.O_CLOEXEC)
        log = os.memfd_create("bwrap", os.MFD_CLOEXEC)
        uid, self._claim = _unique_uid() if os.geteuid() == 0 else NO_UID
        try:
            command = _command(limits, layout, uid, theirs.fileno(), info_in, files)
            if where:
                cgroups.sweep(where)
                self._group = cgroups.make(where, limits)
                joins = [f"echo $$ > {shlex.quote(str(file))}" for file in self._group.joins()]
                command = ["/bin/sh", "-c", " && ".join([*joins, 'exec "$@"']), "sh", *command]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={"PATH": PATH},
                pass_fds=[theirs.fileno(), info_in, *files],
                cwd="/",
            )
            theirs.close()
            os.close(info_in)
            info_in = -1
            ours.settimeout(START_S)
            init.receive(ours, MiB, json.loads)
            self._inner = os.pidfd_open(json.loads(_until_end(info))["child-pid"])
        except BaseException as error:
            ours.close()
            self._kill()
            if not isinstance(error, EOFError | OSError | ValueError):
                raise
            words = os.pread(log, 4096, 0).decode(errors="replace").strip()
            raise SandboxStartupError(f"bubblewrap did not start a sandbox: {words or error!r}") from error
        finally:
            theirs.close()
            for fd in (info, log, *files, *([info_in] if info_in >= 0 else [])):
                os.close(fd)
        super().__init__(limits, ours)

    def _kill(self) -> None:
        if self._inner >= 0:
            try:
                signal.pidfd_send_signal(self._inner, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(self._inner)
            self._inner = -1
        if hasattr(self, "_process"):
            try:
                self._process.wait(START_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._group:
            self._group.remove()
            self._group = None
        if self._claim:
            self._claim.close()

    def _oom_kills(self) -> int:
        return self._group.oom_kills() if self._group else 0

    def capabilities(self) -> Mapping[str, str]:
        return dict(self._layers)


def _layers(limits: Limits, where: cgroups.Tree | None) -> dict[str, str]:
    """What holds here. Raises UnsupportedLimit for a demand that nothing here can meet."""
    layers = dict.fromkeys(("namespaces", "network", "seccomp", "capabilities dropped", "disk_mb", "pids"), "active")
    layers["uid"] = "active" if os.geteuid() == 0 else "inactive: without root the sandbox runs as your own user"
    if limits.disk_mb is None:
        layers["disk_mb"] = "inactive: not asked for"
    if limits.pids is None:
        layers["pids"] = "inactive: not asked for"
    for name, controller, rest in (
        ("memory_mb", "memory", "only each process by itself is held to it"),
        ("cpus", "cpu", "nothing else limits cores"),
    ):
        held = where is not None and controller in where.parents and getattr(limits, name) is not None
        why = f"no cgroup with the {controller} controller may be made here; {rest}"
        layers[name] = "active" if held else demand(limits, name, why)
    return layers


def _unique_uid() -> tuple[int, socket.socket]:
    """A uid that no other live sandbox of this machine has, and the socket whose name claims it.

    The kernel frees the name with the process, so that nothing stale can be left.
    """
    claim = socket.socket(socket.AF_UNIX)
    for uid in range(FIRST_UID, FIRST_UID + 100_000):
        try:
            claim.bind(f"\0retort-uid-{uid}")
        except OSError:
            continue
        return uid, claim
    raise SandboxStartupError("100,000 sandboxes are alive already")


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


# Compiling the init takes a tenth of a start.
COMPILE = """
import marshal, sys
from importlib.util import MAGIC_NUMBER
code = compile(sys.stdin.buffer.read(), "init.py", "exec")
sys.stdout.buffer.write(MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
"""


@cache
def _init() -> bytes:
    """The init, compiled by the Python that will run it."""
    if not os.access(PYTHON, os.X_OK):
        raise SandboxUnavailable(f"{PYTHON}, which runs the init inside, is missing: `apt-get install python3`")
    source = Path(init.__file__).read_bytes()
    done = subprocess.run([PYTHON, "-I", "-S", "-c", COMPILE], input=source, capture_output=True, check=False)
    if done.returncode:
        raise SandboxUnavailable(f"{PYTHON} cannot run the init of a sandbox: {done.stderr.decode(errors='replace')}")
    return done.stdout


def covered() -> list[str]:
    """Folders below /usr that nobody inside may read: where this process finds packages, this one among them.

    An environment's solutions come with its package, and a Python image has them in /usr/local. The standard library
    stays, and so do the packages that Debian's own programs need.
    """
    kept = {os.path.realpath(get_path(name)) for name in ("stdlib", "platstdlib")}
    kept |= {os.path.join(path, "lib-dynload") for path in kept} | {DEBIANS}
    here = str(Path(__file__).resolve().parents[1])
    found = {os.path.realpath(path) for path in (*sys.path, here) if os.path.isdir(path)}
    below = sorted(path for path in found - kept if f"{path}/".startswith("/usr/") and path not in ROOTS)
    return [path for path in below if not any(path.startswith(f"{top}/") for top in below)]


def _command(limits: Limits, layout: Layout, uid: int | None, channel: int, info: int, files: list[int]) -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailable(
            "bubblewrap is missing: `apt-get install bubblewrap`. Without it only UnsafeSandbox(i_understand=True) "
            "works, which isolates nothing"
        )
    command: list[str] = []
    if uid is not None:
        command += ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--no-new-privs"]
    spaces = ("user", "pid", "ipc", "uts", "cgroup", "net")
    command += [bwrap, *(f"--unshare-{space}" for space in spaces)]
    command += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    command += ["--disable-userns", "--as-pid-1", "--cap-drop", "ALL", "--clearenv", "--setenv", "PATH", PATH]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64", "sbin"):
        if os.path.islink(f"/{name}"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            command += ["--ro-bind", f"/{name}", f"/{name}"]
    for folder in covered():
        command += ["--perms", "0555", "--tmpfs", folder, "--remount-ro", folder]
    command += ["--perms", "0755", "--dir", "/etc"]
    for name in ("/etc/alternatives", "/etc/ld.so.cache"):
        command += ["--ro-bind-try", name, name]
    for place, fd in zip(ETC, files[2:], strict=True):
        command += ["--perms", "0644", "--ro-bind-data", str(fd), place]
    command += ["--perms", "0644", "--ro-bind-data", str(files[1]), "/etc/init.pyc"]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    size = ["--size", str(limits.disk_mb * MiB)] if limits.disk_mb is not None else []
    for place in layout.scratch:
        command += ["--perms", "0755", *size, "--tmpfs", place]
    command += ["--remount-ro", "/", "--seccomp", str(files[0]), "--info-fd", str(info), "--"]
    config = configuration(
        limits,
        {"fd": channel},
        layout.work,
        layout.scratch,
        alone=True,
        own_users=True,
        env=layout.environment({"PATH": PATH}),
    )
    return [*command, PYTHON, "-I", "-S", "/etc/init.pyc", config]
