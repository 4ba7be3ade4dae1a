"""The users of `retort/Reply-v0`: what each of them prefers, and what they say of an answer.

A user has one style for each kind of request, and one wish that holds for every answer. They stay as they are for ever,
whatever the task, so that a policy can learn a user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from retort.envs.draw import Draw
from retort.envs.reply_tasks import FAMILIES, STYLES, Goal

USERS = 24
NEW_USERS = range(20, USERS)  # whom training never meets
POLITE = ("gladly", "please", "certainly", "sure", "of course", "with pleasure", "happy to", "welcome")


@dataclass(frozen=True)
class Wish:
    """want: how a user names it. met: whether a text meets it. grant: makes an answer meet it. spoil: breaks it."""

    want: str
    met: Callable[[str], bool]
    grant: Callable[[str], str]
    spoil: Callable[[str], str]


@dataclass(frozen=True)
class User:
    """styles: the preferred one for each kind of STYLES. kind, value: their entry in WISHES."""

    number: int
    styles: Mapping[str, str]
    kind: str
    value: str


@dataclass(frozen=True)
class Verdict:
    """What a user thinks of an answer. content: it is right. unmet: in a fixed order, (kind, how the user names what
    they want, what the answer has instead).
    """

    content: bool
    unmet: tuple[tuple[str, str, str], ...]

    @property
    def good(self) -> bool:
        return self.content and not self.unmet


def _before(word: str, text: str) -> str:
    return f"{word}\n{text}" if "\n" in text else f"{word} {text}"


def _same(text: str) -> str:
    return text


def _words(text: str) -> int:
    """Words in a text; marks of lists are none."""
    bare = re.sub(r"^\s*(?:[-*•]|\d+[.)])\s", "", text, flags=re.MULTILINE)
    return sum(bool(re.search(r"\w", word)) for word in bare.split())


def _has(word: str, text: str) -> bool:
    return bool(re.search(rf"\b{word}\b", text, re.IGNORECASE))


def _at_most(count: int) -> Wish:
    return Wish(
        f"at most {count} words",
        lambda text: _words(text) <= count,
        _same,
        lambda text: _before("here is what you have asked me for:", text),
    )


def _called(name: str) -> Wish:
    return Wish(f"to be called {name}", lambda text: _has(name, text), lambda text: _before(f"{name}:", text), _same)


WISHES: dict[str, dict[str, Wish]] = {
    "case": {
        "upper": Wish("capital letters", lambda text: text == text.upper(), str.upper, str.lower),
        "lower": Wish("small letters", lambda text: text == text.lower(), str.lower, str.upper),
    },
    "tone": {
        "polite": Wish(
            "a polite word",
            lambda text: any(_has(word, text) for word in POLITE),
            lambda text: _before(f"{POLITE[0]}:", text),
            _same,
        ),
        "calm": Wish("no exclamation mark", lambda text: "!" not in text, _same, lambda text: _before("yes!", text)),
        "lively": Wish("an exclamation mark", lambda text: "!" in text, lambda text: _before("yes!", text), _same),
    },
    "address": {name: _called(name) for name in ("boss", "captain", "chief", "friend")},
    "length": {str(count): _at_most(count) for count in (6, 7, 8)},
}
CORRECTS = ("I wanted {want}.", "Give me {want}, please.", "Next time {want}, please.")
COMPLAINS = ("Not like this. I like {want}.", "Hm, that is no good: I need {want}.", "Not for me: I prefer {want}.")
WRONG = ("That is wrong.", "No, that is not it.", "This does not answer me.", "I do not see my answer there.")
AGAIN = ("I ask again:", "In other words:", "Once more:")
THANKS = ("Thanks!", "Great, thank you.", "Perfect.", "Just as I like it, thanks.")


@cache
def user(number: int) -> User:
    """The user of that number, from 0 to USERS - 1."""
    draw = Draw(f"reply user {number}")
    styles = {kind: draw.some(list(values), 1)[0] for kind, values in STYLES.items()}
    kind = list(WISHES)[number % len(WISHES)]
    return User(number, styles, kind, draw.some(list(WISHES[kind]), 1)[0])


def wish_for(who: User, family: str) -> Wish | None:
    """The user's wish, where it makes sense for that request: code is not written in capital letters."""
    if who.kind == "case" and FAMILIES[family].style == "code":
        return None
    return WISHES[who.kind][who.value]


def judged(who: User, family: str, goal: Goal, text: str) -> Verdict:
    """What the user thinks of `text` as the answer. Lines that open or close a Markdown fence do not count."""
    bare = re.sub(r"^\s*```\w*\s*$", "", text, flags=re.MULTILINE).strip()
    asked = FAMILIES[family]
    reading = asked.read(goal, bare.lower())
    style = who.styles[asked.style]
    found = " and ".join(sorted(reading.styles)) or "none"
    unmet = [] if reading.styles == {style} else [(asked.style, STYLES[asked.style][style], found)]
    wish = wish_for(who, family)
    if wish is not None and not wish.met(bare):
        unmet.append((who.kind, wish.want, "none"))
    return Verdict(reading.content, tuple(unmet))


def ideal(who: User, family: str, goal: Goal) -> str:
    """An answer that the user thanks for."""
    asked = FAMILIES[family]
    text, wish = asked.write(goal, who.styles[asked.style]), wish_for(who, family)
    return text if wish is None else wish.grant(text)


def other_style(who: User, family: str, goal: Goal) -> str:
    """The right content and the user's wish, in a style that they do not like."""
    asked = FAMILIES[family]
    other = next(style for style in STYLES[asked.style] if style != who.styles[asked.style])
    text, wish = asked.write(goal, other), wish_for(who, family)
    return text if wish is None else wish.grant(text)


def wish_ignored(who: User, family: str, goal: Goal) -> str:
    """The right content in the right style, against the user's wish."""
    asked = FAMILIES[family]
    text, wish = asked.write(goal, who.styles[asked.style]), wish_for(who, family)
    return text if wish is None else wish.spoil(text)


def likes(who: User, family: str) -> str:
    """What a user wants of the answer to such a request, in few words."""
    style, wish = FAMILIES[family].style, wish_for(who, family)
    return " and ".join([STYLES[style][who.styles[style]], *([wish.want] if wish else [])])


def reaction(verdict: Verdict, draw: Draw) -> str:
    """What the user says of an answer: that it is wrong, the first thing that they do not like about it, or thanks."""

    def one(of: Sequence[str]) -> str:
        return of[draw.number(0, len(of) - 1)]

    if not verdict.content:
        return one(WRONG)
    if verdict.unmet:
        return one(CORRECTS + COMPLAINS).format(want=verdict.unmet[0][1])
    return one(THANKS)
