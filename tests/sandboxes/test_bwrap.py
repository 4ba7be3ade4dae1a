"""What bubblewrap sandboxes must hold against. The attacks run for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from retort.sandboxes import cgroups
from retort.sandboxes.base import Limits, SandboxClosed, SandboxError, SandboxUnavailable, UnsupportedLimit
from retort.sandboxes.bwrap import BwrapSandbox

NAP = f"{2000 + os.getpid()}"  # seconds that nobody else on this machine sleeps
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="holds with root alone")


def python(sandbox: BwrapSandbox, script: str) -> str:
    """What the script printed, or the last line of its error."""
    done = sandbox.exec(["python3", "-c", script], timeout=20)
    return (done.stdout or done.stderr.splitlines()[-1]).decode().strip()


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@needs_root
def test_every_layer_is_active_for_root(bwrap: BwrapSandbox) -> None:
    assert {name for name, state in bwrap.capabilities().items() if state != "active"} == {"cpus"}


@needs_root
def test_memory_bomb_across_processes() -> None:
    with BwrapSandbox(Limits(memory_mb=128)) as sandbox:
        bomb = "import os,time\nfor _ in range(5): os.fork()\nx = bytearray(40 << 20)\ntime.sleep(1)"
        assert sandbox.exec(["python3", "-c", bomb], timeout=20).oom_killed
        sandbox.reset()
        after = sandbox.exec("echo alive")
        assert (after.stdout, after.oom_killed) == (b"alive\n", False)


def test_memory_of_one_process(bwrap: BwrapSandbox) -> None:
    assert python(bwrap, "bytearray(900 << 20)") == "MemoryError"


def test_fork_bomb(bwrap: BwrapSandbox) -> None:
    script = """
import os, time
count = 0
try:
    while True:
        if not os.fork():
            time.sleep(30)
            os._exit(0)
        count += 1
except BlockingIOError:
    print(100 < count <= 128)
