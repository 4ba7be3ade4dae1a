"""Traces are the tokens that a rollout records, and what is privileged in them is tagged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from retort.agents.base import Origin, Trajectory
from retort.agents.chat import Chat
from retort.agents.episode import EpisodeRequest
from retort.agents.rollout import Runner
from retort.agents.scripted import ByteTokenizer, apprentice
from retort.agents.tiny import tokenizer
from retort.algos.traces import TraceOptions, encode, examples, texts
from retort.envs.catalogue import make
from retort.feedback.base import LeakError, guard
from retort.feedback.reprompt import Reprompt, feedback_text, solution_text

import retort  # noqa: F401  (registers the environment)

REPROMPT = Reprompt()


def played_with(chat: Chat, count: int = 24) -> list[Trajectory]:
    env = make("retort/Shell-v0")
    tasks = env.get_wrapper_attr("tasks")()
    env.close()
    runner = Runner(
        lambda: make("retort/Shell-v0"), apprentice(chat, 0.5), chat, env_id="retort/Shell-v0", concurrency=4
    )
    chosen = tasks[:: len(tasks) // count][:count]
    requests = [
        EpisodeRequest(task.key, 10 * number + member, number, f"{number:03d}-{member}")
        for number, task in enumerate(chosen)
        for member in range(3)
    ]
    try:
        return runner.run(requests)
    finally:
        runner.close()


@pytest.fixture(scope="module")
def played() -> list[Trajectory]:
    found = played_with(Chat(ByteTokenizer()))
    assert {item.success for item in found} == {True, False}
    return found


@pytest.fixture(scope="module")
def chat(played: Sequence[Trajectory]) -> Chat:
    return Chat(tokenizer(texts(played, REPROMPT)))


def same(mine, theirs) -> None:
    for name in ("token_ids", "origin", "turn", "behaviour_logp", "version"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
        assert getattr(mine, name).dtype == getattr(theirs, name).dtype


def test_a_trace_is_what_a_rollout_records(played: Sequence[Trajectory], chat: Chat) -> None:
    """Token for token, in the bytes it was played in and in a tokenizer that was trained on it."""
    for item in played:
        same(encode(item, Chat(ByteTokenizer())), item.rows[0])
    again = played_with(chat, 8)
    assert any(len(item.turns) > 1 for item in again)
    for item in again:
        assert len(item.rows) == 1
        same(encode(item, chat), item.rows[0])


def test_a_tokenizer_has_seen_what_a_model_will_meet(played: Sequence[Trajectory]) -> None:
    found = texts(played, REPROMPT)
    failed = next(item for item in played if not item.success)
    assert failed.messages[0]["content"] in found
    assert any(
        "Feedback on a failed attempt" in text and feedback_text(failed, REPROMPT.sources) in text for text in found
    )
    assert any("A solution that worked" in text and solution_text(failed) in text for text in found)


def kind(item: Trajectory, chat: Chat) -> str:
    row = item.rows[0]
    if not (row.origin == Origin.PRIVILEGED).any():
        return "plain"
    shown = chat.tokenizer.decode(row.token_ids[row.origin == Origin.PRIVILEGED].tolist())
    return "corrected" if "Feedback on a failed attempt" in shown else "followed"


def test_shares_of_each_kind(played: Sequence[Trajectory], chat: Chat) -> None:
    found = examples(played, chat, TraceOptions(corrected=0.3, followed=0.2), REPROMPT, seed=0)
    counts = Counter(kind(item, chat) for item in found)
    assert counts["plain"] == len(played) == 72
    assert counts["corrected"] == int(72 / 0.5 * 0.3)
    assert counts["followed"] == int(72 / 0.5 * 0.2)
    plain = examples(played, chat, TraceOptions(corrected=0, followed=0), REPROMPT, seed=0)
    assert {kind(item, chat) for item in plain} == {"plain"}
    assert len(plain) == 72


def test_what_is_corrected_is_right_and_what_it_reads_is_another_ones_failure(
    played: Sequence[Trajectory], chat: Chat
) -> None:
    found = examples(played, chat, TraceOptions(corrected=0.4, followed=0.2), REPROMPT, seed=1)
    for item in found:
        if kind(item, chat) != "corrected":
            continue
        assert item.success
        shown = chat.tokenizer.decode(item.rows[0].token_ids[item.rows[0].origin == Origin.PRIVILEGED].tolist())
        failures = [other for other in played if other.group == item.group and not other.success]
        assert any(feedback_text(other, REPROMPT.sources) in shown for other in failures)


def test_the_actions_behind_a_privileged_prompt_are_the_same(played: Sequence[Trajectory], chat: Chat) -> None:
    for item in examples(played, chat, TraceOptions(corrected=0.3, followed=0.3), REPROMPT, seed=2):
        row, own = item.rows[0], encode(item, chat)
        start, plain = (int(np.argmax(each.mask)) for each in (row, own))
        np.testing.assert_array_equal(row.token_ids[start:], own.token_ids[plain:])
        np.testing.assert_array_equal(row.origin[start:], own.origin[plain:])
        np.testing.assert_array_equal(row.turn[start:], own.turn[plain:])
        expected = Origin.PROMPT if kind(item, chat) == "plain" else Origin.PRIVILEGED
        assert (row.origin[:start] == expected).all()
        assert (row.behaviour_logp[row.mask] == 0).all()
        assert np.isnan(row.behaviour_logp[~row.mask]).all()
        assert (row.version == np.where(row.mask, 0, -1)).all()


def test_the_guard_lets_no_privileged_row_into_a_batch_of_rollouts(played: Sequence[Trajectory], chat: Chat) -> None:
    found = examples(played, chat, TraceOptions(corrected=0.3, followed=0.3), REPROMPT, seed=0)
    kinds = {item.episode + kind(item, chat): item for item in found}
    tagged = [item for item in kinds.values() if kind(item, chat) != "plain"]
    assert len({kind(item, chat) for item in tagged}) == 2
    for item in tagged:
        with pytest.raises(LeakError, match=f"privileged token; episode {item.episode}"):
            guard([item], chat.tokenizer)
    guard([item for item in found if kind(item, chat) == "plain"], chat.tokenizer)


def test_the_order_is_seeded(played: Sequence[Trajectory], chat: Chat) -> None:
    def order(seed: int) -> list[bytes]:
        return [item.rows[0].token_ids.tobytes() for item in examples(played, chat, TraceOptions(), REPROMPT, seed)]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_unusable_episodes_are_left_out_and_no_pair_is_no_correction(played: Sequence[Trajectory], chat: Chat) -> None:
    from retort.envs.base import Failure

    won = [item for item in played if item.success]
    broken = replace(won[0], failure=Failure.INFRASTRUCTURE, success=None)
    found = examples([*won, broken, replace(won[0], turns=())], chat, TraceOptions(), REPROMPT, seed=0)
    assert "corrected" not in {kind(item, chat) for item in found}
    assert sum(kind(item, chat) == "plain" for item in found) == len(won)


def test_shares_leave_room_for_plain_rows() -> None:
    with pytest.raises(ValueError, match="expected corrected \\+ followed below 1, found 1"):
        TraceOptions(corrected=0.5, followed=0.5)
