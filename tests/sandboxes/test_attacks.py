"""Attacks, run for real: each wins unconfined (or it is said why that cannot be shown), and in no sandbox.

An attack is a Python script that prints "won" when it got what it wanted.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

import pytest
from retort.sandboxes.base import SandboxClosed
from retort.sandboxes.guest import Guest

ROOT = os.geteuid() == 0
X86 = os.uname().machine == "x86_64"


@dataclass(frozen=True)
class Attack:
    """script: prints "won"; $WORDS in it stand for what there is to be had on the host.

    unconfined: why it cannot be shown to win here, or nothing.
    """

    script: str
    unconfined: str = ""


def call(number: int, *arguments: str) -> str:
    return f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall({number}, {", ".join(arguments)}) >= 0: print("won")
"""


TOUCH = "x = bytearray(size); x[::4096] = b'1' * len(x[::4096])"
BY_ROOT = "" if ROOT else "only root may do it anywhere"
ATTACKS = {
    "memory in one process": Attack(f"size = 200 << 20; {TOUCH}; print('won')"),
    "memory in many processes": Attack(f"""
import os, time
size = 40 << 20
pids = []
for _ in range(5):
    if not (pid := os.fork()):
        {TOUCH}
        time.sleep(1)
        os._exit(0)
    pids.append(pid)
if all(os.waitpid(pid, 0)[1] == 0 for pid in pids): print("won")
"""),
    "fork bomb": Attack("""
import os, signal, time
pids = []
try:
    for _ in range(100):
        if not (pid := os.fork()):
            time.sleep(20)
            os._exit(0)
        pids.append(pid)
    print("won")
finally:
    for pid in pids: os.kill(pid, signal.SIGKILL)
"""),
    "threads": Attack("""
import threading
stop = threading.Event()
try:
    for _ in range(100): threading.Thread(target=stop.wait).start()
    print("won")
finally:
    stop.set()
"""),
    "disk, one file": Attack("open('f', 'wb').write(b'x' * (40 << 20)); print('won')"),
    "disk, many files": Attack("for i in range(40): open(f'f{i}', 'wb').write(b'x' * (1 << 20))\nprint('won')"),
    "inodes": Attack("""
import os
for i in range(150_000): os.close(os.open(f"f{i}", os.O_CREAT | os.O_WRONLY))
print("won")
"""),
    "TCP to a server on the host": Attack("""
import socket
with socket.create_connection(("127.0.0.1", $PORT), 2) as s:
    s.sendall(b"x")
    if s.recv(3) == b"won": print("won")
"""),
    "UDP to a server on the host": Attack("""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.sendto(b"x", ("127.0.0.1", $PORT))
if s.recv(3) == b"won": print("won")
"""),
    "DNS": Attack(
        """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.connect(("8.8.8.8", 53))
print("won")
""",
        ""
        if os.path.exists("/proc/net/route") and "\t00000000\t" in Path("/proc/net/route").read_text()
        else "no route",
    ),
    "abstract socket of the host": Attack("""
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("\\0$NAME")
if s.recv(3) == b"won": print("won")
"""),
    "AF_VSOCK": Attack(
        "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); print('won')",
        "" if os.path.exists("/dev/vsock") or os.path.exists("/proc/net/vsock") else "this kernel may have none",
    ),
    "AF_NETLINK": Attack("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); print('won')"),
    "a secret file of the host": Attack("if open('$SECRET').read() == '$TOKEN': print('won')"),
    "the host's files by /proc": Attack("""
import os
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        if open(f"/proc/{name}/root$SECRET").read() == "$TOKEN": print("won"); break
    except OSError: pass
"""),
    "the host's environment by /proc": Attack("""
import os
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        if b"$TOKEN" in open(f"/proc/{name}/environ", "rb").read(): print("won"); break
    except OSError: pass
"""),
    "the host's processes": Attack("""
import os
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
if any(b"$TOKEN" in open(f"/proc/{name}/cmdline", "rb").read() for name in others): print("won")
"""),
    "a signal to the host": Attack("import os; os.kill($VICTIM, 0); print('won')"),
    "nested user namespace": Attack(call(272, "0x10000000") if X86 else "", BY_ROOT if X86 else "numbers of x86-64"),
    "nested network namespace": Attack(call(272, "0x40000000") if X86 else "", BY_ROOT if X86 else "numbers of x86-64"),
    "clone into a user namespace": Attack(
        """
import ctypes, os
pid = ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0)
if pid == 0: os._exit(0)
if pid > 0: print("won")
"""
        if X86
        else "",
        "" if X86 else "numbers of x86-64",
    ),
    "ptrace": Attack("""
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
if not (pid := os.fork()): time.sleep(10); os._exit(0)
if libc.ptrace(16, pid, 0, 0) == 0: print("won")
os.kill(pid, signal.SIGKILL)
"""),
    "another process's memory": Attack("""
import ctypes, os
class V(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
a, b = ctypes.create_string_buffer(b"mine"), ctypes.create_string_buffer(4)
here, there = V(ctypes.addressof(b), 4), V(ctypes.addressof(a), 4)
if ctypes.CDLL(None).process_vm_readv(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == 4: print("won")
"""),
    "kernel keys": Attack(call(250, "0", "-3", "1") if X86 else "", "" if X86 else "numbers of x86-64"),
    "io_uring": Attack(
        call(425, "8", "ctypes.create_string_buffer(120)") if X86 else "",
        "this kernel switches it off"
        if not X86
        or (
            Path("/proc/sys/kernel/io_uring_disabled").exists()
            and Path("/proc/sys/kernel/io_uring_disabled").read_text().strip() != "0"
        )
        else "",
    ),
    "bpf": Attack(
        "import ctypes; fd = ctypes.CDLL(None).syscall(321, 0, (ctypes.c_uint32 * 32)(2, 4, 4, 1), 128)\n"
        "if fd >= 0: print('won')",
        BY_ROOT,
    ),
    "userfaultfd": Attack(call(323, "1") if X86 else "", "" if X86 else "numbers of x86-64"),
    "mount": Attack(
        """
import ctypes, os
os.mkdir("m")
libc = ctypes.CDLL(None)
if libc.mount(b"none", b"m", b"tmpfs", 0, 0) == 0:
    libc.umount(b"m")
    print("won")
""",
        BY_ROOT,
    ),
    "chroot": Attack("import os; os.chroot('.'); print('won')", BY_ROOT),
    "to be root": Attack("import os; os.setuid(0); print('won')", BY_ROOT),
    "a device": Attack("import os, stat; os.mknod('d', 0o600 | stat.S_IFBLK, os.makedev(8, 0)); print('won')", BY_ROOT),
    "the kernel's settings": Attack("open('/proc/sys/kernel/core_pattern', 'r+'); print('won')", BY_ROOT),
    "the kernel's log": Attack("open('/dev/kmsg', 'rb', 0); print('won')", BY_ROOT),
    "the clock": Attack("import time; time.clock_settime(0, time.time()); print('won')", BY_ROOT),
    "shared memory that outlives its makers": Attack(
        "import ctypes; l = ctypes.CDLL(None); i = l.shmget(0, 4096, 0o1600)\n"
        "if i >= 0: l.shmctl(i, 0, 0); print('won')"
    ),
    "a message queue": Attack(
        """
import ctypes
libc = ctypes.CDLL(None)
if libc.mq_open(b"/retort-$TOKEN", 0o102, 0o600, None) >= 0:
    libc.mq_unlink(b"/retort-$TOKEN")
    print("won")
"""
    ),
    "typing into the terminal": Attack(
        """
import fcntl, os, pty
if not os.fork():
    master, slave = pty.openpty()
    os.setsid(); os.close(os.open(os.ttyname(slave), os.O_RDWR))
    try: fcntl.ioctl(slave, 0x5412, b"x"); os.write(1, b"won")
    except OSError: pass
    os._exit(0)
os.wait()
""",
        "this kernel refuses it to all"
        if Path("/proc/sys/dev/tty/legacy_tiocsti").exists()
        and Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "0"
        else "",
    ),
    "files outside of the writable places": Attack(
        """
import os
for top in ("/usr", "/etc", "/bin", "/", "/var", "/opt", "/.retort", "/dev"):
    try: open(f"{top}/retort-$TOKEN", "w").close()
    except OSError: continue
    os.unlink(f"{top}/retort-$TOKEN")
    print("won"); break
""",
        BY_ROOT,
    ),
    "a call of another architecture": Attack(
        call(0x40000000 + 39) if X86 else "", "this kernel may have been built without x32"
    ),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What there is to be had on the host, by its word in the scripts."""
    token = secrets.token_hex(8)
    secret = tmp_path_factory.mktemp("secret") / "file"
    secret.write_text(token)
    secret.chmod(0o600)
    victim = subprocess.Popen(["sleep", "1000"], env={"KEY": token, "PATH": os.environ["PATH"]})
    named = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", token])
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", tcp.getsockname()[1]))
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"\0retort-{token}")
    local.listen()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.sendall(b"won")

    def echo() -> None:
        while True:
            asker = udp.recvfrom(10)[1]
            if asker[0] == "127.0.0.1":
                udp.sendto(b"won", asker)

    for work in (lambda: serve(tcp), lambda: serve(local), echo):
        threading.Thread(target=work, daemon=True).start()
    yield {
        "PORT": str(tcp.getsockname()[1]),
        "NAME": f"retort-{token}",
        "SECRET": str(secret),
        "TOKEN": token,
        "VICTIM": str(victim.pid),
    }
    for process in (victim, named):
        process.kill()
        process.wait()


def told(name: str, host: dict[str, str]) -> str:
    return Template(ATTACKS[name].script).substitute(host)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_wins_unconfined(name: str, host: dict[str, str], tmp_path: Path) -> None:
    if ATTACKS[name].unconfined:
        return  # it is said why it may not
    done = subprocess.run([sys.executable, "-c", told(name, host)], cwd=tmp_path, capture_output=True, timeout=60)
    assert b"won" in done.stdout, done


@pytest.mark.parametrize("name", ATTACKS)
def test_it_wins_in_no_sandbox(name: str, host: dict[str, str], fenced_in_little: Guest) -> None:
    if name == "a call of another architecture" and not X86:
        return
    sandbox = fenced_in_little
    done = sandbox.exec(["python3", "-c", told(name, host)], timeout=60)
    assert b"won" not in done.stdout
    try:
        sandbox.reset()
    except SandboxClosed:  # where files fill the memory there is none left to clean up with: a pool replaces it
        assert name == "inodes"
        return
    assert sandbox.exec("echo alive").stdout == b"alive\n"
    assert sandbox.tree() == {}
