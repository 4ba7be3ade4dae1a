"""Votes by rules and by a model that really answers."""

from __future__ import annotations

import pytest
from retort.agents.chat import Chat
from retort.agents.hf import HFPolicy, load_model
from retort.agents.scripted import ScriptedPolicy
from retort.agents.tiny import build
from retort.algos import openclaw
from retort.envs.base import Feedback, Source
from retort.feedback.judge import ModelJudge, Vote, by_rules, read_vote, with_judgement

SEEN = Feedback("no such file", Source.TERMINAL_STATE, 0, visible=True)
HINT = Feedback("try ls first", Source.HINT, 1, visible=False)
REPLY = Feedback("too long", Source.USER_REPLY, 0, visible=True)


def test_rules_read_the_reward_the_outcome_and_what_was_not_shown(made) -> None:
    lost = made(["a", "b"], ["x", "y"], feedback=[SEEN, HINT])
    won = made(["a", "b"], ["x", "y"], success=True, feedback=[REPLY])
    assert by_rules([lost, won]) == [[[Vote(0)], [Vote(-1, "try ls first")]], [[Vote(-1, "too long")], [Vote(1)]]]


def test_rules_give_no_hint_on_a_turn_that_was_right(made) -> None:
    praise = Feedback("content right; found as preferred", Source.VERIFIER, 0, visible=False)
    assert by_rules([made(["a"], ["x"], success=True, feedback=[praise])]) == [[[Vote(1)]]]
    assert by_rules([made(["a"], ["x"], success=False, feedback=[praise])]) == [[[Vote(-1, praise.text)]]]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("VOTE: +1", Vote(1)),
        ("I think\nVOTE: -1\nHINT: use ls\nfirst", Vote(-1, "use ls\nfirst")),
        ("VOTE: 1 no, VOTE: 0", Vote(0)),
        ("HINT: without a vote", Vote(0)),
        ("VOTE: +7", Vote(0)),
        ("", Vote(0)),
    ],
)
def test_votes_are_read_from_words(answer: str, expected: Vote) -> None:
    assert read_vote(answer) == expected


def test_a_script_as_the_judge(made, chat: Chat) -> None:
    asked: list[str] = []

    def script(env):
        def act(observation, turn, rng):
            asked.append(observation)
            return "VOTE: -1\nHINT: say less" if "back:\ntoo long" in observation else "VOTE: +1"

        return act

    episode = made(["name {a} fruit", "too long", "thanks"], ["an apple", "apple", "bye"])
    judge = ModelJudge(ScriptedPolicy(script, chat, name="judge"), chat, seed=3, votes=2)
    found = judge([episode])
    # Nothing came after the last turn, so nobody is asked about it.
    assert found == [[[Vote(-1, "say less")] * 2, [Vote(1)] * 2, []]]
    assert "name {a} fruit" in asked[0]
    assert len(asked) == 4


def test_a_model_as_the_judge_repeats_itself(made, tmp_path) -> None:
    folder = build(tmp_path / "model", ["VOTE: +1\nVOTE: -1\nHINT: so\n"] * 20, seed=1)
    chat = Chat.load(folder)
    policy = HFPolicy(load_model(folder), chat, name="self")
    episode = made(["a", "b"], ["x", "y"])
    found = [ModelJudge(policy, chat, seed=5, votes=3, max_tokens=12)([episode]) for _ in range(2)]
    assert found[0] == found[1]
    assert [len(votes) for votes in found[0][0]] == [3, 0]
    assert ModelJudge(policy, chat, seed=5)([]) == []


def test_a_judgement_enters_the_episode(made) -> None:
    episode = made(["a", "b"], ["x", "y"], success=True)
    judged = with_judgement(episode, [1.0, None], ["use ls", None])
    assert [turn.reward for turn in judged.turns] == [1.0, 1.0]
    assert judged.feedback == (Feedback("use ls", Source.JUDGE, 0, visible=False),)
    assert (judged.reward, judged.success) == (episode.reward, True)


def test_openclaw_teaches_no_turn_that_every_vote_calls_right(made, chat: Chat) -> None:
    """A hint beside +1 is praise: the teacher would read it as advice to do otherwise."""

    def script(env):
        def act(observation, turn, rng):
            return "VOTE: 1\nHINT: it was said well" if "read:\nx" in observation else "VOTE: 0\nHINT: say much less"

        return act

    options = openclaw.OpenClawOptions(judge="self", votes=1)
    judge = openclaw.judging(options)
    episode = made(["x", "y", "z"], ["a", "b", "c"])
    (judged,) = judge([episode], ScriptedPolicy(script, chat, name="judge"), chat, 0)
    assert [turn.reward for turn in judged.turns] == [1.0, 0.0, 0.0]
    assert [[item.text for item in turn.feedback] for turn in judged.turns] == [[], ["say much less"], []]
