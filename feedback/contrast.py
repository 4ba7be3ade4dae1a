"""A correct hint and several wrong ones in one template, each for a teacher channel of its own.

Source: RLCSD, arXiv:2606.11709. Channel 0 reads a successful sibling's solution, or the environment's where none
succeeded; channels 1 to K read what failed siblings did. Never the episode's own. An episode that lacks either half
gets no view, since there is nothing to contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from pydantic import Field
from retort.agents.base import Trajectory, succeeded
from retort.agents.chat import Chat
from retort.envs.base import Source
from retort.feedback.base import TeacherView
from retort.feedback.hints import hint_text
from retort.feedback.reprompt import Reprompt, Shown, solution_text, view

MOST_WRONG = 4


class Contrast(Shown):
    """template: of both kinds of hints. wrong: at most so many wrong ones. sources: of a solution of the
    environment's.
    """

    template: str = Reprompt().solution_template
    wrong: int = Field(default=MOST_WRONG, ge=1, le=MOST_WRONG)
    sources: tuple[Source, ...] = (Source.SOLUTION, Source.ANSWER)


class Contrasted(Protocol):
    """Options of a recipe whose teacher reads hints of both kinds."""

    @property
    def contrast(self) -> Contrast: ...


def hints(index: int, source: Sequence[Trajectory], options: Contrast) -> list[str]:
    """The correct hint, then the wrong ones, none twice; empty where one half is missing."""
    others = [source[(index + step) % len(source)] for step in range(1, len(source))]
    right = next((solution_text(other) for other in others if succeeded(other)), "")
    right = right or hint_text(source, index % len(source), options.sources)
    wrong = dict.fromkeys(text for other in others if not succeeded(other) and (text := solution_text(other)))
    return [right, *list(wrong)[: options.wrong]] if right and wrong else []


def views(
    group: Sequence[Trajectory],
    source: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    chat: Chat,
    options: Contrasted,
) -> list[TeacherView]:
    """1 + K views of every row of an episode with hints of both kinds."""
    found: list[TeacherView] = []
    for index, trajectory in enumerate(group):
        for channel, text in enumerate(hints(index, source, options.contrast)):
            for number, row in enumerate(rows[index]):
                shown = (options.contrast.template, text)
                made = view(trajectory, row, number, shown, chat, options.contrast)
                if made is not None:
                    found.append(replace(made, channel=channel))
    return found
