"""The task families of `retort/Code-v0`, from easy to hard: functions first, then programs that read and print.

A family is one function that turns draws into a `Sketch`: the goal in words, a solution, the slips that people make in
it, and where inputs come from. What is expected of an input is what the solution says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from retort.envs.shell_tasks import Draw

NAMES = ("ann", "bob", "cid", "dan", "eve")


@dataclass(frozen=True)
class Sketch:
    """A task before it is phrased.

    goal: what fills the phrasing; no other goal of the family asks for the same. solution: Python source. slips:
    (text, replacement), each of which makes the solution wrong. case: draws arguments, or a program's input. edges:
    inputs that every task is tested on. hint: the way in few words.
    """

    goal: tuple[str, ...]
    solution: str
    slips: tuple[tuple[str, str], ...]
    case: Callable[[Draw], Any]
    edges: tuple[Any, ...]
    hint: str


@dataclass(frozen=True)
class Family:
    """Tasks of one kind. call: how the function is called, or "" for programs. phrasings: filled with the goal."""

    draw: Callable[[Draw], Sketch]
    call: str
    phrasings: tuple[str, ...]


def _one(draw: Draw, items: tuple[Any, ...]) -> Any:
    return items[draw.number(0, len(items) - 1)]


def _bound(draw: Draw) -> tuple[str, str, str, int]:
    """A bound in words, as a comparison, as the comparison one off, and its number. No two ask for the same."""
    k = draw.number(2, 31)
    return _one(draw, ((f"above {k}", f"> {k}", f">= {k}", k), (f"below {k}", f"< {k}", f"<= {k}", k)))  # type: ignore[no-any-return]


def _numbers(draw: Draw, low: int = 1, high: int = 32, fewest: int = 3, most: int = 6) -> list[int]:
    return [draw.number(low, high) for _ in range(draw.number(fewest, most))]


def _letters(draw: Draw, letters: str, fewest: int, most: int) -> str:
    return "".join(letters[draw.number(0, len(letters) - 1)] for _ in range(draw.number(fewest, most)))


def _text(draw: Draw, letters: str = "abe", most: int = 4) -> str:
    return " ".join(_letters(draw, letters, 1, most) for _ in range(draw.number(3, 6)))


def _lines(*lines: object) -> str:
    return "".join(f"{line}\n" for line in lines)


def _total(draw: Draw) -> Sketch:
    words, right, off, k = _bound(draw)
    return Sketch(
        goal=(words,),
        solution=f"def total(values):\n    return sum(value for value in values if value {right})\n",
        slips=((right, off), ("sum(value", "sum(1"), ("in values", "in values[1:]")),
        case=lambda draw: [_numbers(draw, k - 9, k + 9)],
        edges=([[]], [[k]], [[k - 1, k, k + 1]]),
        hint="add up what passes the test, the bound itself left out",
    )


def _picked(draw: Draw) -> Sketch:
    (words, right, off, k), m = _bound(draw), draw.number(2, 4)
    return Sketch(
        goal=(words, str(m)),
        solution=f"def picked(values):\n    return [value * {m} for value in values if value {right}]\n",
        slips=((right, off), (f"if value {right}", f"if value * {m} {right}"), ("in values", "in sorted(values)")),
        case=lambda draw: [_numbers(draw, k - 9, k + 9)],
        edges=([[]], [[k]], [[k + 1, k, k - 1]]),
        hint="test each number first, then multiply, and keep the order",
    )


def _joined(draw: Draw) -> Sketch:
    n, sep = draw.number(2, 7), _one(draw, ("-", "_", "/", "+", ":", "="))
    words, op = _one(draw, (("longer", ">"), ("shorter", "<")))
    return Sketch(
        goal=(words, str(n), sep),
        solution=f'def joined(text):\n    return "{sep}".join(word for word in text.split() if len(word) {op} {n})\n',
        slips=((f"{op} {n}", f"{op}= {n}"), (f'"{sep}"', '" "'), ("text.split()", "sorted(text.split())")),
        case=lambda draw: [_text(draw, "abcdr", n + 2)],
        edges=([""], ["z" * n], [f"{'z' * (n + 1)} {'y' * (n - 1)} {'x' * n} {'w' * (n + 1)} {'v' * (n - 1)}"]),
        hint="split the text into words, keep those of the right length, join them",
    )


def _rotated(draw: Draw) -> Sketch:
    way, k = _one(draw, (("left", ""), ("right", "-"))), draw.number(4, 23)
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
        case=lambda draw: [_numbers(draw, 1, 9)],
        edges=([[]], [[1]], [[1, 2]], [[3, 5, 7]]),
        hint="take the number of places modulo the length; an empty list stays empty",
    )


def _tally(draw: Draw) -> Sketch:
    kind, items = _one(
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
        _one(draw, (("small and capital letters differ", ""), ("capital letters count as small", ".lower()"))),
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
        case=lambda draw: [" ".join(_letters(draw, "aAb", 1, 2) for _ in range(draw.number(6, 14)))],
        edges=([""], [" ".join(["a"] * k)], [" ".join(["A a"] * k)], [" ".join(["b"] * (k - 1)) + " a"]),
        hint="count in a dictionary, then keep what is frequent enough",
    )


def _shifted(draw: Draw) -> Sketch:
    (way, sign, back), k = _one(draw, (("forward", "+", "-"), ("back", "-", "+"))), draw.number(1, 12)
    rest, other, wrong = _one(draw, (("stay", "letter", '"."'), ("become dots", '"."', "letter")))
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
        case=lambda draw: [_letters(draw, "abcmnxyz !7", 4, 8)],
        edges=([""], ["az"], ["a, z"], ["B"]),
        hint="count letters from 0, shift, take it modulo 26",
    )


def _parsed(draw: Draw) -> Sketch:
    pair, eq = _one(draw, (";", ",", "|", "&")), _one(draw, ("=", ":", ">"))
    rule, store, wrong = _one(
        draw,
        (
            ("the last one counts", "result[key] = int(value)", "result.setdefault(key, int(value))"),
            ("the first one counts", "result.setdefault(key, int(value))", "result[key] = int(value)"),
            ("they are added up", "result[key] = result.get(key, 0) + int(value)", "result[key] = int(value)"),
        ),
    )
    solution = f"""\
        def parsed(text):
            result = {{}}
            for part in text.split("{pair}"):
                if part:
                    key, value = part.split("{eq}")
                    {store}
            return result
        """

    def case(draw: Draw) -> list[str]:
        return [pair.join(f"{'abc'[draw.number(0, 2)]}{eq}{draw.number(1, 99)}" for _ in range(draw.number(2, 5)))]

    return Sketch(
        goal=(f"a{eq}1{pair}b{eq}2", rule),
        solution=dedent(solution),
        slips=((store, wrong), ("if part", "if True"), ("int(value)", "value")),
        case=case,
        edges=([""], [f"a{eq}1"], [f"a{eq}1{pair}a{eq}2{pair}a{eq}3"]),
        hint="split into parts, then each part into key and number; an empty text has no parts",
    )


def _nested(draw: Draw) -> Sketch:
    words, right, off, k = _bound(draw)
    what, start, item = _one(
        draw, (("the sum of", "0", "item"), ("how many there are of", "0", "1"), ("a flat list of", "[]", "[item]"))
    )
    solution = f"""\
        def nested(items):
            result = {start}
            for item in items:
                if isinstance(item, list):
                    result += nested(item)
                elif item {right}:
                    result += {item}
            return result
        """

    def some(draw: Draw) -> list[int]:
        return _numbers(draw, k - 9, k + 9, 1, 3)

    return Sketch(
        goal=(what, words),
        solution=dedent(solution),
        slips=((right, off), ("result += nested(item)", "pass"), ("nested(item)", "nested(item[:1])")),
        case=lambda draw: [[*some(draw), [*some(draw), some(draw)], some(draw)]],
        edges=([[]], [[[], [[k]]]], [[[k + 1, [k + 1, k - 1, [k + 1]]], k - 1]]),
        hint="let the function call itself on each list inside",
    )


def _runs(draw: Draw) -> Sketch:
    n, sep = draw.number(2, 5), _one(draw, ("", "-", ".", "+"))
    letter, number = "text[start]", "str(at - start)"
    (example, one, other) = _one(draw, (("a4", letter, number), ("4a", number, letter)))
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


def _ranked(draw: Draw) -> Sketch:
    (what, measure), k = (
        _one(
            draw,
            (
                ("length", "len(word)"),
                ("number of different letters", "len(set(word))"),
                ("number of times a is in them", 'word.count("a")'),
                ("number of vowels", 'sum(letter in "aeiou" for letter in word)'),
            ),
        ),
        draw.number(2, 6),
    )
    way, sign, wrong = _one(draw, (("smallest", "", "-"), ("largest", "-", "")))
    solution = f"""\
        def ranked(words):
            return sorted(words, key=lambda word: ({sign}{measure}, word))[:{k}]
        """
    return Sketch(
        goal=(what, way, str(k)),
        solution=dedent(solution),
        slips=((f"({sign}{measure}", f"({wrong}{measure}"), (", word)", ",)"), (f"[:{k}]", f"[:{k + 1}]")),
        case=lambda draw: [[_letters(draw, "abe", 1, 4) for _ in range(draw.number(5, 9))]],
        edges=([[]], [["a"]], [["b", "a", "bb", "ab", "aab", "e", "cab"]]),
        hint="sort by a pair: the measure, then the word",
    )


def _across(draw: Draw) -> Sketch:
    what, best, worst = _one(draw, (("sum", "sum(line)", "max(line)"), ("largest number", "max(line)", "min(line)"),
        ("smallest number", "min(line)", "max(line)"), ("range, largest less smallest,", "max(line) - min(line)", "max(line)")))  # fmt: skip
    of, lines, others = _one(draw, (("row", "rows", "zip(*rows)"), ("column", "zip(*rows)", "rows")))
    k = draw.number(1, 9)
    solution = f"""\
        def across(rows):
            result = []
            for line in {lines}:
                result.append({best} + {k})
            return result
        """

    def case(draw: Draw) -> list[Any]:
        width = draw.number(2, 3)
        return [[_numbers(draw, 0, 20, width, width) for _ in range(draw.number(2, 3))]]

    return Sketch(
        goal=(what, of, str(k)),
        solution=dedent(solution),
        slips=((f"in {lines}", f"in {others}"), (best, worst), (f" + {k}", "")),
        case=case,
        edges=([[]], [[[1]]], [[[5, 1, 7]]], [[[5], [1], [7]]]),
        hint="zip(*rows) gives the columns",
    )


def _merged(draw: Draw) -> Sketch:
    gap = draw.number(1, 10)
    what, result = _one(
        draw,
        (
            ("the merged spans, sorted", "result"),
            ("how many spans are left", "len(result)"),
            ("the added lengths of what is left", "sum(end - start for start, end in result)"),
            ("the largest length of what is left, or 0", "max((end - start for start, end in result), default=0)"),
        ),
    )
    solution = f"""\
        def merged(spans):
            result = []
            for start, end in sorted(spans):
                if result and start - result[-1][1] <= {gap}:
                    result[-1][1] = max(result[-1][1], end)
                else:
                    result.append([start, end])
            return {result}
        """

    def case(draw: Draw) -> list[Any]:
        starts = [draw.number(0, 24 + 6 * gap) for _ in range(draw.number(3, 5))]
        return [[[start, start + draw.number(1, 12)] for start in starts]]

    return Sketch(
        goal=(str(gap), what),
        solution=dedent(solution),
        slips=(("sorted(spans)", "spans"), ("max(result[-1][1], end)", "end"), (f"<= {gap}", f"< {gap}")),
        case=case,
        edges=([[]], [[[0, 2], [2 + gap, 5 + gap]]], [[[0, 50], [1, 2], [3 + gap, 9 + gap]]], [[[90, 99], [0, 5]]]),
        hint="sort by start; a span may lie inside of the one before",
    )


def _windowed(draw: Draw) -> Sketch:
    k = draw.number(2, 9)
    what, best, worst = _one(draw, (("sum", "sum(part)", "max(part)"), ("largest", "max(part)", "min(part)"),
        ("smallest", "min(part)", "max(part)"), ("range (largest less smallest)", "max(part) - min(part)", "max(part)")))  # fmt: skip
    solution = f"""\
        def windowed(values):
            result = []
            for at in range(len(values) - {k} + 1):
                part = values[at : at + {k}]
                result.append({best})
            return result
        """
    return Sketch(
        goal=(what, str(k)),
        solution=dedent(solution),
        slips=((f" - {k} + 1", f" - {k}"), (best, worst), (f"len(values) - {k} + 1", "len(values)")),
        case=lambda draw: [_numbers(draw, 1, 30, k + 1, k + 4)],
        edges=([[]], [list(range(k - 1))], [[*range(k)]], [[9, *range(k)]]),
        hint="the last window ends with the list; a short list has none",
    )


def _report(draw: Draw) -> Sketch:
    k = draw.number(1, 20)
    by_total = "sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))"
    order, right, wrong = _one(draw, (("by name", "sorted(totals.items())", by_total),
        ("largest total first and by name where totals are equal", by_total, "sorted(totals.items())")))  # fmt: skip
    solution = f"""\
        totals = {{}}
        for _ in range(int(input())):
            name, amount = input().split()
            totals[name] = totals.get(name, 0) + int(amount)
        for name, total in {right}:
            if total > {k}:
                print(name, total)
        """

    def case(draw: Draw) -> str:
        count = draw.number(3, 7)
        return _lines(count, *(f"{_one(draw, NAMES)} {draw.number(1, 24)}" for _ in range(count)))

    return Sketch(
        goal=(order, str(k)),
        solution=dedent(solution),
        slips=((f"> {k}", f">= {k}"), ("totals.get(name, 0) + ", ""), (right, wrong)),
        case=case,
        edges=(
            _lines(0),
            _lines(1, f"ann {k}"),
            _lines(2, f"bob {k + 2}", f"ann {k + 1}"),
            _lines(2, "bob 99", "ann 99"),
        ),  # fmt: skip
        hint="add up in a dictionary, sort its items, print those above the bound",
    )


def _robot(draw: Draw) -> Sketch:
    n = draw.number(4, 20)
    edge, left, right, off = _one(draw, (("it stops at the edge", "max(0, min(", f", {n - 1}))", f", {n}))"),
        ("leaving at one side it enters at the other", "(", f") % {n}", f") % {n - 1}")))  # fmt: skip
    solution = f"""\
        moves = {{"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}}
        x = y = 0
        for _ in range(int(input())):
            way, steps = input().split()
            dx, dy = moves[way]
            x = {left}x + dx * int(steps){right}
            y = {left}y + dy * int(steps){right}
        print(x, y)
        """

    def case(draw: Draw) -> str:
        count = draw.number(3, 6)
        ways = ("right", "up", "left", "down")
        return _lines(count, *(f"{_one(draw, ways)} {draw.number(1, n // 2 + 2)}" for _ in range(count)))

    return Sketch(
        goal=(str(n), edge),
        solution=dedent(solution),
        slips=(
            (f"x + dx * int(steps){right}", f"x + dx * int(steps){off}"),
            ("print(x, y)", "print(y, x)"),
            ('"up": (0, 1), "down": (0, -1)', '"up": (0, -1), "down": (0, 1)'),
        ),  # fmt: skip
        case=case,
        edges=(
            _lines(0),
            _lines(2, f"right {n}", "up 1"),
            _lines(2, "left 1", "down 2"),
            _lines(2, f"up {n - 1}", "left 1"),
        ),  # fmt: skip
        hint="keep x and y, and mind the edge after each move",
    )


def _stack(draw: Draw) -> Sketch:
    m, word = draw.number(11, 40), _one(draw, ("error", "bad", "none", "wrong"))
    solution = f"""\
        stack = []
        for token in input().split():
            if token not in "+-*":
                stack.append(int(token))
            elif len(stack) < 2:
                stack = []
                break
            else:
                b, a = stack.pop(), stack.pop()
                stack.append((a + b if token == "+" else a - b if token == "-" else a * b) % {m})
        print(stack[0] if len(stack) == 1 else "{word}")
        """

    def case(draw: Draw) -> str:
        numbers = _numbers(draw, 1, 30, 3, 4)
        signs = [_one(draw, ("+", "-", "*")) for _ in numbers[1:]]
        return _lines(" ".join(map(str, [*numbers[:2], signs[0], *numbers[2:], *signs[1:]])))

    return Sketch(
        goal=(str(m), word),
        solution=dedent(solution),
        slips=(
            ("a - b", "b - a"),
            (f" % {m}", ""),
            (f'"{word}"', "0"),
            ("stack[0] if len(stack) == 1", "stack[-1] if stack"),
        ),  # fmt: skip
        case=case,
        edges=(_lines(""), _lines("7"), _lines("1 +"), _lines("1 2"), _lines("9 4 -"), _lines("30 30 *")),
        hint="push numbers; a sign takes the last two, the upper one is the right operand",
    )


def _table(draw: Draw) -> Sketch:
    side, just, other = _one(draw, (("left", "ljust", "rjust"), ("right", "rjust", "ljust")))
    fill, sep = _one(draw, (".", "_", "*", "~")), _one(draw, (": ", " | ", " = ", " > "))
    solution = f"""\
        rows = [input().split(",") for _ in range(int(input()))]
        width = max((len(name) for name, amount in rows), default=0)
        for name, amount in rows:
            print(name.{just}(width, "{fill}") + "{sep}" + amount)
        """

    def case(draw: Draw) -> str:
        count = draw.number(2, 4)
        return _lines(count, *(f"{_letters(draw, 'abcdr', 1, 6)},{draw.number(1, 999)}" for _ in range(count)))

    return Sketch(
        goal=(side, fill, sep.strip()),
        solution=dedent(solution),
        slips=((f".{just}", f".{other}"), (f'"{fill}"', '" "'), ("width,", "width + 1,"), (", default=0", "")),
        case=case,
        edges=(_lines(0), _lines(1, "a,1"), _lines(2, "abc,1", "a,20")),
        hint="find the longest name first, then pad each name to it; there may be no lines",
    )


def _queue(draw: Draw) -> Sketch:
    k = draw.number(2, 15)
    form, right, wrong = _one(draw, (("name and time", "name, time", "time, name"), ("time and name", "time, name", "name, time")))  # fmt: skip
    solution = f"""\
        queue = [input().split() for _ in range(int(input()))]
        time = 0
        while queue:
            name, work = queue.pop(0)
            spent = min(int(work), {k})
            time += spent
            if int(work) > spent:
                queue.append([name, int(work) - spent])
            else:
                print({right})
        """

    def case(draw: Draw) -> str:
        names = draw.some(NAMES, draw.number(2, 4))
        return _lines(len(names), *(f"{name} {draw.number(1, 3 * k)}" for name in names))

    return Sketch(
        goal=(str(k), form),
        solution=dedent(solution),
        slips=(("queue.append(", "queue.insert(0, "), ("time += spent", f"time += {k}"), (right, wrong)),
        case=case,
        edges=(
            _lines(0),
            _lines(1, "ann 1"),
            _lines(2, f"ann {k + 1}", f"bob {k}"),
            _lines(2, f"ann {3 * k}", "bob 1"),
        ),  # fmt: skip
        hint="who is not done goes to the end of the queue",
    )


HELD_OUT = ("windowed", "queue")  # never in training
FAMILIES: Mapping[str, Family] = {
    "total": Family(_total, "total(values)", (
        "returns the sum of the numbers {0}", "adds up all values {0}", "gives the sum of those values that are {0}")),
    "picked": Family(_picked, "picked(values)", (
        "returns the numbers {0}, in order, each multiplied by {1}", "keeps the values {0} and multiplies each by {1}",
        "gives a list of {1} times each value, for values {0} alone")),
    "joined": Family(_joined, "joined(text)", (
        "returns the words {0} than {1} letters, joined by {2}", "joins by {2} all words {0} than {1} letters",
        "picks the words {0} than {1} letters, in order, and puts {2} between them")),
    "rotated": Family(_rotated, "rotated(values)", (
        "returns the list rotated {0} by {1} places", "rotates a list by {1} to the {0}",
        "moves every value {1} places to the {0}, around the end of the list")),
    "tally": Family(_tally, "tally(text)", (
        "returns how often each {0} occurs, as a dict, for those that occur at least {1} times; {2}",
        "counts each {0} ({2}) and keeps counts of at least {1}", "maps each {0} to its count, if that is {1} or more; {2}")),
    "shifted": Family(_shifted, "shifted(text)", (
        "shifts each letter a to z {0} by {1}, around the alphabet; other characters {2}",
        "moves small letters {0} by {1} in the alphabet, z and a being neighbours; all other characters {2}",
        "encodes small letters by a shift {0} of {1}, where a comes after z; others {2}")),
    "parsed": Family(_parsed, "parsed(text)", (
        "turns text like {0} into a dict of numbers; of equal keys {1}", "reads pairs like {0} into a dict of int; where a key is repeated {1}",
        "parses {0} and the like into a dict with int values; for the same key {1}")),
    "nested": Family(_nested, "nested(items)", (
        "returns {0} the numbers {1} in a list of numbers and lists, however deep",
        "goes through a nested list and gives {0} all numbers {1}", "finds {0} the numbers {1} at any depth of nested lists")),
    "runs": Family(_runs, "runs(text)", (
        "writes a run of {0} or more equal letters like {1}, leaves shorter runs as they are, and returns all runs {2}",
        "shortens runs of at least {0} equal letters to the form {1} and returns the runs, short ones unchanged, {2}",
        "replaces each run of {0} or more of a letter by the likes of {1}; all runs, others as they are, are {2}")),
    "ranked": Family(_ranked, "ranked(words)", (
        "returns the {2} words with the {1} {0}, in that order, equal ones by alphabet",
        "sorts words by {0}, {1} first, equals by alphabet, and returns the first {2}",
        "gives the first {2} words by {0}, beginning with the {1}; ties in alphabetical order")),
    "across": Family(_across, "across(rows)", (
        "returns for each {1} of a matrix its {0} plus {2}", "takes the {0} of every {1} of a matrix, adds {2} and returns the list",
        "gives a list with the {0} of each {1}, {2} added to each")),
    "merged": Family(_merged, "merged(spans)", (
        "merges spans [start, end] that are at most {0} apart and returns {1}",
        "joins spans [start, end] that overlap or have a gap of at most {0} and returns {1}",
        "unites spans [start, end] with no more than {0} between them and returns {1}")),
    "windowed": Family(_windowed, "windowed(values)", (
        "returns the {0} of each {1} neighbouring numbers", "gives a list with the {0} of every window of {1} values",
        "slides a window of {1} over the values and returns the {0} of each")),
    "report": Family(_report, "", (
        "reads n, then n lines with a name and an amount, and prints each name and its total, {0}, for totals above {1}",
        "adds up amounts by name (first line: how many lines follow) and prints names with totals above {1}, {0}",
        "gets n and n lines of name and amount, and prints name and total, {0}, where the total is above {1}")),
    "robot": Family(_robot, "", (
        "reads n and n moves of a robot on {0} by {0} fields (from 0 0; up adds to y; {1}) and prints its x and y",
        "moves a robot from 0 0 on a board of {0} by {0} ({1}) by n lines of way and steps, up being larger y, and prints x y",
        "follows n moves (first line: n) over {0} by {0} fields, from 0 0, y growing upwards; {1}; it prints x and y")),
    "table": Family(_table, "", (
        "reads n and n lines name,amount and prints each as name, {2} and amount, names padded with {1} to one width, text at the {0}",
        "prints n lines name,amount as a table: names at the {0} of a column filled with {1}, then {2}, then the amount",
        "gets n, then n lines name,amount, pads names with {1} to the longest (text at the {0}) and prints name {2} amount")),
    "stack": Family(_stack, "", (
        "reads a line in postfix notation (numbers + - *), takes each result modulo {0} and prints the last, or {1} if it is malformed",
        "evaluates postfix like 2 3 + with every result modulo {0} and prints the value, or {1} where the line has none",
        "computes one line of reverse Polish notation, each operation modulo {0}, and prints the result, else {1}")),
    "queue": Family(_queue, "", (
        "reads n and n lines of name and work, lets all in turn work {0} at most until done, and prints {1} as each is done",
        "serves a queue of n jobs (lines of name and work) in turns of at most {0} and prints {1} when a job is done",
        "runs n jobs, name and work a line, round robin with {0} a turn, and prints {1} at each job's end")),
}  # fmt: skip
