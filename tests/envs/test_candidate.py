"""An agent's code in a real sandbox: what is taken out of its words, how each end is told, and what forges nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs import trial
from retort.envs.candidate import (
    ANSWER_BYTES,
    SKIPPED,
    Outcome,
    brief,
    called,
    code_in,
    described,
    outcome_of,
    same,
    same_text,
    tried,
)
from retort.envs.trial import Other, decode, encode
from retort.sandboxes.base import Limits, Sandbox, SandboxError
from retort.sandboxes.named import open_sandbox
from retort.sandboxes.verifier import take

Trials = Callable[..., list[Outcome]]
# What of plain data is equal to itself alone.
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def ground() -> Iterator[Sandbox]:
    with open_sandbox("bwrap", Limits()) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def trials(ground: Sandbox) -> Trials:
    """The outcomes of a source on arguments, or on inputs where there is no name."""
    ground.reset()
    empty = take(ground)

    def run(
        source: str, cases: Sequence[Any] = ([1], [2]), name: str | None = "f", seconds: float = 5.0
    ) -> list[Outcome]:
        return tried(ground, empty, source, name, cases, seconds)

    return run


def ends(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.end for outcome in outcomes]


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Here it is:\n```python\ndef f(): pass\n```\nIt does nothing.", "def f(): pass\n"),
        ("```\ndef f(): pass\n```", "def f(): pass\n"),
        ("```py\ndef f(): pass", "def f(): pass"),
        ("First\n```python\ndef f(): 1\n```\nbetter\n```python\ndef f(): 2\n```\nso\n```\nf()\n```", "def f(): 2\n"),
        ("```\nprint(1)\n```\nthen\n```\nprint(2)\n```", "print(2)\n"),
        ("- so:\n  ```python\n  def f():\n      pass\n  ```", "def f():\n    pass\n"),
        ("<think>```python\ndef f(): 0\n```</think>def f(): 1", "def f(): 1"),
        ("```python\n```", "```python\n```"),
        ("a = '\ud800'", "a = '?'"),
    ],
)
def test_code_is_found(action: str, code: str) -> None:
    assert code_in(action, "f") == code


def test_values_come_back_as_they_are(trials: Trials) -> None:
    returned = "[None, True, 1, 1.5, 'é\\ud800', [1, (2, {3})], {1: 'a', 'b': (), (1, 2): []}, float('inf')]"
    first, second = trials(f"def f(x): return {returned}")
    assert same(first.value, eval(returned))
    assert first == second


@given(plain)
def test_encoding_keeps_structure_and_type(value: Any) -> None:
    assert same(decode(json.loads(json.dumps(encode(value)))), value)


@given(plain, plain)
def test_same_is_stricter_than_equal(one: Any, other: Any) -> None:
    assert same(one, one)
    assert same(one, other) == same(other, one)
    if same(one, other) and not isinstance(one, float):
        assert repr(type(one)) == repr(type(other))


def test_same_by_hand() -> None:
    for one, other in ((1, True), (1, 1.0), ([1], (1,)), ([1], [True]), ({1: 2}, {True: 2}), ({1: 2}, {1: 2.0})):
        assert one == other or isinstance(one, list)
        assert not same(one, other)
    assert same({1: [2], "a": (3,)}, {"a": (3,), 1: [2]})
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert same(0.1 + 0.2, 0.3)
    assert same(math.nan, math.nan)
    assert not same(Other("f"), Other("f"))


def test_printed_text_may_end_in_blanks() -> None:
    assert same_text("1 \n2\n", "1\n2\n\n")
    assert same_text("", "\n")
    for wrong in ("1\n\n2", " 1\n2", "1 2", "1\n2\n3", None):
        assert not same_text("1\n2\n", wrong)


def test_every_end_is_told_apart(trials: Trials) -> None:
    def told(source: str, name: str | None = "f", case: Any = (0,)) -> str:
        outcome = trials(source, [case], name, 2.0)[0]
        return described(outcome, "f(0)" if name else "for 0", name, 2.0)

    assert told("def f(x)\n    return x") == "SyntaxError: expected ':'\n  line 1: def f(x)"
    assert told("def f(x): return '\0'").startswith(("ValueError: source code string", "SyntaxError: source code"))
    assert told("def g(x):\n    return x\nh = 3") == "no function f in the answer; found g"
    assert told("f = 3") == "no function f in the answer; found none"
    deep = "def f(x):\n    return g(x)\n\ndef g(x):\n    return 1 / x\n"
    assert told(deep) == (
        "f(0): ZeroDivisionError: division by zero\n  line 2, in f: return g(x)\n  line 5, in g: return 1 / x"
    )
    assert told("import json\ndef f(x):\n    return json.loads('')").endswith("\n  line 3, in f: return json.loads('')")
    assert told("def f(x):\n    return f(x)").count("\n") == trial.FRAMES
    assert told("1 / 0\ndef f(x): return x") == "f(0): ZeroDivisionError: division by zero\n  line 1: 1 / 0"
    assert told("def f(x):\n    while True: pass") == "f(0): no answer in time (2 s for all tests)"
    assert told("def f(x): return 'x' * 100_000") == f"f(0): output too long (more than {ANSWER_BYTES} bytes)"
    assert told("def f(x): return 10 ** 5000").startswith("f(0): ValueError: Exceeds the limit")
    assert told("import os\ndef f(x): os._exit(0)") == "f(0): the process ended without an answer (exit status 0)"
    assert told("import os\ndef f(x): os.kill(os.getpid(), 9)").endswith("an answer (signal 9)")
    assert told("def f(x): raise SystemExit") == "f(0): SystemExit\n  line 1, in f: def f(x): raise SystemExit"
    assert told("while True: print(1)", None, "") == f"for 0: output too long (more than {ANSWER_BYTES} bytes)"
    assert told("x = int(input())", None, "a\n").startswith("for 0: ValueError: invalid literal for int()")
    assert told("raise SystemExit(3)", None, "") == "for 0: SystemExit: 3\n  line 1: raise SystemExit(3)"


def test_a_program_reads_and_prints_as_anywhere(trials: Trials) -> None:
    for source in (
        "print(int(input()) + 1)",
        "import sys\nfor line in sys.stdin: print(int(line) + 1)",
        "print(int(open(0).read()) + 1)",
        "print(int(open('/dev/stdin').read()) + 1)\nexit()",
        "import os\nos.write(1, b'%d' % (int(os.read(0, 9)) + 1))\nos._exit(0)",
        "def main():\n    print(int(input()) + 1)\nif __name__ == '__main__':\n    main()",
        "import sys\nsys.stdout.write(str(int(sys.stdin.readline()) + 1))\nsys.exit(0)",
    ):
        outcomes = trials(source, ["1\n", "41\n"], None)
        assert [str(outcome.value).strip() for outcome in outcomes] == ["2", "42"], (source, outcomes)


def test_modules_that_look_themselves_up(trials: Trials) -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
        "def f(x): return A(x).x + 1\nif __name__ == '__main__': raise ValueError\n"
    )
    assert [outcome.value for outcome in trials(source)] == [2, 3]


def test_cases_do_not_meet(trials: Trials) -> None:
    """A case that crashes, hangs on to the file system or changes its module leaves the next one alone."""
    source = "import os\nseen = []\ndef f(x):\n    seen.append(x)\n    if x == 1: os._exit(0)\n    return seen\n"
    assert ends(trials(source, [[1], [2], [3]])) == [trial.DIED, trial.VALUE, trial.VALUE]
    assert trials(source, [[1], [2], [3]])[2].value == [3]


def test_nothing_runs_after_the_time_is_up_or_without_a_function(trials: Trials) -> None:
    slow = "def f(x):\n    while x == 2: pass\n    return x\n"
    assert ends(trials(slow, [[1], [2], [3]], seconds=2.0)) == [trial.VALUE, trial.TIMEOUT, SKIPPED]
    assert ends(trials("def f(", [[1], [2]])) == [trial.SYNTAX, SKIPPED]
    assert ends(trials("def g(): 0", [[1], [2]])) == [trial.MISSING, SKIPPED]


def test_sets_come_in_one_order(trials: Trials) -> None:
    source = "def f(x): return [word for word in set('the quick brown fox jumps over a lazy dog'.split())]"
    assert len({str(trials(source)[0].value) for _ in range(4)}) == 1


FORGERIES = {
    "exits": "import os\nos._exit(0)",
    "leaves": "import sys\nsys.exit(0)",
    "prints a report": """
