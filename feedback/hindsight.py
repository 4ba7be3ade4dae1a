"""Hindsight: each turn behind what came after it, one view a turn.

    row up to the turn, its last user message followed by a hint | that turn's own tokens

The hint is what a judge drew from the next state (OpenClaw-RL 2026, arXiv:2603.10165), or the next state itself: the
user's reply, a tool's result, a test's failure. Everything before the turn is what the student read, token for token;
only the last user message is written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from retort.agents.base import Message, Trajectory
from retort.agents.chat import Chat
from retort.envs.base import Source
from retort.feedback.base import TeacherView
from retort.feedback.reprompt import Shown, clip


class Hindsight(Shown):
    """context: what follows the last user message: a judge's "hint", or the "next" state. template: how it is put."""

    context: Literal["hint", "next"] = "hint"
    template: str = "{prompt}\n[user's hint]\n{text}"


class Hindsighted(Protocol):
    """Options of a recipe that looks back."""

    @property
    def hindsight(self) -> Hindsight: ...


def next_state(trajectory: Trajectory, turn: int) -> str:
    """What the environment said after a turn, "" where the episode ended without a word."""
    later = trajectory.turns[turn + 1 :]
    return later[0].observation if later else trajectory.final_observation if trajectory.terminated else ""


def judged_hint(trajectory: Trajectory, turn: int) -> str:
    """What the judge drew from the state after a turn."""
    return "\n".join(item.text for item in trajectory.turns[turn].feedback if item.source is Source.JUDGE)


CONTEXTS: dict[str, Callable[[Trajectory, int], str]] = {"hint": judged_hint, "next": next_state}


def view_of_turn(
    trajectory: Trajectory, row: int, turn: int, text: str, chat: Chat, options: Hindsight
) -> TeacherView | None:
    """One turn of an episode, in row `row` of the batch; None where its format cannot be extended."""
    text, cut = clip(text, chat, options.max_tokens)
    own = trajectory.turns[turn]
    student = trajectory.rows[own.row]
    content = options.template.format(prompt=own.observation, text=text)
    earlier = [other for other in trajectory.turns[:turn] if other.row == own.row]
    if earlier:
        before = student.token_ids[: earlier[-1].stop].tolist()
        delta = chat.extend(before, Message(role="user", content=content), sampled=earlier[-1].stop - earlier[-1].start)
        if delta is None:
            return None
        prefix = [*before, *delta]
    else:
        spoken = [place for place, message in enumerate(trajectory.messages) if message["role"] == "assistant"]
        history = list(trajectory.messages[: spoken[turn]])
        prefix = chat.prompt([*history[:-1], Message(role="user", content=content)])
    covers = np.arange(own.start, own.stop)
    token_ids = np.concatenate([np.asarray(prefix, np.int64), student.token_ids[own.start : own.stop].astype(np.int64)])
    made = TeacherView(row, 0, token_ids, covers - own.start + len(prefix), covers, cut)
    made.check(student)
    return made


def views(
    group: Sequence[Trajectory],
    source: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    chat: Chat,
    options: Hindsighted,
) -> list[TeacherView]:
    """A view of every turn that something was said of. In the shuffled control it was said of another task's turn."""
    told, found = CONTEXTS[options.hindsight.context], list[TeacherView]()
    for index, trajectory in enumerate(group):
        other = source[index % len(source)]
        for turn in range(min(len(trajectory.turns), len(other.turns))):
            text, own = told(other, turn), trajectory.turns[turn]
            if text and own.stop > own.start:
                row = rows[index][own.row]
                made = view_of_turn(trajectory, row, turn, text, chat, options.hindsight)
                if made is not None:
                    found.append(made)
    return found
