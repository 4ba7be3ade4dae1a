"""What the self-teacher is shown, and that it scores exactly the student's tokens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from retort.agents.base import succeeded
from retort.agents.chat import Chat
from retort.algos.batch import collate, flatten
from retort.algos.diagnostics import outcome
from retort.envs.base import Feedback, Source
from retort.feedback.contrast import Contrast, hints
from retort.feedback.reprompt import Reprompt, failed_views, privileged, views

HINT = Feedback("try mv a b", Source.HINT, 1, visible=False)
SEEN = Feedback("mv: missing", Source.TERMINAL_STATE, 0, visible=True)
ANSWER = Feedback("mv a b", Source.SOLUTION, 1, visible=False)


def options(**reprompt):
    return SimpleNamespace(reprompt=Reprompt(**reprompt))


def group_of(made, *success: bool):
    return [
        made(["move a to b", "ok"], [f"act {index}", "done"], success=won, feedback=() if won else (SEEN, HINT, ANSWER))
        for index, won in enumerate(success)
    ]


def test_a_siblings_solution_comes_before_feedback_and_is_never_ones_own(made) -> None:
    group = group_of(made, False, True, False, True)
    shown = [privileged(index, group, Reprompt()) for index in range(4)]
    assert [text for _, text in shown if text] == ["act 1\ndone", "act 3\ndone", "act 3\ndone", "act 1\ndone"]
    assert privileged(0, group_of(made, True), Reprompt()) is None


def test_feedback_is_shown_where_nobody_succeeded_and_only_what_was_invisible_and_no_answer(made) -> None:
    group = group_of(made, False, False)
    template, text = privileged(1, group, Reprompt())
    assert (template, text) == (Reprompt().feedback_template, "try mv a b")
    assert privileged(1, group, Reprompt(feedback=False)) is None


@pytest.mark.parametrize(
    ("success", "truncated", "reward", "won"),
    [(None, True, 0.5, False), (None, False, 0.5, True), (None, False, 0.0, False), (True, True, 0.0, True),
     (False, False, 1.0, False)],
)  # fmt: skip
def test_success_means_one_thing_to_views_batch_and_log(made, chat: Chat, success, truncated, reward, won) -> None:
    """Also of an episode that a budget cut, of which the environment has not said whether it would have succeeded."""
    said = {"success": success, "truncated": truncated, "reward": reward}
    group = [replace(item, **said) for item in group_of(made, False, False)]
    assert [succeeded(item) for item in group] == [won, won]
    assert collate(group, flatten(group)).success.tolist() == [won, won]
    assert outcome(group)["success"] == won
    assert len(failed_views(group, group, [[0], [1]], chat, options())) == (0 if won else 2)
    template, _ = privileged(0, group, Reprompt())
    assert template == (Reprompt().solution_template if won else Reprompt().feedback_template)
    mixed = [*group, *group_of(made, not won)]
    assert len(hints(2, mixed, Contrast(sources=()))) == 0  # its siblings are all alike
    assert len(hints(0, mixed, Contrast(sources=()))) == 2


def test_the_view_is_the_same_question_with_the_text_and_then_the_students_tokens(made, chat: Chat) -> None:
    group = group_of(made, False, True)
    (view,) = failed_views(group, group, [[5], [6]], chat, options())
    text = chat.tokenizer.decode(view.token_ids.tolist())
    assert "move a to b\nA solution that worked:\nact 1\ndone\nNow solve it." in text
    assert view.row == 5
    row = group[0].rows[0]
    assert np.array_equal(view.token_ids[view.at], row.token_ids[row.mask])
    first = int(np.argmax(row.mask))
    assert np.array_equal(view.token_ids[view.at[0] :], row.token_ids[first:])


def test_shuffled_context_comes_from_the_other_group(made, chat: Chat) -> None:
    group, other = group_of(made, False, False), group_of(made, True, True)
    found = views(group, other, [[0], [1]], chat, options())
    assert all("act" in chat.tokenizer.decode(view.token_ids[: view.at[0]].tolist()) for view in found)


def test_long_context_is_cut_and_counted_and_the_students_tokens_are_not(made, chat: Chat) -> None:
    group = group_of(made, False, False)
    whole, cut = (views(group, group, [[0], [1]], chat, options(max_tokens=n))[0] for n in (100, 4))
    assert (whole.cut, cut.cut) == (0, len(HINT.text) - 4)
    assert np.array_equal(whole.token_ids[whole.at], cut.token_ids[cut.at])


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4), st.text(min_size=1, max_size=30))
def test_views_align_whatever_was_said(made, chat: Chat, actions: list[str], text: str) -> None:
    told = Feedback(text, Source.VERIFIER, len(actions) - 1, visible=False)
    episode = made(["{task}", *["seen"] * (len(actions) - 1)], actions, feedback=[told])
    (view,) = views([episode], [episode], [[0]], chat, options())
    view.check(episode.rows[0])
    assert view.at.size == episode.sampled_tokens


@pytest.mark.parametrize("template", ["{prompt}", "{text}", "{prompt}{text}{more}", "{prompt}{text}{"])
def test_a_template_needs_both_and_nothing_else(template: str) -> None:
    with pytest.raises(ValidationError, match="expected a template"):
        Reprompt(feedback_template=template)
