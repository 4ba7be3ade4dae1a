"""Tool calls read from what models write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.calls import Call, Unreadable, read_calls, spoken

NAMES = ("get_order", "ls", "cd")
ORDER = Call("get_order", {"order_id": 7})
TEXT = '{"name": "get_order", "arguments": {"order_id": 7}}'


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"[{TEXT}]",
        f"<tool_call>\n{TEXT}\n</tool_call>",
        f"I look it up.\n<tool_call>{TEXT}</tool_call>",
        f"<tool_call>{TEXT}",
        f"<tool_call>```json\n{TEXT}\n```</tool_call>",
        f"```json\n{TEXT}\n```",
        f"Sure:\n```\n{TEXT}\n```\nThat is it.",
        f"I call {TEXT} now",
        f"[TOOL_CALLS] [{TEXT}]",
        '{"name": "get_order", "parameters": {"order_id": 7}}',
        '{"function": "get_order", "arguments": {"order_id": 7}}',
        '{"name": "get_order", "arguments": "{\\"order_id\\": 7}"}',
        '{"type": "function", "function": {"name": "get_order", "arguments": "{\\"order_id\\": 7}"}}',
        "get_order(order_id=7)",
        "[get_order(order_id=7)]",
        "```python\nget_order(order_id=7)\n```",
        "<tool_call>[get_order(order_id=7)]</tool_call>",
    ],
)
def test_one_call(text: str) -> None:
    assert read_calls(spoken(text), NAMES) == [ORDER]


@pytest.mark.parametrize(
    "text",
    [
        f"{TEXT}{TEXT}",
        f"{TEXT}\n{TEXT}",
        f"[{TEXT}, {TEXT}]",
        f"<tool_call>{TEXT}</tool_call>\n<tool_call>{TEXT}</tool_call>",
        f"<tool_call>{TEXT}<tool_call>{TEXT}",
        f"<tool_call>{TEXT}\n{TEXT}</tool_call>",
        f"```\n{TEXT}\n```\nand\n```\n{TEXT}\n```",
        "[get_order(order_id=7), get_order(order_id=7)]",
        "get_order(order_id=7)\nget_order(order_id=7)",
    ],
)
def test_two_calls(text: str) -> None:
    assert read_calls(text, NAMES) == [ORDER, ORDER]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "done",
        "answer: 7",
        "Refunded (done)",
        "Total(42)",
        "[1, 2]",
        "[see the note] no",
        "a = ls()",
        "7",
        "{order}"[1:],
    ],
)
def test_no_call(text: str) -> None:
    assert read_calls(text, NAMES) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "get_order", "arguments": {"order_id": 7}', "not JSON: Expecting ',' delimiter at character 50"),
        ("{'name': 'ls'}", "not JSON"),
        ('{"order_id": 7}', 'expected {"name": ..., "arguments": {...}}; found no name of a tool'),
        ('{"name": 7}', "found no name"),
        ('{"name": "ls", "arguments": [7]}', "arguments: expected an object; found [7]"),
        ('{"name": "ls", "arguments": "{"}', "ls: arguments are not JSON"),
        ('{"name": "ls", "arguments": {"a": NaN}}', "NaN is no JSON number"),
        ('{"name": "ls", "arguments": {"a": 1e999}}', "arguments that JSON cannot hold"),
        ('{"name": "ls", "arguments": {"a": "\\ud800"}}', "arguments that JSON cannot hold"),
        ("<tool_call>hm</tool_call>", "expected {"),
        ("[ls(a=cd())]", "ls: expected literal arguments; found cd()"),
        ("[ls(a=b)]", "ls: expected literal arguments; found b"),
        ("[ls(*[1])]", "expected literal arguments"),
        ("[ls(**{'a': 1})]", "ls: expected arguments by name; found **{'a': 1}"),
        ("[ls(a={1})]", "arguments that JSON cannot hold"),
        ('{"name": ' + "[" * 5000, "not JSON"),
        ('{"name": "ls", "arguments": {"a": ' + "[" * 101 + "]" * 101 + "}}", "arguments of at most 100 levels"),
        ("[ls(a=" + "[" * 101 + "]" * 101 + ")]", "arguments of at most 100 levels"),
        ("[ls" + ".a" * 900 + "(b=1)]", "more levels than can be read"),
        ("[ls(a=b" + ".a" * 900 + ")]", "more levels than can be read"),
        ("[ls(**b" + ".a" * 900 + ")]", "more levels than can be read"),
        ("[ls(a=" + "-" * 900 + "1)]", "more levels than can be read"),
    ],
)
def test_unreadable(text: str, reason: str) -> None:
    calls = read_calls(text, NAMES)
    assert len(calls) == 1
    assert isinstance(calls[0], Unreadable)
    assert reason in calls[0].reason


def test_no_depth_is_too_deep_to_answer() -> None:
    for depth in range(1, 1200):
        nested = "[" * depth + "]" * depth
        for text in (f'[{{"name": "ls"}}, {nested}]', f'{{"name": "ls", "arguments": {nested}}}'):
            assert any(isinstance(call, Unreadable) for call in read_calls(text, NAMES))
    good = '{"name": "ls", "arguments": {"a": ' + "[" * 99 + "]" * 99 + "}}"
    assert isinstance(read_calls(good, NAMES)[0], Call)


def test_a_good_call_before_a_bad_one() -> None:
    good, bad = read_calls(TEXT + '{"name": ', NAMES)
    assert good == ORDER
    assert isinstance(bad, Unreadable)


def test_positional_and_dotted() -> None:
    assert read_calls("[cd('a', x=(1, None))]", NAMES) == [Call("cd", {"x": (1, None)}, ("a",))]
    assert read_calls("[os.remove('a')]", NAMES) == [Call("os.remove", {}, ("a",))]


def test_thoughts_are_not_spoken() -> None:
    assert spoken(f"<think>I call {TEXT}</think>\ndone ") == "done"
    assert spoken("a\ud800") == "a?"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(st.characters(codec="utf-8")), st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=3))
def test_what_is_written_is_read(name: str, arguments: dict[str, Any]) -> None:
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    call = Call(name, arguments)
    assert read_calls(call.text, NAMES) == [call]


@given(st.text() | st.text("[]{}()\"':,<>/`tool_callnamergus 1=", max_size=60))
def test_any_text_is_read(text: str) -> None:
    for call in read_calls(spoken(text), NAMES):
        if isinstance(call, Call):
            json.dumps([call.arguments, call.positional], allow_nan=False)
