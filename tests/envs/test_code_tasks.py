"""The tasks: goals that no two splits share, mistakes that a test catches, solutions that agree with the words."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import SPLITS
from retort.envs.code_nested import NESTED
from retort.envs.code_programs import PROGRAMS
from retort.envs.code_tasks import (
    DRAWS,
    FAMILIES,
    HELD_OUT,
    TESTS,
    VISIBLE,
    answers,
    task,
    task_at,
    task_refs,
)

PINNED = [
    (
        "total/0000",
        "Write a function total(values) that returns the sum of the numbers below 27.",
        "1a73bd72121f9442",
        "test",
    ),
    (
        "runs/0017",
        "Write a function runs(text) that replaces each run of 2 or more of a letter by the likes of 4a; all runs, "
        "others as they are, are joined by -.",
        "8ad4f8772ffb89f3",
        "train",
    ),
    (
        "merged/0042",
        "Write a function merged(spans) that merges spans [start, end] that are at most 3 apart and returns the merged "
        "spans, sorted.",
        "d1f6181bde42197b",
        "train",
    ),
    (
        "queue/0199",
        "Write a program that serves n jobs (n, then lines of name and work) in turns of at most 11 and prints time "
        "and name when a job is done.",
        "1f3df42fde2cf63c",
        "test",
    ),
]
families, indices = st.sampled_from(sorted(FAMILIES)), st.integers(0, DRAWS - 1)


def test_counts() -> None:
    found = Counter((ref.family, ref.split) for split in SPLITS for ref in task_refs(list(FAMILIES), split).values())
    assert len(FAMILIES) - len(PROGRAMS) - 1 >= 10
    assert len(PROGRAMS) - 1 >= 4
    assert {name in PROGRAMS for name in HELD_OUT} == {True, False}
    for family in FAMILIES:
        assert found[family, "test"] >= 20, family
        assert found[family, "validation"] >= 5, family
        assert (found[family, "train"] == 0) == (family in HELD_OUT), family


def test_no_two_splits_share_a_task() -> None:
    solutions: dict[str, str] = {}
    digests: set[str] = set()
    for split in SPLITS:
        for key, ref in task_refs(list(FAMILIES), split).items():
            assert ref.digest not in digests
            digests.add(ref.digest)
            assert solutions.setdefault(task(key).solution, split) == split, key


@pytest.mark.parametrize(("key", "sentence", "digest", "split"), PINNED)
def test_digests_stay(key: str, sentence: str, digest: str, split: str) -> None:
    found = task(key)
    assert (found.instruction.split("\n")[0], found.ref.digest, found.ref.split) == (sentence, digest, split)


@given(families, indices)
def test_a_task_is_whole(family: str, index: int) -> None:
    job = task_at(family, index)
    assert (len(job.visible), len(job.tests) >= TESTS, len(job.wrong) >= 3) == (VISIBLE, True, True)
    assert len({repr(test.given) for test in job.tests}) == len(job.tests)
    assert len({*job.wrong, job.solution}) == len(job.wrong) + 1
    assert len(job.instruction) <= 700
    solve = answers(job.solution, job.name)
    for test in job.tests:
        assert job.right(test, solve(test.given))
    for source in job.wrong:
        assert not all(_right(job, source, test) for test in job.tests), source
    assert not re.search(r"[{}]", job.instruction.split("\n")[0])


def _right(job: Any, source: str, test: Any) -> bool:
    try:
        return bool(job.right(test, answers(source, job.name)(test.given)))
    except Exception:
        return False


def example(family: str, *words: str) -> Any:
    """The solution of the first task whose sentence has all these words."""
    for index in range(10 * DRAWS):  # a goal that no listed task has is as good
        job = task_at(family, index)
        if all(word in job.instruction.split("\n")[0] for word in words):
            return answers(job.solution, job.name)
    raise AssertionError(words)


def test_solutions_by_hand() -> None:
    assert example("total", "above 20")([[20, 21, 30, -4]]) == 51
    assert example("picked", "below 9", "multiplie", " 3")([[8, 9, 1]]) == [24, 3]
    assert example("joined", "longer than 3", "+")(["four is longest three"]) == "four+longest+three"
    assert example("rotated", "left", " 4 ")([[1, 2, 3]]) == [2, 3, 1]
    assert example("rotated", "right", " 4 ")([[1, 2, 3]]) == [3, 1, 2]
    assert example("tally", "each word", "2", "count as small")(["a B b c A"]) == {"a": 2, "b": 2}
    assert example("shifted", "forward", " 2", "dots")(["az A"]) == "cb.."
    assert example("runs", " 3 ", "a4", "joined by -")(["aaabbcccc"]) == "a3-bb-c4"
    assert example("parsed", "a=1;b=2", "first one")(["x=3;y=4;x=5"]) == {"x": 3, "y": 4}
    assert example("nested", "sum", "below 10")([[1, [2, [12, 3]], 10]]) == 6
    assert example("nested", "flat list", "above 10")([[11, [2, [12, 3]], 10]]) == [11, 12]
    assert example("ranked", "vowels", "largest", " 2 ")([["bab", "ee", "b", "aa"]]) == ["aa", "ee"]
    assert example("across", "each column", "range", " 2")([[[1, 5], [4, 5]]]) == [5, 2]
    assert example("across", "each row", "sum", " 1")([[[1, 5], [4, 5]]]) == [7, 10]
    assert example("merged", " 2 ", "how many")([[[8, 9], [0, 3], [5, 6]]]) == 1
    assert example("merged", " 1 ", "added lengths")([[[8, 9], [0, 3], [5, 6]]]) == 5
    assert example("windowed", "sum", " 3 ")([[1, 2, 3, 4]]) == [6, 9]


def test_programs_by_hand() -> None:
    assert example("report", "above 3", "by name, for")("3\nbob 4\nann 2\nann 2\n") == "ann 4\nbob 4\n"
    assert example("report", "above 9", "largest")("3\nann 10\nbob 12\ncid 9\n") == "bob 12\nann 10\n"
    assert example("robot", "10 by 10", "stops")("3\nleft 2\nright 12\nup 3\n") == "9 3\n"
    assert example("robot", "10 by 10", "enters")("2\nleft 2\nup 13\n") == "8 3\n"
    assert example("table", "right", "*", "|")("2\na,10\nbcd,7\n") == "**a | 10\nbcd | 7\n"
    assert example("stack", "modulo 13")("9 4 - 5 *\n") == "12\n"
    assert example("stack", "modulo 13", "error")("9 +\n") == "error\n"
    assert example("queue", "of at most 5", "name and time")("2\nann 7\nbob 4\n") == "bob 9\nann 11\n"


def test_words_of_a_verdict() -> None:
    job = task_at("total", 0)
    test = job.visible[0]
    assert job.verdict(test, 1) == f"{job.where(test)}: expected {test.expected}, found 1"
    job = task_at("queue", 0)
    test = job.visible[0]
    assert job.verdict(test, "") == (
        f"for the input\n{test.given.rstrip()}\nexpected\n{test.expected.rstrip()}\nfound\nnothing"
    )


def test_every_phrasing_is_used() -> None:
    assert set(NESTED) < set(FAMILIES)
    for family, parts in FAMILIES.items():
        assert len(set(parts.phrasings)) >= 3
        assert len({task_at(family, index).instruction.split("\n")[0] for index in range(3)}) == 3


def test_unknown_keys() -> None:
    with pytest.raises(KeyError, match="did you mean 'total'"):
        task("totl/0001")
    with pytest.raises(KeyError, match="unknown task 'total/9999'"):
        task("total/9999")
