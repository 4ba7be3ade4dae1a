"""The task families of `retort/Code-v0` that ask for a function over pairs, matrices, spans and lists in lists."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent
from typing import Any

from retort.envs.code_sketch import Family, Sketch, bound, choice, some_letters, some_numbers
from retort.envs.draw import Draw


def _parsed(draw: Draw) -> Sketch:
    pair, eq = choice(draw, (";", ",", "|", "&")), choice(draw, ("=", ":", ">"))
    rule, store, wrong = choice(
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
    words, right, off, k = bound(draw)
    what, start, item = choice(
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
        return some_numbers(draw, k - 9, k + 9, 1, 3)

    return Sketch(
        goal=(what, words),
        solution=dedent(solution),
        slips=((right, off), ("result += nested(item)", "pass"), ("nested(item)", "nested(item[:1])")),
        case=lambda draw: [[*some(draw), [*some(draw), some(draw)], some(draw)]],
        edges=([[]], [[[], [[k]]]], [[[k + 1, [k + 1, k - 1, [k + 1]]], k - 1]]),
        hint="let the function call itself on each list inside",
    )


def _ranked(draw: Draw) -> Sketch:
    (what, measure), k = (
        choice(
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
    way, sign, wrong = choice(draw, (("smallest", "", "-"), ("largest", "-", "")))
    solution = f"""\
        def ranked(words):
            return sorted(words, key=lambda word: ({sign}{measure}, word))[:{k}]
        """
    return Sketch(
        goal=(what, way, str(k)),
        solution=dedent(solution),
        slips=((f"({sign}{measure}", f"({wrong}{measure}"), (", word)", ",)"), (f"[:{k}]", f"[:{k + 1}]")),
        case=lambda draw: [[some_letters(draw, "abe", 1, 4) for _ in range(draw.number(5, 9))]],
        edges=([[]], [["a"]], [["b", "a", "bb", "ab", "aab", "e", "cab"]]),
        hint="sort by a pair: the measure, then the word",
    )


def _across(draw: Draw) -> Sketch:
    what, best, worst = choice(
        draw,
        (
            ("sum", "sum(line)", "max(line)"),
            ("largest number", "max(line)", "min(line)"),
            ("smallest number", "min(line)", "max(line)"),
            ("range, largest less smallest,", "max(line) - min(line)", "max(line)"),
        ),
    )
    of, lines, others = choice(draw, (("row", "rows", "zip(*rows)"), ("column", "zip(*rows)", "rows")))
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
        return [[some_numbers(draw, 0, 20, width, width) for _ in range(draw.number(2, 3))]]

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
    what, result = choice(
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
    what, best, worst = choice(
        draw,
        (
            ("sum", "sum(part)", "max(part)"),
            ("largest", "max(part)", "min(part)"),
            ("smallest", "min(part)", "max(part)"),
            ("range (largest less smallest)", "max(part) - min(part)", "max(part)"),
        ),
    )
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
        case=lambda draw: [some_numbers(draw, 1, 30, k + 1, k + 4)],
        edges=([[]], [list(range(k - 1))], [[*range(k)]], [[9, *range(k)]]),
        hint="the last window ends with the list; a short list has none",
    )


NESTED: Mapping[str, Family] = {
    "parsed": Family(
        _parsed,
        "parsed(text)",
        (
            "turns text like {0} into a dict of numbers; of equal keys {1}",
            "reads pairs like {0} into a dict of int; where a key is repeated {1}",
            "parses {0} and the like into a dict with int values; for the same key {1}",
        ),
    ),
    "nested": Family(
        _nested,
        "nested(items)",
        (
            "returns {0} the numbers {1} in a list of numbers and lists, however deep",
            "goes through a nested list and gives {0} all numbers {1}",
            "finds {0} the numbers {1} at any depth of nested lists",
        ),
    ),
    "ranked": Family(
        _ranked,
        "ranked(words)",
        (
            "returns the {2} words with the {1} {0}, in that order, equal ones by alphabet",
            "sorts words by {0}, {1} first, equals by alphabet, and returns the first {2}",
            "gives the first {2} words by {0}, beginning with the {1}; ties in alphabetical order",
        ),
    ),
    "across": Family(
        _across,
        "across(rows)",
        (
            "returns for each {1} of a matrix its {0} plus {2}",
            "takes the {0} of every {1} of a matrix, adds {2} and returns the list",
            "gives a list with the {0} of each {1}, {2} added to each",
        ),
    ),
    "merged": Family(
        _merged,
        "merged(spans)",
        (
            "merges spans [start, end] that are at most {0} apart and returns {1}",
            "joins spans [start, end] that overlap or have a gap of at most {0} and returns {1}",
            "unites spans [start, end] with no more than {0} between them and returns {1}",
        ),
    ),
    "windowed": Family(
        _windowed,
        "windowed(values)",
        (
            "returns the {0} of each {1} neighbouring numbers",
            "gives a list with the {0} of every window of {1} values",
            "slides a window of {1} over the values and returns the {0} of each",
        ),
    ),
}
