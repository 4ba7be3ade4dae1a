"""What every backend that isolates must hold against, beside the attacks of test_attacks.py."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from retort.sandboxes.base import Limits, SandboxError
from retort.sandboxes.guest import Guest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="holds with root alone")


@needs_root
def test_memory_bomb_across_processes(fence: Callable[..., Guest]) -> None:
    with fence(Limits(memory_mb=128)) as sandbox:
        bomb = "import os,time\nfor _ in range(5): os.fork()\nx = bytearray(40 << 20)\ntime.sleep(1)"
        assert sandbox.exec(["python3", "-c", bomb], timeout=20).oom_killed
        sandbox.reset()
        after = sandbox.exec("echo alive")
        assert (after.stdout, after.oom_killed) == (b"alive\n", False)


def test_memory_of_one_process(fenced: Guest, python: Callable[..., str]) -> None:
    assert python(fenced, "bytearray(900 << 20)") == "MemoryError"


def test_fork_bomb(fenced: Guest, python: Callable[..., str]) -> None:
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
    assert python(fenced, script) == "True"
    fenced.reset()
    assert fenced.exec("echo alive").stdout == b"alive\n"
    terminal = fenced.open_terminal()
    assert terminal.run("b() { b | b & }; b", timeout=1).exit_code == 0
    fenced.freeze()
    assert fenced.exec("echo alive").stdout == b"alive\n"


def test_no_room_for_a_shell_is_an_error_that_reset_mends(fenced: Guest, wait_until: Callable[..., bool]) -> None:
    fenced.open_terminal().close()  # a shell may have been waiting since the reset
    # It goes on for ever: where another process had the last place for a moment, that is taken as soon as it is free.
    fill = "import os, time\nwhile True:\n try:\n  if not os.fork(): time.sleep(600)\n except OSError: time.sleep(0.01)"
    fenced.exec(f"python3 -c '{fill}' > /dev/null 2>&1 &")
    assert wait_until(lambda: fenced.exec(["true"]).exit_code == 126)
    with pytest.raises(SandboxError, match="no shell"):
        fenced.open_terminal()
    fenced.reset()
    assert fenced.open_terminal().run("echo alive").stdout == b"alive\n"


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])
def test_disk_fill(fenced: Guest, place: str) -> None:
    done = fenced.exec(f"cd {place}; for i in $(seq 9); do head -c 10M /dev/zero > f$i || exit 9; done")
    assert (done.exit_code, b"No space left" in done.stderr) == (9, True)
    with pytest.raises(OSError, match="space"):
        fenced.write_file(f"{place}/more", b"x" * (10 << 20))
    fenced.reset()
    assert fenced.exec(f"ls -A {place}").stdout == b""


def test_network(fenced: Guest, python: Callable[..., str]) -> None:
    refused = "OSError: [Errno 97] Address family not supported by protocol"
    assert python(fenced, "import socket; print([name for _, name in socket.if_nameindex()])") == refused
    assert fenced.exec("cat /proc/net/dev | tail -n +3 | cut -d: -f1").stdout.split() == [b"lo"]
    connect = "import socket; socket.create_connection(('1.1.1.1', 53), 2)"
    assert python(fenced, connect) == "OSError: [Errno 101] Network is unreachable"
    for family in ("AF_VSOCK", "AF_NETLINK", "AF_PACKET", "AF_ALG"):
        made = python(fenced, f"import socket; socket.socket(socket.{family}, socket.SOCK_STREAM)")
        assert made == refused, family
    loopback = "from socket import *; s = create_server(('127.0.0.1', 0)); create_connection(s.getsockname()); print(1)"
    assert python(fenced, loopback) == "1"


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
def test_refused_calls(fenced: Guest, call: str) -> None:
    done = fenced.exec(call)
    assert done.exit_code != 0, done


def test_tiocsti(fenced: Guest) -> None:
    script = "import fcntl; print(fcntl.ioctl(0, {number}, b'x'))"
    terminal = fenced.open_terminal()
    for number in (0x5412, 0x1_0000_5412 - (1 << 32), 0x541C):
        assert b"Operation not permitted" in terminal.run(f'python3 -c "{script.format(number=number)}"').stdout
    high = "import ctypes; print(ctypes.CDLL(None).syscall(16, 0, ctypes.c_ulong(0x100005412), b'x'))"
    assert terminal.run(f'python3 -c "{high}"').stdout == b"-1\n"


def test_init_cannot_be_ended_from_inside(fenced: Guest) -> None:
    fenced.exec("kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1; kill -CHLD 1; kill -PIPE 1; kill -HUP 1")
    fenced.exec("kill -9 -1")
    assert fenced.exec("echo alive").stdout == b"alive\n"
    assert fenced.exec("cat /proc/1/mem /proc/1/maps; ls /proc/1/fd; exec 3</proc/1/fd/9").exit_code != 0


def test_reading_out_goes_through_no_link_to_init(fenced: Guest) -> None:
    fenced.exec("ln -s /proc/self/mem mem; ln -s /proc/self d; ln -s /proc/self/environ e")
    for name in ("mem", "e", "d/maps"):
        with pytest.raises(PermissionError):
            fenced.read_file(name)
    fenced.write_file("mem", b"mine")
    assert fenced.tree()["mem"].data == b"mine"
    assert fenced.tree()["d"].kind == "link"


@needs_root
def test_cpus(fence: Callable[..., Guest], python: Callable[..., str]) -> None:
    with fence(Limits(cpus=0.25)) as sandbox:
        assert sandbox.capabilities()["cpus"] == "active"
        spin = "import os, time; end = time.time() + 1\nwhile time.time() < end: pass\nprint(sum(os.times()[:2]) < 0.6)"
        assert python(sandbox, spin) == "True"
