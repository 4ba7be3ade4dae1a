"""The demonstration: an agent before and after it learned from its own episodes and from what they answered."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from retort.agents.evaluate import evaluate
from retort.agents.record import write_json
from retort.agents.report import Report
from retort.algos.config import preset, resolve
from retort.algos.launch import cold_config, cold_start
from retort.algos.runs import Run
from retort.algos.train import train
from retort.progress import Bars, family_label, titled

TASKS = 540
ENV = "retort/Shell-v0"
PARTS = ("cold_start", "train", "eval")


def run_demo(seed: int, out: Path, settings: Sequence[str], console: Console) -> dict[str, Any]:
    """Cold-starts the tiny model, evaluates it on unseen tasks, trains it with SRPO, evaluates again.

    Writes `summary.json` into `out` and returns what it holds. What is already done is not done again: a cold start
    or a training run that was cut off goes on, and a finished one is only evaluated.

    Raises:
        ConfigError: `out` holds a demonstration with other settings.
    """
    say = partial(console.print, markup=False, soft_wrap=True)
    say("Four to six minutes on two idle cores: cold start (traces, then steps), evaluation, training, evaluation.")
    say(f"Cold start: a tiny language model imitates an apprentice at {ENV}, mistakes and all.")
    spent = Spent.so_far(out)
    first = resolve({**preset("srpo", "tiny"), "env": ENV, "seed": seed}, settings)
    with Bars() as bars:
        with spent.on("cold_start"):
            cold = cold_start(cold_config(first), out / "cold-start", bars)
        with spent.on("eval", anew=True):
            before = _evaluate(cold, seed, bars, "before")
        say(f"Before training: {before.overall.success:.2f} of unseen tasks solved, in families of the training split.")
        config = resolve({**preset("srpo", str(cold)), "env": ENV, "seed": seed}, settings)
        run = Run.create_or_open(out, config)
        with spent.on("train"):
            trained = train(run, lambda stage, done, metrics: bars(f"training: {stage}", done, metrics))
        with spent.on("eval"):
            after = _evaluate(trained, seed, bars, "after")
    summary = _summary(run, cold, before, after, spent)
    write_json(out / "summary.json", summary)
    _show(summary, before, after, console)
    say(f"The run lies in {out}; {out / 'summary.json'} has these numbers.")
    say("Try next:")
    say(f"  .venv/bin/retort eval --env {ENV} --model {trained} --temperature 0")
    say(f"  .venv/bin/retort train grpo --model {cold}     (no feedback in the loss)")
    say("  .venv/bin/retort demo --out runs/shuffled --set feedback=shuffled     (a control)")
    return summary


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of processors, of each part, over all runs of the demonstration in a folder."""

    folder: Path
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]

    @staticmethod
    def so_far(folder: Path) -> Spent:
        """What earlier, interrupted or finished, runs have spent already."""
        kept = folder / "seconds.json"
        told = json.loads(kept.read_text()) if kept.exists() else {}
        kinds = (dict.fromkeys(PARTS, 0.0) | told.get(name, {}) for name in ("seconds", "cpu_seconds"))
        return Spent(folder, *kinds)

    @contextmanager
    def on(self, part: str, *, anew: bool = False) -> Iterator[None]:
        """Adds what the block takes to a part, and writes it down. anew: what was spent on it before is forgotten."""
        kinds = ((self.seconds, time.perf_counter), (self.cpu_seconds, _processors))
        starts = [clock() - (0.0 if anew else held[part]) for held, clock in kinds]
        try:
            yield
        finally:
            for (held, clock), start in zip(kinds, starts, strict=True):
                held[part] = clock() - start
            write_json(self.folder / "seconds.json", {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds})


def _processors() -> float:
    """Seconds of processors so far, of this process and of the ended ones that it began, its sandboxes among them."""
    return sum(os.times()[:4])


def _evaluate(model: Path, seed: int, bars: Bars, name: str) -> Report:
    """Sampled at temperature 1, one episode a task; the same tasks and seeds before and after."""

    def watch(stage: str, done: int, metrics: dict[str, Any]) -> None:
        bars(f"{name}: {stage}", done, metrics)

    return evaluate(ENV, str(model), limit=TASKS, seed=seed, turn_tokens=16, watch=watch)


def _summary(run: Run, cold: Path, before: Report, after: Report, spent: Spent) -> dict[str, Any]:
    lines = [line for line in run.metrics() if "loss" in line]
    tokens = sum(line["tokens"] for line in lines)
    taught = sum(line["tokens"] * line["tokens_taught"] for line in lines)
    return {
        "before": before.to_json(),
        "after": after.to_json(),
        "seconds": {name: round(value, 1) for name, value in spent.seconds.items()},
        "cpu_seconds": {name: round(value, 1) for name, value in spent.cpu_seconds.items()},
        "episodes": sum(line["episodes"] for line in lines),
        "tokens": tokens,
        "tokens_taught_by_feedback": taught / max(tokens, 1),
        "feedback": run.config.feedback,
        "seed": run.config.seed,
        "warnings": run.warnings(),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cold_start": str(cold),
        "checkpoint": str(run.checkpoints()[-1]),
    }


def _show(summary: dict[str, Any], before: Report, after: Report, console: Console) -> None:
    table = titled(f"Success on unseen tasks of {ENV}, sampled at temperature 1")
    for column in ("family", "tasks", "before", "after"):
        table.add_column(column, justify="left" if column == "family" else "right")
    order = sorted(zip(before.families, after.families, strict=True), key=lambda pair: pair[0].held_out)
    for old, new in order:
        numbers = [f"{rate.success:.2f} ± {rate.stderr:.2f}" for rate in (old, new)]
        table.add_row(family_label(old.name, old.held_out), str(old.n), *numbers)
    table.add_section()
    rows = [("all families in training", before.overall, after.overall)]
    if before.held_out is not None and after.held_out is not None:
        rows.append(("held-out families", before.held_out, after.held_out))
    for name, old, new in rows:
        table.add_row(
            name, str(old.n), f"{old.success:.3f} ± {old.stderr:.3f}", f"{new.success:.3f} ± {new.stderr:.3f}"
        )
    console.print(table)
    parts = {"cold start": "cold_start", "training": "train", "evaluation": "eval"}
    clock = [(name, summary["seconds"][part], summary["cpu_seconds"][part]) for name, part in parts.items()]
    console.print(
        f"{summary['episodes']} episodes, {summary['tokens']} sampled tokens; feedback taught "
        f"{summary['tokens_taught_by_feedback']:.0%} of them. Seconds on the clock (of processors): "
        f"{', '.join(f'{name} {wall:.0f} ({cpu:.0f})' for name, wall, cpu in clock)}. "
        f"Peak memory {summary['peak_memory_mib']:.0f} MiB.",
        markup=False,
        soft_wrap=True,
    )
