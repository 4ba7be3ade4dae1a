"""What a recipe's student and each of its teachers would read, side by side, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retort.agents.base import Int32, Int64, Policy, Trajectory
from retort.agents.chat import Chat
from retort.agents.episode import EpisodeRequest
from retort.agents.policies import load_player
from retort.agents.rollout import playable
from retort.agents.scripted import apprentice, byte_chat
from retort.algos.batch import flatten
from retort.algos.config import SamplingOptions, TrainConfig, load_recipe
from retort.algos.episodes import drawn, seed_of
from retort.algos.setup import training_runner
from retort.algos.taught import teacher_views
from retort.envs.base import UsageError, nearest
from retort.feedback.base import TeacherView

GROUPS = 4
MARKS = {"read": ("", ""), "wrote": ("«", "»"), "told": ("⟦", "⟧")}
STYLES = {"read": "", "wrote": "bold green", "told": "yellow"}
LEGEND = "«what the student wrote; of a teacher, what it scores»  ⟦what only this teacher reads⟧"


@dataclass(frozen=True)
class Span:
    """A piece of a context: "read", "wrote" (the student's own tokens) or "told" (what a teacher alone reads)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Context:
    """What one reader sees. cut: tokens of the privileged text that did not fit."""

    reader: str
    spans: tuple[Span, ...]
    cut: int = 0


@dataclass(frozen=True)
class Preview:
    """One episode, by the student and by every teacher that speaks of it. note: what is to be known beside it."""

    recipe: str
    episode: str
    task: str
    reward: float
    success: bool | None
    contexts: tuple[Context, ...]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def preview(config: TrainConfig, model: str | None = None, episode: str | None = None) -> Preview:
    """Plays four groups of training tasks and shows one episode of them.

    model: who plays, as in `retort eval`; by default the scripted apprentice, who is right some of the time.
    episode: "GROUP-MEMBER"; by default the first that most teachers speak of.

    Raises:
        UsageError: the model or the environment cannot be had, or there is no such episode.
    """
    if model is None:
        if getattr(config.options, "judge", "") == "self":
            raise UsageError("judge=self asks the policy what it thinks, and a script thinks nothing: give --model")
        chat = byte_chat()
        policy: Policy = apprentice(chat, config.traces.skill)
    else:
        player = load_player(model)
        policy, chat = player.policy, player.chat
    # A script writes in bytes, and is no model that a budget holds.
    sampling = config.sampling if model else SamplingOptions(turn_tokens=4096, context_tokens=65_536)
    config = config.model_copy(update={"prompts": GROUPS, "sampling": sampling})
    played = _played(config, policy, chat)
    recipe, rows = load_recipe(config.recipe), flatten(played)
    if recipe.judge is not None:
        played = list(recipe.judge(config.options)(played, policy, chat, config.seed))
    memory = recipe.memory(config.options) if recipe.memory else None
    views = teacher_views(recipe, config, chat, memory, played, rows, 0)
    note = "" if recipe.channels else f"{config.recipe} has no teacher."
    if memory is not None and not views:
        memory.learn(played)
        views = teacher_views(recipe, config, chat, memory, played, rows, 0)
        note = "As in the second step: in the first there is nothing remembered yet."
    of = [[view for view in views if view.row in own] for own in rows.of]
    chosen = _chosen(played, of, episode)
    if recipe.channels and not of[chosen]:
        note = f"No teacher speaks of this episode; of {sum(map(bool, of))} of {len(of)} episodes one does."
    return _shown(config.recipe, played[chosen], of[chosen], rows.of[chosen], chat, note)


def _played(config: TrainConfig, policy: Policy, chat: Chat) -> list[Trajectory]:
    with training_runner(config, policy, chat) as (runner, tasks):
        requests = [
            EpisodeRequest(task.key, seed_of(config.seed, 0, group, member), group, f"{group}-{member}")
            for group, task in enumerate(drawn(tasks, GROUPS, 0, config.seed))
            for member in range(config.group_size)
        ]
        return [item for item in playable(runner.run(requests)) if item.usable]


def _chosen(played: Sequence[Trajectory], of: Sequence[Sequence[TeacherView]], asked: str | None) -> int:
    names = [item.episode for item in played]
    if asked is None:
        return max(range(len(played)), key=lambda place: len({view.channel for view in of[place]}))
    if asked not in names:
        raise UsageError(f"unknown episode {asked!r}; {nearest(asked, names)}")
    return names.index(asked)


def _shown(
    recipe: str, played: Trajectory, views: Sequence[TeacherView], own: Sequence[int], chat: Chat, note: str
) -> Preview:
    several = len(own) > 1
    contexts = []
    for number, row in enumerate(played.rows):
        kinds = np.where(row.mask, "wrote", "read")
        name = f"student, row {number}" if several else "student"
        contexts.append(Context(name, _spans(row.token_ids.astype(np.int64), kinds, chat)))
    for view in sorted(views, key=lambda item: (item.channel, item.row, int(item.covers[0]))):
        row = played.rows[own.index(view.row)]
        turns = sorted({int(turn) for turn in row.turn[view.covers]})
        whole = len(view.covers) == int(row.mask.sum())
        name = f"teacher {view.channel}" + (f", row {own.index(view.row)}" if several else "")
        name += "" if whole else f", turn {', '.join(map(str, turns))}"
        contexts.append(Context(name, _spans(view.token_ids, _kinds(view, row.token_ids), chat), view.cut))
    return Preview(recipe, played.episode, played.task.key, played.reward, played.success, tuple(contexts), note)


def _kinds(view: TeacherView, student: Int32) -> Any:
    """Of each token that a teacher reads. Told is what stands between what begins and what ends as the student's."""
    first, stop = int(view.at[0]), int(view.covers[0])
    before, known = view.token_ids[:first], student[:stop].astype(np.int64)
    start = _shared(before, known)
    end = _shared(before[start:][::-1], known[start:][::-1])
    kinds = np.full(len(view.token_ids), "read", object)
    kinds[start : first - end] = "told"
    kinds[view.at] = "wrote"
    return kinds


def _shared(first: Int64, second: Int64) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    apart = np.flatnonzero(first[:length] != second[:length])
    return int(apart[0]) if apart.size else length


def _spans(ids: Int64, kinds: Any, chat: Chat) -> tuple[Span, ...]:
    pieces = groupby(zip(kinds.tolist(), ids.tolist(), strict=True), key=lambda pair: pair[0])
    return tuple(Span(kind, chat.tokenizer.decode([token for _, token in pairs])) for kind, pairs in pieces)


def show(found: Preview, console: Console) -> None:
    """Prints the contexts in columns; without colour the marks say the same."""
    outcome = {True: "succeeded", False: "failed", None: "no verdict"}[found.success]
    head = f"{found.recipe}: episode {found.episode}, task {found.task}, reward {found.reward:g}, {outcome}"
    console.print(Text(head, style="bold"))
    table = Table(expand=True, show_lines=True)
    for context in found.contexts:
        table.add_column(context.reader, ratio=1, overflow="fold")
    table.add_row(*map(_text, found.contexts))
    console.print(table)
    console.print(Text(LEGEND, style="dim"))
    if found.note:
        console.print(Text(found.note))


def _text(context: Context) -> Text:
    marked = [(span.text.join(MARKS[span.kind]), STYLES[span.kind]) for span in context.spans]
    cut = [(f"\n({context.cut} tokens of it were cut)", "red")] if context.cut else []
    return Text.assemble(*marked, *cut)
