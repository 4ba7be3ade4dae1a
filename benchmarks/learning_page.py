"""The page of benchmarks/learning.py: tables and curves; the claims are in learning_claims.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import learning_claims as claims
from learning_claims import final

BLOCKS = 8  # of updates, in curves
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


INTRODUCTION = """# Learning

Written by `python benchmarks/learning.py` from `learning.jsonl`: every arm of a world from the same cold-started tiny
model, {updates} updates, then unseen tasks at temperature 1. What follows a mean is its standard error over seeds. One
learning rate for all (3e-3, Muon, linear to 0); only GRPO and SRPO were ever tuned. `dapo` plays more episodes than the
others, since it replaces groups of equal rewards.

![success while training](learning.svg)

The sweep goes on where it stopped; until every arm has five seeds, this page is a partial table. `settings` are those
in which an arm differs from its recipe. {bare} of {all} lines were written before lines told a digest of their
configuration and of their cold start.
"""


def write(folder: Path, lines: Sequence[Line], arms: Mapping[str, Any], worlds: Mapping[str, Any]) -> None:
    """Writes learning.md and learning.svg from all lines."""
    updates = max(len(line["curves"].get("success", ())) for line in lines)
    bare = sum("config" not in line for line in lines)
    parts = [INTRODUCTION.format(updates=updates, bare=bare, all=len(lines))]
    found = claims.tested(lines)
    for world in worlds:
        names = [name for name in arms if arms[name].world == world and any(line["arm"] == name for line in lines)]
        if names:
            parts += [f"## {worlds[world].env}\n\n{worlds[world].says}\n", *_tables(lines, names, arms)]
    (folder / "learning.md").write_text(
        "\n".join([*parts, *claims.table(found), *claims.findings(lines, found)]) + "\n"
    )
    draw([line for line in lines if line["curves"]], folder / "learning.svg", arms, worlds)


def _tables(lines: Sequence[Line], names: Sequence[str], arms: Mapping[str, Any]) -> Iterator[str]:
    likes = any(line.get("liked") is not None for line in lines if line["arm"] in names)
    third = "as liked, of the right" if likes else "held-out families"
    yield f"| arm | what it is | settings | seeds | success at the end | {third} | tokens an episode | entropy |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for name in names:
        own = [line for line in lines if line["arm"] == name]
        mean, error = mean_and_error([final(line) for line in own])
        held = [line[key] for line in own for key in ("held_out", "liked") if line.get(key) is not None]
        apart = "{:.3f} ± {:.3f}".format(*mean_and_error(held)) if held else "none"
        late = "none | none"
        if trained := [line for line in own if line["curves"]]:
            tokens = statistics.fmean(_late(line, "tokens") / _late(line, "episodes") for line in trained)
            late = f"{tokens:.1f} | {statistics.fmean(_late(line, 'entropy') for line in trained):.3f}"
        what = f"{arms[name].says} | {_settings(arms[name].settings)}".replace("||", "\\|\\|")
        yield f"| {name} | {what} | {len(own)} | {mean:.3f} ± {error:.3f} | {apart} | {late} |"
    count = max(len(line["curves"].get("success", ())) for line in lines)
    yield "\nTokens and entropy (nats a token) are those of the last quarter. Success while training, by updates:\n"
    yield "| arm | " + " | ".join(f"{(n + 1) * count // BLOCKS}" for n in range(BLOCKS)) + " |"
    yield "|---|" + "---:|" * BLOCKS
    for name in names:
        curves = [blocks(line["curves"]["success"]) for line in lines if line["arm"] == name and line["curves"]]
        if not curves:
            continue
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        yield f"| {name} | " + " | ".join(f"{value:.3f}" for value in means) + " |"
    yield ""


def _settings(settings: Sequence[str]) -> str:
    """As code, with paths from the repository's root."""
    root = str(Path(__file__).parents[1]) + "/"
    return ", ".join(f"`{setting.replace(root, '')}`" for setting in settings) or "none"


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
