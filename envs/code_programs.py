"""The task families of `retort/Code-v0` that ask for a program, which reads its input and prints."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

from retort.envs.code_sketch import Family, Sketch, choice, some_letters, some_numbers
from retort.envs.draw import Draw

NAMES = ("ann", "bob", "cid", "dan", "eve")


def as_lines(*items: object) -> str:
    """A line for each item."""
    return "".join(f"{line}\n" for line in items)


def _report(draw: Draw) -> Sketch:
    k = draw.number(1, 20)
    by_total = "sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))"
    order, right, wrong = choice(
        draw,
        (
            ("by name", "sorted(totals.items())", by_total),
            ("largest total first and by name where totals are equal", by_total, "sorted(totals.items())"),
        ),
    )
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
        return as_lines(count, *(f"{choice(draw, NAMES)} {draw.number(1, 24)}" for _ in range(count)))

    return Sketch(
        goal=(order, str(k)),
        solution=dedent(solution),
        slips=((f"> {k}", f">= {k}"), ("totals.get(name, 0) + ", ""), (right, wrong)),
        case=case,
        edges=(
            as_lines(0),
            as_lines(1, f"ann {k}"),
            as_lines(2, f"bob {k + 2}", f"ann {k + 1}"),
            as_lines(2, "bob 99", "ann 99"),
        ),
        hint="add up in a dictionary, sort its items, print those above the bound",
    )


def _robot(draw: Draw) -> Sketch:
    n = draw.number(4, 20)
    edge, left, right, off = choice(
        draw,
        (
            ("it stops at the edge", "max(0, min(", f", {n - 1}))", f", {n}))"),
            ("leaving at one side it enters at the other", "(", f") % {n}", f") % {n - 1}"),
        ),
    )
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
        return as_lines(count, *(f"{choice(draw, ways)} {draw.number(1, n // 2 + 2)}" for _ in range(count)))

    return Sketch(
        goal=(str(n), edge),
        solution=dedent(solution),
        slips=(
            (f"x + dx * int(steps){right}", f"x + dx * int(steps){off}"),
            ("print(x, y)", "print(y, x)"),
            ('"up": (0, 1), "down": (0, -1)', '"up": (0, -1), "down": (0, 1)'),
        ),
        case=case,
        edges=(
            as_lines(0),
            as_lines(2, f"right {n}", "up 1"),
            as_lines(2, "left 1", "down 2"),
            as_lines(2, f"up {n - 1}", "left 1"),
        ),
        hint="keep x and y, and mind the edge after each move",
    )


def _stack(draw: Draw) -> Sketch:
    m, word = draw.number(11, 40), choice(draw, ("error", "bad", "none", "wrong"))
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
        numbers = some_numbers(draw, 1, 30, 3, 4)
        signs = [choice(draw, ("+", "-", "*")) for _ in numbers[1:]]
        return as_lines(" ".join(map(str, [*numbers[:2], signs[0], *numbers[2:], *signs[1:]])))

    return Sketch(
        goal=(str(m), word),
        solution=dedent(solution),
        slips=(
            ("a - b", "b - a"),
            (f" % {m}", ""),
            (f'"{word}"', "0"),
            ("stack[0] if len(stack) == 1", "stack[-1] if stack"),
        ),
        case=case,
        edges=(as_lines(""), as_lines("7"), as_lines("1 +"), as_lines("1 2"), as_lines("9 4 -"), as_lines("30 30 *")),
        hint="push numbers; a sign takes the last two, the upper one is the right operand",
    )


def _table(draw: Draw) -> Sketch:
    side, just, other = choice(draw, (("left", "ljust", "rjust"), ("right", "rjust", "ljust")))
    fill, sep = choice(draw, (".", "_", "*", "~")), choice(draw, (": ", " | ", " = ", " > "))
    solution = f"""\
        rows = [input().split(",") for _ in range(int(input()))]
        width = max((len(name) for name, amount in rows), default=0)
        for name, amount in rows:
            print(name.{just}(width, "{fill}") + "{sep}" + amount)
        """

    def case(draw: Draw) -> str:
        count = draw.number(2, 4)
        return as_lines(count, *(f"{some_letters(draw, 'abcdr', 1, 6)},{draw.number(1, 999)}" for _ in range(count)))

    return Sketch(
        goal=(side, fill, sep.strip()),
        solution=dedent(solution),
        slips=((f".{just}", f".{other}"), (f'"{fill}"', '" "'), ("width,", "width + 1,"), (", default=0", "")),
        case=case,
        edges=(as_lines(0), as_lines(1, "a,1"), as_lines(2, "abc,1", "a,20")),
        hint="find the longest name first, then pad each name to it; there may be no lines",
    )


def _queue(draw: Draw) -> Sketch:
    k = draw.number(2, 15)
    form, right, wrong = choice(
        draw, (("name and time", "name, time", "time, name"), ("time and name", "time, name", "name, time"))
    )
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
        return as_lines(len(names), *(f"{name} {draw.number(1, 3 * k)}" for name in names))

    return Sketch(
        goal=(str(k), form),
        solution=dedent(solution),
        slips=(("queue.append(", "queue.insert(0, "), ("time += spent", f"time += {k}"), (right, wrong)),
        case=case,
        edges=(
            as_lines(0),
            as_lines(1, "ann 1"),
            as_lines(2, f"ann {k + 1}", f"bob {k}"),
            as_lines(2, f"ann {3 * k}", "bob 1"),
        ),
        hint="who is not done goes to the end of the queue",
    )


PROGRAMS: Mapping[str, Family] = {
    "report": Family(
        _report,
        "",
        (
            "reads n, then n lines with name and amount, and prints each name and its total, {0}, for totals above {1}",
            "adds up amounts by name (n, then n lines of name and amount) and prints name and total if above {1}, {0}",
            "gets n and n lines of name and amount, and prints name and total, {0}, where the total is above {1}",
        ),
    ),
    "robot": Family(
        _robot,
        "",
        (
            "reads n and n moves of a robot on {0} by {0} fields (from 0 0; up adds to y; {1}) and prints its x and y",
            "reads n and n moves (way and steps) over {0} by {0} fields ({1}), from 0 0, up to larger y; prints x y",
            "follows n moves (first line: n) on {0} by {0} fields, from 0 0, y growing upwards; {1}; prints x and y",
        ),
    ),
    "table": Family(
        _table,
        "",
        (
            "reads n and n lines name,amount and prints name {2} amount, names padded with {1} to one width at the {0}",
            "reads n and n lines name,amount and prints a table: names at the {0}, filled with {1}, {2}, amounts",
            "gets n and n lines name,amount, pads names with {1} to the longest, text {0}, prints name {2} amount",
        ),
    ),
    "stack": Family(
        _stack,
        "",
        (
            "reads a line in postfix notation (+ - *), takes results modulo {0} prints the last, or {1} if malformed",
            "evaluates a line like 2 3 + with every result modulo {0} and prints the value, or {1} where it has none",
            "computes one line of reverse Polish notation, each operation modulo {0}, and prints the result, else {1}",
        ),
    ),
    "queue": Family(
        _queue,
        "",
        (
            "reads n and n lines of name and work, lets each in turn work {0} at most and prints {1} as one is done",
            "serves n jobs (n, then lines of name and work) in turns of at most {0} and prints {1} when a job is done",
            "runs n jobs (n, then name and work a line) round robin, {0} a turn, and prints {1} at each job's end",
        ),
    ),
}
