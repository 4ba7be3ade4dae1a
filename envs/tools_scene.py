"""What the tasks of `retort/Tools-v0` are drawn from: words, a world that nothing has happened in, and a sketch."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property

from retort.envs.calls import Call
from retort.envs.draw import Draw
from retort.envs.tools_world import COMPANY, ME, Contact, Event, Mail, Order


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words("Ana Ben Cleo Dan Eva Finn Gina Hugo Ida Jon Kim Leo Mia Noah Olga Paul Rosa Sam Tara Udo")
LAST = _words("Adams Baker Costa Dietz Evans Faber Gomez Hill Ito Jones Klein Lopez Meyer Novak Orr Peters")
ITEMS = _words("lamp chair desk sofa clock kettle mirror rug shelf stool vase mug tent bike drum violin")
STREETS = _words("Oak Elm Pine Mill Lake Hill Park King Queen Bridge Church River")
TITLES = _words("budget review planning interview training workshop demo retro lunch audit kickoff briefing")
TOPICS = _words("delivery warranty holiday pricing contract parking")
SUBJECTS = ("late", "thanks", "hello", "question", "reminder", "update", "news", "plan")
STATUSES = ("pending", "shipped", "delivered", "cancelled")
LABELS = ("R1", "R2", "R3")


def call(name: str, /, **arguments: str | int) -> Call:
    """A call of the tool `name`."""
    return Call(name, arguments)


@dataclass(frozen=True)
class Sketch:
    """A task before it is phrased.

    goal: what fills the phrasing. do: the calls of the solution. wrong: near misses, each the calls and the last word.
    answer: what the last message must hold; None where nothing is asked. others: what it must not hold beside. rules:
    names in `RULES`, in the order of their labels. refusable: one of them may forbid the job. agrees: what the user
    says when asked. The rest changes the scene.
    """

    goal: tuple[str, ...]
    do: tuple[Call, ...]
    wrong: tuple[tuple[tuple[Call, ...], str], ...]
    answer: str | None = None
    others: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    refusable: bool = False
    agrees: bool = True
    orders: tuple[Order, ...] | None = None
    events: tuple[Event, ...] | None = None
    mails: tuple[Mail, ...] | None = None


class Scene:
    """A world that nothing has happened in yet: people, orders, events and mails, each part drawn from the key."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.draw = self.drawing("task")
        start = datetime.date(2025, 1, 6)
        self.today = (start + datetime.timedelta(self.drawing("today").number(0, 300))).isoformat()

    def drawing(self, part: str) -> Draw:
        return Draw(f"{self._key}/{part}")

    def day(self, later: int) -> str:
        """The date some days from today."""
        return (datetime.date.fromisoformat(self.today) + datetime.timedelta(later)).isoformat()

    @cached_property
    def people(self) -> tuple[Contact, ...]:
        """Three colleagues, then three customers."""
        draw = self.drawing("people")
        pairs = zip(draw.some(FIRST, 6), draw.some(LAST, 6), strict=True)
        people = []
        for number, (first, last) in enumerate(pairs):
            host = COMPANY if number < 3 else ("mail.example", "post.example")[draw.number(0, 1)]
            people.append(Contact(number + 1, f"{first} {last}", f"{first}.{last}@{host}".lower()))
        return tuple(people)

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """Six orders: of each customer two of three items; the first is pending."""
        draw = self.drawing("orders")
        items, number, orders = draw.some(ITEMS, 3), draw.number(1000, 1900), list[Order]()
        for place, customer in enumerate(self.people[3:]):
            for item in draw.some(items, 2):
                number += draw.number(1, 40)
                status = STATUSES[draw.number(0, 3)] if orders else "pending"
                day, total = self.day(-draw.number(2, 60)), 10 * draw.number(2, 45)
                orders.append(Order(number, customer.name, item, total, status, day, self.street(f"{place}{item}")))
        return tuple(orders)

    def street(self, part: str) -> str:
        draw = self.drawing(f"street {part}")
        return f"{draw.number(1, 99)} {STREETS[draw.number(0, len(STREETS) - 1)]} Street"

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Four events of an hour, two a day, with different titles."""
        draw = self.drawing("events")
        titles, hours = draw.some(TITLES, 4), [draw.number(9, 11), draw.number(13, 16)] * 2
        soon = draw.number(1, 5)
        return tuple(
            Event(number + 1, title, self.day(soon + number // 2), f"{hour:02}:00", f"{hour + 1:02}:00")
            for number, (title, hour) in enumerate(zip(titles, hours, strict=True))
        )

    @cached_property
    def mails(self) -> tuple[Mail, ...]:
        draw = self.drawing("mails")
        subjects = draw.some(SUBJECTS, 3)
        return tuple(Mail(n + 1, self.people[n].mail, ME, subject, "See you.") for n, subject in enumerate(subjects))

    def rules(self, *needed: str) -> tuple[str, ...]:
        """The rules a task needs and one or two that do not touch it, in random order."""
        spare = [name for name in ("shipped", "late", "hours", "outside") if name not in needed]
        draw = self.drawing("rules")
        return tuple(draw.some([*needed, *draw.some(spare, 3 - len(needed))], 3))
