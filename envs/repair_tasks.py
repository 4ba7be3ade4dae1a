"""The tasks of `retort/Repair-v0`: small projects, the bugs that are seeded into them, and the names they go by.

A project is one file of `repair_projects/`: its modules as they are right, its tests, and the edits that break it. A
task is a project, one of its bugs and a spelling of its names, and a pure function of its key. Splits share no project,
and the kinds in `HELD_OUT` never occur in training.
"""

from __future__ import annotations

import difflib
import re
import shlex
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resources

from retort.envs.base import Split, TaskRef, checked_split, content_digest, nearest

KINDS: Mapping[str, str] = {  # what is wrong, as a hint says it
    "off_by_one": "an index, a count or a range is one too many or too few",
    "comparison": "a comparison or an operator is the wrong one",
    "default": "a default is wrong, or shared between calls",
    "missing_return": "a return is missing or comes too early",
    "swapped": "two arguments or values are the wrong way round",
    "wrong_name": "a wrong key, attribute or variable is read",
    "empty_input": "empty input is not provided for",
    "division": "integer and true division are mixed up",
    "order": "something is sorted by the wrong key or the wrong way",
    "formatting": "a text is put together wrongly",
    "exception": "the wrong exceptions are raised or caught",
    "stale_state": "what is kept is not brought up to date",
}
HELD_OUT = ("exception", "stale_state")  # never in training
SPELLINGS = 3  # of the names of a project: as its file has them, and two more
RUN_TESTS = "python3 -m unittest -q"
PHRASINGS = (
    "{issue} Mend it.",
    "Bug report: {issue} Find the cause in the code and mend it.",
    "{issue} Tests fail because of it. Make them pass without changing them.",
)
IGNORED = "__pycache__/\n*.pyc\n"


@dataclass(frozen=True)
class Task:
    """One repository with one bug.

    files: what is committed, by name. test_file: which of them holds the tests. mended: the module with the bug,
    without it. hidden: tests that the agent never sees, in a file like the test file. gold: the actions of a solution.
    near_misses: plans that fail. hint: the file, the function and the kind of bug.
    """

    key: str
    digest: str
    split: Split
    family: str
    instruction: str
    files: Mapping[str, str]
    test_file: str
    mended: Mapping[str, str]
    hidden: str
    gold: tuple[str, ...]
    near_misses: tuple[tuple[str, ...], ...]
    hint: str

    @property
    def ref(self) -> TaskRef:
        return TaskRef(self.key, self.digest, self.split, self.family)


@dataclass(frozen=True)
class Bug:
    """An edit that breaks a project: `right`, which stands once in `file`, becomes `wrong`.

    name: unique in its project. kind: of `KINDS`. where: the function. issue: what a user would report. misses: texts
    instead of `wrong` that mend it badly: the symptom alone, or at the cost of something else.
    """

    name: str
    kind: str
    file: str
    where: str
    issue: str
    right: str
    wrong: str
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Project:
    """What stands in one file of `repair_projects/`.

    about: for the README. imports, tests, hidden: the test file's import lines, and test methods without indentation.
    files: the modules by name. names: other spellings, by the one that is used.
    """

    name: str
    split: Split
    about: str
    imports: str
    tests: str
    hidden: str
    files: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]]
    bugs: Mapping[str, Bug]


@cache
def projects() -> Mapping[str, Project]:
    """Every project by name, read from the package's own files."""
    found = sorted(path.name for path in resources("retort.envs").joinpath("repair_projects").iterdir())
    return {name: _project(name) for name in (file.removesuffix(".toml") for file in found if file.endswith(".toml"))}


def _project(name: str) -> Project:
    data = tomllib.loads(resources("retort.envs").joinpath("repair_projects", f"{name}.toml").read_text("utf-8"))
    bugs = [Bug(**{**bug, "misses": tuple(bug["misses"])}) for bug in data.pop("bugs")]
    split, names = checked_split(data.pop("split")), {word: tuple(other) for word, other in data.pop("names").items()}
    return Project(name=name, split=split, names=names, bugs={bug.name: bug for bug in bugs}, **data)


