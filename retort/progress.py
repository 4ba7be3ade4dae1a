"""Progress bars and summary tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from retort.agents.compare import Comparison
    from retort.agents.estimate import Estimate
    from retort.agents.report import Report
    from retort.algos.runs import Run


LINE_S, LEAST_S = 15.0, 1.0  # seconds between two lines: where no tenth ends between them, and where one does


class Bars:
    """One bar for each stage that reports: call it with (stage, done, metrics); `total` in metrics sets its length.

    Bars go to standard error, so that standard output stays for results. Where that is no terminal, a line now and then
    takes their place, as `Lines` has it.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._lines = None if quiet or console.is_terminal else Lines(console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or self._lines is not None,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, metrics: dict[str, Any]) -> None:
        """Moves the bar of `stage` to `done`; one that goes back starts anew, its clock too."""
        for text in metrics.get("warnings", ()):
            self._progress.console.print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)
        if self._lines is not None:
            self._lines(stage, done, metrics)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None, note="")
        task = self._tasks[stage]
        if done < self._progress.tasks[task].completed:
            self._progress.reset(task)
        update: dict[str, Any] = {"completed": done, "note": _note(metrics)}
        if "total" in metrics:
            update["total"] = metrics["total"]
        self._progress.update(task, **update)


@dataclass
class _Stage:
    """How far a stage was when it began and when it last had a line."""

    start: float
    first: int
    done: int
    total: int | None = None
    told: float = 0.0
    tenth: int = 0

    def left(self, now: float) -> str:
        """How long the rest takes if it goes on as it went so far; empty at the end, or where there is none."""
        if self.total is None or not self.first < self.done < self.total:
            return ""
        seconds = (now - self.start) / (self.done - self.first) * (self.total - self.done)
        return f", about {seconds:.0f} s left" if seconds < 120 else f", about {seconds / 60:.0f} min left"


class Lines:
    """Progress for a log: a line at a stage's end, at each tenth (LEAST_S seconds apart), and every LINE_S."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._stages: dict[str, _Stage] = {}

    def __call__(self, stage: str, done: int, metrics: dict[str, Any]) -> None:
        """As `Bars` is called."""
        now, known = self._clock(), self._stages.get(stage)
        if known is None or done < known.done:
            known = self._stages[stage] = _Stage(now, done, done, told=now)
            known.total = metrics.get("total")
            known.tenth = done * 10 // known.total if known.total else 0
            return
        known.done, known.total = done, metrics.get("total", known.total)
        tenth = done * 10 // known.total if known.total else 0
        passed = now - known.told
        if done == known.total or passed >= LINE_S or (tenth > known.tenth and passed >= LEAST_S):
            known.tenth, known.told = tenth, now
            length = "" if known.total is None else f"/{known.total}"
            parts = [f"{stage} {done}{length}", f"{now - known.start:.0f} s{known.left(now)}", _note(metrics)]
            self._console.print(
                "  ".join(part for part in parts if part), markup=False, highlight=False, soft_wrap=True
            )


def _note(metrics: dict[str, Any]) -> str:
    shown = [f"{name.replace('_', ' ')} {metrics[name]:.2f}" for name in ("success", "held_out") if name in metrics]
    shown += [f"loss {metrics['loss']:.3f}"] if "loss" in metrics else []
    return "  ".join(shown)


def titled(title: str) -> Table:
    """An empty table, its title and caption at the left."""
    return Table(title=title, title_justify="left", caption_justify="left")


def train_table(run: Run) -> Table:
    """What a run measured at its start, in the middle and at its end."""
    lines = run.metrics()
    played = any("success" in line for line in lines)  # expert traces have none
    table = titled(f"{run.config.recipe} on {run.config.env}")
    for column in ("step", "loss", *(["success"] if played else []), "tokens", "episodes", "seconds"):
        table.add_column(column, justify="right")
    for line in [
        lines[index] for index in sorted({0, len(lines) // 4, len(lines) // 2, 3 * len(lines) // 4, len(lines) - 1})
    ]:
        table.add_row(
            str(line["step"]),
            f"{line['loss']:.4f}" if "loss" in line else "skipped",
            *([f"{line['success']:.3f}"] if played else []),
            str(line["tokens"]),
            str(line["episodes"]),
            f"{sum(line['seconds'].values()):.2f}",
        )
    table.caption = "\n".join([*_teachers(lines), *(f"Warning: {text}" for text in run.warnings())])
    return table


def _teachers(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What each teacher of a pool did in a run, in a sentence."""
    for name in next((line["teachers"] for line in lines if "teachers" in line), {}):
        told = [line["teachers"][name] for line in lines if "teachers" in line]
        tokens, requests, failures, fallbacks = (
            sum(step[key] for step in told) for key in ("tokens", "requests", "failures", "fallbacks")
        )
        if not tokens:
            yield f"Teacher {name}: was not asked"
            continue
        coverage = sum(step.get("coverage", 0) * step["tokens"] for step in told) / tokens
        seconds = sum(step.get("seconds", 0) * step["requests"] for step in told) / max(1, requests)
        counts = f"{failures} failure{'s' * (failures != 1)}, {fallbacks} fallback{'s' * (fallbacks != 1)}"
        yield f"Teacher {name}: {coverage:.0%} of its tokens scored, {seconds:.2g} s a request, {counts}"


