"""Tools-v0: rewards, feedback, ends, and what must not break it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st
from retort.envs.base import Failure, Feedback, Source, UsageError
from retort.envs.calls import Call
from retort.envs.tools import CALLS, PROTOCOL, ToolsEnv, expected, graded, holds
from retort.envs.tools_tasks import FAMILIES, HELD_OUT, family_refs, task
from retort.envs.tools_world import tools

import retort  # noqa: F401  (registers the environment)

Steps = list[tuple[str, float, bool, bool, dict[str, Any]]]


@pytest.fixture(scope="module")
def env() -> Iterator[ToolsEnv]:
    made = gymnasium.make("retort/Tools-v0", split="test")
    assert isinstance(made.unwrapped, ToolsEnv)
    yield made.unwrapped
    made.close()


def keys(env: ToolsEnv, family: str, count: int = 10) -> list[str]:
    return [ref.key for ref in env.tasks() if ref.family == family][:count]


def play(env: ToolsEnv, key: str, plan: Sequence[str] | None) -> Steps:
    """The steps of an episode that follows a plan, or the gold one."""
    said, _ = env.reset(options={"task": key})
    steps: Steps = []
    while not (steps and (steps[-1][2] or steps[-1][3])):
        steps.append(env.step(env.gold(said) if plan is None else env.follow(plan, len(steps), said)))
        said = steps[-1][0]
    return steps


def hidden(info: dict[str, Any]) -> dict[Source, str]:
    return {item.source: item.text for item in info["feedback"] if not item.visible}


def written(name: str, **arguments: Any) -> str:
    return Call(name, arguments).text


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gold_scores_one_and_near_misses_nothing(env: ToolsEnv, family: str) -> None:
    for key in keys(env, family):
        *before, (_, reward, terminated, truncated, info) = play(env, key, None)
        assert (reward, terminated, truncated, info["success"], info["failure"]) == (1.0, True, False, True, None), key
        assert all(step[1] == 0.0 and step[4]["success"] is None for step in before)
        assert set(info["reward_components"].values()) == {1.0}
        for plan in task(key).near_misses:
            *_, (_, reward, terminated, _, info) = play(env, key, plan)
            assert (reward, info["success"], info["failure"]) == (0.0, False, Failure.POLICY), (key, plan)
            assert terminated
            assert list(info["reward_components"]) == ["state", "answer", "policy", "untouched"]
            assert 0.0 in info["reward_components"].values()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_nothing_scores_nothing(env: ToolsEnv, family: str) -> None:
    for key in keys(env, family, 20):
        for plan in (
            ["done"],
            [""],
            ["answer: "],
            ["R1 R2 R3"],
            ["no"],
            ["I did it."],
            [" ".join(map(str, range(99)))],
        ):
            *_, (_, reward, _, _, info) = play(env, key, plan)
            assert (reward, info["success"]) == (0.0, False), (key, plan)


def test_breaking_a_rule_is_said_and_costs_all(env: ToolsEnv) -> None:
    """The right state and the right answer, in the wrong way: the refund comes before the mail that allows it."""
    key = next(key for key in family_refs("approve") if len(task(key).do) == 3)
    look, ask, pay = task(key).do
    with gymnasium.make("retort/Tools-v0", split=task(key).split, families=("approve",)) as made:
        *_, (_, reward, _, _, info) = play(made.unwrapped, key, [look.text, pay.text, ask.text, "done"])  # type: ignore[arg-type]
    assert reward == 0.0
    assert info["reward_components"] == {"state": 1.0, "answer": 1.0, "policy": 0.0, "untouched": 1.0}
    assert hidden(info)[Source.VERIFIER] == "expected rule R1 kept; found it broken by refund_order"


def test_feedback_of_an_episode(env: ToolsEnv) -> None:
    key = keys(env, "address")[0]
    (call,) = task(key).do
    wrong = written("update_address", order_id=call.arguments["order_id"], address="1 Nowhere")
    first, last = play(env, key, [wrong, "done"])
    assert first[0] == '{"ok":true}'
    assert first[4]["feedback"] == (Feedback('{"ok":true}', Source.TOOL_RESULT, 0, True),)
    number, address = call.arguments["order_id"], call.arguments["address"]
    assert last[0] == ""
    assert last[4]["feedback"] == (
        Feedback(f"expected orders {number} address {address}; found 1 Nowhere", Source.VERIFIER, 1, False),
        Feedback("call update_address once with the order's id", Source.HINT, 1, False),
        Feedback(f"{call.text}\ndone", Source.SOLUTION, 1, False),
    )


def test_the_answer_is_told_at_the_end_and_a_success_gets_no_hint(env: ToolsEnv) -> None:
    key = keys(env, "count")[0]
    told = hidden(play(env, key, None)[-1][4])
    assert told == {
        Source.VERIFIER: "found as expected",
        Source.ANSWER: task(key).answer,
        Source.SOLUTION: "\n".join(task(key).gold),
    }


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ('{"name": "get_order", "arguments": {"order_id": 1', "not JSON"),
        ('<tool_call>{"name": get_order}</tool_call>', "not JSON"),
        ('{"name": "get_oder", "arguments": {"order_id": 1001}}', "did you mean 'get_order'?"),
        ('{"name": "get_order", "arguments": {}}', "missing argument 'order_id'"),
        ('{"name": "get_order", "arguments": {"order_id": 1001, "id": 2}}', "unknown argument 'id'"),
        ('{"name": "get_order", "arguments": {"order_id": "1001"}}', 'expected integer, found "1001"'),
        ('{"name": "get_order", "arguments": [1001]}', "expected an object; found [1001]"),
        ('{"name": "get_order", "arguments": {"order_id": 1e999}}', "arguments that JSON cannot hold"),
        ('{"name": "find_contact", "arguments": {"name": "\\ud800"}}', "arguments that JSON cannot hold"),
        ('{"arguments": {}}', "found no name of a tool"),
        ("[get_order(1001)]", "name the arguments: get_order(order_id: integer)"),
        ("[get_order(order_id=open('x'))]", "expected literal arguments"),
        ('{"name": "' + "x" * 20_000 + '"}', "at most 10000 characters"),
        ('{"name": "get_order", "arguments": {"order_id": ' + "[" * 800 + "]" * 800 + "}}", "at most 100 levels"),
        ("[get_order" + ".id" * 900 + "(order_id=1001)]", "more levels than can be read"),
    ],
)
def test_bad_calls_are_told_and_the_episode_goes_on(env: ToolsEnv, action: str, error: str) -> None:
    key = keys(env, "cancel")[0]
    env.reset(options={"task": key})
    observation, reward, terminated, truncated, info = env.step(action)
    assert error in json.loads(observation)["error"]
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, None)
    assert info["feedback"] == (Feedback(observation, Source.TOOL_RESULT, 0, True),)
    for action in task(key).gold:
        last = env.step(action)
    assert last[1] == 1.0


def test_a_call_that_cannot_be_read_is_no_action(env: ToolsEnv) -> None:
    env.reset(options={"task": keys(env, "cancel")[0]})
    read, unread = '{"name": "get_oder", "arguments": {}}', '{"name": "get_order", "arguments": {'
    assert [env.step(action)[4]["invalid"] for action in (read, unread)] == [False, True]


def test_several_calls_in_an_action(env: ToolsEnv) -> None:
    key = keys(env, "clear")[0]
    tagged = "".join(f"<tool_call>\n{call.text}\n</tool_call>\n" for call in task(key).do)
    first, last = play(env, key, [f"I cancel them.\n{tagged}", "All are cancelled."])
    assert [json.loads(line) for line in first[0].splitlines()][1:] == [{"ok": True}] * (len(task(key).do) - 1)
    assert last[1] == 1.0
    look = task(key).do[0].text
    assert play(env, key, [look * (CALLS + 1), "done"])[0][0].splitlines()[CALLS] == (
        '{"error":"expected at most 16 calls in an action, found 17; the rest was not run"}'
    )


def test_other_ways_to_write_and_to_end(env: ToolsEnv) -> None:
    key = keys(env, "cancel")[0]
    look, drop = task(key).do
    python = f"cancel_order(order_id={drop.arguments['order_id']})"
    for plan in (
        [f"```json\n{look.text}\n```", python, ""],
        [f"<think>{{</think>[{look.text}, {drop.text}]", "I have cancelled it."],
        [f'{{"name": "cancel_order", "parameters": {json.dumps(dict(drop.arguments))}}}', "Answer: done"],
    ):
        assert play(env, key, plan)[-1][1] == 1.0, plan


def test_order_and_spelling_of_new_rows_do_not_matter(env: ToolsEnv) -> None:
    key = keys(env, "slot_mail")[0]
    look, book, find, send = task(key).do
    loud = replace(send, arguments={**send.arguments, "subject": f" {send.arguments['subject'].upper()}. "})
    assert play(env, key, [find.text, loud.text, look.text, book.text, "done"])[-1][1] == 1.0
    twice = play(env, key, [find.text, send.text, send.text, book.text, "done"])[-1]
    assert twice[4]["reward_components"] == {"state": 1.0, "answer": 1.0, "policy": 1.0, "untouched": 0.0}


def test_doing_and_undoing_is_nothing(env: ToolsEnv) -> None:
    key = keys(env, "address")[0]
    (call,) = task(key).do
    other = next(order for order in task(key).rows["orders"] if order[0] != call.arguments["order_id"])
    there = written("update_address", order_id=other[0], address="x")
    back = written("update_address", order_id=other[0], address=other[6])
    assert play(env, key, [there, call.text, back, "done"])[-1][1] == 1.0
    assert play(env, key, [there, call.text, "done"])[-1][4]["reward_components"]["untouched"] == 0.0


def test_out_of_turns(env: ToolsEnv) -> None:
    key = keys(env, "address")[0]
    steps = play(env, key, [task(key).gold[0], *[written("list_events", day="2025-01-01")] * 7])
    assert len(steps) == env.max_turns == 8
    observation, reward, terminated, truncated, info = steps[-1]
    assert (observation, reward, terminated, truncated) == ("[]", 0.0, False, True)
    assert info["reward_components"] == {"state": 1.0, "answer": 0.0, "policy": 1.0, "untouched": 1.0}
    assert hidden(info)[Source.VERIFIER] == "expected done; found no end"
    assert info["feedback"][0] == Feedback("[]", Source.TOOL_RESULT, 7, True)


@pytest.mark.parametrize(
    ("said", "answer", "others", "right"),
    [
        ("answer: 42", "42", (), True),
        ("The total is 42 euros.", "42", (), True),
        ("3 mails: Answer: **42**", "42", (), True),
        ("10 + 32 = 42", "42", (), True),
        ("42 of 50", "42", (), False),
        ("1,042", "1042", (), True),
        ("-42", "42", (), False),
        ("420", "42", (), False),
        ("R42", "42", (), False),
        ("answer: forty-two", "42", (), False),
        ("It is shipped.", "shipped", ("pending",), True),
        ("SHIPPED", "shipped", ("pending",), True),
        ("shipped or pending", "shipped", ("pending",), False),
        ("It was pending. answer: shipped", "shipped", ("pending",), True),
        ("unshipped", "shipped", (), False),
        ("No, because of R2.", "R2", ("R1", "R3"), True),
        ("R1, R2", "R2", ("R1", "R3"), False),
        ("R22", "R2", (), False),
        ("", "R2", (), False),
    ],
)
def test_answers(said: str, answer: str, others: tuple[str, ...], right: bool) -> None:
    assert holds(said, answer, others) is right


def test_grades_name_the_first_difference() -> None:
    job = task("event/0003")
    wanted = {table: list(rows) for table, rows in expected(job).items()}
    assert graded(job, wanted, (), "done").success
    event = wanted["events"][-1]
    moved = {**wanted, "events": [*wanted["events"][:-1], event._replace(day="2026-01-01")]}  # type: ignore[attr-defined]
    grade = graded(job, moved, (), "done")
    assert (grade.state, grade.untouched) == (False, True)
    assert grade.verdict == f"expected new events day {event[2]}; found 2026-01-01"
    gone = {**wanted, "contacts": wanted["contacts"][1:]}
    grade = graded(job, gone, (), "done")
    assert (grade.state, grade.untouched) == (True, False)
    assert grade.verdict.startswith("expected contacts 1 ")
    assert grade.verdict.endswith("; found none")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_looking_around_changes_nothing(env: ToolsEnv, data: st.DataObject) -> None:
    """Calls that only read may come anywhere before the last word."""
    key = data.draw(st.sampled_from([ref.key for ref in env.tasks()]))
    looks = [
        written("find_orders"),
        written("list_events", day="2025-03-20"),
        written("search_mail", subject="invoice"),
        written("read_mail", mail_id=1),
        written("get_order", order_id=999_999),
    ]
    plan = [action + data.draw(st.sampled_from(["", *looks])) for action in task(key).gold[:-1]]
    assert play(env, key, [*plan, task(key).last_word])[-1][1] == 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text() | st.text('{}[]":, nameargumts_ordi1', max_size=40), max_size=8))
def test_any_text_is_a_step(env: ToolsEnv, actions: list[str]) -> None:
    steps = play(env, keys(env, "refund")[0], [action.replace("R", "") for action in actions])
    assert steps[-1][1] == 0.0
    for step in steps:
        step[0].encode()


def test_seeds(env: ToolsEnv) -> None:
    first = env.reset(seed=5)
    assert env.reset(seed=5) == first
    assert len({env.reset(seed=seed)[1]["task"].key for seed in range(10)}) > 5


def test_reset_says_what_the_contract_says(env: ToolsEnv) -> None:
    observation, info = env.reset(seed=5)
    assert observation == task(info["task"].key).instruction
    assert info["tools"] == [tool.schema for tool in tools().values()]
    assert (info["feedback"], info["reward_components"], info["success"], info["failure"]) == ((), {}, None, None)
    with pytest.raises(KeyError, match="unknown task"):
        env.reset(options={"task": "refund/none"})


def test_explain() -> None:
    with gymnasium.make("retort/Tools-v0", explain=True) as made:
        observation, info = made.reset(seed=0)
        lines = "\n".join(tool.line for tool in tools().values())
        assert observation == f"{PROTOCOL}{lines}\n{task(info['task'].key).instruction}"


def test_many_at_once() -> None:
    """Each episode has a world of its own, also in threads, and its steps may come from different ones."""
    envs = [ToolsEnv(split="test") for _ in range(8)]
    family = [ref.key for ref in envs[0].tasks()][::40]

    def episode(number: int) -> list[float]:
        return [play(envs[number], key, None)[-1][1] for key in family[number % 2 :: 2]]

    with ThreadPoolExecutor(8) as pool:
        assert all(reward == 1.0 for rewards in pool.map(episode, range(8)) for reward in rewards)
        envs[0].reset(options={"task": family[0]})
        for action in task(family[0]).gold:
            last = pool.submit(envs[0].step, action).result()
    assert last[1] == 1.0
    for each in envs:
        each.close()


def test_ends_and_closing() -> None:
    env = ToolsEnv(split="test")
    with pytest.raises(ResetNeeded):
        env.step("done")
    with pytest.raises(ResetNeeded):
        env.gold("")
    env.reset(seed=0)
    env.step("done")
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("done")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected text"):
        env.step(3)  # type: ignore[arg-type]
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("done")
    env.reset(seed=0)
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"families": ("refnd",)}, "unknown family 'refnd'; did you mean 'refund'"),
        ({"families": (HELD_OUT[0],)}, "held out of training"),
        ({"families": "refund"}, "expected a tuple of names"),
        ({"families": ()}, "at least one name"),
        ({"max_turns": 0}, "max_turns: expected a number above 0, found 0"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        gymnasium.make("retort/Tools-v0", **options)
