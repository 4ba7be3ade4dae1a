"""What sandboxes cost: start, reset, a terminal's round trip, and warm episodes at several numbers of slots.

Usage: python benchmarks/sandbox.py [bwrap|unsafe] [seconds per episode measurement]

An episode: reset, three files written, three commands, the tree read. CPU is that of the supervisor, in cores.
"""

from __future__ import annotations

import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable

import measure
from retort.sandboxes.base import Sandbox
from retort.sandboxes.bwrap import BwrapSandbox
from retort.sandboxes.pool import Pool
from retort.sandboxes.unsafe import UnsafeSandbox

MAKERS: dict[str, Callable[[], Sandbox]] = {"bwrap": BwrapSandbox, "unsafe": lambda: UnsafeSandbox(i_understand=True)}
SLOTS = (1, 4, 32)


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
    if name not in MAKERS:
        sys.exit(f"unknown backend {name!r}; expected one of {', '.join(MAKERS)}")
    make = MAKERS[name]
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
    measure.table((f"{name}, ms", "p50", "p95"), rows)
    found = {slots: episodes(make, slots, seconds) for slots in SLOTS}
    measure.table(
        ("slots, warm", "episodes/s", "ratio to one slot", "cores here"),
        [(slots, rate, rate / found[1][0], cores) for slots, (rate, cores) in found.items()],
    )


if __name__ == "__main__":
    main()
