"""The demonstration: an agent before and after it learned from its own episodes and from what they answered."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retort.agents.evaluate import evaluate
from retort.agents.record import write_json
from retort.agents.report import Report
from retort.algos.config import preset, resolve
from retort.algos.launch import cold_config, cold_start
from retort.algos.runs import Run
from retort.algos.train import train
from retort.envs.shell_tasks import HELD_OUT
from retort.progress import Bars

TASKS = 540
ENV = "retort/Shell-v0"


def run_demo(seed: int, out: Path, settings: Sequence[str], console: Console) -> dict[str, Any]:
    """Cold-starts the tiny model, evaluates it on unseen tasks, trains it with SRPO, evaluates again.

    Writes `summary.json` into `out` and returns what it holds. What is already done is not done again: a cold start
    or a training run that was cut off goes on, and a finished one is only evaluated.

    Raises:
        ConfigError: `out` holds a demonstration with other settings.
    """
    console.print(
        f"Cold start: a tiny language model imitates an apprentice at {ENV}, mistakes and all.",
        markup=False,
        soft_wrap=True,
    )
    start = time.perf_counter()
    # What an earlier, interrupted or finished, demonstration in this folder has spent already.
    seconds = read_seconds(out)
    first = resolve({**preset("srpo", "tiny"), "env": ENV, "seed": seed}, settings)
    with Bars() as bars:
        cold = cold_start(cold_config(first), out / "cold-start", bars)
        seconds["cold_start"] += time.perf_counter() - start
        write_json(out / "seconds.json", seconds)
        start = time.perf_counter()
        before = _evaluate(cold, seed, bars, "before")
        seconds["eval"] = time.perf_counter() - start
        console.print(
            f"Before training: {before.overall.success:.2f} of unseen tasks solved. Training.",
            markup=False,
            soft_wrap=True,
        )
        config = resolve({**preset("srpo", str(cold)), "env": ENV, "seed": seed}, settings)
        run = Run.create_or_open(out, config)
        start = time.perf_counter()
        trained = train(run, bars)
        seconds["train"] += time.perf_counter() - start
        write_json(out / "seconds.json", seconds)
        start = time.perf_counter()
        after = _evaluate(trained, seed, bars, "after")
        seconds["eval"] += time.perf_counter() - start
    summary = _summary(run, cold, before, after, seconds)
    write_json(out / "summary.json", summary)
    _show(summary, before, after, console)
    console.print(f"The run lies in {out}; {out / 'summary.json'} has these numbers.", markup=False, soft_wrap=True)
    console.print("Try next:", markup=False, soft_wrap=True)
    console.print(
        f"  .venv/bin/retort eval --env {ENV} --model {trained} --temperature 0", markup=False, soft_wrap=True
    )
    console.print(
        f"  .venv/bin/retort train grpo --model {cold}     (no feedback in the loss)", markup=False, soft_wrap=True
    )
    console.print(
        "  .venv/bin/retort demo --out runs/shuffled --set feedback=shuffled     (a control)",
        markup=False,
        soft_wrap=True,
    )
    return summary


def read_seconds(out: Path) -> dict[str, float]:
    """Seconds of each part so far, over all runs of the demonstration in this folder."""
    kept = out / "seconds.json"
    return {"cold_start": 0.0, "train": 0.0, "eval": 0.0} if not kept.exists() else json.loads(kept.read_text())


def _evaluate(model: Path, seed: int, bars: Bars, name: str) -> Report:
    """Sampled at temperature 1, one episode a task; the same tasks and seeds before and after."""

    def watch(stage: str, done: int, metrics: dict[str, Any]) -> None:
        bars(f"{name}: {stage}", done, metrics)

    return evaluate(ENV, str(model), limit=TASKS, seed=seed, turn_tokens=16, watch=watch)


def _summary(run: Run, cold: Path, before: Report, after: Report, seconds: dict[str, float]) -> dict[str, Any]:
    lines = [line for line in run.metrics() if "loss" in line]
    tokens = sum(line["tokens"] for line in lines)
    taught = sum(line["tokens"] * line["tokens_taught"] for line in lines)
    return {
        "before": before.to_json(),
        "after": after.to_json(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
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
    table = Table(title=f"Success on unseen tasks of {ENV}, sampled at temperature 1")
    for column in ("family", "tasks", "before", "after"):
        table.add_column(column, justify="left" if column == "family" else "right")
    for old, new in zip(before.families, after.families, strict=True):
        label = f"{old.name} (never trained on)" if old.name in HELD_OUT else old.name
        table.add_row(
            label, str(old.n), f"{old.success:.2f} ± {old.stderr:.2f}", f"{new.success:.2f} ± {new.stderr:.2f}"
        )
    table.add_section()
    rows = [("all trained families", before.overall, after.overall)]
    if before.held_out is not None and after.held_out is not None:
        rows.append(("held-out families", before.held_out, after.held_out))
    for name, old, new in rows:
        table.add_row(
            name, str(old.n), f"{old.success:.3f} ± {old.stderr:.3f}", f"{new.success:.3f} ± {new.stderr:.3f}"
        )
    console.print(table)
    spent = summary["seconds"]
    console.print(
        f"{summary['episodes']} episodes, {summary['tokens']} sampled tokens; feedback taught "
        f"{summary['tokens_taught_by_feedback']:.0%} of them. Seconds: cold start {spent['cold_start']:.0f}, "
        f"training {spent['train']:.0f}, evaluation {spent['eval']:.0f}. "
        f"Peak memory {summary['peak_memory_mib']:.0f} MiB.",
        markup=False,
        soft_wrap=True,
    )
