"""Runs every benchmark and writes docs/benchmarks.md from what they print.

Usage: python benchmarks/run.py [--model FOLDER] [--only NAME ...] [--repeats N] [--venv FOLDER]

Each runs in a process of its own. A benchmark that fails ends the run, and the page stays as it was.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import measure

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
WITH_MODEL = ("rollout", "turns", "step", "peer")
NAMES = ("sandbox", "evaluate", "tools", "repair", "code", "single_turn", *WITH_MODEL, "learner")

INTRODUCTION = """# Benchmarks

Written by `python benchmarks/run.py` (`make bench`) on {date}, on {machine}.

Every figure is the median of several repeats. Where a machine has other work to do, time on the clock says little:
compare CPU seconds and, before all, the ratios. Nothing here is asserted by a test. Load before and after this run
(processes that wanted a core, 1-minute average): {before:.1f} and {after:.1f}.
"""


def section(name: str, arguments: list[str]) -> str:
    """A benchmark's own words: the head of its docstring, the command, and what it printed."""
    path = HERE / f"{name}.py"
    about = path.read_text().split('"""')[1]
    title, _, rest = about.partition("\n")
    notes = "\n".join(part for part in rest.split("\n\n") if not part.strip().startswith("Usage:")).strip()
    started = time.perf_counter()
    print(f"{name} ...", file=sys.stderr, flush=True)
    printed = subprocess.run([sys.executable, str(path), *arguments], check=True, stdout=subprocess.PIPE, text=True)
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    shown = [argument for argument in arguments if argument != "--venv" and not Path(argument).is_dir()]
    command = " ".join(["python", f"benchmarks/{name}.py", *shown]).replace("--model", "--model FOLDER")
    return f"## {name}\n\n{title}\n\n{notes}\n\n    {command}\n\n{printed.stdout.strip()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a trained tiny model's folder; without it one is cold-started into runs/")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="print these, and leave the page alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--venv", help="where peer.py finds TRL, or puts it")
    args = parser.parse_args()
    model = measure.cold_model(args.model)
    given = {name: ["--model", model, "--repeats", str(args.repeats)] for name in WITH_MODEL}
    if args.venv:
        given["peer"] += ["--venv", args.venv]
    before = os.getloadavg()[0]
    sections = [section(name, given.get(name, [])) for name in NAMES if name in args.only]
    words = {"machine": measure.machine(), "date": datetime.date.today().isoformat()}
    page = "\n".join([INTRODUCTION.format(**words, before=before, after=os.getloadavg()[0]), *sections])
    if args.only == NAMES:
        PAGE.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
