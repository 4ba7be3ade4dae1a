"""The leak guard and the alignment of views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from retort.agents.base import Origin
from retort.agents.chat import Chat
from retort.envs.base import Feedback, Source
from retort.feedback.base import LeakError, TeacherView, ViewError, guard

SECRET = Feedback("expected note.txt with apple", Source.VERIFIER, 0, visible=False)


def test_a_clean_episode_passes(made, chat: Chat) -> None:
    guard([made(["do it", "fine"], ["ls", "done"], feedback=[SECRET])], chat.tokenizer)


def test_a_privileged_token_ends_the_run_and_names_the_episode(made, chat: Chat) -> None:
    episode = made(["do it"], ["done"], episode="7-1-3")
    origin = episode.rows[0].origin.copy()
    origin[0] = Origin.PRIVILEGED
    with pytest.raises(LeakError, match=r"row 0 has a privileged token; episode 7-1-3.*policy_version"):
        guard([replace(episode, rows=(replace(episode.rows[0], origin=origin),))], chat.tokenizer)


def test_invisible_feedback_in_a_later_observation_ends_the_run(made, chat: Chat) -> None:
    with pytest.raises(LeakError, match="invisible verifier feedback of turn 0 stands in the observation of turn 1"):
        guard([made(["do it", "note.txt with apple"], ["ls", "done"], feedback=[SECRET])], chat.tokenizer)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (["put it in note.txt with apple", "note.txt with apple"], ["ls", "done"]),
        (["do it", "note.txt with apple"], ["echo note.txt with apple", "done"]),
        (["do it", "note.tx"], ["ls", "done"]),
    ],
    ids=["the task said it", "the student said it", "seven bytes are no run"],
)
def test_what_the_student_could_know_is_no_leak(made, chat: Chat, observations, actions) -> None:
    guard([made(observations, actions, feedback=[SECRET])], chat.tokenizer)


def test_visible_feedback_is_no_leak(made, chat: Chat) -> None:
    seen = replace(SECRET, visible=True)
    guard([made(["do it", SECRET.text], ["ls", "done"], feedback=[seen])], chat.tokenizer)


def test_a_view_must_hold_the_students_own_tokens(made) -> None:
    row = made(["do it"], ["done"]).rows[0]
    covers = np.flatnonzero(row.mask)
    ids = row.token_ids.astype(np.int64)
    TeacherView(0, 0, ids, covers, covers).check(row)
    with pytest.raises(ViewError, match="not the student's"):
        TeacherView(0, 0, ids + 1, covers, covers).check(row)
    with pytest.raises(ViewError, match="did not sample"):
        TeacherView(0, 0, ids, covers - 1, covers - 1).check(row)
    with pytest.raises(ViewError, match="nothing before"):
        TeacherView(0, 0, ids[covers[0] :], covers - covers[0], covers).check(row)
