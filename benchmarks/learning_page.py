"""The page of benchmarks/learning.py: tables, curves, and each claim of the literature with what was found here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BLOCKS = 8  # of updates, in curves
FEWEST = 3  # seeds, for a verdict on a claim
Line = Mapping[str, Any]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; 0 for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def blocks(curve: Sequence[float | None]) -> list[float]:
    """A curve as means over `BLOCKS` blocks of steps."""
    size = len(curve) // BLOCKS
    parts = [[v for v in curve[n * size : (n + 1) * size] if v is not None] for n in range(BLOCKS)]
    return [statistics.fmean(part) if part else math.nan for part in parts]


def against(lines: Sequence[Line], arm: str, base: str, measure_of: Any) -> tuple[float, float, int]:
    """Mean difference of two arms over the seeds that both have, its standard error, and how many."""
    of = {(line["arm"], line["seed"]): measure_of(line) for line in lines}
    seeds = sorted({seed for name, seed in of if name == arm} & {seed for name, seed in of if name == base})
    differences = [of[arm, seed] - of[base, seed] for seed in seeds]
    return (*mean_and_error(differences), len(differences)) if differences else (math.nan, math.nan, 0)


def final(line: Line) -> float:
    return float(line["success"])


def liked(line: Line) -> float:
    """Of the right answers, the share as the user likes it."""
    share = line.get("liked")
    return math.nan if share is None else float(share)


def early(line: Line) -> float:
    """Success while training, over the first quarter of the episodes."""
    curve = line["curves"]["success"]
    return statistics.fmean(curve[: len(curve) // 4])


HINDSIGHT = ("hindsight alone", "binary reward alone")
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
    ("OPSD without its clip against with it", "opsd unclipped", "opsd", final),
    ("OPSD by KL(S||T) against SDPO with a fixed teacher", "opsd reverse", "sdpo fixed", final),
    ("Hindsight alone learns what the user likes, binary reward alone does not", *HINDSIGHT, liked),
    ("and what is right as well", *HINDSIGHT, final),
    ("Both against binary reward alone, as liked", "reward and hindsight", "binary reward alone", liked),
    ("Both against hindsight alone, as liked", "reward and hindsight", "hindsight alone", liked),
    ("Both against hindsight alone, right and as liked", "reward and hindsight", "hindsight alone", final),
    ("Hindsight against hints on other answers, as liked", "hindsight alone", "hindsight shuffled", liked),
    (
        "Both without a group against a group of 8, right and as liked",
        "reward and hindsight",
        "grpo in groups of 8",
        final,
    ),
)


INTRODUCTION = """# Learning

Written by `python benchmarks/learning.py` from `learning.jsonl`: every arm of a world from the same cold-started tiny
model, {updates} updates, then unseen tasks at temperature 1. What follows a mean is its standard error over seeds. One
learning rate for all (3e-3, Muon, linear to 0); only GRPO and SRPO were ever tuned. `dapo` plays more episodes than the
others, since it replaces groups of equal rewards.

![success while training](learning.svg)

The sweep goes on where it stopped; until every arm has five seeds, this page is a partial table.
"""
# Written by hand; the numbers are in the tables.
FINDINGS = """
## What we make of it

- Feedback in the loss is worth something early, before there is much to compare within a group; at this length reward
  catches up. That the feedback is the task's own decides everything for SDPO and nothing for SRPO, perhaps because it
  shows the teacher failures alone, and reward holds the successes.
- A teacher that is the student itself falls once it is right most of the time, and its answers get longer without
  getting better. A teacher that stays, that follows slowly or that is held in a trust region does not fall.
- OPSD falls because of its clip and not because it has no reward: without the clip it learns, and by KL(S||T) it is the
  SDPO of a fixed teacher. A clipped summand has no gradient, and here the largest ones are what the student lacks.
