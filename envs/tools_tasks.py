"""The tasks of `retort/Tools-v0`: a shop's desk work, by key.

Everything is a pure function of the key, so no seed is involved and no list is stored. The split hangs on the *goal*
(the names, numbers and dates in the question), never on its phrasing or on the rows of the world: what is asked in one
split is asked in no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock

from retort.envs import tools_families as families
from retort.envs.base import Split, TaskRef, content_digest, nearest
from retort.envs.calls import Call
from retort.envs.tools_scene import LABELS, Scene, Sketch
from retort.envs.tools_world import RULES, Rows

DRAWS = 320  # tasks drawn for each family, over all splits
REFUSING = "Where a rule forbids what is asked, change nothing and answer with the rule, such as R1."
_DRAWING = Lock()


@dataclass(frozen=True)
class Family:
    """Tasks of one kind. phrasings: filled with the sketch's goal. hint: what a teacher says of a failure."""

    draw: Callable[[Scene], Sketch]
    hint: str
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One job.

    rows: the world before. today: YYYY-MM-DD. do: the calls of the solution. near_misses: plans that fail. answer,
    others, rules, agrees: as in `Sketch`. hint: the way in few words.
    """

    key: str
    digest: str
    split: Split
    family: str
    instruction: str
    rows: Rows
    today: str
    do: tuple[Call, ...]
    answer: str | None
    others: tuple[str, ...]
    rules: tuple[str, ...]
    agrees: bool
    near_misses: tuple[tuple[str, ...], ...]
    hint: str

    @property
    def ref(self) -> TaskRef:
        return TaskRef(self.key, self.digest, self.split, self.family)

    @property
    def last_word(self) -> str:
        return "done" if self.answer is None else f"answer: {self.answer}"

    @property
    def gold(self) -> tuple[str, ...]:
        return (*(step.text for step in self.do), self.last_word)


HELD_OUT = ("cancel_mail", "slot_mail")  # never in training: their parts are taught, their combination is not
FAMILIES: Mapping[str, Family] = {
    "address": Family(
        families.address,
        "call update_address once with the order's id",
        ("Send order {0} to {1}.", "Change the address of order {0} to {1}.", "Order {0} should go to {1} instead."),
    ),
    "event": Family(
        families.event,
        "call create_event once; days are YYYY-MM-DD",
        (
            "Put {0} in the calendar on {1} from {2} to {3}.",
            "Create the event {0} on {1}, {2} to {3}.",
            "Add {0} on {1}; it starts at {2} and ends at {3}.",
        ),
    ),
    "status": Family(
        families.status,
        "find the order with find_orders and answer its status",
        (
            "What is the status of the {1} that {0} ordered?",
            "{0} ordered a {1}. Answer with the order's status.",
            "Look up the {1} of {0}: what is its status?",
        ),
    ),
    "cancel": Family(
        families.cancel,
        "find the order by its customer, then cancel that one alone",
        (
            "Cancel the {1} that {0} ordered.",
            "{0} no longer wants the {1}: cancel it.",
            "Cancel the order of {0} for a {1}.",
        ),
    ),
    "refund": Family(
        families.refund,
        "count the days since the order, then refund it or answer the rule",
        ("Refund the {1} that {0} ordered.", "{0} wants the money for the {1} back.", "Give {0} a refund for the {1}."),
    ),
    "outside": Family(
        families.outside,
        "look the address up, then mail it or answer the rule",
        (
            "Mail {0} the subject {1} and the body {2}.",
            "Send {0} a mail: subject {1}, body {2}.",
            "Write to {0}, with the subject {1} and the body {2}.",
        ),
    ),
    "delete": Family(
        families.delete,
        "confirm_delete first, delete_event only after a yes",
        (
            "Delete the event {0} on {1}, if that is allowed. Answer deleted or kept.",
            "Take {0} on {1} out of the calendar unless the user says no. Answer deleted or kept.",
            "Remove {0} on {1}. Answer deleted, or kept if it has to stay.",
        ),
    ),
    "slot": Family(
        families.slot,
        "list the day's events, then book the first hour that none has",
        (
            "Book {0} on {1} for the first free full hour from 09:00.",
            "Find the first free full hour from 09:00 on {1} and put {0} there.",
            "On {1}, create {0} in the earliest hour from 09:00 that is free; it lasts an hour.",
        ),
    ),
    "move": Family(
        families.move,
        "list the new day's events before you move_event",
        (
            "Move {0} to {1} at {2}, or at {3} if {2} is taken.",
            "Move {0} to {1}: {2} if that is free, else {3}.",
            "{0} should be on {1} at {2} instead; where something is there already, at {3}.",
        ),
    ),
    "count": Family(
        families.count,
        "search_mail by sender and subject, and count what comes",
        (
            "How many mails of {0} are about the {1}? Answer with the number.",
            "Count the mails of {0} about the {1}. Answer with the number.",
            "How often did {0} write about the {1}? Answer with the number.",
        ),
    ),
    "total": Family(
        families.total,
        "read each mail of that sender with subject invoice, and add up",
        (
            "How many euros do the invoices of {0} ask for together? Answer with the number.",
            "Add up the invoices that {0} mailed. Answer with the number.",
            "What is the total of all invoices from {0}? Answer with the number.",
        ),
    ),
    "reply": Family(
        families.reply,
        "read the mail, look the order up, then send its status",
        (
            "{0} asks about an order. Mail back the subject your order, with its status as the body.",
            "Answer the mail of {0} about an order: subject your order, and as the body its status.",
            "Read what {0} wants to know and mail the order's status as the body, with the subject your order.",
        ),
    ),
    "clear": Family(
        families.clear,
        "find the customer's pending orders and cancel each",
        (
            "Cancel all pending orders of {0}.",
            "{0} is leaving: cancel every pending order of theirs.",
            "Of the orders of {0}, cancel each that is pending.",
        ),
    ),
    "approve": Family(
        families.approve,
        "look at the total; mail the boss before a refund above 200",
        ("Refund order {0}.", "Give the money for order {0} back.", "Order {0} gets a refund."),
    ),
    "cancel_mail": Family(
        families.cancel_mail,
        "find and cancel the order, then mail its id to the customer",
        (
            "Cancel the {1} that {0} ordered and mail {0} the subject cancelled and the order's id as the body.",
            "{0} no longer wants the {1}: cancel it, then mail {0}, subject cancelled, body the order's id.",
            "Cancel the order of {0} for a {1}. Then send {0} a mail: subject cancelled, body the id of the order.",
        ),
    ),
    "slot_mail": Family(
        families.slot_mail,
        "book the first free hour, then mail its start",
        (
            "Book {0} on {1} for the first free full hour from 09:00 and mail {2} the subject {0} and its start as the "
            "body, such as 09:00.",
            "Find the first free full hour from 09:00 on {1}, put {0} there, then mail {2}: subject {0}, body the "
            "start, such as 09:00.",
            "On {1}, create {0} in the earliest free hour from 09:00; it lasts an hour. Mail {2} the subject {0} and "
            "as the body its start, such as 09:00.",
        ),
    ),
}


def split_of(family: str, goal: Sequence[str]) -> Split:
    """70% train, 10% validation, 20% test by a hash of the goal; of a held-out family a third is validation."""
    share = int(content_digest([family, goal]), 16) / 16**16
    if family in HELD_OUT:
        return "validation" if share < 1 / 3 else "test"
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


def _instruction(sketch: Sketch, phrasing: str, today: str) -> str:
    asked = phrasing.format(*sketch.goal)
    if not sketch.rules:
        return asked
    rules = " ".join(f"{label}: {RULES[name].text}" for label, name in zip(LABELS, sketch.rules, strict=False))
    ending = f" {REFUSING}" if sketch.refusable else ""
    return f"Today is {today}. {rules}{ending}\n{asked}"


def task_at(family: str, index: int) -> Task:
    """Task number `index` of a family."""
    scene = Scene(f"{family}/{index}")
    sketch = FAMILIES[family].draw(scene)
    phrasings = FAMILIES[family].phrasings
    instruction = _instruction(sketch, phrasings[index % len(phrasings)], scene.today)
    rows: Rows = {
        "orders": scene.orders if sketch.orders is None else sketch.orders,
        "events": scene.events if sketch.events is None else sketch.events,
        "mails": scene.mails if sketch.mails is None else sketch.mails,
        "contacts": scene.people,
    }
    calls = [step.text for step in sketch.do]
    return Task(
        key=f"{family}/{index:04d}",
        digest=content_digest([family, instruction, rows, scene.today, calls, sketch.answer, sketch.agrees]),
        split=split_of(family, sketch.goal),
        family=family,
        instruction=instruction,
        rows=rows,
        today=scene.today,
        do=sketch.do,
        answer=sketch.answer,
        others=sketch.others,
        rules=sketch.rules,
        agrees=sketch.agrees,
        near_misses=tuple((*(step.text for step in steps), last) for steps, last in sketch.wrong),
        hint=FAMILIES[family].hint,
    )


def family_refs(family: str) -> Mapping[str, TaskRef]:
    """Every task of a family by key, whatever its split. One that was drawn before is left out."""
    with _DRAWING:  # else every thread of a first batch would draw them all
        return _family_refs(family)


@cache
def _family_refs(family: str) -> Mapping[str, TaskRef]:
    refs, seen = {}, set()
    for index in range(DRAWS):
        task = task_at(family, index)
        solution = (*task.gold, task.agrees)
        if solution not in seen:
            seen.add(solution)
            refs[task.key] = task.ref
    return refs


def task_refs(families: Sequence[str], split: Split) -> dict[str, TaskRef]:
    """The tasks of a split by key, family by family."""
    return {key: ref for family in families for key, ref in family_refs(family).items() if ref.split == split}


def task(key: str) -> Task:
    """The task with this key, as `TaskRef.key` has it.

    Raises:
        KeyError: no such task.
    """
    family, _, index = key.partition("/")
    if family not in FAMILIES:
        raise KeyError(f"unknown task family {family!r}; {nearest(family, FAMILIES)}")
    if key not in family_refs(family):
        raise KeyError(f"unknown task {key!r}; {nearest(key, family_refs(family))}")
    return task_at(family, int(index))
