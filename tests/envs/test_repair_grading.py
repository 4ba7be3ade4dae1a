"""How Repair-v0 grades: tests taken apart, values compared outside, and what an agent's code may say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retort.envs.repair_grading import DIFF_CHARS, NOT_RUN, Check, Heard, Report, _heard, changes, failing, suite
from retort.sandboxes.base import FileState

FILE = """
import unittest

from box import Box, Empty


class Tests(unittest.TestCase):
    def test_put(self):
        box = Box()
        box.put(3)
        self.assertEqual(box.total(), 3)
        self.assertEqual(box.names(), ["a", "b"])

    def test_take(self):
        with self.assertRaises(Empty):
            Box().take()
"""


def test_a_test_file_is_taken_apart() -> None:
    tests = suite(FILE)
    assert tests.imports == "from box import Box, Empty"
    put, take = tests.cases
    assert put.code == "box = Box()\nbox.put(3)\nsay(lambda: box.total())\nsay(lambda: box.names())"
    assert put.checks == (Check("box.total()", "3"), Check("box.names()", "['a', 'b']"))
    assert (take.code, take.checks) == ("say(lambda: Box().take())", (Check("Box().take()", "Empty", raises=True),))


def test_another_assertion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"test_put: expected assertEqual or assertRaises, found self\.assertTrue"):
        suite(FILE.replace("self.assertEqual(box.total(), 3)", "self.assertTrue(box.total())"))


def faults(put: Heard, take: Heard = ((([["Empty", "Exception"], ""]),), "")) -> dict[str, str]:  # type: ignore[assignment]
    return failing(suite(FILE), {0: put, 1: take})


def test_values_are_compared_by_hand() -> None:
    names: tuple[list[str], str] = ([], "['a', 'b']")
    assert faults(([([], "3"), names], "")) == {}
    assert faults(([([], "3.0"), names], "")) == {}, "as assertEqual has it"
    assert faults(([([], "4"), names], "")) == {"test_put": "box.total(): expected 3; found 4"}
    assert faults(([([], "3"), ([], "['b', 'a']")], "")) == {
        "test_put": "box.names(): expected ['a', 'b']; found ['b', 'a']"
    }
    assert faults(([(["KeyError", "LookupError"], "'x'"), names], "")) == {
        "test_put": "box.total(): expected 3; found KeyError: 'x'"
    }
    assert faults(([([], "<Everything>"), names], ""))["test_put"].endswith("found <Everything>")
    assert faults(([([], "3")], "TypeError: no")) == {
        "test_put": "box.names(): expected ['a', 'b']; found TypeError: no"
    }
    assert faults(([([], "3"), names], "TypeError: no")) == {"test_put": "expected no exception; found TypeError: no"}
    assert failing(suite(FILE), {}) == {
        "test_put": f"box.total(): expected 3; found {NOT_RUN}",
        "test_take": f"Box().take(): expected Empty; found {NOT_RUN}",
    }


def test_exceptions_are_compared_by_hand() -> None:
    right: Heard = ([([], "3"), ([], "['a', 'b']")], "")
    assert faults(right, ([(["VeryEmpty", "Empty", "Exception"], "")], "")) == {}, "a subclass will do"
    assert faults(right, ([(["KeyError"], "3")], "")) == {
        "test_take": "Box().take(): expected Empty to be raised; found KeyError: 3"
    }
    assert faults(right, ([([], "None")], "")) == {"test_take": "Box().take(): expected Empty to be raised; found None"}
    assert "test_take" in faults(right, ((), "Empty: raised too early"))


@settings(max_examples=50)
@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_whatever_is_said_is_heard(text: str) -> None:
    for line in (text, f"[0, {text}, 1]", f"[{text}, [], {text}]", f"[1, [{text}, {text}], {text}]"):
        for fault in failing(suite(FILE), _heard(line)).values():
            fault.encode()


def test_odd_lines_are_passed_over() -> None:
    assert _heard('[1e999, [], ""]\n[0, 5, ""]\n[[], [], ""]\nx\n' + "[" * 100_000) == {}
    assert _heard('[1, [[[], "3"]], ""]\n') == {1: ([([], "3")], "")}
    assert _heard('[1, [[[], "\\ud800"]], "\\ud800"]') == {1: ([([], "?")], "?")}


def test_report() -> None:
    report = Report({"test_a": "a: expected 1; found 2", "test_b": "b"}, {"test_b": "b", "test_c": "c"})
    assert report.components == {"target": 0.0, "kept": 0.0}
    assert report.regressions == ["test_c"]
    assert report.first() == "test_b: b"
    assert report.summary() == (
        "failing before: test_a, test_b; failing now: test_b, test_c; broken by the edit: test_c"
    )
    assert Report({"test_a": "a"}, {}).components == {"target": 1.0, "kept": 1.0}
    assert Report({"test_a": "a"}, {"test_a": "a"}).components == {"target": 0.0, "kept": 1.0}
    assert Report({"test_a": "a"}, {"test_c": "c"}).components == {"target": 1.0, "kept": 0.0}


def test_changes() -> None:
    def file(text: bytes) -> FileState:
        return FileState("file", 0o644, text)

    before = {"a.py": "x\ny\n", "b.py": "z\n"}
    same = {"a.py": file(b"x\ny\n"), "b.py": file(b"z\n")}
    assert changes(before, {**same, ".git/x": file(b"1"), "__pycache__/a.pyc": file(b"1")}) == ""
    assert changes(before, {**same, "a.py": file(b"x\nw\n")}) == "--- a.py\n+++ a.py\n@@ -1,2 +1,2 @@\n x\n-y\n+w"
    assert changes(before, {"a.py": file(b"x\ny\n")}) == "--- b.py\n+++ b.py\n@@ -1 +0,0 @@\n-z"
    assert changes(before, {**same, "c\udcff": FileState("link", 0o777, b"/etc")}) == "c?: a link of 4 bytes"
    assert changes(before, {**same, "big": file(b"x\n" * 100_000)}) == "big: a file of 200000 bytes"
    many = {f"{number}": file(b"x\n" * 100) for number in range(100)}
    assert len(changes(before, {**same, **many})) <= DIFF_CHARS + 4
