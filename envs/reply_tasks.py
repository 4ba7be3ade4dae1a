"""What the users of `retort/Reply-v0` ask for: small requests whose answers rules can check, in any of several styles.

A family writes the answer to a goal in a style, and reads from any text whether its content is right and which styles
it is in. Reading is lenient: prose around the answer, Markdown fences, capital letters and usual spellings do no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from retort.envs.base import Split, content_digest

Goal = Mapping[str, Any]  # what a request is about, in JSON's types; without its wording and without its style
OWNERS: tuple[Split, ...] = ("train", "train", "train", "validation", "test")


@dataclass(frozen=True)
class Reading:
    """content: all that the text says about the goal is right. styles: every style that it says it in."""

    content: bool
    styles: frozenset[str]


@dataclass(frozen=True)
class Family:
    """Requests of one kind. style: the kind of preference that they bring out, a key of STYLES. phrasings: filled with
    the goal. write: (goal, style) -> an answer. read: (goal, text in small letters) -> what is in it.
    """

    style: str
    goals: tuple[Goal, ...]
    phrasings: tuple[str, ...]
    write: Callable[[Goal, str], str]
    read: Callable[[Goal, str], Reading]


# kind of preference -> style -> how a user names it
STYLES: dict[str, dict[str, str]] = {
    "format": {"bullets": "bullet points", "numbered": "a numbered list", "line": "all in one line"},
    "units": {"metric": "metric units", "imperial": "imperial units"},
    "clock": {"24h": "the 24 hour clock", "12h": "am and pm"},
    "date": {"iso": "the date as year-month-day", "words": "the month in words"},
    "number": {"digits": "digits", "words": "numbers in words"},
    "code": {"python": "python", "bash": "bash", "javascript": "javascript"},
    "language": {"english": "english", "french": "french", "spanish": "spanish", "german": "german"},
}
THINGS = {
    "fruits": "apple pear plum lime grape mango peach cherry banana lemon orange melon kiwi fig berry",
    "animals": "lion frog duck wolf goat cat dog cow horse sheep bear fox mouse bird fish",
    "colours": "red blue green yellow black white pink gray brown purple violet gold silver beige teal",
    "tools": "hammer saw drill file knife axe brush pliers wrench ruler chisel spade rake broom shovel",
}
NAMES = re.findall(
    r"\w+",
    "anna tom lena max sara paul nina jack mia leo emma finn rosa hugo clara otto ida noah ella karl "
    "lucy erik zoe adam julia felix maria simon laura david",
)
MONTHS = re.findall(
    r"\w+",
    "january february march april may june july august september october november december",
)
NUMBERS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty",
)
# family -> system -> (unit as written, units as read)
UNITS = {
    "distance": {"metric": ("km", r"km|kilomet(?:er|re)s?"), "imperial": ("miles", r"miles?|mi")},
    "weight": {"metric": ("kg", r"kg|kilos?|kilograms?"), "imperial": ("pounds", r"pounds?|lbs?")},
    "warmth": {"metric": ("C", r"c|celsius"), "imperial": ("F", r"f|fahrenheit")},
}
PAIRS = {
    "distance": [(8 * times, 5 * times) for times in range(1, 16)],
    "weight": [(5 * times, 11 * times) for times in range(1, 16)],
    "warmth": [(5 * times, 32 + 9 * times) for times in range(15)],
}
PRINTS = {
    "python": ('print("{word}")', r"\bprint\((['\"]){word}\1\)"),
    "bash": ("echo {word}", r"\becho (['\"]?){word}\1(?!\w)"),
    "javascript": ('console.log("{word}")', r"\bconsole\.log\((['\"`]){word}\1\)"),
}
FUNCTIONS = {
    "python": ("def {word}(): pass", r"\bdef {word}\(\):\s*(?:pass|\.\.\.|return)"),
    "bash": ("{word}() {{ :; }}", r"(?:\bfunction )?\b{word} ?\(\) ?\{{\s*(?::|true);?\s*\}}"),
    "javascript": ("function {word}() {{}}", r"\bfunction {word}\(\) ?\{{\s*\}}"),
}
GREETINGS = {
    "hello": {"english": "hello|hi", "french": "bonjour|salut", "spanish": "hola", "german": "hallo"},
    "thank": {"english": "thanks|thank you", "french": "merci", "spanish": "gracias", "german": "danke"},
    "goodbye": {
        "english": "goodbye|bye",
        "french": "au revoir",
        "spanish": "adios|adiós",
        "german": "tschuss|tschüss|tschüß",
    },
}


def _write_list(things: str, goal: Goal, style: str) -> str:
    items = [item for item in THINGS[things].split() if item != goal["but"]][: NUMBERS.index(goal["count"])]
    if style == "line":
        return ", ".join(items)
    marks = ["-"] * len(items) if style == "bullets" else [f"{place}." for place in range(1, len(items) + 1)]
    return "\n".join(f"{mark} {item}" for mark, item in zip(marks, items, strict=True))


def _read_list(things: str, goal: Goal, text: str) -> Reading:
    any_item = re.compile(rf"\b({'|'.join(THINGS[things].split())})(?:e?s)?\b")
    lines = [(line.strip(), any_item.findall(line)) for line in text.splitlines() if any_item.search(line)]
    found = [item for _, items in lines for item in items]
    right = len(found) == len(set(found)) == NUMBERS.index(goal["count"]) and goal["but"] not in found
    styles: set[str] = set()
    for place, (line, items) in enumerate(lines, 1):
        if re.match(r"[-*•]\s", line) and len(items) == 1:
            styles.add("bullets")
        elif re.match(rf"{place}[.)]\s", line) and len(items) == 1:
            styles.add("numbered")
        else:
            styles.add("line" if len(lines) == 1 else "lines")
    return Reading(right, frozenset(styles))


def _write_measure(family: str, goal: Goal, style: str) -> str:
    return f"{goal[style]} {UNITS[family][style][0]}"


def _read_measure(family: str, goal: Goal, text: str) -> Reading:
    found = [
        (system, float(value))
        for system, (_, spelled) in UNITS[family].items()
        for value in re.findall(rf"(\d+(?:\.\d+)?) ?(?:°|degrees?)? ?(?:{spelled})\b", text)
    ]
    right = all(abs(value - goal[system]) <= 0.03 * goal[system] for system, value in found)
    return Reading(bool(found) and right, frozenset(system for system, _ in found))


def _write_clock(goal: Goal, style: str) -> str:
    hour = 12 + goal["hours"] if goal["side"] == "after" else 12 - goal["hours"]
    return f"{hour}:00" if style == "24h" else f"{hour - 12 * (hour > 12)} {'pm' if hour >= 12 else 'am'}"


def _read_clock(goal: Goal, text: str) -> Reading:
    wanted = int(_write_clock(goal, "24h").partition(":")[0])
    found = []
    for hour, minute, half in re.findall(r"\b(\d{1,2})(?::(\d\d))?(?: ?([ap])\.?m\b)?", text):
        if half:
            found.append(("12h", int(hour) % 12 + 12 * (half == "p"), minute or "00"))
        elif minute:
            found.append(("24h", int(hour), minute))
    right = all((hour, minute) == (wanted, "00") for _, hour, minute in found)
    return Reading(bool(found) and right, frozenset(style for style, *_ in found))


def _write_date(goal: Goal, style: str) -> str:
    if style == "iso":
        return f"{goal['year']}-{goal['month']:02d}-{goal['day']:02d}"
    return f"{goal['day']} {MONTHS[goal['month'] - 1]} {goal['year']}"


def _read_date(goal: Goal, text: str) -> Reading:
    month = rf"({'|'.join(MONTHS)})"
    found = [("iso", int(y), int(m), int(d)) for y, m, d in re.findall(r"\b(\d{4})-(\d\d?)-(\d\d?)\b", text)]
    for d, m, y in re.findall(rf"\b(\d\d?)(?:st|nd|rd|th)?(?: of)? {month},? (\d{{4}})\b", text):
        found.append(("words", int(y), MONTHS.index(m) + 1, int(d)))
    for m, d, y in re.findall(rf"\b{month} (\d\d?)(?:st|nd|rd|th)?,? (\d{{4}})\b", text):
        found.append(("words", int(y), MONTHS.index(m) + 1, int(d)))
    right = all((y, m, d) == (goal["year"], goal["month"], goal["day"]) for _, y, m, d in found)
    return Reading(bool(found) and right, frozenset(style for style, *_ in found))


def _write_number(goal: Goal, style: str) -> str:
    return str(goal["result"]) if style == "digits" else NUMBERS[goal["result"]]


def _read_number(goal: Goal, text: str) -> Reading:
    found = [("digits", int(number)) for number in re.findall(r"\d{1,9}", text)]
    found += [("words", NUMBERS.index(word)) for word in re.findall(r"[a-z]+", text) if word in NUMBERS]
    result = goal["result"]
    right = {number for _, number in found} <= {goal["a"], goal["b"], result}  # "3 and 4 make 7" is an answer
    styles = frozenset(style for style, number in found if number == result)
    return Reading(bool(styles) and right, styles)


def _write_pattern(table: Mapping[str, tuple[str, str]], goal: Goal, style: str) -> str:
    return table[style][0].format(**goal)


def _read_pattern(table: Mapping[str, tuple[str, str]], goal: Goal, text: str) -> Reading:
    styles = frozenset(style for style, (_, form) in table.items() if re.search(form.format(**goal), text))
    return Reading(bool(styles), styles)


def _write_greeting(family: str, goal: Goal, style: str) -> str:
    return f"{GREETINGS[family][style].partition('|')[0]} {goal['name']}"


def _read_greeting(family: str, goal: Goal, text: str) -> Reading:
    styles = frozenset(style for style, words in GREETINGS[family].items() if re.search(rf"\b(?:{words})\b", text))
    return Reading(bool(styles) and bool(re.search(rf"\b{goal['name']}\b", text)), styles)


def _lists(things: str) -> Family:
    goals = tuple({"count": count, "but": but} for count in NUMBERS[2:6] for but in THINGS[things].split())
    phrasings = (
        f"Name {{count}} {things}, not {{but}}.",
        f"I need {{count}} {things}. Leave out {{but}}.",
        f"Which {{count}} {things} come to mind? Other than {{but}}.",
    )
    return Family("format", goals, phrasings, partial(_write_list, things), partial(_read_list, things))


def _measures(family: str, *phrasings: str) -> Family:
    goals = tuple(
        {"metric": metric, "imperial": imperial, "given": f"{value} {UNITS[family][system][0]}"}
        for metric, imperial in PAIRS[family]
        for system, value in (("metric", metric), ("imperial", imperial))
    )
    return Family("units", goals, phrasings, partial(_write_measure, family), partial(_read_measure, family))


def _clocks(what: str) -> Family:
    goals = tuple(
        {"what": what, "hours": hours, "side": side} for side, most in (("before", 10), ("after", 11))
        for hours in range(2, most + 1)
    )  # fmt: skip
    phrasings = (
        "{what} is {hours} hours {side} noon. When is that?",
        "At what time is {what}? It is {hours} hours {side} noon.",
        "Noon, and {hours} hours {side} it: when is {what}?",
    )
    return Family("clock", goals, phrasings, _write_clock, _read_clock)


def _dates(what: str) -> Family:
    goals = tuple(
        {"what": what, "year": 2030 + month % 7, "month": month, "day": day}
        for month in range(1, 13)
        for day in (2, 3, 5, 9, 14, 17, 21, 26)
    )
    phrasings = (
        "{what} is on day {day} of month {month} of {year}. Write the date.",
        "Write the date of {what}: year {year}, month {month}, day {day}.",
        "Day {day}, month {month}, year {year}: what date is {what}?",
    )
    return Family("date", goals, phrasings, _write_date, _read_date)


def _numbers(goals: Sequence[Goal], *phrasings: str) -> Family:
    return Family("number", tuple(goals), phrasings, _write_number, _read_number)


def _codes(table: Mapping[str, tuple[str, str]], *phrasings: str) -> Family:
    goals = tuple({"word": word} for things in ("animals", "fruits") for word in THINGS[things].split())
    return Family("code", goals, phrasings, partial(_write_pattern, table), partial(_read_pattern, table))


def _greetings(family: str, *phrasings: str) -> Family:
    goals = tuple({"name": name} for name in NAMES)
    return Family("language", goals, phrasings, partial(_write_greeting, family), partial(_read_greeting, family))


SUMS: list[Goal] = [{"a": a, "b": b, "result": a + b} for a in range(1, 11) for b in range(1, 11)]
HERDS: list[Goal] = [
    {"thing": thing, "a": a, "b": b, "result": a - b}
    for thing in ("apples", "pears", "plums", "limes", "figs", "lemons")
    for a in range(3, 13)
    for b in range(1, a)
]
FAMILIES: dict[str, Family] = {
    **{things: _lists(things) for things in THINGS},
    "distance": _measures(
        "distance",
        "The lake is {given} away. How far is it?",
        "How far is the lake? The sign says {given}.",
        "The sign says {given} to the lake. Tell me how far.",
    ),
    "weight": _measures(
        "weight",
        "The box weighs {given}. How heavy is it?",
        "How heavy is the box? The label says {given}.",
        "The label says {given}. Tell me how heavy the box is.",
    ),
    "warmth": _measures(
        "warmth",
        "It is {given} outside. How warm is it?",
        "How warm is it? The wall says {given}.",
        "The wall says {given}. Tell me how warm it is.",
    ),
    "meeting": _clocks("the meeting"),
    "bus": _clocks("the bus"),
    "dinner": _clocks("the dinner"),
    "birthday": _dates("the birthday"),
    "party": _dates("the party"),
    "sum": _numbers(SUMS, "What is {a} plus {b}?", "Add {a} and {b}.", "How much are {a} and {b}?"),
    "left": _numbers(
        HERDS,
        "From {a} {thing} take {b}. How many are left?",
        "I have {a} {thing} and eat {b}. How many are left?",
        "How many {thing} are left of {a} without {b}?",
    ),
    "print": _codes(PRINTS, "Write code that prints {word}.", "How do I print {word}?", "Print {word} in code."),
    "function": _codes(
        FUNCTIONS,
        "Write an empty function named {word}.",
        "How do I write an empty function {word}?",
        "Code for a function {word} that does nothing.",
    ),
    "hello": _greetings("hello", "Say hello to {name}.", "Greet {name} for me.", "{name} is here. What do I say?"),
    "thank": _greetings("thank", "Thank {name}.", "{name} helped me. What do I say?", "Say thank you to {name}."),
    "goodbye": _greetings("goodbye", "Say goodbye to {name}.", "{name} leaves. What do I say?", "See {name} off."),
}


@cache
def goals_of(family: str, split: Split) -> tuple[Goal, ...]:
    """The goals that a split has: each belongs to one split, by its hash, whatever its wording and its style."""
    return tuple(goal for goal in FAMILIES[family].goals if owner(family, goal) == split)


def owner(family: str, goal: Goal) -> Split:
    """Three fifths go to training, a fifth to each of the others; a distance in km goes where it goes in miles."""
    content = {name: value for name, value in goal.items() if name != "given"}
    return OWNERS[int(content_digest([family, content])[:8], 16) % len(OWNERS)]


def spoken(family: str, goal: Goal, phrasing: int) -> str:
    """A request in words. phrasing: any number; the family's phrasings take turns."""
    forms = FAMILIES[family].phrasings
    text = forms[phrasing % len(forms)].format(**goal)
    return text[:1].upper() + text[1:]
