"""Grading of `retort/Repair-v0`: what is expected never enters a place where the agent's code runs.

    test file --taken apart--> code --driver, in the verifier's ground--> values --compared here--> Report

Whoever imports an agent's module shares an interpreter with it, and a test framework in there can be patched. So the
tests are taken apart: the ground runs their code, each test in a process of its own, and only says what it found. Code
that forges what is said has to know what is expected, and that is kept outside.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from retort.sandboxes.base import FileState, Sandbox
from retort.sandboxes.verifier import verify

CPU_S = 1  # for one test; those behind one that takes longer are not run
WALL_S = 60.0  # for all of them: a bound on sleeping, not on work
FOUND_CHARS = 2000  # of one value
DIFF_CHARS, DIFF_FILES, DIFF_FILE_CHARS = 800, 8, 20_000
NOT_RUN = "no end of the test"

# What one test said: for each check the names of an exception's classes, or none, with its words or the value's text;
# and what ended the test early.
Heard = tuple[Sequence[tuple[list[str], str]], str]


@dataclass(frozen=True)
class Check:
    """One assertion. asked: its expression. wanted: the value as Python text, or an exception's name if `raises`."""

    asked: str
    wanted: str
    raises: bool = False


@dataclass(frozen=True)
class Case:
    """One test: `code` calls `say` once for each of `checks`, with a function that gives the value."""

    name: str
    code: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Suite:
    """The tests of a file: its import lines, and its cases."""

    imports: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Report:
    """before, now: what is wrong with each failing test, by its name, in the repository as given and as left."""

    before: Mapping[str, str]
    now: Mapping[str, str]

    @property
    def regressions(self) -> list[str]:
        """Tests that passed before and fail now."""
        return [name for name in self.now if name not in self.before]

    @property
    def components(self) -> dict[str, float]:
        return {
            "target": float(not any(name in self.now for name in self.before)),
            "kept": float(not self.regressions),
        }

    def summary(self) -> str:
        """The failing tests by name."""
        parts = {"failing before": self.before, "failing now": self.now, "broken by the edit": self.regressions}
        return "; ".join(f"{title}: {', '.join(names) or 'none'}" for title, names in parts.items())

    def first(self) -> str:
        """The first failing assertion, with what was expected and found."""
        return next((f"{name}: {fault}" for name, fault in self.now.items()), "found as expected")


@cache
def suite(*test_files: str) -> Suite:
    """Takes test files apart. A test is made of plain statements, `self.assertEqual(expression, literal)` and
    `with self.assertRaises(Name): expression`.

    Raises:
        ValueError: another kind of assertion.
    """
    trees = [ast.parse(text) for text in test_files]
    imports = [ast.unparse(node) for node in trees[0].body if isinstance(node, ast.ImportFrom)]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    tests = [node for holder in classes for node in holder.body if isinstance(node, ast.FunctionDef)]
    return Suite("\n".join(imports), tuple(_case(test) for test in tests))


def _case(test: ast.FunctionDef) -> Case:
    code, checks = [], []
    for statement in test.body:
        match statement:
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("self"), "assertEqual"), [asked, wanted])):
                checks.append(Check(ast.unparse(asked), repr(ast.literal_eval(wanted))))
            case ast.With(
                [ast.withitem(ast.Call(ast.Attribute(ast.Name("self"), "assertRaises"), [error]))], [ast.Expr(asked)]
            ):
                checks.append(Check(ast.unparse(asked), ast.unparse(error), raises=True))
            case _ if "self." in (line := ast.unparse(statement)):
                raise ValueError(f"{test.name}: expected assertEqual or assertRaises, found {line}")
            case _:
                code.append(line)
                continue
        code.append(f"say(lambda: {checks[-1].asked})")
    return Case(test.name, "\n".join(code), tuple(checks))


def failing(tests: Suite, heard: Mapping[int, Heard]) -> dict[str, str]:
    """What is wrong with each failing test, by its name. heard: by the test's place."""
    found = {case.name: _fault(case, *heard.get(place, ((), NOT_RUN))) for place, case in enumerate(tests.cases)}
    return {name: fault for name, fault in found.items() if fault}


