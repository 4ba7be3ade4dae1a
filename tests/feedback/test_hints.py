"""The task's own answer in the prompt, and hints of both kinds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from retort.agents.chat import Chat
from retort.envs.base import Feedback, Source
from retort.feedback import contrast, hints
from retort.feedback.contrast import Contrast
from retort.feedback.hints import Hint, hint_text

ANSWER = Feedback("seven", Source.ANSWER, 1, visible=False)
SOLUTION = Feedback("wc -l a", Source.SOLUTION, 1, visible=False)


def told(chat: Chat, view) -> str:
    return chat.tokenizer.decode(view.token_ids[: view.at[0]].tolist())


def test_the_first_source_that_the_task_has(made) -> None:
    whole = made(["count", "ok"], ["wc a", "done"], feedback=[SOLUTION, ANSWER])
    cut = made(["count"], ["wc a"])
    assert hint_text([whole], 0, (Source.ANSWER, Source.SOLUTION)) == "seven"
    assert hint_text([whole], 0, (Source.SOLUTION,)) == "wc -l a"
    assert hint_text([cut, whole], 0, (Source.ANSWER,)) == "seven", "a task's answer is also its siblings'"
    assert hint_text([cut], 0, (Source.ANSWER,)) == ""


def test_hints_are_shown_to_failed_and_successful_alike(made, chat: Chat) -> None:
    group = [made(["count"], ["no"]), made(["count", "ok"], ["wc a", "done"], success=True, feedback=[ANSWER])]
    options = SimpleNamespace(hint=Hint())
    found = hints.views(group, group, [[3], [4]], chat, options)
    assert [view.row for view in found] == [3, 4]
    for view, trajectory in zip(found, group, strict=True):
        assert "A solution that worked:\nseven\nNow" in told(chat, view)
        assert np.array_equal(view.covers, np.flatnonzero(trajectory.rows[0].mask))
    assert hints.views(group[:1], group[:1], [[3]], chat, options) == []


def test_a_hint_needs_a_source() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        Hint(sources=())


def test_one_right_and_several_wrong_hints_none_of_them_ones_own(made, chat: Chat) -> None:
    group = [made(["do it"], [f"act {index}"], success=index == 1) for index in range(4)]
    found = contrast.views(group, group, [[0], [1], [2], [3]], chat, SimpleNamespace(contrast=Contrast()))
    by_row = {row: [view for view in found if view.row == row] for row in range(4)}
    texts = {row: [told(chat, view).split("worked:\n")[1].split("\n")[0] for view in by_row[row]] for row in by_row}
    # Nobody but episode 1 succeeded, and the task has no solution of its own: episode 1 has no right hint but itself.
    assert texts == {
        0: ["act 1", "act 2", "act 3"],
        1: [],
        2: ["act 1", "act 3", "act 0"],
        3: ["act 1", "act 0", "act 2"],
    }
    assert [view.channel for view in by_row[0]] == [0, 1, 2]
    few = contrast.views(group, group, [[0], [1], [2], [3]], chat, SimpleNamespace(contrast=Contrast(wrong=1)))
    assert {view.channel for view in few} == {0, 1}


def test_the_environments_solution_where_no_sibling_succeeded(made) -> None:
    group = [made(["count", "ok"], [f"act {index}", "done"], feedback=[SOLUTION]) for index in range(2)]
    assert contrast.hints(0, group, Contrast()) == ["wc -l a", "act 1\ndone"]
    assert contrast.hints(0, group[:1], Contrast()) == [], "nobody failed beside it"