@cache
def task_refs(split: Split) -> Mapping[str, TaskRef]:
    """The tasks of a split by key, kind by kind."""
    return {key: task(key).ref for key, (project, _, _) in _every_key().items() if project.split == split}


@cache
def task(key: str) -> Task:
    """The task with this key, as `TaskRef.key` has it.

    Raises:
        KeyError: no such task.
    """
    every = _every_key()
    if key not in every:
        raise KeyError(f"unknown task {key!r}; {nearest(key, every)}")
    project, bug, spelling = every[key]
    return _task(key, project, bug, spelling)


@cache
def _every_key() -> Mapping[str, tuple[Project, Bug, int]]:
    """Of all splits, kind by kind."""
    return {
        f"{kind}/{project.name}-{bug.name}-{spelling}": (project, bug, spelling)
        for kind in KINDS
        for project in projects().values()
        for bug in project.bugs.values()
        for spelling in range(SPELLINGS)
        if bug.kind == kind and not (project.split == "train" and kind in HELD_OUT)
    }


def _task(key: str, project: Project, bug: Bug, spelling: int) -> Task:
    def spelled(text: str) -> str:
        return _spelled(text, project.names, spelling)

    modules = {spelled(name): spelled(text) for name, text in project.files.items()}
    file, right = spelled(bug.file), spelled(bug.right)
    wrong, *misses = (modules[file].replace(right, spelled(text)) for text in (bug.wrong, *bug.misses))
    test_file = f"test_{project.name}.py"
    files = {
        ".gitignore": IGNORED,
        "README.md": f"# {project.name}\n\n{spelled(project.about)}\n\nTests: `{RUN_TESTS}`\n",
        **modules,
        file: wrong,
        test_file: spelled(_test_file(project, project.tests)),
    }
    phrasing = PHRASINGS[(spelling + len(bug.name)) % len(PHRASINGS)]
    instruction = f"{phrasing.format(issue=spelled(bug.issue))}\nRun the tests with: {RUN_TESTS}"
    hidden = spelled(_test_file(project, project.hidden))
    fix = edit(file, wrong, modules[file])
    return Task(
        key=key,
        digest=content_digest([files, modules[file], hidden, instruction]),
        split=project.split,
        family=bug.kind,
        instruction=instruction,
        files=files,
        test_file=test_file,
        mended={file: modules[file]},
        hidden=hidden,
        gold=(f"cat -n {file}", fix, RUN_TESTS, "done"),
        near_misses=(
            ("done",),
            (f"sed -i 's/def test_/def skip_/' {test_file}", RUN_TESTS, "done"),
            (fix, "git stash -q", "done"),
            *((edit(file, wrong, miss), "done") for miss in misses),
        ),
        hint=f"{file}, {spelled(bug.where)}: {KINDS[bug.kind]}",
    )


def _spelled(text: str, names: Mapping[str, tuple[str, ...]], spelling: int) -> str:
    if not spelling or not names:
        return text
    words = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    return words.sub(lambda found: names[found[0]][spelling - 1], text)


def _test_file(project: Project, methods: str) -> str:
    return (
        f"import unittest\n\n{project.imports.strip()}\n\n\nclass Tests(unittest.TestCase):\n"
        f"{textwrap.indent(methods.strip(), '    ')}\n\n\nif __name__ == '__main__':\n    unittest.main()\n"
    )


def edit(file: str, old: str, new: str) -> str:
    """A command that makes `new` of a file that holds `old`: sed where one line changes, else a patch."""
    before, after = old.splitlines(), new.splitlines()
    codes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    spans = [(end - start, at, end_at) for what, start, end, at, end_at in codes if what != "equal"]
    if [(size, end_at - at) for size, at, end_at in spans] == [(1, 1)]:
        _, at, number = spans[0]  # one line for another, so both files count alike
        line = after[at].replace("\\", "\\\\")
        script = f"{number}c\\{line}"
        return f"sed -i {shlex.quote(script)} {file}"
    patch = "\n".join(difflib.unified_diff(before, after, f"a/{file}", f"b/{file}", n=1, lineterm=""))
    return f"git apply <<'E'\n{patch}\nE"
