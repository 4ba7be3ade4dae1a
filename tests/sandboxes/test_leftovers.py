"""What a supervisor leaves that is killed at any moment: nothing, once the next one has started."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from retort.sandboxes.bwrap import BwrapSandbox
from retort.sandboxes.docker import DockerSandbox, engine

EPISODES = """
import sys, threading
from pathlib import Path
from retort.sandboxes.pool import Pool
from retort.sandboxes.named import open_sandbox
from retort.sandboxes.base import Limits

name, count, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
left, lock = [count], threading.Lock()

def play(pool):
    while True:
        with pool.lend() as sandbox:
            sandbox.write_file("a/b", "text")
            sandbox.open_terminal().run("(setsid sleep 3000 &); cat a/b; nohup sleep 3000 > /dev/null 2>&1 &")
            sandbox.exec("cat a/b")
        with lock:
            left[0] -= 1
            if left[0] == 0:
                print("played", flush=True)

with Pool(lambda: open_sandbox(name, Limits()), at_once) as pool:
    for _ in range(at_once): threading.Thread(target=play, args=(pool,), daemon=True).start()
    threading.Event().wait()
"""


def processes() -> set[str]:
    """Host processes that a sandbox may consist of, told apart by pid and start."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
            start = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            continue
        if any(mark in words for mark in (b"bwrap", b"init.py", b"sleep\x003000", b"containerd-shim", b"PROMPT_COMM")):
            found.add(f"{name} {start} {words!r}")
    return found


def leftovers(pid: int) -> dict[str, set[str]]:
    """What there is of the supervisor `pid`'s on this host, and what may be its."""
    groups = Path("/sys/fs/cgroup").glob(f"**/*-{pid}-*-*") if os.geteuid() == 0 else []
    return {
        "processes": processes(),
        "mounts": {line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "cgroups": {str(path) for path in groups},
        "folders": {path.name for path in Path(tempfile.gettempdir()).glob("retort-*")},
        "abstract sockets": {
            line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@" in line
        },
    }


def settles_to(before: dict[str, set[str]], pid: int) -> dict[str, set[str]]:
    """What is more than before, once it does not get less any more."""
    deadline = time.monotonic() + 20
    while True:
        more = {kind: found - before[kind] for kind, found in leftovers(pid).items()}
        if not any(more.values()) or time.monotonic() > deadline:
            return {kind: found for kind, found in more.items() if found}
        time.sleep(0.05)


def kill_while_playing(name: str, episodes: int, at_once: int, wait_s: float, start: Callable[[], object]) -> None:
    before = leftovers(0)
    command = [sys.executable, "-c", EPISODES, name, str(episodes), str(at_once)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert supervisor.stdout
    assert supervisor.stderr
    with supervisor.stdout as out, supervisor.stderr as errors:
        assert out.readline() == b"played\n", errors.read()
        time.sleep(wait_s)
        supervisor.kill()
        supervisor.wait()
        start()  # which sweeps
        assert settles_to(before, supervisor.pid) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bwrap_leaves_nothing() -> None:
    moments = random.Random(0)

    def start() -> None:
        BwrapSandbox().close()

    for _ in range(20):
        kill_while_playing("bwrap", 500, 8, moments.random() * 0.1, start)


@pytest.mark.slow
def test_docker_leaves_nothing(docker_image: Path) -> None:
    moments = random.Random(0)

    def start() -> None:
        DockerSandbox(docker_image).close()

    for turn in range(5):
        # The first two are killed while containers are on their way.
        episodes, wait_s = (1, moments.random() * 0.5) if turn < 2 else (20, moments.random() * 0.1)
        kill_while_playing(f"docker:{docker_image}", episodes, 4, wait_s, start)
        with engine() as client:
            owners = [
                found.labels["retort.owner"]
                for found in client.containers.list(all=True, filters={"label": "retort.owner"})
            ]
            assert all(f"-{os.getpid()}-" in owner for owner in owners)
