"""One view a turn: what the student read, the hint in the last message, and that turn's own tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retort.agents.chat import Chat
from retort.envs.base import Feedback, Source
from retort.feedback.hindsight import Hindsight, views

JUDGED = Feedback("be brief", Source.JUDGE, 1, visible=False)


def options(**changed):
    return SimpleNamespace(hindsight=Hindsight(**changed))


def test_a_judged_turn_has_its_hint_in_its_last_message(made, chat: Chat) -> None:
    episode = made(["name a fruit", "too long", "thanks"], ["an apple, red", "apple", "bye"], feedback=[JUDGED])
    (view,) = views([episode], [episode], [[7]], chat, options())
    assert view.row == 7
    read = chat.tokenizer.decode(view.token_ids[: view.at[0]].tolist())
    assert read.endswith("too long\n[user's hint]\nbe brief<|im_end|>\n<|im_start|>assistant\n")
    assert "an apple, red" in read
    turn, row = episode.turns[1], episode.rows[0]
    assert view.covers.tolist() == list(range(turn.start, turn.stop))
    # Up to the turn before it, the teacher reads what the student read.
    before = episode.turns[0].stop
    assert np.array_equal(view.token_ids[:before], row.token_ids[:before])


def test_the_next_state_in_its_place(made, chat: Chat) -> None:
    episode = made(["name a fruit", "too long", "thanks"], ["an apple, red", "apple", "bye"])
    found = views([episode], [episode], [[0]], chat, options(context="next"))
    assert [chat.tokenizer.decode(view.token_ids.tolist()).count("[user's hint]") for view in found] == [1, 1]
    assert "name a fruit\n[user's hint]\ntoo long" in chat.tokenizer.decode(found[0].token_ids.tolist())
    covered = np.concatenate([view.covers for view in found])
    assert len(covered) == len(set(covered.tolist()))


def test_shuffled_hints_come_from_another_task(made, chat: Chat) -> None:
    episode = made(["a", "b"], ["x", "y"], feedback=[JUDGED])
    other = made(["c", "d"], ["z", "w"], feedback=[Feedback("of the other", Source.JUDGE, 1, visible=False)])
    (view,) = views([episode], [other], [[0]], chat, options())
    assert "of the other" in chat.tokenizer.decode(view.token_ids.tolist())


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.text(min_size=1, max_size=40), st.integers(1, 8))
def test_views_align_whatever_was_said(made, chat: Chat, actions: list[str], hint: str, most: int) -> None:
    said = [Feedback(hint, Source.JUDGE, number, visible=False) for number in range(len(actions))]
    episode = made(["{task}", *["{seen}"] * (len(actions) - 1)], actions, feedback=said)
    found = views([episode], [episode], [[0]], chat, options(max_tokens=most))
    assert len(found) == len(actions)
    for view, turn in zip(found, episode.turns, strict=True):
        view.check(episode.rows[0])
        assert view.covers.tolist() == list(range(turn.start, turn.stop))
        assert view.cut == max(0, len(hint.encode()) - most)