print('{"end": "value", "value": 42}')
def f(x): print('{"end": "value", "value": 43}')
""",
    "writes reports to whoever listens": """
import os
def f(x):
    for fd in range(64):
        try: os.write(fd, b'{"end": "value", "value": 43}')
        except OSError: pass
    os._exit(0)
""",
    "writes reports in the runner's name": """
import os
def f(x):
    for name in os.listdir(f"/proc/{os.getppid()}/fd"):
        try: open(f"/proc/{os.getppid()}/fd/{name}", "w").write('{"end": "value"}\\n' * 9)
        except OSError: pass
    return 0
""",
    "is a number that equals everything": """
class E(int):
    __eq__ = lambda *_: True
    __hash__ = int.__hash__
def f(x): return E(0)
""",
    "equals everything": """
class E: __eq__ = lambda *_: True
def f(x): return E()
""",
    "patches builtins": """
import builtins, json
builtins.type = lambda *_: int
builtins.isinstance = builtins.all = lambda *_: True
json.dumps = lambda *_: "{}"
def f(x): return 0
""",
    "patches the runner": """
import sys
def f(x):
    frame = sys._getframe().f_back
    frame.f_globals.update(encode=lambda _: True, _tried=lambda *_: {"end": "value", "value": True})
    return 0
""",
    "looks for the tests in memory": """