# What a rollout that did not win is called in a table.
ENDINGS = {
    "wrong": "wrong",
    "env": "out of turns",
    "turn_tokens": "action cut",
    "trajectory_tokens": "out of tokens",
    "context": "context full",
    "infrastructure": "infrastructure",
}


def _blocks(found: Any) -> tuple[list[tuple[str, Any]], ...]:
    """Rows of a report or a comparison by their labels: each family, those of training first, and then the totals."""
    families = sorted(found.families, key=lambda row: row.held_out)
    apart = found.held_out is not None
    totals = [(f"all families{' in training' * apart}", found.overall), ("held-out families", found.held_out)]
    return [(family_label(row.name, row.held_out), row) for row in families], [pair for pair in totals if pair[1]]


def family_label(name: str, held_out: bool) -> str:
    """A family's name in a table."""
    return f"{name} (never trained on)" if held_out else name


def report_table(report: Report, title: str) -> Table:
    """Success by family, with standard errors, and how the rollouts without success ended."""
    table = titled(title)
    for column in ("family", "tasks", "success", "stderr", "without success"):
        table.add_column(column, justify="left" if column in ("family", "without success") else "right")
    for rows in _blocks(report):
        for label, row in rows:
            endings = ", ".join(f"{ENDINGS[name]} {count}" for name, count in row.outcomes.items() if name in ENDINGS)
            numbers = (f"{row.success:.3f}", f"{row.stderr:.3f}") if row.n else ("-", "-")
            table.add_row(label, str(row.n), *numbers, endings)
        table.add_section()
    for k in sorted(k for k in report.pass_at_k if k > 1):
        table.add_row(f"pass@{k}", "", f"{report.pass_at_k[k]:.3f}", f"{report.pass_at_k_stderr[k]:.3f}")
        table.add_row(f"pass^{k}", "", f"{report.pass_hat_k[k]:.3f}", f"{report.pass_hat_k_stderr[k]:.3f}")
    table.caption = (
        f"An episode: {report.turns:.1f} turns, {report.tokens:.0f} tokens written, {report.prompt_tokens:.0f} read, "
        f"{report.policy_s:.2f} s for the agent, {report.env_s:.2f} s for the environment. "
        f"{report.truncated:.1%} truncated, {report.invalid:.1%} of actions invalid, "
        f"{report.infrastructure_failures} infrastructure failures."
    )
    return table


def comparison_table(found: Comparison) -> Table:
    """Both successes by family, their difference, and its chance."""
    table = titled(f"{found.second} against {found.first}")
    table.add_column("family", overflow="fold")
    for column in ("tasks", "first", "second", "difference", "p", "+/-/="):
        table.add_column(column, justify="right", no_wrap=True)
    for rows in _blocks(found):
        for label, row in rows:
            difference = f"{row.difference:+.3f} ± {row.stderr:.3f}"
            counts = f"{row.wins}/{row.losses}/{row.ties}"
            table.add_row(
                label, str(row.n), f"{row.first:.3f}", f"{row.second:.3f}", difference, f"{row.p:.2g}", counts
            )
        table.add_section()
    differing = "; ".join(f"{name}: {old} and {new}" for name, (old, new) in found.settings.items())
    table.caption = (
        "Paired by task: better, worse and the same are +, - and =. "
        f"Left out: {found.only_first} tasks of the first alone, {found.only_second} of the second. "
        f"Settings that differ: {differing or 'none'}."
    )
    return table


def estimate_table(found: Estimate) -> Table:
    """From the least that an evaluation would ask to the most."""
    table = titled(f"{found.model}: {found.episodes} episodes of {found.tasks} tasks; nothing was played")
    for column in ("", "at least", "at most"):
        table.add_column(column, justify="right" if column else "left")
    unknown = "the environment names no max_turns"
    rows = (
        ("requests", found.least_requests, found.most_requests),
        ("tokens read, about", found.least_prompt_tokens, found.most_prompt_tokens),
        ("tokens written", 0, found.most_completion_tokens),
    )
    for name, least, most in rows:
        table.add_row(name, f"{least:,}", unknown if most is None else f"{most:,}")
    return table
