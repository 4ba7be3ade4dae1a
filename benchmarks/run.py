"""Runs benchmarks and writes what they print into docs/benchmarks.md, a section each.

Usage: python benchmarks/run.py [--model FOLDER] [--only NAME ...] [--repeats N] [--venv FOLDER]

Each runs in a process of its own, and its section is written as soon as it is done; the others stay as they were. One
that fails is named in the end.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
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

Written by `python benchmarks/run.py` (`make bench`).

Every figure is the median of several repeats. Where a machine has other work to do, time on the clock says little:
compare CPU seconds and, before all, the ratios. Nothing here is asserted by a test. Load is the processes that wanted
a core, as a 1-minute average, before and after.
"""


def section(name: str, arguments: list[str]) -> str:
    """A benchmark's own words: the head of its docstring, the command, and what it printed.

    Raises:
        CalledProcessError: it failed.
    """
    path = HERE / f"{name}.py"
    about = path.read_text().split('"""')[1]
    title, _, rest = about.partition("\n")
    notes = "\n".join(part for part in rest.split("\n\n") if not part.strip().startswith("Usage:")).strip()
    started, before = time.perf_counter(), os.getloadavg()[0]
    print(f"{name} ...", file=sys.stderr, flush=True)
    printed = subprocess.run([sys.executable, str(path), *arguments], check=True, stdout=subprocess.PIPE, text=True)
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    shown = [argument for argument in arguments if argument != "--venv" and not Path(argument).is_dir()]
    command = " ".join(["python", f"benchmarks/{name}.py", *shown]).replace("--model", "--model FOLDER")
    place = f"{datetime.date.today().isoformat()}, {measure.machine()}. Load {before:.1f} and {os.getloadavg()[0]:.1f}."
    return f"## {name}\n\n{title}\n\n{notes}\n\n    {command}\n\n{place}\n\n{printed.stdout.strip()}\n"


def sections(page: str) -> dict[str, str]:
    """The sections of the page by name."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part.strip() + "\n" for part in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a trained tiny model's folder; without it one is cold-started into runs/")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="run these alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--venv", help="where peer.py finds TRL, or puts it")
    args = parser.parse_args()
    given: dict[str, list[str]] = {}
    if set(WITH_MODEL) & set(args.only):
        model = measure.cold_model(args.model)
        given = {name: ["--model", model, "--repeats", str(args.repeats)] for name in WITH_MODEL}
        given["peer"] += ["--venv", args.venv] if args.venv else []
    failed = []
    for name in NAMES:
        if name not in args.only:
            continue
        try:
            fresh = section(name, given.get(name, []))
        except subprocess.CalledProcessError:
            failed.append(name)
            continue
        found = sections(PAGE.read_text()) | {name: fresh}
        PAGE.write_text("\n".join([INTRODUCTION, *(found[known] for known in NAMES if known in found)]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the others stand in {PAGE}")


if __name__ == "__main__":
    main()
