"""The task families of `retort/Code-v0` that ask for a function over numbers or text, from easy to hard."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

from retort.envs.code_sketch import Family, Sketch, bound, choice, some_letters, some_numbers
from retort.envs.draw import Draw


def _total(draw: Draw) -> Sketch:
    words, right, off, k = bound(draw)
    return Sketch(
        goal=(words,),
        solution=f"def total(values):\n    return sum(value for value in values if value {right})\n",
        slips=((right, off), ("sum(value", "sum(1"), ("in values", "in values[1:]")),
        case=lambda draw: [some_numbers(draw, k - 9, k + 9)],
        edges=([[]], [[k]], [[k - 1, k, k + 1]]),
        hint="add up what passes the test, the bound itself left out",
    )


def _picked(draw: Draw) -> Sketch:
    (words, right, off, k), m = bound(draw), draw.number(2, 4)
    return Sketch(
        goal=(words, str(m)),
        solution=f"def picked(values):\n    return [value * {m} for value in values if value {right}]\n",
        slips=((right, off), (f"if value {right}", f"if value * {m} {right}"), ("in values", "in sorted(values)")),
        case=lambda draw: [some_numbers(draw, k - 9, k + 9)],
        edges=([[]], [[k]], [[k + 1, k, k - 1]]),
        hint="test each number first, then multiply, and keep the order",
    )


def _joined(draw: Draw) -> Sketch:
    n, sep = draw.number(2, 7), choice(draw, ("-", "_", "/", "+", ":", "="))
    words, op = choice(draw, (("longer", ">"), ("shorter", "<")))
    return Sketch(
        goal=(words, str(n), sep),
        solution=f'def joined(text):\n    return "{sep}".join(word for word in text.split() if len(word) {op} {n})\n',
        slips=((f"{op} {n}", f"{op}= {n}"), (f'"{sep}"', '" "'), ("text.split()", "sorted(text.split())")),
        case=lambda draw: [" ".join(some_letters(draw, "abcdr", 1, n + 2) for _ in range(draw.number(3, 6)))],
        edges=([""], ["z" * n], [f"{'z' * (n + 1)} {'y' * (n - 1)} {'x' * n} {'w' * (n + 1)} {'v' * (n - 1)}"]),
        hint="split the text into words, keep those of the right length, join them",
    )


def _rotated(draw: Draw) -> Sketch:
    way, k = choice(draw, (("left", ""), ("right", "-"))), draw.number(4, 23)
    solution = f"""\
        def rotated(values):
            if not values:
                return []
            k = {way[1]}{k} % len(values)
            return values[k:] + values[:k]
        """
    return Sketch(
        goal=(way[0], str(k)),
        solution=dedent(solution),
        slips=((f" {way[1]}{k} %", f" {'' if way[1] else '-'}{k} %"), (" % len(values)", ""), ("return []", "pass")),
        case=lambda draw: [some_numbers(draw, 1, 9)],
        edges=([[]], [[1]], [[1, 2]], [[3, 5, 7]]),
        hint="take the number of places modulo the length; an empty list stays empty",
    )


def _tally(draw: Draw) -> Sketch:
    kind, items = choice(
        draw,
        (
            ("word", "text.split()"),
            ("letter", 'text.replace(" ", "")'),
            ("first letter of a word", "[word[0] for word in text.split()]"),
            ("last letter of a word", "[word[-1] for word in text.split()]"),
        ),
    )
    k, (case, fold) = (
        draw.number(1, 4),
        choice(draw, (("small and capital letters differ", ""), ("capital letters count as small", ".lower()"))),
    )
    right, wrong = (items.replace("text", f"text{way}") for way in (fold, "" if fold else ".lower()"))
    solution = f"""\
        def tally(text):
            counts = {{}}
            for item in {right}:
                counts[item] = counts.get(item, 0) + 1
            return {{item: count for item, count in counts.items() if count >= {k}}}
        """
    return Sketch(
        goal=(kind, str(k), case),
        solution=dedent(solution),
        slips=((f">= {k}", f"> {k}"), ("item, 0)", "item, 1)"), (f"in {right}", f"in {wrong}")),
        case=lambda draw: [" ".join(some_letters(draw, "aAb", 1, 2) for _ in range(draw.number(6, 14)))],
        edges=([""], [" ".join(["a"] * k)], [" ".join(["A a"] * k)], [" ".join(["b"] * (k - 1)) + " a"]),
        hint="count in a dictionary, then keep what is frequent enough",
    )


def _shifted(draw: Draw) -> Sketch:
    (way, sign, back), k = choice(draw, (("forward", "+", "-"), ("back", "-", "+"))), draw.number(1, 12)
    rest, other, wrong = choice(draw, (("stay", "letter", '"."'), ("become dots", '"."', "letter")))
    solution = f"""\
        def shifted(text):
            result = ""
            for letter in text:
                if "a" <= letter <= "z":
                    result += chr((ord(letter) - 97 {sign} {k}) % 26 + 97)
                else:
                    result += {other}
            return result
        """
    return Sketch(
        goal=(way, str(k), rest),
        solution=dedent(solution),
        slips=((" % 26", ""), (f"97 {sign}", f"97 {back}"), (f"result += {other}", f"result += {wrong}")),
        case=lambda draw: [some_letters(draw, "abcmnxyz !7", 4, 8)],
        edges=([""], ["az"], ["a, z"], ["B"]),
        hint="count letters from 0, shift, take it modulo 26",
    )


def _runs(draw: Draw) -> Sketch:
    n, sep = draw.number(2, 5), choice(draw, ("", "-", ".", "+"))
    letter, number = "text[start]", "str(at - start)"
    (example, one, other) = choice(draw, (("a4", letter, number), ("4a", number, letter)))
    solution = f"""\
        def runs(text):
            parts, start = [], 0
            for at in range(1, len(text) + 1):
                if at == len(text) or text[at] != text[start]:
                    parts.append({one} + {other} if at - start >= {n} else text[start:at])
                    start = at
            return "{sep}".join(parts)
        """
    return Sketch(
        goal=(str(n), example, f"joined by {sep}" if sep else "joined"),
        solution=dedent(solution),
        slips=((f">= {n}", f"> {n}"), ("len(text) + 1", "len(text)"), (f"{one} + {other}", f"{other} + {one}")),
        case=lambda draw: ["".join("abc"[draw.number(0, 2)] * draw.number(1, n + 2) for _ in range(draw.number(2, 4)))],
        edges=([""], ["a"], ["b" * n], ["a" * (n - 1) + "b" * (n + 1)]),
        hint="a run ends where the letter changes, and at the end of the text",
    )


FUNCTIONS: Mapping[str, Family] = {
    "total": Family(
        _total,
        "total(values)",
        (
            "returns the sum of the numbers {0}",
            "adds up all values {0}",
            "gives the sum of those values that are {0}",
        ),
    ),
    "picked": Family(
        _picked,
        "picked(values)",
        (
            "returns the numbers {0}, in order, each multiplied by {1}",
            "keeps the values {0} and multiplies each by {1}",
            "gives a list of {1} times each value, for values {0} alone",
        ),
    ),
    "joined": Family(
        _joined,
        "joined(text)",
        (
            "returns the words {0} than {1} letters, joined by {2}",
            "joins by {2} all words {0} than {1} letters",
            "picks the words {0} than {1} letters, in order, and puts {2} between them",
        ),
    ),
    "rotated": Family(
        _rotated,
        "rotated(values)",
        (
            "returns the list rotated {0} by {1} places",
            "rotates a list by {1} to the {0}",
            "moves every value {1} places to the {0}, around the end of the list",
        ),
    ),
    "tally": Family(
        _tally,
        "tally(text)",
        (
            "returns how often each {0} occurs, as a dict, for those that occur at least {1} times; {2}",
            "counts each {0} ({2}) and keeps counts of at least {1}",
            "maps each {0} to its count, if that is {1} or more; {2}",
        ),
    ),
    "shifted": Family(
        _shifted,
        "shifted(text)",
        (
            "shifts each letter a to z {0} by {1}, around the alphabet; other characters {2}",
            "moves small letters {0} by {1} in the alphabet, z and a being neighbours; all other characters {2}",
            "encodes small letters by a shift {0} of {1}, where a comes after z; others {2}",
        ),
    ),
    "runs": Family(
        _runs,
        "runs(text)",
        (
            "writes runs of {0} or more equal letters like {1}, leaves shorter runs alone and returns all runs {2}",
            "shortens runs of at least {0} equal letters to the form {1} and returns all, short ones unchanged, {2}",
            "replaces each run of {0} or more of a letter by the likes of {1}; all runs, others as they are, are {2}",
        ),
    ),
}
