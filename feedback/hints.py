"""What the environment itself says of a task's answer or solution, in the first user message.

The teacher of OPSD (arXiv:2601.18734) reads a reference solution, that of RLSD (arXiv:2604.03128) the final answer.
Both come as invisible feedback with the last step of an episode. An episode that was cut before its last step takes
them from another of its group, since they belong to the task. One view a row covers all its model tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydantic import Field
from retort.agents.base import Trajectory
from retort.agents.chat import Chat
from retort.envs.base import Source
from retort.feedback.base import TeacherView
from retort.feedback.reprompt import Reprompt, Shown, view


class Hint(Shown):
    """sources: kinds of feedback; the first that a task has is shown. template: how it is put, by default in the words
    of `reprompt`, so that a model that was taught the one reads the other.
    """

    sources: tuple[Source, ...] = Field(default=(Source.ANSWER, Source.SOLUTION), min_length=1)
    template: str = Reprompt().solution_template


class Hinted(Protocol):
    """Options of a recipe whose teacher reads a hint."""

    @property
    def hint(self) -> Hint: ...


def hint_text(group: Sequence[Trajectory], index: int, sources: Sequence[Source]) -> str:
    """The text of the first of `sources` that the task has, from episode `index` or, where it has none, a sibling."""
    for source in sources:
        for step in range(len(group)):
            texts = [item.text for item in group[(index + step) % len(group)].feedback if item.source is source]
            if texts:
                return "\n".join(texts)
    return ""


def views(
    group: Sequence[Trajectory],
    source: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    chat: Chat,
    options: Hinted,
) -> list[TeacherView]:
    """A view of every row, where the task has a hint."""
    found: list[TeacherView] = []
    for index, trajectory in enumerate(group):
        text = hint_text(source, index % len(source), options.hint.sources)
        for number, row in enumerate(rows[index]) if text else ():
            made = view(trajectory, row, number, (options.hint.template, text), chat, options.hint)
            if made is not None:
                found.append(made)
    return found