def _fault(case: Case, said: Sequence[tuple[list[str], str]], ended: str) -> str:
    for place, check in enumerate(case.checks):
        if place >= len(said):
            return f"{check.asked}: expected {check.wanted}; found {ended or NOT_RUN}"
        kinds, text = said[place]
        if check.raises and check.wanted.rpartition(".")[2] in kinds:
            continue
        if not check.raises and not kinds and _same(text, check.wanted):
            continue
        wanted = f"{check.wanted} to be raised" if check.raises else check.wanted
        return f"{check.asked}: expected {wanted}; found {f'{kinds[0]}: {text[:120]}' if kinds else text[:160]}"
    return ended and f"expected no exception; found {ended}"


def _same(found: str, wanted: str) -> bool:
    """Whether two texts are equal values, as `assertEqual` would have it."""
    try:
        return bool(ast.literal_eval(found) == ast.literal_eval(wanted))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False  # found is no literal, so it is the agent's own class or nonsense


def run_tests(ground: Sandbox, taken: bytes, tests: Suite) -> dict[str, str]:
    """What fails of `tests` on a work folder that was taken, in a sandbox that no agent has been in.

    Raises:
        SandboxError: the ground is gone. OSError: the folder cannot be put there.
    """
    cases = json.dumps([tests.imports, [case.code for case in tests.cases]])
    # How the driver ends says nothing: the agent's code has been in it. What it said is all that counts.
    return failing(tests, _heard(verify(ground, taken, DRIVER, {"cases.json": cases}, timeout=WALL_S).result.text))


def _heard(text: str) -> dict[int, Heard]:
    """The driver's lines, as far as they are such: the agent's code may have written among them."""
    heard: dict[int, Heard] = {}
    for line in text.splitlines():
        try:
            place, said, ended = json.loads(line)
            values = [([_whole(kind) for kind in kinds], _whole(found)) for kinds, found in said]
            heard[int(place)] = values, _whole(ended)[:120]
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue
    return heard


def _whole(text: object) -> str:
    """As text that can be encoded: half a character becomes a question mark."""
    return str(text).encode(errors="replace").decode()


def changes(before: Mapping[str, str], after: Mapping[str, FileState]) -> str:
    """What was changed, as a diff made here: no program of the agent's folder, git included, takes part in it."""
    parts: list[str] = []
    for name in _names(before, after):
        state, label = after.get(name, FileState("file", 0)), _whole(name)
        if state.kind != "file" or len(state.data) > DIFF_FILE_CHARS:
            parts.append(f"{label}: a {state.kind} of {len(state.data)} bytes")
            continue
        old, new = before.get(name, ""), state.data.decode(errors="replace")
        parts += difflib.unified_diff(old.splitlines(), new.splitlines(), label, label, n=1, lineterm="")
    text = "\n".join(parts)
    return text if len(text) <= DIFF_CHARS else f"{text[:DIFF_CHARS]} ..."


def _names(before: Mapping[str, str], after: Mapping[str, FileState]) -> Iterable[str]:
    changed = (
        name
        for name in sorted({*before, *after})
        if not name.startswith(".git/") and "__pycache__" not in name
        if name not in before or name not in after or after[name].data != before[name].encode()
    )
    return [name for name in changed if name not in after or after[name].kind != "directory"][:DIFF_FILES]


# Each test runs in a copy of a process that has imported the modules and nothing more. What they print is dropped. No
# byte code is read: one that fits a source file's date could stand in for it.
DRIVER = f"""
import json, os, resource, sys

def plain(value):
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(map(plain, value))
    return {{plain(k): plain(v) for k, v in value.items()}} if isinstance(value, dict) else value

def tell(place, code):
    said = []
    def say(found):
        try:
            said.append([[], repr(plain(found()))[:{FOUND_CHARS}]])
        except Exception as error:
            said.append([[kind.__name__ for kind in type(error).__mro__], str(error)[:{FOUND_CHARS}]])
    try:
        names = {{"say": say}}
        exec(imports, names)
        exec(code, names)
        ended = ""
    except BaseException as error:
        ended = f"{{type(error).__name__}}: {{error}}"[:{FOUND_CHARS}]
    os.write(out, (json.dumps([place, said, ended]) + "\\n").encode())

imports, cases = json.load(open(sys.argv[1] + "/cases.json"))
out, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_S}, {CPU_S} + 1))
sys.path.insert(0, os.getcwd())
sys.pycache_prefix = "/nonexistent"
try:
    exec(imports, {{}})
except BaseException:
    pass
for place, code in enumerate(cases):
    pid = os.fork()
    if not pid:
        try:
            tell(place, code)
        finally:
            os._exit(0)
    if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
        break
"""
