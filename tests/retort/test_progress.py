"""Progress as lines, where there is no terminal; and tables."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from retort.agents.report import Rate, Report
from retort.algos.config import resolve
from retort.algos.runs import Run
from rich.console import Console

from retort.progress import LINE_S, Bars, Lines, report_table, train_table


class Told:
    """Lines on a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.file = io.StringIO()
        self.lines = Lines(Console(file=self.file, width=40), lambda: self.now)

    def __call__(self, stage: str, done: int, **metrics: Any) -> list[str]:
        before = len(self.file.getvalue())
        self.lines(stage, done, metrics)
        return self.file.getvalue()[before:].splitlines()


def test_a_line_at_each_tenth() -> None:
    told = Told()
    assert told("step", 0, total=200) == []
    said = []
    for done in range(1, 201):
        told.now = done / 2
        said += told("step", done, success=0.5, loss=0.25)
    assert len(said) == 10
    assert said[0] == "step 20/200  10 s, about 90 s left  success 0.50  loss 0.250"
    assert said[-1].startswith("step 200/200  100 s")
    assert told("quick", 0, total=10) == []
    assert [line for done in range(1, 11) for line in told("quick", done)] == ["quick 10/10  0 s"]


def test_a_line_where_much_time_has_passed() -> None:
    told = Told()
    told("before: episodes", 0, total=1000)
    told.now = LINE_S - 1
    assert told("before: episodes", 1) == []
    told.now = LINE_S
    assert told("before: episodes", 2, success=1, held_out=0) == [
        "before: episodes 2/1000  15 s, about 125 min left  success 1.00  held out 0.00"
    ]
    told.now = 2 * LINE_S - 1
    assert told("before: episodes", 3) == []
    assert told("traces", 5) == []
    told.now = 3 * LINE_S
    assert told("traces", 9) == ["traces 9  16 s"]


def test_a_stage_that_begins_again_has_a_clock_of_its_own() -> None:
    told = Told()
    told("step", 0, total=10)
    told.now = 5
    assert told("step", 10) == ["step 10/10  5 s"]
    assert told("step", 2, total=10) == []
    told.now = 6
    assert told("step", 3) == ["step 3/10  1 s, about 7 s left"]


def test_without_a_terminal_bars_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with Bars(quiet=quiet) as bars:
            for done in range(11):
                bars("step", done, {"total": 10})
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == (0 if quiet else 1)


def test_on_a_terminal_a_bar_that_goes_back_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    bars = Bars()
    for done in (0, 5, 10):
        bars("step", done, {"total": 10})
    (task,) = bars._progress.tasks
    first = task.start_time
    assert task.finished
    bars("step", 0, {"total": 20})
    assert (task.completed, task.total, task.finished) == (0, 20, False)
    assert task.start_time is None or first is None or task.start_time >= first


def rows_of(*families: Rate, held_out: Rate | None = None) -> list[list[str]]:
    """The cells of a report's table, without its head."""
    whole = Rate("all", 0.5, 0.1, 4, 4, {"won": 2, "wrong": 2})
    numbers: dict[str, Any] = dict.fromkeys(("truncated", "turns", "tokens", "prompt_tokens", "invalid"), 0.0)
    empty: dict[str, Any] = {f"pass_{kind}_k{of}": {} for kind in ("at", "hat") for of in ("", "_stderr")}
    found = Report(whole, families, held_out, failures=(), infrastructure_failures=2, **empty, **numbers)
    console = Console(file=io.StringIO(), width=120)
    console.print(report_table(found, "null on x"))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("null on x")
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def test_a_family_of_which_nothing_counted_has_no_success() -> None:
    broken = Rate("broken", 0.0, 0.0, 0, 0, {"infrastructure": 2})
    assert rows_of(broken) == [
        ["broken", "0", "-", "-", "infrastructure 2"],
        ["all families", "4", "0.500", "0.100", "wrong 2"],
    ]


def test_families_that_training_never_has_are_marked_and_come_last() -> None:
    apart = Rate("apart", 0.25, 0.1, 4, 4, held_out=True)
    total = Rate("held out", 0.25, 0.1, 4, 4, held_out=True)
    assert [row[0] for row in rows_of(apart, Rate("move", 0.5, 0.1, 4, 4), held_out=total)] == [
        "move",
        "apart (never trained on)",
        "all families in training",
        "held-out families",
    ]


def test_what_teachers_did_stands_below_the_table(tmp_path: Path) -> None:
    """Over two steps: 30 of 40 tokens in four requests of 0.2 s and one of 1 s; the other was never asked."""
    run = Run.create(tmp_path / "run", resolve({"recipe": "opd", "teachers": {"big": {"model": "x"}}}))
    steps: list[dict[str, Any]] = [
        {"requests": 4, "failures": 0, "fallbacks": 0, "tokens": 20, "seconds": 0.2, "coverage": 1.0},
        {"requests": 1, "failures": 1, "fallbacks": 2, "tokens": 20, "seconds": 1.0, "coverage": 0.5},
    ]
    idle = {"requests": 0, "failures": 0, "fallbacks": 0, "tokens": 0}
    for number, told in enumerate(steps, 1):
        line = {"step": number, "loss": 1.0, "success": 0.5, "tokens": 20, "episodes": 2, "seconds": {"update": 1.0}}
        run.log({**line, "teachers": {"big": told, "idle": idle}})
    assert str(train_table(run).caption).splitlines() == [
        "Teacher big: 75% of its tokens scored, 0.36 s a request, 1 failure, 2 fallbacks",
        "Teacher idle: was not asked",
    ]
