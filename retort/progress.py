"""Progress bars and summary tables."""

from __future__ import annotations

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


class Bars:
    """One bar for each stage that reports: call it with (stage, done, metrics); `total` in metrics sets its length.

    Bars go to standard error, so that standard output stays for results.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, metrics: dict[str, Any]) -> None:
        """Moves the bar of `stage` to `done`; a new `total` starts it anew."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None, note="")
        update: dict[str, Any] = {"completed": done, "note": _note(metrics)}
        if "total" in metrics:
            update["total"] = metrics["total"]
        self._progress.update(self._tasks[stage], **update)
        for text in metrics.get("warnings", ()):
            self._progress.console.print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)


def _note(metrics: dict[str, Any]) -> str:
    shown = [f"success {metrics['success']:.2f}"] if "success" in metrics else []
    shown += [f"loss {metrics['loss']:.3f}"] if "loss" in metrics else []
    return "  ".join(shown)


def train_table(run: Run) -> Table:
    """What a run measured at its start, in the middle and at its end."""
    lines = run.metrics()
    table = Table(title=f"{run.config.recipe} on {run.config.env}")
    for column in ("step", "loss", "success", "tokens", "episodes", "seconds"):
        table.add_column(column, justify="right")
    for line in [
        lines[index] for index in sorted({0, len(lines) // 4, len(lines) // 2, 3 * len(lines) // 4, len(lines) - 1})
    ]:
        table.add_row(
            str(line["step"]),
            f"{line['loss']:.4f}" if "loss" in line else "skipped",
            f"{line['success']:.3f}",
            str(line["tokens"]),
            str(line["episodes"]),
            f"{sum(line['seconds'].values()):.2f}",
        )
    table.caption = "\n".join(f"Warning: {text}" for text in run.warnings())
    return table


# What a rollout that did not win is called in a table.
ENDINGS = {
    "wrong": "wrong",
    "env": "out of turns",
    "turn_tokens": "action cut",
    "trajectory_tokens": "out of tokens",
    "context": "context full",
    "infrastructure": "infrastructure",
}


def report_table(report: Report, title: str) -> Table:
    """Success by family, with standard errors, and how the rollouts without success ended."""
    table = Table(title=title)
    for column in ("family", "tasks", "success", "stderr", "without success"):
        table.add_column(column, justify="left" if column in ("family", "without success") else "right")
    totals = [total for total in (report.overall, report.held_out) if total is not None]
    for rows in (report.families, totals):
        for row in rows:
            endings = ", ".join(f"{ENDINGS[name]} {count}" for name, count in row.outcomes.items() if name in ENDINGS)
            table.add_row(row.name, str(row.n), f"{row.success:.3f}", f"{row.stderr:.3f}", endings)
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
    table = Table(title=f"{found.second} against {found.first}")
    for column in ("family", "tasks", "first", "second", "difference", "p", "better", "worse", "same"):
        table.add_column(column, justify="left" if column == "family" else "right")
    totals = [total for total in (found.overall, found.held_out) if total is not None]
    for rows in (found.families, totals):
        for row in rows:
            difference = f"{row.difference:+.3f} ± {row.stderr:.3f}"
            counts = (str(row.wins), str(row.losses), str(row.ties))
            table.add_row(
                row.name, str(row.n), f"{row.first:.3f}", f"{row.second:.3f}", difference, f"{row.p:.3g}", *counts
            )
        table.add_section()
    differing = "; ".join(f"{name}: {old} and {new}" for name, (old, new) in found.settings.items())
    table.caption = (
        f"Paired by task. Left out: {found.only_first} tasks of the first alone, {found.only_second} of the second. "
        f"Settings that differ: {differing or 'none'}."
    )
    return table


def estimate_table(found: Estimate) -> Table:
    """From the least that an evaluation would ask to the most."""
    table = Table(title=f"{found.model}: {found.episodes} episodes of {found.tasks} tasks; nothing was played")
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
