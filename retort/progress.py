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
    from retort.agents.evaluate import Report
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
    return table


def report_table(report: Report, title: str) -> Table:
    """Success by family, with standard errors."""
    table = Table(title=title)
    for column in ("family", "tasks", "success", "stderr"):
        table.add_column(column, justify="left" if column == "family" else "right")
    for family in report.families:
        table.add_row(family.name, str(family.n), f"{family.success:.3f}", f"{family.stderr:.3f}")
    table.add_section()
    for total in filter(None, (report.overall, report.held_out)):
        table.add_row(total.name, str(total.n), f"{total.success:.3f}", f"{total.stderr:.3f}")
    for k, some in report.pass_at_k.items():
        if k > 1:
            table.add_row(f"pass@{k}", "", f"{some:.3f}", "")
            table.add_row(f"pass^{k}", "", f"{report.pass_hat_k[k]:.3f}", "")
    table.caption = (
        f"{report.turns:.1f} turns and {report.tokens:.0f} tokens an episode, {report.truncated:.1%} truncated, "
        f"{report.infrastructure_failures} infrastructure failures"
    )
    return table