import gc
def f(x):
    return next((o["expected"] for o in gc.get_objects() if type(o) is dict and "expected" in o), 0)
""",
    "looks for the tests in its callers": """
import sys
def f(x):
    frame = sys._getframe().f_back
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if value in (x + 1, [x + 1]): return x + 1
        frame = frame.f_back
    return 0
""",
    "looks for the tests on the disk": """
import glob, re
def f(x):
    files = [n for n in glob.glob("/tmp/**/*", recursive=True) + glob.glob("/work/**/*", recursive=True) if "." in n]
    return x + 1 if any(re.search(rf"\\b{x + 1}\\b", open(n).read()) for n in files) else 0
""",
    "traces": """
import sys
sys.settrace(lambda frame, *_: frame.f_locals.update(x=frame.f_locals.get("x", 0) + 1))
sys.setprofile(lambda *_: None)
def f(x): return 0
""",
    "leaves a thread": """
import os, threading, time
def f(x):
    threading.Thread(target=lambda: (time.sleep(0.1), os.write(1, b"43"))).start()
    return 0
""",
    "leaves a process": """
import os, time
def f(x):
    if not os.fork():
        os.setsid()
        time.sleep(0.1)
        os._exit(0)
    return 0
""",
    "kills the runner": """
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
def f(x): return x + 1
""",
    "kills everybody": """
import os
os.kill(-1, 9)
""",
    "changes the files of the test": """
import glob, os
for name in glob.glob("/tmp/*/files/trial.py"):
    os.unlink(name)
    open(name, "w").write("")
def f(x): return x + 1
""",
}


@pytest.mark.parametrize("source", FORGERIES.values(), ids=FORGERIES)
def test_forgeries(trials: Trials, source: str) -> None:
    """Right would be x + 1. Where that is what it returns, the way it goes about it makes the whole answer fail."""
    outcomes = trials(source, [[41], [42]])
    right = [
        outcome.end == trial.VALUE and same(outcome.value, x + 1) for outcome, x in zip(outcomes, (41, 42), strict=True)
    ]
    assert not all(right), outcomes
    assert [outcome.value for outcome in trials("def f(x): return x + 1", [[42]])] == [43]


def test_a_stopped_runner_is_a_failed_answer(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.envs.candidate.SLACK_S", 0.5)
    source = "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ndef f(x): return x + 1"
    assert ends(trials(source, seconds=0.5)) == [trial.DIED, trial.DIED]


def test_what_cannot_begin_is_nobodys_fault(ground: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.envs.candidate.CHECK", "raise OSError('no python')")
    with pytest.raises(SandboxError, match=r"(?s)could not be begun: .*no python"):
        tried(ground, take(ground), "def f(x): return x", "f", [[1]], 1.0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[]",
        "3",
        '{"end": "value", "value": {"tuple": 3}}',
        '{"end": "value", "value": {"dict": [[[], 1]]}}',
        '{"end": "value", "value": {"no": []}}',
        '{"end": "value", "value": {"a": 1, "b": 2}}',
        '{"end": "raised", "frames": [1]}',
        '{"end": "value", "value": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"end": "value", "value": ' + "9" * 5000 + "}",
    ],
)
def test_an_unreadable_report(line: str) -> None:
    assert outcome_of(line) == Outcome(trial.DIED, error="an unreadable report")


def test_texts_are_cut() -> None:
    assert brief("a" * 500) == f"{'a' * 80} ... {'a' * 80}"
    assert brief([1, "a"]) == "[1, 'a']"
    assert brief(10**5000) == "a number too long, or too deep a structure, to show"
    assert called("f", [1, "a", [None]]) == "f(1, 'a', [None])"
