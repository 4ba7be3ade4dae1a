"""The task families of `retort/Tools-v0`: each turns a scene into what is asked, the calls that do it, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retort.envs.calls import Call
from retort.envs.tools_scene import ITEMS, LABELS, STATUSES, SUBJECTS, TITLES, TOPICS, Scene, Sketch, call
from retort.envs.tools_world import BOSS, COMPANY, ME, Contact, Event, Mail, Order


def _label(rules: Sequence[str], name: str) -> str:
    return LABELS[rules.index(name)]


def address(scene: Scene) -> Sketch:
    order, other = scene.orders[0], scene.orders[scene.draw.number(1, 5)]
    new = scene.street("new")
    if new == order.address:
        new = f"1{new}"
    wrong = (
        ((call("update_address", order_id=other.id, address=new),), "done"),
        ((call("update_address", order_id=order.id, address=other.address + " 2"),), "done"),
        ((call("get_order", order_id=order.id),), "done"),
        ((call("cancel_order", order_id=order.id),), "done"),
    )
    return Sketch((str(order.id), new), (call("update_address", order_id=order.id, address=new),), wrong)


def event(scene: Scene) -> Sketch:
    draw = scene.draw
    title, day, hour = draw.some(TITLES, 1)[0], scene.day(draw.number(8, 40)), draw.number(9, 15)
    start, end, later = f"{hour:02}:00", f"{hour + draw.number(1, 2):02}:30", f"{hour + 1:02}:00"
    do = call("create_event", title=title, day=day, start=start, end=end)
    year, month, number = day.split("-")
    wrong = (
        ((replace(do, arguments={**do.arguments, "day": f"{number}.{month}.{year}"}),), "done"),
        ((replace(do, arguments={**do.arguments, "day": scene.day(7)}),), "done"),
        ((replace(do, arguments={**do.arguments, "start": later}),), "done"),
        ((do, do), "done"),
    )
    return Sketch((title, day, start, end), (do,), wrong)


def status(scene: Scene) -> Sketch:
    order = scene.orders[scene.draw.number(1, 5)]
    others = tuple(status for status in STATUSES if status != order.status)
    look = call("find_orders", customer=order.customer, item=order.item)
    wrong = (
        ((), f"answer: {others[0]}"),
        ((look,), f"answer: {others[1]}"),
        ((look,), "done"),
        ((look,), f"answer: {', '.join(STATUSES)}"),
    )
    return Sketch((order.customer, order.item), (look,), wrong, order.status, others)


def cancel(scene: Scene) -> Sketch:
    first, second = scene.orders[:2]
    like = next((order for order in scene.orders[2:] if order.item == first.item), scene.orders[2])
    orders = (first, second, *(order._replace(status="pending") for order in scene.orders[2:]))
    look = call("find_orders", customer=first.customer)
    wrong = tuple(
        ((look, *(call(name, order_id=order.id) for name, order in rest)), "done")
        for rest in (
            (("cancel_order", like),),
            (("cancel_order", scene.orders[3]),),
            (("refund_order", first),),
            (("cancel_order", first), ("cancel_order", like)),
            (),
        )
    )
    do = (look, call("cancel_order", order_id=first.id))
    return Sketch((first.customer, first.item), do, wrong, orders=orders)


def refund(scene: Scene) -> Sketch:
    draw, rules = scene.draw, scene.rules("late")
    late, right = bool(draw.number(0, 1)), _label(rules, "late")
    age = draw.number(31, 60) if late else draw.number(3, 30)
    first = scene.orders[0]._replace(status="delivered", ordered=scene.day(-age))
    orders = (first, *scene.orders[1:])
    look = call("find_orders", customer=first.customer, item=first.item)
    pay, other = call("refund_order", order_id=first.id), call("refund_order", order_id=orders[1].id)
    labels = tuple(label for label in LABELS if label != right)
    wrong = (
        ((look,), f"answer: {labels[0]}"),
        ((look,) if not late else (look, pay), f"answer: {right}"),
        ((look, other), "done"),
        ((look, pay, other) if not late else (look, pay), "done"),
    )
    goal = (first.customer, first.item)
    if late:
        return Sketch(goal, (look,), wrong, right, labels, rules, True, orders=orders)
    return Sketch(goal, (look, pay), wrong, rules=rules, refusable=True, orders=orders)


def outside(scene: Scene) -> Sketch:
    draw, rules = scene.draw, scene.rules("outside")
    person, right = scene.people[draw.number(0, 5)], _label(rules, "outside")
    subject, body = draw.some(SUBJECTS, 1)[0], f"room {draw.number(2, 99)}"
    look = call("find_contact", name=person.name)
    send = call("send_mail", to=person.mail, subject=subject, body=body)
    labels = tuple(label for label in LABELS if label != right)
    inside = person.mail.endswith(COMPANY)
    wrong = (
        ((look,), f"answer: {right if inside else labels[0]}"),
        ((look, replace(send, arguments={**send.arguments, "to": BOSS})), "done"),
        ((look,) if inside else (look, send), "done"),
        ((look, send, send) if inside else (send,), f"answer: {right}"),
    )
    goal = (person.name, subject, body)
    if inside:
        return Sketch(goal, (look, send), wrong, rules=rules, refusable=True)
    return Sketch(goal, (look,), wrong, right, labels, rules, True)


def delete(scene: Scene) -> Sketch:
    draw, rules = scene.draw, scene.rules("confirm")
    event, agrees = scene.events[draw.number(0, 1)], bool(draw.number(0, 1))
    other = scene.events[1 - scene.events.index(event)]
    look, ask = call("list_events", day=event.day), call("confirm_delete", event_id=event.id)
    drop, answer = call("delete_event", event_id=event.id), "deleted" if agrees else "kept"
    wrong = (
        ((look, drop), "answer: deleted"),
        ((look, ask), f"answer: {'kept' if agrees else 'deleted'}"),
        ((look, ask, call("delete_event", event_id=other.id)), "answer: deleted"),
        ((look, ask), "answer: deleted") if agrees else ((look, ask, drop), "answer: deleted"),
    )
    do = (look, ask, drop) if agrees else (look, ask)
    others = ("kept",) if agrees else ("deleted",)
    return Sketch((event.title, event.day), do, wrong, answer, others, rules, agrees=agrees)


def _free_hour(scene: Scene) -> tuple[tuple[Event, ...], str, int, str]:
    """A day whose first free hour is neither 09:00 nor after the last event: events, day, hour, the new title."""
    draw = scene.draw
    free, day = draw.number(10, 13), scene.day(draw.number(2, 30))
    *titles, new = draw.some(TITLES, free - 9 + 2)
    hours = [*range(9, free), free + 2]
    events = [Event(20 + n, title, day, f"{hour:02}:00", f"{hour + 1:02}:00") for n, (title, hour) in
              enumerate(zip(titles, hours, strict=True))]  # fmt: skip
    return tuple(events), day, free, new


def _booked(title: str, day: str, hour: int) -> Call:
    return call("create_event", title=title, day=day, start=f"{hour:02}:00", end=f"{hour + 1:02}:00")


def slot(scene: Scene) -> Sketch:
    events, day, free, new = _free_hour(scene)
    look = call("list_events", day=day)
    wrong = tuple(
        ((look, *rest), "done")
        for rest in (
            (_booked(new, day, 9),),
            (_booked(new, day, free + 3),),
            (_booked(new, scene.day(1), free),),
            (call("create_event", title=new, day=day, start=f"{free:02}:00", end=f"{free:02}:30"),),
            (),
        )
    )
    return Sketch((new, day), (look, _booked(new, day, free)), wrong, events=(*scene.events, *events))


def move(scene: Scene) -> Sketch:
    draw, event = scene.draw, scene.events[0]
    taken, day, hour = bool(draw.number(0, 1)), scene.day(draw.number(10, 30)), draw.number(9, 14)
    busy = Event(
        20, draw.some([t for t in TITLES if t != event.title], 1)[0], day, f"{hour:02}:00", f"{hour + 1:02}:00"
    )
    if not taken:
        busy = busy._replace(start=f"{hour + 2:02}:00", end=f"{hour + 3:02}:00")
    first, second = f"{hour:02}:00", f"{hour + 1:02}:00"
    start, other = (second, first) if taken else (first, second)
    looks = (call("find_events", title=event.title), call("list_events", day=day))
    wrong = tuple(
        ((*looks, *rest), "done")
        for rest in (
            (call("move_event", event_id=event.id, day=day, start=other),),
            (call("move_event", event_id=scene.events[1].id, day=day, start=start),),
            (_booked(event.title, day, int(start[:2])),),
            (call("move_event", event_id=event.id, day=event.day, start=start),) if start != event.start else (),
        )
    )
    do = (*looks, call("move_event", event_id=event.id, day=day, start=start))
    return Sketch((event.title, day, first, second), do, wrong, events=(*scene.events, busy))


def count(scene: Scene) -> Sketch:
    draw, (first, second) = scene.draw, scene.people[:2]
    topic, other = draw.some(TOPICS, 2)
    right, more, theirs = draw.number(1, 9), draw.number(1, 3), draw.number(1, 3)
    lines = [(first, topic)] * right + [(first, other)] * more + [(second, topic)] * theirs
    order = draw.some([str(n) for n in range(len(lines))], len(lines))
    mails = [Mail(30 + n, *_from(lines[int(at)]), "See you.") for n, at in enumerate(order)]
    look = call("search_mail", sender=first.mail, subject=topic)
    wrong = tuple(
        ((call("search_mail", **given),), f"answer: {number}")
        for given, number in (
            ({"sender": first.mail}, right + more),
            ({"subject": topic}, right + theirs),
            ({"sender": first.mail, "subject": topic}, right + 1),
        )
    )
    return Sketch((first.mail, topic), (look,), (*wrong, ((look,), "done")), str(right), mails=tuple(mails))


def _from(line: tuple[Contact, str]) -> tuple[str, str, str]:
    return line[0].mail, ME, f"about the {line[1]}"


def total(scene: Scene) -> Sketch:
    draw, (first, second) = scene.draw, scene.people[3:5]
    sums = [draw.number(11, 99) for _ in range(draw.number(2, 3))]
    theirs = draw.number(11, 99)
    mails = [Mail(30 + 2 * n, first.mail, ME, "invoice", f"Please pay {paid} euros.") for n, paid in enumerate(sums)]
    mails += [
        Mail(31, second.mail, ME, "invoice", f"Please pay {theirs} euros."),
        Mail(33, first.mail, ME, "offer", f"It would be {draw.number(11, 99)} euros."),
    ]
    look = call("search_mail", sender=first.mail, subject="invoice")
    reads = tuple(call("read_mail", mail_id=30 + 2 * n) for n in range(len(sums)))
    wrong = (
        ((look, *reads[:1]), f"answer: {sums[0]}"),
        ((look, *reads), f"answer: {sum(sums) + theirs}"),
        ((look, *reads), "done"),
        ((look,), f"answer: {len(sums)}"),
    )
    return Sketch((first.mail,), (look, *reads), wrong, str(sum(sums)), mails=tuple(sorted(mails)))


def reply(scene: Scene) -> Sketch:
    order, other = scene.orders[scene.draw.number(1, 5)], scene.orders[0]
    other = other._replace(status=next(status for status in STATUSES if status != order.status))
    person = next(contact for contact in scene.people if contact.name == order.customer)
    mail = Mail(30, person.mail, ME, "my order", f"Where is my order {order.id}?")
    looks = (
        call("search_mail", sender=person.mail, subject="my order"),
        call("read_mail", mail_id=30),
        call("get_order", order_id=order.id),
    )
    send = call("send_mail", to=person.mail, subject="your order", body=order.status)
    wrong = tuple(
        ((*looks, *rest), last)
        for rest, last in (
            ((replace(send, arguments={**send.arguments, "body": other.status}),), "done"),
            ((replace(send, arguments={**send.arguments, "to": scene.people[0].mail}),), "done"),
            ((replace(send, arguments={**send.arguments, "subject": "my order"}),), "done"),
            ((), f"answer: {order.status}"),
        )
    )
    orders = (other, *scene.orders[1:])
    return Sketch((person.mail,), (*looks, send), wrong, orders=orders, mails=(*scene.mails, mail))


def clear(scene: Scene) -> Sketch:
    draw, customer = scene.draw, scene.people[3].name
    number, statuses = 3000, draw.some(["pending", "pending", *STATUSES[draw.number(0, 1) : 3]], 4)
    mine = []
    for item, status in zip(draw.some(ITEMS, len(statuses)), statuses, strict=False):
        number += draw.number(1, 40)
        mine.append(Order(number, customer, item, 10 * draw.number(2, 45), status, scene.day(-4), scene.street(item)))
    orders = (*scene.orders[2:], *mine)
    look = call("find_orders", customer=customer, status="pending")
    drops = tuple(call("cancel_order", order_id=order.id) for order in mine if order.status == "pending")
    rest = call("cancel_order", order_id=next(order.id for order in mine if order.status != "pending"))
    foreign = call("cancel_order", order_id=next(o.id for o in scene.orders[2:] if o.status != "cancelled"))
    wrong = (
        ((look, *drops[:-1]), "done"),
        ((look, *drops, rest), "done"),
        ((look, *drops, foreign), "done"),
        ((look,), "done"),
    )
    return Sketch((customer,), (look, *drops), wrong, orders=orders)


def approve(scene: Scene) -> Sketch:
    draw = scene.draw
    high, rules = bool(draw.number(0, 2)), ("approval", "shipped")
    total = 10 * draw.number(21, 60) if high else 10 * draw.number(3, 20)
    order, other = scene.orders[0]._replace(status="delivered", total=total), scene.orders[1]
    look, pay = call("get_order", order_id=order.id), call("refund_order", order_id=order.id)
    ask = call("send_mail", to=BOSS, subject="refund", body=str(order.id))
    wrong = (
        ((look, pay) if high else (look, ask, pay), "done"),
        ((look, pay, ask) if high else (look,), "done"),
        ((look, ask), "done"),
        ((look, replace(ask, arguments={**ask.arguments, "body": str(other.id)}), pay), "done"),
    )
    do = (look, ask, pay) if high else (look, pay)
    return Sketch((str(order.id),), do, wrong, rules=rules, orders=(order, *scene.orders[1:]))


def cancel_mail(scene: Scene) -> Sketch:
    plain = cancel(scene)
    first, person = scene.orders[0], scene.people[3]
    find = call("find_contact", name=person.name)
    send = call("send_mail", to=person.mail, subject="cancelled", body=str(first.id))
    do = (*plain.do, find, send)
    wrong = (
        (plain.do, "done"),
        ((plain.do[0], find, send), "done"),
        ((*plain.do, find, replace(send, arguments={**send.arguments, "body": str(scene.orders[1].id)})), "done"),
        ((*plain.do, find, replace(send, arguments={**send.arguments, "to": scene.people[4].mail})), "done"),
    )
    return replace(plain, do=do, wrong=wrong)


def slot_mail(scene: Scene) -> Sketch:
    events, day, free, new = _free_hour(scene)
    person = scene.people[0]
    look, find = call("list_events", day=day), call("find_contact", name=person.name)
    send = call("send_mail", to=person.mail, subject=new, body=f"{free:02}:00")
    book = _booked(new, day, free)
    wrong = (
        ((look, book), "done"),
        ((look, find, send), "done"),
        ((look, _booked(new, day, 9), find, replace(send, arguments={**send.arguments, "body": "09:00"})), "done"),
        ((look, book, find, replace(send, arguments={**send.arguments, "to": scene.people[1].mail})), "done"),
    )
    return Sketch((new, day, person.name), (look, book, find, send), wrong, events=(*scene.events, *events))
