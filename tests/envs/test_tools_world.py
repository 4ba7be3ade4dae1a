"""The world of Tools-v0: what tools do and refuse, their schemas, and which calls break a rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.calls import Call
from retort.envs.tools_world import BOSS, RULES, Contact, Event, Mail, Order, World, tools

ROWS = {
    "orders": [
        Order(1, "Ana Hill", "lamp", 300, "shipped", "2025-03-01", "1 Oak Street"),
        Order(2, "Ana Hill", "desk", 200, "pending", "2025-02-13", "1 Oak Street"),
    ],
    "events": [Event(1, "demo", "2025-03-20", "10:00", "11:30"), Event(2, "audit", "2025-03-20", "09:00", "10:00")],
    "mails": [Mail(1, "a@acme.example", "me@acme.example", "About the Desk", "Hello.")],
    "contacts": [Contact(1, "Ben Ito", "ben.ito@acme.example")],
}
TODAY = "2025-03-16"


def ask(world: World, tool: str, **arguments: Any) -> Any:
    return json.loads(world.call(Call(tool, arguments)))


@pytest.fixture
def world() -> Any:
    made = World(ROWS, TODAY, tuple(RULES))
    yield made
    made.close()


def test_orders(world: World) -> None:
    assert [order["id"] for order in ask(world, "find_orders", customer="ana hill")] == [1, 2]
    assert [order["id"] for order in ask(world, "find_orders", customer="Ana Hill", status="pending")] == [2]
    assert ask(world, "find_orders", item="sofa") == []
    assert ask(world, "get_order", order_id=2) == ROWS["orders"][1]._asdict()  # type: ignore[attr-defined]
    assert ask(world, "update_address", order_id=2, address="2 Elm Street") == {"ok": True}
    assert ask(world, "get_order", order_id=2)["address"] == "2 Elm Street"
    assert ask(world, "cancel_order", order_id=2) == {"ok": True}
    assert ask(world, "cancel_order", order_id=2) == {"error": "order 2 is cancelled already"}
    assert ask(world, "refund_order", order_id=9) == {"error": "no order has the id 9"}


def test_calendar(world: World) -> None:
    assert [event["title"] for event in ask(world, "list_events", day="2025-03-20")] == ["audit", "demo"]
    assert ask(world, "find_events", title="Demo")[0]["id"] == 1
    made = ask(world, "create_event", title="lunch", day="2025-03-21", start="12:00", end="13:00")
    assert made == {"event_id": 3}
    assert ask(world, "move_event", event_id=1, day="2025-03-22", start="14:15") == {"ok": True}
    assert ask(world, "find_events", title="demo")[0] == {
        "id": 1, "title": "demo", "day": "2025-03-22", "start": "14:15", "end": "15:45"
    }  # fmt: skip
    assert "after midnight" in ask(world, "move_event", event_id=1, day="2025-03-22", start="23:00")["error"]
    assert ask(world, "create_event", title="x", day="2025-03-21", start="12:00", end="12:00") == {
        "error": "end: expected a time after 12:00, found 12:00"
    }
    assert ask(world, "delete_event", event_id=2) == {"ok": True}
    assert ask(world, "delete_event", event_id=2) == {"error": "no event has the id 2"}


def test_mail(world: World) -> None:
    assert ask(world, "search_mail", subject="desk") == [
        {"id": 1, "sender": "a@acme.example", "subject": "About the Desk"}
    ]
    assert ask(world, "search_mail", sender="b@acme.example") == []
    assert ask(world, "read_mail", mail_id=1)["body"] == "Hello."
    assert ask(world, "find_contact", name="ben ito")[0]["mail"] == "ben.ito@acme.example"
    assert ask(world, "send_mail", to="a@b.example", subject="s", body="b") == {"mail_id": 2}
    assert world.rows()["mails"][1][1:] == ("me@acme.example", "a@b.example", "s", "b")


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("get_oder", {"order_id": 1}, "unknown tool 'get_oder'; did you mean 'get_order'?"),
        ("get_order", {}, "missing argument 'order_id'"),
        ("get_order", {"order": 1}, "unknown argument 'order'; did you mean 'order_id'?"),
        ("get_order", {"order_id": "1"}, 'order_id: expected integer, found "1"'),
        ("get_order", {"order_id": True}, "order_id: expected integer, found true"),
        ("get_order", {"order_id": 10**30}, "order_id: expected input should be less than or equal to 999999"),
        ("list_events", {"day": "20.3.2025"}, 'day: expected YYYY-MM-DD, found "20.3.2025"'),
        ("create_event", {"title": "x", "day": "2025-03-20", "start": "9:00", "end": 10}, "start: expected HH:MM"),
        ("send_mail", {"to": "Ben", "subject": "s", "body": "b"}, 'to: expected NAME@HOST, found "Ben"'),
        ("find_contact", {"name": None}, "name: expected string, found null"),
    ],
)
def test_bad_calls_are_told(world: World, name: str, arguments: dict[str, Any], error: str) -> None:
    before = world.rows()
    assert error in json.loads(world.call(Call(name, arguments)))["error"]
    assert (world.rows(), world.broken) == (before, [])


def test_arguments_want_names(world: World) -> None:
    said = json.loads(world.call(Call("get_order", {}, (1,))))
    assert said == {"error": "name the arguments: get_order(order_id: integer)"}


def test_schemas() -> None:
    for name, tool in tools().items():
        function = tool.schema["function"]
        assert (tool.schema["type"], function["name"]) == ("function", name)
        assert function["description"]
        assert function["parameters"]["additionalProperties"] is False
        assert "title" not in function["parameters"]
    shown = tools()["create_event"]
    assert shown.line == "create_event(title: string, day: YYYY-MM-DD, start: HH:MM, end: HH:MM)"
    assert tools()["search_mail"].line == "search_mail(sender?: string, subject?: string)"


@pytest.mark.parametrize(
    ("calls", "broken"),
    [
        ([("refund_order", {"order_id": 2})], ["late"]),  # 31 days, and 200 is not above 200
        ([("refund_order", {"order_id": 1})], ["approval"]),  # 15 days, 300
        ([("send_mail", {"to": BOSS, "subject": "refund", "body": "1"}), ("refund_order", {"order_id": 1})], []),
        (
            [("send_mail", {"to": BOSS, "subject": "refund", "body": "2"}), ("refund_order", {"order_id": 1})],
            ["approval"],
        ),
        ([("cancel_order", {"order_id": 1})], ["shipped"]),
        ([("cancel_order", {"order_id": 2})], []),
        ([("send_mail", {"to": "a@mail.example", "subject": "s", "body": "b"})], ["outside"]),
        ([("send_mail", {"to": "a@acme.example.com", "subject": "s", "body": "b"})], ["outside"]),
        ([("send_mail", {"to": "A@ACME.example", "subject": "s", "body": "b"})], []),
        ([("delete_event", {"event_id": 1})], ["confirm"]),
        ([("confirm_delete", {"event_id": 2}), ("delete_event", {"event_id": 1})], ["confirm"]),
        ([("confirm_delete", {"event_id": 1}), ("delete_event", {"event_id": 1})], []),
        ([("move_event", {"event_id": 1, "day": "2025-03-20", "start": "08:59"})], ["hours"]),
        ([("create_event", {"title": "x", "day": "2025-03-20", "start": "17:00", "end": "18:00"})], ["hours"]),
        ([("create_event", {"title": "x", "day": "2025-03-20", "start": "16:59", "end": "18:00"})], []),
        ([("refund_order", {"order_id": 9}), ("cancel_order", {"order_id": 9})], []),
    ],
)
def test_rules(world: World, calls: list[tuple[str, dict[str, Any]]], broken: list[str]) -> None:
    for name, arguments in calls:
        ask(world, name, **arguments)
    assert [rule for rule, _ in world.broken] == broken


def test_a_user_who_says_no() -> None:
    world = World(ROWS, TODAY, ("confirm",), agrees=False)
    assert ask(world, "confirm_delete", event_id=1) == {"confirmed": False}
    ask(world, "delete_event", event_id=1)
    assert world.broken == [("confirm", "delete_event")]
    world.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_no_call_raises(data: st.DataObject) -> None:
    """Whatever its arguments are, also the right ones with odd values."""
    name = data.draw(st.sampled_from(sorted(tools())))
    fields = list(tools()[name].model.model_fields)
    arguments = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys([*fields, "x"], JSON)))
    world = World(ROWS, TODAY, tuple(RULES))
    json.loads(world.call(Call(name, arguments)))
    world.close()