"""
    assert python(bwrap, script) == "True"
    bwrap.reset()
    assert bwrap.exec("echo alive").stdout == b"alive\n"
    terminal = bwrap.open_terminal()
    assert terminal.run("b() { b | b & }; b", timeout=1).exit_code == 0
    bwrap.freeze()
    assert bwrap.exec("echo alive").stdout == b"alive\n"


def test_no_room_for_a_shell_is_an_error_that_reset_mends(bwrap: BwrapSandbox) -> None:
    bwrap.open_terminal().close()  # a shell may have been waiting since the reset
    fill = "import os, time\ntry:\n while True:\n  if not os.fork(): time.sleep(60)\nexcept OSError: time.sleep(60)"
    bwrap.exec(f"python3 -c '{fill}' > /dev/null 2>&1 &")
    assert wait_until(lambda: bwrap.exec(["true"]).exit_code == 126)
    with pytest.raises(SandboxError, match="no shell"):
        bwrap.open_terminal()
    bwrap.reset()
    assert bwrap.open_terminal().run("echo alive").stdout == b"alive\n"


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])
def test_disk_fill(bwrap: BwrapSandbox, place: str) -> None:
    done = bwrap.exec(f"cd {place}; for i in $(seq 9); do head -c 10M /dev/zero > f$i || exit 9; done")
    assert (done.exit_code, b"No space left" in done.stderr) == (9, True)
    with pytest.raises(OSError, match="space"):
        bwrap.write_file(f"{place}/more", b"x" * (10 << 20))
    bwrap.reset()
    assert bwrap.exec(f"ls -A {place}").stdout == b""


def test_nothing_else_is_writable(bwrap: BwrapSandbox) -> None:
    found = bwrap.exec("find / -xdev -writable -not -type l; find /dev /etc /usr -writable -type d").stdout.decode()
    assert set(found.split()) <= {"/work", "/tmp", "/dev/shm", "/dev/null", "/dev/pts"}
    for place in ("/", "/etc", "/usr", "/dev", "/dev/pts", "/proc", "/etc/passwd"):
        assert bwrap.exec(f"touch {place}/x").exit_code != 0


def test_network(bwrap: BwrapSandbox) -> None:
    assert python(bwrap, "import socket; print([name for _, name in socket.if_nameindex()])").endswith(
        "Operation not permitted"
    )
    assert bwrap.exec("cat /proc/net/dev | tail -n +3 | cut -d: -f1").stdout.split() == [b"lo"]
    connect = "import socket; socket.create_connection(('1.1.1.1', 53), 2)"
    assert python(bwrap, connect) == "OSError: [Errno 101] Network is unreachable"
    for family in ("AF_VSOCK", "AF_NETLINK", "AF_PACKET", "AF_ALG"):
        made = python(bwrap, f"import socket; socket.socket(socket.{family}, socket.SOCK_STREAM)")
        assert made == "PermissionError: [Errno 1] Operation not permitted", family
    loopback = "from socket import *; s = create_server(('127.0.0.1', 0)); create_connection(s.getsockname()); print(1)"
    assert python(bwrap, loopback) == "1"


def test_the_host_is_out_of_sight(bwrap: BwrapSandbox) -> None:
    assert bwrap.exec("cat /etc/shadow").exit_code == 1
    assert bwrap.exec("ls /home /root /work/.. /sys /var /run 2>/dev/null | tr '\\n' ' '").text.count("home") == 0
    assert bwrap.exec("hostname; id -un; pwd").stdout == b"sandbox\nagent\n/work\n"
    assert set(bwrap.exec("env").text.splitlines()) >= {"HOME=/work", "PATH=/usr/local/bin:/usr/bin:/bin"}
    assert bwrap.exec("cat /proc/1/environ").exit_code == 1
    assert bwrap.exec("ls /proc | grep -c '^[0-9]'").stdout.strip() in {b"3", b"4", b"5"}


@needs_root
def test_a_uid_of_its_own(bwrap: BwrapSandbox, living: Callable[[str], list[int]]) -> None:
    with BwrapSandbox() as other:
        uids = set()
        for sandbox, seconds in ((bwrap, f"{NAP}.1"), (other, f"{NAP}.2")):
            sandbox.exec(f"sleep {seconds} > /dev/null 2>&1 &")
            assert wait_until(lambda seconds=seconds: bool(living(f"sleep\0{seconds}")))  # type: ignore[misc]
            uids |= {os.stat(f"/proc/{pid}").st_uid for pid in living(f"sleep\0{seconds}")}
    assert len(uids) == 2
    assert min(uids) >= 200_000


@pytest.mark.parametrize(
    "call",
    [
        "unshare -U true",
        "unshare -r true",
        "mount -t tmpfs none /tmp",
        "python3 -c 'import ctypes, os; l = ctypes.CDLL(None, use_errno=True); exit(l.ptrace(16, 1, 0, 0) < 0)'",
        "python3 -c 'import ctypes; l = ctypes.CDLL(None); exit(l.syscall(425, 8, 0) < 0)'",  # io_uring_setup
        "python3 -c 'import ctypes; l = ctypes.CDLL(None); exit(l.syscall(250, 0, -3, 1) < 0)'",  # keyctl
        "python3 -c 'import ctypes; l = ctypes.CDLL(None); exit(l.syscall(56, 0x10000011, 0, 0, 0, 0) < 0)'",  # clone
        "python3 -c 'import ctypes; l = ctypes.CDLL(None); exit(l.shmget(1, 4096, 0o1600) < 0)'",
        "python3 -c 'import ctypes; l = ctypes.CDLL(None); exit(l.syscall(0x40000000 + 39) < 0)'",  # x32
        "prlimit --pid 1 --nofile=0",
        "renice 19 -p 1",
        "taskset -p 1 1",
        "echo 1000 > /proc/1/oom_score_adj",
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_refused_calls(bwrap: BwrapSandbox, call: str) -> None:
    done = bwrap.exec(call)
    assert done.exit_code != 0, done


def test_tiocsti(bwrap: BwrapSandbox) -> None:
    script = "import fcntl; print(fcntl.ioctl(0, {number}, b'x'))"
    terminal = bwrap.open_terminal()
    for number in (0x5412, 0x1_0000_5412 - (1 << 32), 0x541C):
        assert b"Operation not permitted" in terminal.run(f'python3 -c "{script.format(number=number)}"').stdout
    high = "import ctypes; print(ctypes.CDLL(None).syscall(16, 0, ctypes.c_ulong(0x100005412), b'x'))"
    assert terminal.run(f'python3 -c "{high}"').stdout == b"-1\n"


def test_init_cannot_be_ended_from_inside(bwrap: BwrapSandbox) -> None:
    bwrap.exec("kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1; kill -CHLD 1; kill -PIPE 1; kill -HUP 1")
    bwrap.exec("kill -9 -1")
    assert bwrap.exec("echo alive").stdout == b"alive\n"
    assert bwrap.exec("cat /proc/1/mem /proc/1/maps; ls /proc/1/fd; exec 3</proc/1/fd/9").exit_code != 0


def test_reading_out_goes_through_no_link_to_init(bwrap: BwrapSandbox) -> None:
    bwrap.exec("ln -s /proc/self/mem mem; ln -s /proc/self d; ln -s /proc/self/environ e")
    for name in ("mem", "e", "d/maps"):
        with pytest.raises(PermissionError):
            bwrap.read_file(name)
    bwrap.write_file("mem", b"mine")
    assert bwrap.tree()["mem"].data == b"mine"
    assert bwrap.tree()["d"].kind == "link"


def test_a_dead_init_is_a_closed_sandbox(groups: Callable[[int], set[Path]]) -> None:
    before = groups(os.getpid())
    sandbox = BwrapSandbox()
    signal.pidfd_send_signal(sandbox._inner, signal.SIGKILL)
    with pytest.raises(SandboxClosed):
        sandbox.exec("true")
    with pytest.raises(SandboxClosed):
        sandbox.exec("true")
    sandbox.close()
    assert groups(os.getpid()) == before


def test_a_killed_supervisor_leaves_nothing(
    groups: Callable[[int], set[Path]], living: Callable[[str], list[int]]
) -> None:
    script = (
        "import sys, threading, time\n"
        "from retort.sandboxes.bwrap import BwrapSandbox\n"
        "made = []\n"
        "maker = threading.Thread(target=lambda: made.append(BwrapSandbox()))\n"
        "maker.start(); maker.join(); time.sleep(0.2)\n"  # a sandbox outlives the thread that made it
        f"made[0].exec('(setsid sleep {NAP}.3 &) ; sleep {NAP}.3 > /dev/null 2>&1 &')\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert supervisor.stdout
    with supervisor.stdout as out:
        assert out.readline() == b"up\n"
        assert wait_until(lambda: len(living(f"sleep\0{NAP}.3")) == 2)
        supervisor.kill()
        supervisor.wait()
    assert wait_until(lambda: not living(f"sleep\0{NAP}.3"))
    assert groups(supervisor.pid)

    def swept() -> bool:
        with BwrapSandbox():
            pass
        return not groups(supervisor.pid)

    assert wait_until(swept)


def test_closing_leaves_nothing(groups: Callable[[int], set[Path]], living: Callable[[str], list[int]]) -> None:
    before = groups(os.getpid())
    with BwrapSandbox() as sandbox:
        sandbox.exec(f"setsid sleep {NAP}.4 > /dev/null 2>&1 &")
        assert wait_until(lambda: bool(living(f"sleep\0{NAP}.4")))
    assert not living(f"sleep\0{NAP}.4")
    assert groups(os.getpid()) == before


@needs_root
def test_cpus() -> None:
    with BwrapSandbox(Limits(cpus=0.25)) as sandbox:
        assert sandbox.capabilities()["cpus"] == "active"
        spin = "import os, time; end = time.time() + 1\nwhile time.time() < end: pass\nprint(sum(os.times()[:2]) < 0.6)"
        assert python(sandbox, spin) == "True"


def test_bubblewrap_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"apt-get install bubblewrap.*UnsafeSandbox"):
        BwrapSandbox()


@pytest.mark.parametrize("limits", [Limits(memory_mb=512), Limits(cpus=1)])
def test_a_demand_without_cgroups_is_refused(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    monkeypatch.setattr(cgroups, "tree", lambda: None)
    with pytest.raises(UnsupportedLimit, match="cannot be enforced"):
        BwrapSandbox(limits)


def test_defaults_without_cgroups_work_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "tree", lambda: None)
    with BwrapSandbox() as sandbox:
        assert sandbox.capabilities()["memory_mb"].startswith("inactive: no cgroup")
        assert sandbox.capabilities()["pids"] == "active"
        counted = "for i in $(seq 200); do sleep 9 & done 2>/dev/null; jobs -r | wc -l"
        assert int(sandbox.open_terminal().run(counted, timeout=20).stdout or b"0") <= 128
        assert python(sandbox, "bytearray(900 << 20)") == "MemoryError"
