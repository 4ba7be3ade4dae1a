"""Many sandboxes at once for a long time: failures, growth, and how long a reset and a command take.

Usage: python benchmarks/soak.py [--backend bwrap|docker|unsafe] [--sandboxes N] [--minutes M]

Every sandbox has a thread that resets it, writes a file, runs a command in a fresh process and one in a terminal, and
starts again. Memory and descriptors are those of the supervisor, after the first tenth of the time and at the end.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import threading
import time
from array import array
from pathlib import Path

import measure
from retort.sandboxes.base import Limits
from retort.sandboxes.named import open_sandbox
from sandbox import NAMES, named


def mib() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(name: str, sandboxes: int, seconds: float) -> None:
    # Four bytes a measurement: in a list these would be what grows.
    taken = {kind: array("f") for kind in ("reset", "exec", "terminal")}
    failures: list[str] = []
    rooms = [open_sandbox(name, Limits(memory_mb=128)) for _ in range(sandboxes)]
    end = time.monotonic() + seconds

    def play(place: int) -> None:
        number = 0
        while time.monotonic() < end:
            room = rooms[place]
            try:
                marks = [time.perf_counter()]
                room.reset()
                marks.append(time.perf_counter())
                room.write_file("n", f"{place} {number}")
                ran = room.exec("cat n").text
                marks.append(time.perf_counter())
                shown = room.open_terminal().run("cat n; (sleep 100 &)").text
                marks.append(time.perf_counter())
                if ran != f"{place} {number}" or shown != ran:
                    failures.append(f"{place} {number}: {ran!r} {shown!r}")
            except Exception as error:  # what it is counts, and the soak goes on
                failures.append(repr(error))
                room.close()
                rooms[place] = open_sandbox(name, Limits(memory_mb=128))
                continue
            for kind, (start, stop) in zip(taken, itertools.pairwise(marks), strict=True):
                taken[kind].append(stop - start)
            number += 1

    threads = [threading.Thread(target=play, args=(place,)) for place in range(sandboxes)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 10)
    before = (mib(), len(os.listdir("/proc/self/fd")))
    for thread in threads:
        thread.join()
    after = (mib(), len(os.listdir("/proc/self/fd")))
    for room in rooms:
        room.close()
    rows = [
        (kind, *(statistics.quantiles(some, n=100)[part] * 1e3 for part in (49, 98))) for kind, some in taken.items()
    ]
    measure.table(("ms", "p50", "p99"), rows)
    print(f"{sandboxes} sandboxes, {seconds:.0f} s, {len(taken['reset'])} episodes, {len(failures)} failures.")
    print(f"Memory {before[0]:.0f} -> {after[0]:.0f} MiB, descriptors {before[1]} -> {after[1]}.")
    for failure in failures[:5]:
        print(failure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=NAMES, default="bwrap")
    parser.add_argument("--sandboxes", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    with named(args.backend) as name:
        soak(name, args.sandboxes, args.minutes * 60)


if __name__ == "__main__":
    main()