- SDAR's gate does nothing here that half a gate does not: its teacher, the same weights with skills in the prompt, is
  hardly better than the student (the run's own warning says so).
- Without groups, the verdict alone is a gamble: in some runs it pushes away what the model knew before it has found
  anything. With the hint beside it every seed learns. A hint alone teaches style and little of what is right. Where one
  may ask eight times, a group of 8 is better than both.
"""


def write(folder: Path, lines: Sequence[Line], arms: Mapping[str, Any], worlds: Mapping[str, Any]) -> None:
    """Writes learning.md and learning.svg from all lines."""
    parts = [INTRODUCTION.format(updates=max(len(line["curves"]["success"]) for line in lines))]
    for world in worlds:
        names = [name for name in arms if arms[name].world == world and any(line["arm"] == name for line in lines)]
        if names:
            parts += [f"## {worlds[world].env}\n\n{worlds[world].says}\n", *_tables(lines, names, arms)]
    (folder / "learning.md").write_text("\n".join([*parts, *_claims(lines)]) + "\n" + FINDINGS)
    draw(lines, folder / "learning.svg", arms, worlds)


def _tables(lines: Sequence[Line], names: Sequence[str], arms: Mapping[str, Any]) -> Iterator[str]:
    likes = any(line.get("liked") is not None for line in lines if line["arm"] in names)
    third = "as liked, of the right" if likes else "held-out families"
    yield f"| arm | what it is | seeds | success at the end | {third} | tokens an episode | entropy |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for name in names:
        own = [line for line in lines if line["arm"] == name]
        mean, error = mean_and_error([final(line) for line in own])
        held = [line[key] for line in own for key in ("held_out", "liked") if line.get(key) is not None]
        apart = "{:.3f} ± {:.3f}".format(*mean_and_error(held)) if held else "none"
        tokens = statistics.fmean(_late(line, "tokens") / _late(line, "episodes") for line in own)
        entropy = statistics.fmean(_late(line, "entropy") for line in own)
        end = f"{mean:.3f} ± {error:.3f} | {apart} | {tokens:.1f} | {entropy:.3f}"
        yield f"| {name} | {arms[name].says} | {len(own)} | {end} |"
    count = max(len(line["curves"]["success"]) for line in lines)
    yield "\nTokens and entropy (nats a token) are those of the last quarter. Success while training, by updates:\n"
    yield "| arm | " + " | ".join(f"{(n + 1) * count // BLOCKS}" for n in range(BLOCKS)) + " |"
    yield "|---|" + "---:|" * BLOCKS
    for name in names:
        curves = [blocks(line["curves"]["success"]) for line in lines if line["arm"] == name]
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        yield f"| {name} | " + " | ".join(f"{value:.3f}" for value in means) + " |"
    yield ""


def _claims(lines: Sequence[Line]) -> Iterator[str]:
    yield "## What the literature claims, in miniature\n"
    yield "Differences over the same seeds. Less than two standard errors is called no difference.\n"
    yield "| claim | difference | seeds | here |\n|---|---:|---:|---|"
    for claim, arm, base, of in CLAIMS:
        mean, error, count = against(lines, arm, base, of)
        if count > 1:
            found = "no difference" if abs(mean) < 2 * error else f"{arm} is {'better' if mean > 0 else 'worse'}"
            found = found if count >= FEWEST else "too few seeds to say"
            yield f"| {claim} | {mean:+.3f} ± {error:.3f} | {count} | {found} |"


def _late(line: Mapping[str, Any], key: str) -> float:
    curve = [value for value in line["curves"].get(key, ()) if value is not None]
    return statistics.fmean(curve[-max(1, len(curve) // 4) :]) if curve else math.nan


def draw(lines: Sequence[Line], path: Path, arms: Mapping[str, Any], worlds: Mapping[str, Any]) -> None:
    """Success against episodes and against sampled tokens, a row a world, the standard error over seeds as a band."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "retort"  # the same lines give the same file
    import matplotlib.pyplot as plt

    shown = [world for world in worlds if any(arms[line["arm"]].world == world for line in lines)]
    figure, panels = plt.subplots(len(shown), 2, figsize=(12, 5 * len(shown)), sharey="row", squeeze=False)
    for world, row in zip(shown, panels, strict=True):
        names = [name for name in arms if arms[name].world == world and any(line["arm"] == name for line in lines)]
        for number, name in enumerate(names):
            own = [line for line in lines if line["arm"] == name]
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10]}
            for panel, key in zip(row, ("episodes", "tokens"), strict=True):
                _curve(panel, own, key, name, style)
        row[0].set_ylabel(f"success in {worlds[world].env}")
        row[1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _curve(panel: Any, own: Sequence[Line], key: str, name: str, style: Mapping[str, Any]) -> None:
    curves = [blocks(line["curves"]["success"]) for line in own]
    middle, error = zip(*(mean_and_error(values) for values in zip(*curves, strict=True)), strict=True)
    size = len(own[0]["curves"]["success"]) / BLOCKS
    steps = [
        statistics.fmean(block) * size for block in zip(*(blocks(line["curves"][key]) for line in own), strict=True)
    ]
    place = [sum(steps[: n + 1]) for n in range(BLOCKS)]
    panel.plot(place, middle, label=name, **style)
    low, high = ([m + sign * e for m, e in zip(middle, error, strict=True)] for sign in (-1, 1))
    panel.fill_between(place, low, high, color=style["color"], alpha=0.12)
    panel.set_xlabel(key)
