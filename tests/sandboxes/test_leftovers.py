"""What a supervisor leaves that is killed at any moment: nothing, once the next one has started."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from retort.sandboxes.bwrap import BwrapSandbox
from retort.sandboxes.docker import LABEL, DockerSandbox, engine

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


def started(pid: int) -> str:
    """A process's start, which tells it from a later one of the same number; empty for a dead one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def family(pid: int) -> dict[int, str]:
    """A process's descendants, by their start."""
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        try:
            listed = [path.read_text().split() for path in Path(f"/proc/{todo.pop()}/task").glob("*/children")]
        except OSError:  # it is gone meanwhile, or a thread of it
            continue
        below = [int(child) for children in listed for child in children]
        found |= {child: started(child) for child in below}
        todo += below
    return found


def leftovers(pid: int, descendants: dict[int, str], mounts: set[str]) -> dict[str, list[str]]:
    """What there still is of the supervisor `pid`'s on this host; whatever others do here is not counted."""
    found = {
        "processes": [f"{child}" for child, start in descendants.items() if start and started(child) == start],
        "mounts": list(mounts & mounted()),
        "cgroups": [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if f"-{pid}-" in os.path.basename(folder)],
        "folders": [path.name for path in Path(tempfile.gettempdir()).glob(f"retort-*-{pid}-*")],
    }
    return {kind: some for kind, some in found.items() if some}


def mounted() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def kill_while_playing(
    name: str,
    episodes: int,
    at_once: int,
    wait_s: float,
    start: Callable[[], object],
    mounts_of: Callable[[int], set[str]] = lambda _: set(),
) -> int:
    """Returns the pid of the supervisor that was killed. mounts_of: what it has mounted on this host, by its pid."""
    command = [sys.executable, "-c", EPISODES, name, str(episodes), str(at_once)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert supervisor.stdout
    assert supervisor.stderr
    with supervisor.stdout as out, supervisor.stderr as errors:
        assert out.readline() == b"played\n", errors.read()
        time.sleep(wait_s)
        supervisor.send_signal(signal.SIGSTOP)  # so that what is counted is what it has
        descendants, mounts = family(supervisor.pid), mounts_of(supervisor.pid)
        supervisor.kill()
        supervisor.wait()
    start()  # which sweeps
    deadline = time.monotonic() + 20
    while (left := leftovers(supervisor.pid, descendants, mounts)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == {}
    assert descendants or name != "bwrap"
    return supervisor.pid


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

    def containers(pid: int) -> list[Any]:
        with engine() as client:
            found = client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
            return [container for container in found if f"-{pid}-" in container.labels[LABEL]]

    seen: set[str] = set()

    def mounts_of(pid: int) -> set[str]:
        held = {container.attrs["GraphDriver"]["Data"]["MergedDir"] for container in containers(pid)} & mounted()
        seen.update(held)
        return held

    for turn in range(5):
        # The first two are killed while containers are on their way.
        episodes, wait_s = (1, moments.random() * 0.5) if turn < 2 else (20, moments.random() * 0.1)
        pid = kill_while_playing(f"docker:{docker_image}", episodes, 4, wait_s, start, mounts_of)
        assert containers(pid) == []
    assert seen  # or there would have been nothing to leave
