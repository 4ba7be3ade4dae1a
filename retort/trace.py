"""One rollout of a training step, token by token: what the teacher thought of it and what the update made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from retort.agents import store
from retort.algos.runs import Run
from retort.algos.signals import KEY, VERSION
from retort.envs.base import UsageError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
LEGEND = (
    "Green and + pull a token up, red and - push it down; bold is over half of the strongest in its column, dim under "
    "a twentieth."
)


@dataclass(frozen=True)
class Trace:
    """One episode's model tokens, a row each with the columns of the step's file, and what the file says of itself."""

    run: Run
    step: int
    about: dict[str, Any]
    rows: list[Row]

    @property
    def channels(self) -> list[str]:
        """Endings of the columns of each teacher channel."""
        return [f"_{channel}" if channel else "" for channel in range(self.about["channels"])]

    def contexts(self, ending: str) -> list[str]:
        """What the teacher of a channel read before these tokens, each text once."""
        told = [row[f"teacher_context{ending}"] for row in self.rows]
        return list(dict.fromkeys(text for text in told if text is not None))

    def to_json(self) -> dict[str, Any]:
        """Plain data; contexts stand beside the tokens, once each."""
        bare = [
            {key: value for key, value in row.items() if not key.startswith("teacher_context")} for row in self.rows
        ]
        contexts = {f"teacher_context{ending}": self.contexts(ending) for ending in self.channels}
        return {**self.about, **contexts, "tokens": bare}


def load(folder: Path, step: int, episode: str | None = None) -> Trace:
    """One episode of a step.

    episode: its id ("10-0-3": step, group, member) or its place in the step; by default the first that a teacher spoke
        of and the update moved, else that it moved, else the first.

    Raises:
        UsageError: no run, no such step or episode; the nearest is named.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    run = Run.open(folder)
    path = run.signals(step)
    if not path.exists():
        raise UsageError(_missing(run, step))
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is corrupted: {error}") from error
    held = table.schema.metadata or {}
    if held.get(KEY) != VERSION:
        raise UsageError(f"{path}: expected the signals of a step, of version {VERSION.decode()}, found something else")
    chosen = _chosen(table, episode)
    rows = table.filter(pc.field("episode") == chosen).to_pylist()
    return Trace(run, step, json.loads(held[b"retort.about"]), rows)


def _missing(run: Run, step: int) -> str:
    """Which steps there are instead."""
    stored = run.signal_steps()
    if not stored:
        every = run.config.signals_every
        return (
            f"{run.folder} has no signals: it was trained with signals_every={every}, up to step {len(run.metrics())}"
        )
    near = sorted(sorted(stored, key=lambda other: abs(other - step))[:2])
    which = " and ".join(map(str, near))
    return (
        f"step {step} of {run.folder} has no signals; the nearest are of {which} (signals_every sets which steps have)"
    )


def _chosen(table: pa.Table, asked: str | None) -> str:
    """The episode of that name or place; without one the first that a teacher spoke of, or that moved anything."""
    held = table.select([name for name in ("episode", "mask", "gap") if name in table.column_names]).to_pylist()
    names = list(dict.fromkeys(row["episode"] for row in held))
    if asked is None:
        moved = [row["episode"] for row in held if row["mask"]]
        taught = [row["episode"] for row in held if row["mask"] and row.get("gap") is not None]
        return str([*taught, *moved, *names][0])
    if asked.isdigit() and int(asked) < len(names):
        return str(names[int(asked)])
    if asked not in names:
        raise UsageError(f"unknown episode {asked!r} (or its place, 0 to {len(names) - 1}); {nearest(asked, names)}")
    return asked


def shown(trace: Trace) -> RenderableType:
    """The whole rollout, for a terminal with or without colour."""
    return Group(*_head(trace), *_conversation(trace), _tokens(trace), Text(LEGEND, style="dim"))


def _head(trace: Trace) -> Iterator[RenderableType]:
    first = trace.rows[0]
    outcome = "succeeded" if first["success"] else "failed"
    terms = ", ".join(f"{name} x {weight:.3g}" for name, weight in trace.about["weights"].items())
    yield Text(
        f"{trace.run.config.recipe}, step {trace.step}, episode {first['episode']}: task {first['task']}, reward "
        f"{first['reward']:g}, {outcome}",
        style="bold",
    )
    yield Text(f"Terms of the loss: {terms or 'none'}.")
    if trace.about["teacher"]:
        yield Text(f"Teacher: {trace.about['teacher']}.")
    for channel, ending in enumerate(trace.channels):
        for text in trace.contexts(ending):
            yield Text(f"Teacher {channel} read:", style="bold")
            yield Text(text.strip("\n"), style="cyan")


def _conversation(trace: Trace) -> Iterator[RenderableType]:
    """Each turn: what was observed, where the run kept its rollouts, and what was written, coloured by push."""
    seen, most = _observations(trace), _most(trace.rows, "push")
    for turn in sorted({row["turn"] for row in trace.rows}):
        rows = [row for row in trace.rows if row["turn"] == turn]
        yield Text(f"Turn {turn}", style="bold")
        if turn < len(seen):
            yield Text(seen[turn], style="italic")
        yield Text.assemble("> ", *((row["text"], _style(row["push"], most)) for row in rows))


def _observations(trace: Trace) -> list[str]:
    path = trace.run.rollouts(trace.step)
    if not path.exists():
        return []
    name = trace.rows[0]["episode"]
    return [turn.observation for item in store.read(path) if item.episode == name for turn in item.turns]


COLUMNS = ("logp", "teacher_logp", "gap", "gate", "credit", "push")
SIGNED = ("gap", "credit", "push")


def _tokens(trace: Trace) -> Table:
    table = Table("turn", "token", box=None, pad_edge=False)
    others = [f"gap{ending}" for ending in trace.channels[1:]]
    told = [name for name in (*COLUMNS, *others) if any(row.get(name) is not None for row in trace.rows)]
    for name in told:
        table.add_column(name.replace("teacher_logp", "teacher").replace("_", " "), justify="right")
    table.add_column("branch")
    most, strongest = {name: _most(trace.rows, name) for name in told}, _most(trace.rows, "push")
    for row in trace.rows:
        cells = [_cell(row.get(name), most[name], signed=name.startswith(SIGNED)) for name in told]
        branch = Text(row["branch"] or "none", style="" if row["mask"] else "dim")
        held = " (clipped)" if row["clipped"] else "" if row["mask"] else " (no gradient)"
        token = Text(_visible(row["text"]), style=_style(row["push"], strongest))
        table.add_row(str(row["turn"]), token, *cells, branch.append(held))
    return table


def _most(rows: Sequence[Row], name: str) -> float:
    return max((abs(row[name]) for row in rows if row.get(name) is not None), default=0.0)


def _cell(value: float | None, most: float, *, signed: bool) -> Text:
    if value is None:
        return Text("-", style="dim")
    if not signed:
        return Text(f"{value:.3f}")
    digits = 3 if most >= 0.1 or not most else 4 if most >= 0.01 else 6  # what is small in all is not nothing
    return Text(f"{value:+.{digits}f}", style=_style(value, most))


def _style(value: float, most: float) -> str:
    """As the legend says."""
    if abs(value) < most / 20 or not value:
        return "dim"
    return f"{'bold ' if abs(value) > most / 2 else ''}{'green' if value > 0 else 'red'}"


def _visible(text: str) -> str:
    return text.replace(" ", "\u00b7").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def show(trace: Trace, console: Console) -> None:
    """Prints it; names and texts are never read as markup."""
    console.print(shown(trace), soft_wrap=False)
