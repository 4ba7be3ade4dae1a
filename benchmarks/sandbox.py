"""What sandboxes cost: start, reset, a terminal's round trip, and warm episodes at several numbers of slots.

Usage: python benchmarks/sandbox.py [bwrap|docker|unsafe] [seconds per episode measurement]

An episode: reset, three files written, three commands, the tree read. CPU is that of the supervisor, in cores. Docker
runs an image of this machine's own programs, on an engine of its own where none answers, and a plain `docker exec` in
the same image is measured beside.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import measure
from retort.sandboxes.base import Limits, Sandbox, SandboxUnavailable
from retort.sandboxes.docker import build, engine
from retort.sandboxes.engine import private_engine
from retort.sandboxes.images import folder_of_this_machine
from retort.sandboxes.named import open_sandbox
from retort.sandboxes.pool import Pool

NAMES = ("bwrap", "docker", "unsafe")
SLOTS = (1, 4, 32)


@contextmanager
def named(name: str) -> Iterator[str]:
    """The name that `open_sandbox` takes; for docker an image is made, and an engine started where none answers."""
    if name != "docker":
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder:
        image = folder_of_this_machine(Path(folder) / "image")
        try:
            with engine():
                pass
            yield f"docker:{image}"
        except SandboxUnavailable:
            with private_engine(Path(folder) / "engine") as host:
                os.environ["DOCKER_HOST"] = host
                yield f"docker:{image}"


def plain_docker_exec(image: Path, times: int) -> list[float]:
    """Seconds of `docker exec CONTAINER true` through the SDK, as others do it."""
    with engine() as client:
        container = client.containers.run(build(client, image), ["sleep", "1000"], detach=True, network_mode="none")
        try:
            return timed(lambda: container.exec_run(["true"]), times)
        finally:
            container.remove(force=True)


def timed(action: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of `times` calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return taken


def episode(sandbox: Sandbox) -> None:
    sandbox.write_files({"a.txt": "one\ntwo\n", "b.txt": "three\n", "d/c.txt": "four\n"})
    terminal = sandbox.open_terminal()
    for command in ("cat a.txt", "cp b.txt d/", "wc -l a.txt d/c.txt"):
        terminal.run(command)
    sandbox.tree()


def episodes(make: Callable[[], Sandbox], slots: int, seconds: float) -> tuple[float, float]:
    """(episodes per second, cores of this process) with `slots` threads on a warm pool."""
    counts = [0] * slots
    with Pool(make, slots) as pool:

        def work(place: int, until: float) -> None:
            while time.perf_counter() < until:
                with pool.lend() as sandbox:
                    episode(sandbox)
                counts[place] += 1

        def everybody(seconds: float) -> float:
            start = time.perf_counter()
            workers = [threading.Thread(target=work, args=(place, start + seconds)) for place in range(slots)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return time.perf_counter() - start

        everybody(1.0)
        counts[:] = [0] * slots
        before = resource.getrusage(resource.RUSAGE_SELF)
        took = everybody(seconds)
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return sum(counts) / took, cpu / took


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "bwrap"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    if name not in NAMES:
        sys.exit(f"unknown backend {name!r}; expected one of {', '.join(NAMES)}")
    with named(name) as full:
        measure_all(full, seconds)


def measure_all(name: str, seconds: float) -> None:
    def make() -> Sandbox:
        return open_sandbox(name, Limits())

    rows: list[tuple[object, ...]] = []

    def row(label: str, taken: list[float]) -> None:
        p95 = statistics.quantiles(taken, n=20)[-1]
        rows.append((label, statistics.median(taken) * 1e3, p95 * 1e3))

    def start_and_close() -> None:
        make().close()

    row("start and close", timed(start_and_close, 20))
    with make() as sandbox:
        row("exec true", timed(lambda: sandbox.exec(["true"]), 100))
        terminal = sandbox.open_terminal()
        row("terminal round trip", timed(lambda: terminal.run("echo hi"), 500))

        def reset_and_command() -> None:
            sandbox.reset()
            sandbox.open_terminal().run("echo hi")

        row("reset + one command", timed(reset_and_command, 200))
    if name.startswith("docker:"):
        row("a plain docker exec true", plain_docker_exec(Path(name.partition(":")[2]), 20))
    measure.table((f"{name.partition(':')[0]}, ms", "p50", "p95"), rows)
    found = {slots: episodes(make, slots, seconds) for slots in SLOTS}
    measure.table(
        ("slots, warm", "episodes/s", "ratio to one slot", "cores here"),
        [(slots, rate, rate / found[1][0], cores) for slots, (rate, cores) in found.items()],
    )


if __name__ == "__main__":
    main()
