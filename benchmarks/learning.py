"""Every recipe from one cold start, several seeds, the same number of episodes: who learns how fast, and who does not.

Usage: python benchmarks/learning.py [--model FOLDER] [--seeds 5] [--arms NAME ...] [--jobs 2] [--report]

An arm is a recipe and settings, by name in ARMS. Each arm and seed is one run, a process of its own with one thread;
what it did is a line of docs/learning.jsonl, and arms and seeds that have a line are not run again, so that a sweep
that was stopped goes on. Then docs/learning.md and docs/learning.svg are written from all lines (--report does only
that).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
LINES = DOCS / "learning.jsonl"
STEPS, PROMPTS, GROUP, TASKS = 40, 16, 8, 320
BLOCKS = 8  # of steps, in the table of curves


@dataclass(frozen=True)
class Arm:
    """recipe and settings; says: what the arm is there to show."""

    recipe: str
    says: str
    settings: Sequence[str] = ()


SOLVED = ('hint.sources=["solution"]',)
ARMS: Mapping[str, Arm] = {
    "grpo": Arm("grpo", "reward alone"),
    "dr_grpo": Arm("dr_grpo", "reward alone, without the two divisions", ("options.length=64",)),
    "dapo": Arm("dapo", "reward alone, groups that teach"),
    "sdpo": Arm("sdpo", "feedback alone, a teacher that moves"),
    "sdpo shuffled": Arm("sdpo", "the same with another task's feedback", ("feedback=shuffled",)),
    "sdpo fixed": Arm("sdpo", "a teacher that stays", ("teacher.kind=fixed",)),
    "sdpo current": Arm("sdpo", "a teacher that is the student", ("teacher.kind=current",)),
    "sdpo trust region": Arm("sdpo", "between both", ("teacher.kind=trust_region", "teacher.rate=0.5")),
    "srpo": Arm("srpo", "reward for successes, feedback for failures"),
    "srpo shuffled": Arm("srpo", "the same with another task's feedback", ("feedback=shuffled",)),
    "opsd": Arm("opsd", "the solution as the teacher, no reward", SOLVED),
    "sdar": Arm("sdar", "reward and a gated pull", (f"skills.folder={HERE.parent / 'examples' / 'skills'}",)),
    "sdar beta 0": Arm(
        "sdar", "the gate always half open", ("beta=0", f"skills.folder={HERE.parent / 'examples' / 'skills'}")
    ),
    "rlsd": Arm("rlsd", "reward, its size by a teacher that knows", ("decay=20", *SOLVED)),
    "rlcsd": Arm("rlcsd", "reward, moved by right and wrong hints"),
}


def play(name: str, seed: int, model: str, folder: Path) -> dict[str, Any]:
    """Trains one arm with one seed, evaluates it on unseen tasks, and says what happened."""
    from retort.agents.evaluate import evaluate
    from retort.algos.config import preset, resolve
    from retort.algos.runs import Run
    from retort.algos.train import train

    arm = ARMS[name]
    small = {"env": measure.ENV, "seed": seed, "steps": STEPS, "prompts": PROMPTS, "group_size": GROUP, "threads": 1}
    config = resolve({**preset(arm.recipe, model), **small, "store_rollouts": False}, arm.settings)
    run = Run.create_or_open(folder, config)
    trained = train(run)
    lines = run.metrics()
    report = evaluate(measure.ENV, str(trained), limit=TASKS, turn_tokens=16, seed=seed)
    keys = sorted({key for line in lines for key, value in line.items() if isinstance(value, float | int)})
    return {
        "arm": name,
        "seed": seed,
        "success": report.overall.success,
        "held_out": None if report.held_out is None else report.held_out.success,
        "seconds": sum(sum(line["seconds"].values()) for line in lines),
        "curves": {key: [line.get(key) for line in lines] for key in keys if key != "step"},
    }


def known() -> list[dict[str, Any]]:
    """What has been run so far."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def sweep(model: str, names: Sequence[str], seeds: int, jobs: int, work: Path) -> None:
    """Runs what has no line yet, seed by seed, `jobs` at a time."""
    done = {(line["arm"], line["seed"]) for line in known()}
    todo = [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in done]
    going: list[tuple[subprocess.Popen[str], str, int]] = []
    try:
        while todo or going:
            while todo and len(going) < jobs:
                name, seed = todo.pop(0)
                command = [sys.executable, __file__, "--model", model, "--one", name, "--seed", str(seed)]
                process = subprocess.Popen(
                    [*command, "--work", str(work)], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
                )
                going.append((process, name, seed))
            process, name, seed = going.pop(0)
            said, _ = process.communicate()
            if process.returncode:
                print(f"{name}, seed {seed}: failed; run it with --one to see why", flush=True)
                continue
            with LINES.open("a") as file:
                file.write(said.splitlines()[-1] + "\n")
            print(f"{name}, seed {seed}: {json.loads(said.splitlines()[-1])['success']:.3f}", flush=True)
    finally:
        for process, *_ in going:
            process.kill()
            process.wait()


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; 0 for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def blocks(curve: Sequence[float | None]) -> list[float]:
    """A curve as means over `BLOCKS` blocks of steps."""
    size = len(curve) // BLOCKS
    parts = [[v for v in curve[n * size : (n + 1) * size] if v is not None] for n in range(BLOCKS)]
    return [statistics.fmean(part) if part else math.nan for part in parts]


