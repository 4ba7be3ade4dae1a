"""What bubblewrap sandboxes must hold against. The attacks run for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from retort.sandboxes import bwrap as backend
from retort.sandboxes import cgroups
from retort.sandboxes.base import Limits, SandboxClosed, SandboxUnavailable, UnsupportedLimit
from retort.sandboxes.bwrap import BwrapSandbox

NAP = f"{2000 + os.getpid()}"  # seconds that nobody else on this machine sleeps
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="holds with root alone")


@needs_root
def test_every_layer_is_active_for_root(bwrap: BwrapSandbox) -> None:
    assert {name for name, state in bwrap.capabilities().items() if state != "active"} == {"cpus"}


def test_nothing_else_is_writable(bwrap: BwrapSandbox) -> None:
    found = bwrap.exec("find / -xdev -writable -not -type l; find /dev /etc /usr -writable -type d").stdout.decode()
    assert set(found.split()) <= {"/work", "/tmp", "/dev/shm", "/dev/null", "/dev/pts"}
    for place in ("/", "/etc", "/usr", "/dev", "/dev/pts", "/proc", "/etc/passwd"):
        assert bwrap.exec(f"touch {place}/x").exit_code != 0


def test_the_host_is_out_of_sight(bwrap: BwrapSandbox) -> None:
    assert bwrap.exec("cat /etc/shadow").exit_code == 1
    assert bwrap.exec("ls /home /root /work/.. /sys /var /run 2>/dev/null | tr '\\n' ' '").text.count("home") == 0
    assert bwrap.exec("hostname; id -un; pwd").stdout == b"sandbox\nagent\n/work\n"
    assert set(bwrap.exec("env").text.splitlines()) >= {"HOME=/work", "PATH=/usr/local/bin:/usr/bin:/bin"}
    assert bwrap.exec("cat /proc/1/environ").exit_code == 1
    assert bwrap.exec("ls /proc | grep -c '^[0-9]'").stdout.strip() in {b"3", b"4", b"5"}


def test_packages_of_this_python_are_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where retort is installed below /usr, as in a Python image, its tasks' solutions would lie open."""
    full = next(path for path in Path("/usr/share").iterdir() if path.is_dir() and any(path.iterdir()))
    look = ["ls", "-A", str(full)]
    with BwrapSandbox() as sandbox:
        assert sandbox.exec(look).stdout
    monkeypatch.syspath_prepend(str(full))
    with BwrapSandbox() as sandbox:
        assert sandbox.exec(look).stdout == b""
        assert sandbox.exec(["touch", f"{full}/x"]).exit_code == 1
        assert sandbox.exec(["python3", "-c", "import json, ctypes, sqlite3"]).exit_code == 0


def test_what_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    library = os.path.realpath(os.path.dirname(os.__file__))
    open_ones = ["/usr/lib", "/usr/bin", "/usr/lib/python3/dist-packages", library, f"{library}/lib-dynload", "/etc"]
    monkeypatch.setattr(sys, "path", [*open_ones, "/usr/share", "/usr/share/doc", "/usr/no/such", ""])
    assert backend.covered() == ["/usr/share"]


@needs_root
def test_a_uid_of_its_own(
    bwrap: BwrapSandbox, living: Callable[[str], list[int]], wait_until: Callable[..., bool]
) -> None:
    with BwrapSandbox() as other:
        uids = set()
        for sandbox, seconds in ((bwrap, f"{NAP}.1"), (other, f"{NAP}.2")):
            sandbox.exec(f"sleep {seconds} > /dev/null 2>&1 &")
            assert wait_until(lambda seconds=seconds: bool(living(f"sleep\0{seconds}")))  # type: ignore[misc]
            uids |= {os.stat(f"/proc/{pid}").st_uid for pid in living(f"sleep\0{seconds}")}
    assert len(uids) == 2
    assert min(uids) >= 200_000


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
    groups: Callable[[int], set[Path]],
    living: Callable[[str], list[int]],
    wait_until: Callable[..., bool],
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
        # Now, and not after the kill: whoever makes a sandbox on this machine sweeps, other tests too.
        assert groups(supervisor.pid)
        supervisor.kill()
        supervisor.wait()
    assert wait_until(lambda: not living(f"sleep\0{NAP}.3"))

    def swept() -> bool:
        with BwrapSandbox():
            pass
        return not groups(supervisor.pid)

    assert wait_until(swept)


def test_closing_leaves_nothing(
    groups: Callable[[int], set[Path]],
    living: Callable[[str], list[int]],
    wait_until: Callable[..., bool],
) -> None:
    before = groups(os.getpid())
    with BwrapSandbox() as sandbox:
        sandbox.exec(f"setsid sleep {NAP}.4 > /dev/null 2>&1 &")
        assert wait_until(lambda: bool(living(f"sleep\0{NAP}.4")))
    assert not living(f"sleep\0{NAP}.4")
    assert groups(os.getpid()) == before


def test_bubblewrap_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"apt-get install bubblewrap.*UnsafeSandbox"):
        BwrapSandbox()


@pytest.mark.parametrize("limits", [Limits(memory_mb=512), Limits(cpus=1)])
def test_a_demand_without_cgroups_is_refused(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    monkeypatch.setattr(cgroups, "tree", lambda: None)
    with pytest.raises(UnsupportedLimit, match="cannot be enforced"):
        BwrapSandbox(limits)


def test_defaults_without_cgroups_work_and_say_so(monkeypatch: pytest.MonkeyPatch, python: Callable[..., str]) -> None:
    monkeypatch.setattr(cgroups, "tree", lambda: None)
    with BwrapSandbox() as sandbox:
        assert sandbox.capabilities()["memory_mb"].startswith("inactive: no cgroup")
        assert sandbox.capabilities()["pids"] == "active"
        counted = "for i in $(seq 200); do sleep 9 & done 2>/dev/null; jobs -r | wc -l"
        assert int(sandbox.open_terminal().run(counted, timeout=20).stdout or b"0") <= 128
        assert python(sandbox, "bytearray(900 << 20)") == "MemoryError"
