"""The same question with what the environment answered: a sibling's solution, or the feedback on the failure.

Source: Hübotter et al. 2026, arXiv:2601.20802 (SDPO), its reprompt. The privileged text enters the first user message
and one view a row covers all its model tokens:

    {prompt}{a solution that worked | the feedback on a failed attempt}{the request to solve it now}

A successful sibling's actions are taken first (never the episode's own); the invisible feedback only where no sibling
succeeded, as the authors do. Departure: with several siblings to choose from, episode i takes the next one after it, so
that a group spreads over its solutions without a generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from retort.agents.base import Message, Origin, Trajectory, succeeded
from retort.agents.chat import Chat
from retort.envs.base import Source
from retort.feedback.base import TeacherView

TAUGHT = (Source.VERIFIER, Source.TEST_FAILURE, Source.RUNTIME_ERROR, Source.JUDGE, Source.HINT)


class Shown(BaseModel):
    """How privileged text is put. max_tokens: of it; what is over is cut at the end and counted.

    Every field whose name ends with `template` holds {prompt} and {text}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(default=10_240, gt=0)

    @field_validator("*")
    @classmethod
    def _has_both(cls, value: Any, info: ValidationInfo) -> Any:
        if not str(info.field_name).endswith("template"):
            return value
        try:
            filled = value.format(prompt="<prompt>", text="<text>")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"expected a template with {{prompt}} and {{text}} alone, found {value!r}") from error
        if "<prompt>" not in filled or "<text>" not in filled:
            raise ValueError(f"expected a template with both {{prompt}} and {{text}}, found {value!r}")
        return value


class Reprompt(Shown):
    """solutions, feedback: which of the two may be shown. sources: the kinds of feedback that are shown."""

    solutions: bool = True
    feedback: bool = True
    sources: tuple[Source, ...] = TAUGHT
    solution_template: str = "{prompt}\nA solution that worked:\n{text}\nNow solve it."
    feedback_template: str = "{prompt}\nFeedback on a failed attempt:\n{text}\nNow solve it."


class Reprompted(Protocol):
    """Options of a recipe whose teacher is reprompted."""

    @property
    def reprompt(self) -> Reprompt: ...


def solution_text(trajectory: Trajectory) -> str:
    """What the episode did, one action a line."""
    return "\n".join(turn.action for turn in trajectory.turns)


def feedback_text(trajectory: Trajectory, sources: Sequence[Source]) -> str:
    """What the environment answered and the student did not read, one piece a line."""
    return "\n".join(item.text for item in trajectory.feedback if not item.visible and item.source in sources)


def privileged(index: int, source: Sequence[Trajectory], options: Reprompt) -> tuple[str, str] | None:
    """(template, text) for episode `index`, taken from `source`; None where there is nothing to show."""
    if options.solutions:
        for step in range(1, len(source)):
            sibling = source[(index + step) % len(source)]
            if succeeded(sibling):
                return options.solution_template, solution_text(sibling)
    if options.feedback:
        own = source[index % len(source)]
        if not succeeded(own) and (text := feedback_text(own, options.sources)):
            return options.feedback_template, text
    return None


def with_privileged(messages: Sequence[Message], template: str, text: str) -> list[Message]:
    """The conversation with the privileged text in its first user message.

    Raises:
        ValueError: there is no user message.
    """
    for number, message in enumerate(messages):
        if message["role"] == "user":
            content = template.format(prompt=message["content"], text=text)
            return [*messages[:number], Message(role="user", content=content), *messages[number + 1 :]]
    raise ValueError("expected a user message to put the privileged text in, found none")


def clip(text: str, chat: Chat, max_tokens: int) -> tuple[str, int]:
    """The text cut to so many tokens, and how many were dropped."""
    tokens = chat.tokenizer.encode(text, add_special_tokens=False)
    cut = max(0, len(tokens) - max_tokens)
    return (chat.tokenizer.decode(tokens[:max_tokens]) if cut else text), cut


def view(
    trajectory: Trajectory, row: int, number: int, shown: tuple[str, str], chat: Chat, options: Shown
) -> TeacherView | None:
    """One row of an episode (its `number`-th; `row` in the batch) behind the text shown. None without model tokens."""
    template, text = shown
    text, cut = clip(text, chat, options.max_tokens)
    student = trajectory.rows[number]
    covers = np.flatnonzero(student.mask)
    if not covers.size:
        return None
    first = next(index for index, turn in enumerate(trajectory.turns) if turn.row == number)
    spoken = [index for index, message in enumerate(trajectory.messages) if message["role"] == "assistant"]
    before = trajectory.messages[: spoken[first]]
    prefix = chat.prompt(with_privileged(before, template, text))
    start = int(np.argmax(student.origin != Origin.PROMPT))
    token_ids = np.concatenate([np.asarray(prefix, np.int64), student.token_ids[start:].astype(np.int64)])
    result = TeacherView(row, 0, token_ids, covers - start + len(prefix), covers, cut)
    result.check(student)
    return result


def views(
    group: Sequence[Trajectory],
    source: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    chat: Chat,
    options: Reprompted,
) -> list[TeacherView]:
    """A view of every row whose episode has something to be shown."""
    found: list[TeacherView] = []
    for index, trajectory in enumerate(group):
        shown = privileged(index, source, options.reprompt)
        if shown is None:
            continue
        for number, row in enumerate(rows[index]):
            made = view(trajectory, row, number, shown, chat, options.reprompt)
            if made is not None:
                found.append(made)
    return found


def failed_views(
    group: Sequence[Trajectory],
    source: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    chat: Chat,
    options: Reprompted,
) -> list[TeacherView]:
    """Views of the failed episodes alone, for methods that leave a success to its reward."""
    failed = {row for trajectory, own in zip(group, rows, strict=True) if not succeeded(trajectory) for row in own}
    return [found for found in views(group, source, rows, chat, options) if found.row in failed]
