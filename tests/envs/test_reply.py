"""Reply-v0: conversations, what users say, rewards that sum to one, and checkers that take any spelling."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import SPLITS, Failure, Feedback, Source, UsageError
from retort.envs.check import check_env
from retort.envs.reply import MOST_TURNS, PER_FAMILY, PROTOCOL, ReplyEnv, _talks
from retort.envs.reply_tasks import FAMILIES, STYLES
from retort.envs.reply_users import (
    COMPLAINS,
    CORRECTS,
    NEW_USERS,
    THANKS,
    USERS,
    WISHES,
    WRONG,
    User,
    ideal,
    judged,
    likes,
    other_style,
    user,
    wish_for,
    wish_ignored,
)

import retort  # noqa: F401  (registers the environment)

Step = tuple[str, float, bool, bool, dict[str, Any]]


@pytest.fixture
def env() -> Iterator[ReplyEnv]:
    made = gymnasium.make("retort/Reply-v0", split="test")
    assert isinstance(made.unwrapped, ReplyEnv)
    yield made.unwrapped
    made.close()


def play(env: ReplyEnv, key: str, plan: Sequence[str | None]) -> list[Step]:
    """None in a plan is the gold answer."""
    said, _ = env.reset(options={"task": key})
    steps: list[Step] = []
    for action in plan:
        steps.append(env.step(env.gold(said) if action is None else action))
        said = steps[-1][0]
    return steps


def person(style: str, value: str, kind: str = "tone", wish: str = "calm") -> User:
    return User(99, {**{name: next(iter(values)) for name, values in STYLES.items()}, style: value}, kind, wish)


def told(info: dict[str, Any]) -> dict[Source, str]:
    return {item.source: item.text for item in info["feedback"]}


def test_there_are_enough_of_each() -> None:
    assert len(FAMILIES) >= 12
    assert len(STYLES) + len(WISHES) >= 8
    assert {family.style for family in FAMILIES.values()} == set(STYLES)
    assert {user(number).kind for number in range(USERS)} == set(WISHES)
    for style, values in STYLES.items():
        assert {user(number).styles[style] for number in range(USERS)} == set(values)
    everybody = [(tuple(user(number).styles.items()), user(number).value) for number in range(USERS)]
    assert len(set(everybody)) == USERS


@pytest.mark.parametrize("split", ["validation", "test"])  # test_architecture.py has training's
def test_the_contract(split: str) -> None:
    with gymnasium.make("retort/Reply-v0", split=split) as env:
        check_env(env, per_family=1)


def test_gold_earns_exactly_one_on_every_task() -> None:
    for split, turns in itertools.product(SPLITS, (1, 3, 6)):
        env = ReplyEnv(split, max_turns=turns)
        for ref in env.tasks()[:: 1 if split != "train" else 7]:
            steps = play(env, ref.key, [None] * turns)
            assert sum(step[1] for step in steps) == 1.0
            assert [step[2] for step in steps] == [False] * (turns - 1) + [True]
            assert steps[-1][4]["success"] is True
            assert told(steps[-1][4])[Source.USER_REPLY] in THANKS
            assert Source.HINT not in told(steps[-1][4])


def test_task_counts() -> None:
    counts = {split: len(ReplyEnv(split).tasks()) for split in SPLITS}
    assert counts == {"train": 3800, "validation": 912, "test": 912}
    assert len(ReplyEnv("train", user=4).tasks()) == len(FAMILIES) * PER_FAMILY["train"]
    assert {ref.key.partition("/")[0] for ref in ReplyEnv("test", user=21).tasks()} == {"u21"}


def test_no_request_is_in_two_splits_and_new_users_are_new() -> None:
    asked: dict[str, str] = {}
    for split in SPLITS:
        for number in range(USERS):
            if split == "train" and number in NEW_USERS:
                continue
            for talk in _talks(split, number):
                assert len({str(request) for request in talk.requests}) == MOST_TURNS
                for request in talk.requests:
                    assert asked.setdefault(str(request), split) == split
    assert not any(ref.key.startswith(("u20", "u21", "u22", "u23")) for ref in ReplyEnv("train").tasks())


def test_a_conversation_brings_out_one_kind_of_style() -> None:
    for talk in _talks("train", 3):
        assert len({FAMILIES[family].style for family, _ in talk.requests}) == 1
        assert talk.requests[0][0] == talk.ref.family


def test_a_corrected_conversation(env: ReplyEnv) -> None:
    key = next(talk.ref.key for talk in _talks("test", 8) if talk.ref.family == "hello" and user(8).styles["language"])
    who = user(8)
    first, _ = env.reset(options={"task": key})
    talk = env._current()
    wrong = other_style(who, *talk.requests[0])
    observation, reward, terminated, truncated, info = env.step(wrong)
    want = STYLES["language"][who.styles["language"]]
    said = told(info)[Source.USER_REPLY]
    assert (reward, terminated, truncated, info["success"], info["failure"]) == (0.0, False, False, None, None)
    assert said in [form.format(want=want) for form in CORRECTS + COMPLAINS]
    assert info["feedback"][0] == Feedback(said, Source.USER_REPLY, 0, visible=True)
    assert observation.startswith(f"{said} ")
    assert observation != first
    assert info["reward_components"] == {"content": 1.0, "preferences": 0.0}
    assert told(info)[Source.VERIFIER].startswith(f"content right; language: expected {want}; found ")
    observation, reward, *_, info = env.step(env.gold(observation))
    assert reward == 1 / 3
    assert info["reward_components"] == {"content": 1.0, "preferences": 1.0}
    assert told(info)[Source.VERIFIER] == "content right; found as preferred"
    *_, terminated, _, info = env.step("")
    assert (terminated, info["success"], info["failure"]) == (True, False, Failure.POLICY)
    assert told(info)[Source.USER_REPLY] in WRONG
    assert told(info)[Source.HINT] == f"this user likes {likes(who, talk.requests[2][0])}"
    assert told(info)[Source.ANSWER] == ideal(who, *talk.requests[2])
    assert told(info)[Source.SOLUTION] == "\n".join(ideal(who, *request) for request in talk.requests[:3])
    assert [item.visible for item in info["feedback"]] == [True] + [False] * 4


def test_a_wrong_answer_gets_the_same_request_in_other_words(env: ReplyEnv) -> None:
    for ref in env.tasks()[::40]:
        first, _ = env.reset(options={"task": ref.key})
        gold = env.gold(first)
        second = env.step("no idea")[0]
        third = env.step("")[0]
        assert env.gold(second) == gold
        assert len({first, second, third}) == 3
        assert any(second.startswith(form) for form in WRONG)
        assert second not in first
        assert first not in second


def test_who_adapts_succeeds_and_earns_less(env: ReplyEnv) -> None:
    for ref in env.tasks()[::25]:
        who, requests = env._talks[ref.key].who, env._talks[ref.key].requests
        steps = play(env, ref.key, [other_style(who, *requests[0]), None, None])
        assert [step[1] for step in steps] == [0.0, 1 / 3, 1 / 3]
        assert steps[-1][4]["success"] is True


def test_near_misses_are_right_in_the_wrong_style(env: ReplyEnv) -> None:
    for ref in env.tasks()[::11]:
        env.reset(options={"task": ref.key})
        for place, plan in enumerate(env.near_misses()):
            steps = play(env, ref.key, plan)
            assert steps[-1][4]["success"] is False
            assert sum(step[1] for step in steps) < 1
            if place == 0:
                assert [step[4]["reward_components"]["content"] for step in steps] == [1.0, 1.0, 1.0]
                assert sum(step[1] for step in steps) == 0.0


def test_nothing_is_said_before_the_first_answer_and_no_complaint_holds_the_answer(env: ReplyEnv) -> None:
    wants = {want for values in STYLES.values() for want in values.values()} - {"digits"}
    for ref in env.tasks()[::3]:
        first, _ = env.reset(options={"task": ref.key})
        who, (family, goal) = env._current().who, env._current().requests[0]
        assert not any(re.search(rf"\b{want}\b", first) for want in wants)
        for answer in (other_style(who, family, goal), wish_ignored(who, family, goal), "?"):
            env.reset(options={"task": ref.key})
            said = told(env.step(answer)[4])[Source.USER_REPLY]
            if answer != "?":
                assert FAMILIES[family].write(goal, who.styles[FAMILIES[family].style]).lower() not in said.lower()


def test_what_is_asked_does_not_tell_what_is_liked() -> None:
    """Whatever a user likes, they are given values in both systems alike; other requests name no style at all."""
    given = {system: {"metric": 0, "imperial": 0} for system in STYLES["units"]}
    for number in range(USERS):
        for talk in _talks("train", number):
            for _, goal in talk.requests:
                if "given" in goal:
                    told = "metric" if goal["given"].split()[1] in ("km", "kg", "C") else "imperial"
                    given[user(number).styles["units"]][told] += 1
    for liked in given.values():
        assert 0.45 < liked["metric"] / sum(liked.values()) < 0.55


def every_answer() -> Iterator[tuple[User, str, dict[str, Any]]]:
    for number in range(USERS):
        for family, asked in FAMILIES.items():
            for goal in asked.goals[::7]:
                yield user(number), family, dict(goal)


def test_ideal_answers_are_liked_also_in_markdown() -> None:
    for who, family, goal in every_answer():
        answer = ideal(who, family, goal)
        assert judged(who, family, goal, answer).good, (who, answer)
        assert judged(who, family, goal, f"```text\n{answer}\n```\n").good, (who, answer)
        assert judged(who, family, goal, f"  {answer}  ").good


def test_spoiled_answers_are_right_and_not_liked() -> None:
    for who, family, goal in every_answer():
        verdict = judged(who, family, goal, other_style(who, family, goal))
        assert verdict.content
        assert [kind for kind, *_ in verdict.unmet] == [FAMILIES[family].style]
        answer = wish_ignored(who, family, goal)
        verdict = judged(who, family, goal, answer)
        assert verdict.content
        wish = wish_for(who, family)
        assert [kind for kind, *_ in verdict.unmet] == ([who.kind] if wish and not wish.met(answer) else [])


def test_the_answer_to_another_goal_is_wrong() -> None:
    who = person("number", "digits")
    for family, asked in FAMILIES.items():
        for goal, other in itertools.pairwise(asked.goals):
            answer = ideal(who, family, other)
            if answer != ideal(who, family, goal) and FAMILIES[family].style != "format":
                assert not judged(who, family, goal, answer).content, (family, goal, answer)


@pytest.mark.parametrize(
    ("family", "goal", "text", "content", "styles"),
    [
        ("fruits", {"count": "two", "but": "fig"}, "Here are two:\n* Apple\n* pears", True, {"bullets"}),
        ("fruits", {"count": "two", "but": "fig"}, "1) apple\n2) pear", True, {"numbered"}),
        ("fruits", {"count": "two", "but": "fig"}, "1. apple\n3. pear", True, {"numbered", "lines"}),
        ("fruits", {"count": "two", "but": "fig"}, "apple and pear.", True, {"line"}),
        ("fruits", {"count": "two", "but": "fig"}, "apple\npear", True, {"lines"}),
        ("fruits", {"count": "two", "but": "fig"}, "- apple, pear", True, {"line"}),
        ("fruits", {"count": "two", "but": "fig"}, "apple, apple", False, {"line"}),
        ("fruits", {"count": "two", "but": "fig"}, "apple, fig", False, {"line"}),
        ("fruits", {"count": "two", "but": "fig"}, "apple, pear, plum", False, {"line"}),
        ("distance", {"metric": 8, "imperial": 5}, "About 8.0 kilometres", True, {"metric"}),
        ("distance", {"metric": 8, "imperial": 5}, "4.97 miles", True, {"imperial"}),
        ("distance", {"metric": 8, "imperial": 5}, "8 km (5 miles)", True, {"metric", "imperial"}),
        ("distance", {"metric": 8, "imperial": 5}, "8 miles", False, {"imperial"}),
        ("distance", {"metric": 8, "imperial": 5}, "8", False, set()),
        ("warmth", {"metric": 20, "imperial": 68}, "68 degrees Fahrenheit", True, {"imperial"}),
        ("warmth", {"metric": 20, "imperial": 68}, "20°C", True, {"metric"}),
        ("meeting", {"hours": 3, "side": "after"}, "3 hours after noon is 3:00 p.m.", True, {"12h"}),
        ("meeting", {"hours": 3, "side": "after"}, "15:00", True, {"24h"}),
        ("meeting", {"hours": 3, "side": "after"}, "3:00", False, {"24h"}),
        ("meeting", {"hours": 3, "side": "before"}, "at 09:00", True, {"24h"}),
        ("meeting", {"hours": 3, "side": "before"}, "9am", True, {"12h"}),
        ("meeting", {"hours": 3, "side": "before"}, "9 pm", False, {"12h"}),
        ("party", {"year": 2031, "month": 5, "day": 4}, "May 4th, 2031", True, {"words"}),
        ("party", {"year": 2031, "month": 5, "day": 4}, "the 4th of May 2031", True, {"words"}),
        ("party", {"year": 2031, "month": 5, "day": 4}, "2031-5-4", True, {"iso"}),
        ("party", {"year": 2031, "month": 5, "day": 4}, "2031-04-05", False, {"iso"}),
        ("sum", {"a": 3, "b": 4, "result": 7}, "3 + 4 = 7", True, {"digits"}),
        ("sum", {"a": 3, "b": 4, "result": 7}, "Seven.", True, {"words"}),
        ("sum", {"a": 3, "b": 4, "result": 7}, "seven (7)", True, {"digits", "words"}),
        ("sum", {"a": 3, "b": 4, "result": 7}, "1 2 3 4 5 6 7", False, {"digits"}),
        ("sum", {"a": 3, "b": 4, "result": 7}, "17", False, set()),
        ("print", {"word": "lion"}, "Use `print('lion')`.", True, {"python"}),
        ("print", {"word": "lion"}, 'echo "lion"', True, {"bash"}),
        ("print", {"word": "lion"}, "console.log('lion');", True, {"javascript"}),
        ("print", {"word": "lion"}, "echo lions", False, set()),
        ("print", {"word": "lion"}, "echo lion\nprint('lion')", True, {"bash", "python"}),
        ("function", {"word": "lion"}, "def lion():\n    pass", True, {"python"}),
        ("function", {"word": "lion"}, "function lion() { :; }", True, {"bash"}),
        ("function", {"word": "lion"}, "function lion() {}", True, {"javascript"}),
        ("hello", {"name": "anna"}, "Hi, Anna!", True, {"english"}),
        ("hello", {"name": "anna"}, "bonjour", False, {"french"}),
        ("goodbye", {"name": "anna"}, "Tschüss Anna", True, {"german"}),
    ],
)
def test_readings(family: str, goal: dict[str, Any], text: str, content: bool, styles: set[str]) -> None:
    reading = FAMILIES[family].read(goal, text.lower())
    assert (reading.content, reading.styles) == (content, styles)


@pytest.mark.parametrize(
    ("kind", "value", "text", "met"),
    [
        ("case", "upper", "8 KM", True),
        ("case", "upper", "8 Km", False),
        ("case", "lower", "8 km", True),
        ("case", "lower", "8 KM", False),
        ("tone", "polite", "Of course: 8", True),
        ("tone", "polite", "8", False),
        ("tone", "polite", "surely", False),
        ("tone", "calm", "8!", False),
        ("tone", "lively", "8!", True),
        ("tone", "lively", "8.", False),
        ("address", "boss", "8, Boss.", True),
        ("address", "boss", "bossy", False),
        ("length", "6", "- one\n- two\n1. three four five six", True),
        ("length", "6", "one two three four five six seven", False),
    ],
)
def test_wishes(kind: str, value: str, text: str, met: bool) -> None:
    assert WISHES[kind][value].met(text) is met


def test_code_is_not_written_in_capital_letters() -> None:
    who = person("code", "bash", "case", "upper")
    assert wish_for(who, "print") is None
    assert judged(who, "print", {"word": "lion"}, "echo lion").good
    assert not judged(who, "hello", {"name": "anna"}, "hello anna").good


@given(st.text(max_size=200), st.sampled_from(sorted(FAMILIES)), st.integers(0, USERS - 1))
def test_any_text_is_judged(text: str, family: str, number: int) -> None:
    verdict = judged(user(number), family, FAMILIES[family].goals[0], text)
    assert verdict.good == (verdict.content and not verdict.unmet)


@given(st.integers(1, 6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_the_reward_is_the_share_of_liked_answers(turns: int, right: list[bool]) -> None:
    env = ReplyEnv("test", max_turns=turns)
    key = env.tasks()[5].key
    who, requests = env._talks[key].who, env._talks[key].requests
    plan = [None if right[turn] else other_style(who, *requests[turn]) for turn in range(turns)]
    steps = play(env, key, plan)
    assert sum(step[1] for step in steps) == pytest.approx(sum(right[:turns]) / turns)
    assert [step[1] > 0 for step in steps] == right[:turns]
    assert (sum(step[1] for step in steps) == 1.0) is all(right[:turns])


@pytest.mark.parametrize("action", ["", "\0", "\ud800", "x" * 30_000, "-", "```", "```python\n```", "\n\n"])
def test_an_odd_action_is_a_step(env: ReplyEnv, action: str) -> None:
    for ref in env.tasks()[::50]:
        observation, reward, _, _, info = play(env, ref.key, [action])[0]
        observation.encode()
        assert reward == 0.0
        assert info["reward_components"]["content"] == 0.0


def test_seeds_and_options(env: ReplyEnv) -> None:
    assert env.reset(seed=5) == env.reset(seed=5)
    with pytest.raises(KeyError, match="unknown task"):
        env.reset(options={"task": "u00/hello/test/99"})
    with gymnasium.make("retort/Reply-v0", explain=True) as made:
        assert made.reset(seed=0)[0].startswith(f"{PROTOCOL}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"max_turns": 0}, "max_turns: expected 1 to 6, found 0"),
        ({"max_turns": 7}, "max_turns: expected 1 to 6, found 7"),
        ({"user": 24}, "user: expected a number from 0 to 23, found 24"),
        ({"user": "anna"}, "user: expected a number from 0 to 23, found 'anna'"),
        ({"user": 20}, "user 20 is held out of training; 0 to 19 are in it"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        gymnasium.make("retort/Reply-v0", **options)


def test_ends_and_closing() -> None:
    env = ReplyEnv()
    with pytest.raises(ResetNeeded):
        env.step("hi")
    with pytest.raises(ResetNeeded):
        env.gold("")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected text"):
        env.step(3)  # type: ignore[arg-type]
    for _ in range(3):
        env.step("")
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("")
    env.close()
    env.close()
