"""What the benchmarks share: the model they play with, the machine in words, CPU seconds, medians and tables.

Imported before torch, whose threads would otherwise spin while they wait. The tables are Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "5000")
ENV = "retort/Shell-v0"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark that plays with a model."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--model", help="a trained tiny model's folder; without it one is cold-started into runs/")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own")
    return parser


def cold_model(folder: str | None) -> str:
    """The folder that was given, or that of a tiny model which imitated the apprentice; made once, then found."""
    if folder is not None:
        return folder
    from retort.algos.config import preset, resolve
    from retort.algos.launch import cold_config, cold_start

    from retort.progress import Bars

    with Bars() as bars:
        config = resolve({**preset("grpo", "tiny"), "env": ENV, "seed": 0})
        return str(cold_start(cold_config(config), Path("runs/benchmarks/cold-start"), bars))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table; numbers below 10 with two decimals, below 100 with one, above with none."""
    print("\n| " + " | ".join(header) + " |")
    print("|" + "---|" + "---:|" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(shown(cell) for cell in row) + " |", flush=True)
    print(flush=True)


def shown(value: object) -> str:
    """A cell of a table."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def machine() -> str:
    """One line: cores, system, versions. Nothing that names this machine."""
    import torch
    import transformers

    words = {1: "one core", 2: "two cores", 4: "four cores"}
    cores = len(os.sched_getaffinity(0))
    return (
        f"{words.get(cores, f'{cores} cores')}, {platform.system()} on {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


@dataclass(frozen=True)
class Spent:
    """Seconds between two moments: on the clock, of this process, and of every process below it."""

    wall: float
    own: float
    below: float

    @property
    def cpu(self) -> float:
        return self.own + self.below


@contextmanager
def spending() -> Iterator[Callable[[], Spent]]:
    """Call what it gives, inside or after the block, for the time since its start."""
    below = _below()  # first, and last below: looking costs CPU time itself
    own, start = _own(), time.perf_counter()

    def since() -> Spent:
        return Spent(time.perf_counter() - start, _own() - own, _below() - below)

    yield since


def _own() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _below() -> float:
    """CPU seconds of living descendants and of all that ended below them or below this process."""
    import psutil

    total = sum(os.times()[2:4])
    for child in psutil.Process().children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total


@dataclass
class Meter:
    """CPU seconds that threads spent inside chosen functions, by name."""

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose CPU time in the calling thread is added to `name`."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.thread_time() - start
                with self._lock:
                    self.seconds[name] = self.seconds.get(name, 0.0) + taken

        return measured


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))