def against(lines: Sequence[Mapping[str, Any]], arm: str, base: str, measure_of: Any) -> tuple[float, float, int]:
    """Mean difference of two arms over the seeds that both have, its standard error, and how many."""
    of = {(line["arm"], line["seed"]): measure_of(line) for line in lines}
    seeds = sorted({seed for name, seed in of if name == arm} & {seed for name, seed in of if name == base})
    differences = [of[arm, seed] - of[base, seed] for seed in seeds]
    return (*mean_and_error(differences), len(differences)) if differences else (math.nan, math.nan, 0)


def final(line: Mapping[str, Any]) -> float:
    return float(line["success"])


def early(line: Mapping[str, Any]) -> float:
    """Success while training, over the first quarter of the episodes."""
    curve = line["curves"]["success"]
    return statistics.fmean(curve[: len(curve) // 4])


CLAIMS = (
    ("SDPO with feedback beats GRPO early on", "sdpo", "grpo", early),
    ("and at the end", "sdpo", "grpo", final),
    ("with the feedback shuffled it does not: own against shuffled", "sdpo", "sdpo shuffled", final),
    ("a fixed teacher holds where a moving one collapses", "sdpo fixed", "sdpo", final),
    ("the student as its own teacher", "sdpo current", "sdpo fixed", final),
    ("a trust region", "sdpo trust region", "sdpo fixed", final),
    ("SRPO against GRPO, early", "srpo", "grpo", early),
    ("SRPO against GRPO, at the end", "srpo", "grpo", final),
    ("SRPO against SDPO, early", "srpo", "sdpo", early),
    ("SRPO against SDPO, at the end", "srpo", "sdpo", final),
    ("SRPO with own feedback against shuffled", "srpo", "srpo shuffled", final),
    ("OPSD alone against SDAR", "opsd", "sdar", final),
    ("SDAR against GRPO", "sdar", "grpo", final),
    ("SDAR against itself at beta 0", "sdar", "sdar beta 0", final),
    ("RLSD against GRPO", "rlsd", "grpo", final),
    ("RLCSD against GRPO", "rlcsd", "grpo", final),
    ("RLCSD against OPSD", "rlcsd", "opsd", final),
)


def text(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The page."""
    names = [name for name in ARMS if any(line["arm"] == name for line in lines)]
    yield f"""# Learning

Written by `python benchmarks/learning.py` from `learning.jsonl`: every arm from the same cold-started tiny model on
`{measure.ENV}`, {STEPS} updates of {PROMPTS} tasks x {GROUP} episodes ({STEPS * PROMPTS * GROUP} episodes; `dapo` plays
more), then {TASKS} unseen tasks at temperature 1. The figure after a mean is its standard error over seeds. One
learning rate for all (3e-3, Muon, linear to 0), tuned for none of them but GRPO and SRPO.

![success while training](learning.svg)

## At the end, on unseen tasks

| arm | what it is | seeds | success | held-out families | tokens an episode, last quarter | entropy, last quarter |
|---|---|---:|---:|---:|---:|---:|"""
    for name in names:
        own = [line for line in lines if line["arm"] == name]
        success, held = (
            mean_and_error([final(line) for line in own]),
            mean_and_error([line["held_out"] for line in own]),
        )
        tokens = [_late(line, "tokens") / _late(line, "episodes") for line in own]
        entropy = [_late(line, "entropy") for line in own]
        yield (
            f"| {name} | {ARMS[name].says} | {len(own)} | {success[0]:.3f} ± {success[1]:.3f} "
            f"| {held[0]:.3f} ± {held[1]:.3f} | {statistics.fmean(tokens):.1f} | {statistics.fmean(entropy):.3f} |"
        )
    yield f"\n## While training\n\nMean success over blocks of {STEPS // BLOCKS} updates.\n"
    yield "| arm | " + " | ".join(f"{(n + 1) * STEPS // BLOCKS}" for n in range(BLOCKS)) + " |"
    yield "|---|" + "---:|" * BLOCKS
    for name in names:
        curves = [blocks(line["curves"]["success"]) for line in lines if line["arm"] == name]
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        yield f"| {name} | " + " | ".join(f"{value:.3f}" for value in means) + " |"
    yield "\n## What the literature claims, in miniature\n"
    yield "Differences over the same seeds. Two standard errors or more are called a difference.\n"
    yield "| claim | difference | seeds | here |\n|---|---:|---:|---|"
    for claim, arm, base, of in CLAIMS:
        mean, error, count = against(lines, arm, base, of)
        if count > 1:
            found = "no difference" if abs(mean) < 2 * error else f"{arm} is {'better' if mean > 0 else 'worse'}"
            yield f"| {claim} | {mean:+.3f} ± {error:.3f} | {count} | {found} |"


def _late(line: Mapping[str, Any], key: str) -> float:
    curve = [value for value in line["curves"].get(key, ()) if value is not None]
    return statistics.fmean(curve[-max(1, len(curve) // 4) :]) if curve else math.nan


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Success against episodes and against sampled tokens, with the standard error over seeds as a band."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "retort"  # the same lines give the same file
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    for number, name in enumerate(name for name in ARMS if any(line["arm"] == name for line in lines)):
        own = [line for line in lines if line["arm"] == name]
        curves = [blocks(line["curves"]["success"]) for line in own]
        middle, error = zip(*(mean_and_error(values) for values in zip(*curves, strict=True)), strict=True)
        for panel, key in zip(panels, ("episodes", "tokens"), strict=True):
            totals = [sum(block) for block in zip(*(blocks(line["curves"][key]) for line in own), strict=True)]
            steps = [total / len(own) * STEPS / BLOCKS for total in totals]
            place = [sum(steps[: n + 1]) for n in range(BLOCKS)]
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10]}
            panel.plot(place, middle, label=name, **style)
            low, high = ([m + sign * e for m, e in zip(middle, error, strict=True)] for sign in (-1, 1))
            panel.fill_between(place, low, high, color=style["color"], alpha=0.12)
            panel.set_xlabel(key)
    panels[0].set_ylabel("success while training")
    panels[1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a trained tiny model's folder; without it one is cold-started into runs/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0))))
    parser.add_argument("--work", type=Path, default=Path("runs/learning"))
    parser.add_argument("--report", action="store_true", help="only write the page from what is there")
    parser.add_argument("--one", choices=list(ARMS), help="run this arm alone and print its line")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.one:
        folder = args.work / f"{args.one.replace(' ', '-')}-s{args.seed}"
        print(json.dumps(play(args.one, args.seed, measure.cold_model(args.model), folder)))
        return
    if not args.report:
        sweep(measure.cold_model(args.model), args.arms, args.seeds, args.jobs, args.work)
    (DOCS / "learning.md").write_text("\n".join(text(known())) + "\n")
    draw(known(), DOCS / "learning.svg")


if __name__ == "__main__":
    main()
