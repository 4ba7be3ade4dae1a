"""The repositories of Repair-v0: every bug is seen, every gold edit mends it, every near miss does not."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import CodeType, ModuleType

import pytest
from retort.envs.base import SPLITS
from retort.envs.repair_grading import Heard, failing, suite
from retort.envs.repair_tasks import HELD_OUT, KINDS, SPELLINGS, Task, edit, projects, task, task_refs

ALL = [key for split in SPLITS for key in task_refs(split)]


@cache
def compiled(text: str) -> CodeType:
    return compile(text, "<task>", "exec")


@contextmanager
def imported(modules: Mapping[str, str]) -> Iterator[None]:
    """Fresh modules of these sources, as the repository's own folder would give them."""
    codes = {name.removesuffix(".py"): compiled(text) for name, text in modules.items()}

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            return importlib.util.spec_from_loader(name, Finder) if name in codes else None  # type: ignore[arg-type]

        @staticmethod
        def create_module(spec: object) -> None:
            return None

        @staticmethod
        def exec_module(module: ModuleType) -> None:
            exec(codes[module.__name__], module.__dict__)

    kept = {name: sys.modules.pop(name) for name in codes if name in sys.modules}
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(Finder)  # type: ignore[arg-type]
        for name in codes:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def fails(job: Task, **changed: str) -> tuple[set[str], set[str]]:
    """(visible, hidden) tests that fail, run in this process: the code is our own."""
    files = {**job.files, **changed}
    modules = {name: text for name, text in files.items() if name.endswith(".py") and name != job.test_file}
    tests = suite(job.files[job.test_file], job.hidden)
    heard: dict[int, Heard] = {}
    for place, case in enumerate(tests.cases):
        said: list[tuple[list[str], str]] = []

        def say(value, said=said):  # type: ignore[no-untyped-def]
            try:
                said.append(([], repr(value())))
            except Exception as error:
                said.append(([kind.__name__ for kind in type(error).__mro__], str(error)))

        ended = ""
        with imported(modules):
            try:
                exec(compiled(f"{tests.imports}\n{case.code}"), {"say": say})
            except Exception as error:
                ended = repr(error)
        heard[place] = said, ended
    found = set(failing(tests, heard))
    visible = {case.name for case in suite(job.files[job.test_file]).cases}
    return found & visible, found - visible


@pytest.mark.parametrize("project", sorted(projects()))
def test_every_bug_is_seen_and_its_gold_edit_mends_it(project: str) -> None:
    own = [key for key in ALL if key.partition("/")[2].startswith(f"{project}-")]
    assert len(own) >= 7 * SPELLINGS
    for key in own:
        job = task(key)
        visible, hidden = fails(job)
        assert visible, key
        assert hidden, key
        assert fails(job, **job.mended) == (set(), set()), key


@pytest.mark.parametrize("project", sorted(projects()))
def test_near_misses_leave_a_test_that_fails(project: str) -> None:
    kinds = Counter[str]()
    for bug in projects()[project].bugs.values():
        key = f"{bug.kind}/{project}-{bug.name}-0"
        if key not in ALL:
            continue
        job = task(key)
        seen, _ = fails(job)
        assert len(set(bug.misses)) == len(bug.misses) > 0
        for miss in bug.misses:
            visible, hidden = fails(job, **{bug.file: job.mended[bug.file].replace(bug.right, miss)})
            assert visible | hidden, (key, miss)
            kinds["symptom alone"] += not visible
            kinds["regression"] += bool(visible - seen)
    assert kinds["symptom alone"], "no miss of this project deceives the visible tests"


def test_how_many_there_are() -> None:
    assert len(ALL) == len(set(ALL)) >= 300
    sites = {key.rpartition("-")[0] for key in ALL}
    assert len(sites) >= 100
    assert {key.partition("/")[0] for key in ALL} == set(KINDS)
    assert len(KINDS) >= 8


def test_splits_share_neither_projects_nor_edits() -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for key, ref in task_refs(split).items():
            assert (ref.key, ref.split, ref.family) == (key, split, key.partition("/")[0])
            job = task(key)
            project = key.partition("/")[2].partition("-")[0]
            ((file, mended),) = job.mended.items()
            lines = difflib.unified_diff(job.files[file].splitlines(), mended.splitlines(), n=0, lineterm="")
            for content in (project, ref.digest, "\n".join(lines)):
                assert seen.setdefault(content, split) == split, (key, content)
    assert not {ref.family for ref in task_refs("train").values()} & set(HELD_OUT)
    for split in ("validation", "test"):
        assert set(HELD_OUT) < {ref.family for ref in task_refs(split).values()}


def test_every_right_text_stands_once() -> None:
    for project in projects().values():
        for bug in project.bugs.values():
            assert project.files[bug.file].count(bug.right) == 1, (project.name, bug.name)
            assert bug.kind in KINDS


def test_a_task_is_a_function_of_its_key() -> None:
    key = "stale_state/ledger-kept-1"
    first = task(key)
    for cached in (task, projects, task_refs):
        cached.cache_clear()  # type: ignore[attr-defined]
    assert task(key) == first
    assert first.files["ledger.py"] != first.mended["ledger.py"]
    assert "class Wallet" in first.files["ledger.py"]
    assert "Account" not in first.files["ledger.py"]
    with pytest.raises(KeyError, match="did you mean 'stale_state/ledger-kept-"):
        task("stale_state/ledger-kept-7")


def test_what_an_agent_may_read_has_no_hidden_test_and_no_gold() -> None:
    for key in ALL:
        job = task(key)
        names = [case.name for case in suite(job.files[job.test_file], job.hidden).cases]
        assert len(set(names)) == len(names)
        hidden = {node.name for node in ast.walk(ast.parse(job.hidden)) if isinstance(node, ast.FunctionDef)}
        text = "\n".join(job.files.values())
        assert not [name for name in hidden if name in text]
        assert job.gold[1].splitlines()[-1] not in text.splitlines()
        assert len(job.instruction) < 400
        assert len(job.hint.split()) < 20


def test_edit_writes_sed_or_a_patch() -> None:
    assert edit("a.py", "x\ny\nz\n", "x\n  don't \\n\nz\n") == "sed -i '2c\\  don'\"'\"'t \\\\n' a.py"
    assert edit("a.py", "x\ny\n", "x\nw\ny\n") == (
        "git apply <<'E'\n--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,3 @@\n x\n+w\n y\nE"
    )
