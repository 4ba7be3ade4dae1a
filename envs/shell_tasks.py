"""The tasks of `retort/Shell-v0`: small procedural jobs on a few files, drawn from a closed vocabulary.

A family is one function that turns draws into a `Sketch`: what is on the disk, what has to become of it, the commands
that do it and the natural mistakes. Everything is a pure function of the key, so no seed is involved and no list is
stored. The split hangs on the *goal* (the names, words and answer of the task), never on its phrasing or on the files
beside it: what is asked in one split is asked in no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock

from retort.envs.base import Split, TaskRef, content_digest, nearest
from retort.envs.draw import Draw
from retort.sandboxes.base import FileState

STEMS = tuple(
    re.findall(
        r"\w+", "card note list plan menu memo data task book page form bill poem song code trip item mail shop team"
    )
)
NAMES = tuple(f"{stem}.{ending}" for stem in STEMS for ending in ("csv", "log", "txt"))
WORDS = tuple(
    re.findall(
        r"\w+",
        "red blue green gold pink gray lion frog duck wolf goat apple pear plum lime corn "
        "rice iron salt wood sand moon star rain wind snow fire lake hill rose",
    )
)
DRAWS = 800  # tasks drawn for each family, over all splits
_DRAWING = Lock()
SUBMIT_OUTPUT = "submit $OUT"  # in a plan: submit the first word of the last observation


@dataclass(frozen=True)
class Task:
    """One job.

    files, expected: the whole work folder before, and as it must be in the end. answer: what must be submitted, or
    None where the episode ends with `done`. gold: the actions of a solution. near_misses: plans that fail, whose last
    action may be SUBMIT_OUTPUT. hint: the right commands in few words. budget: characters of terminal output shown.
    """

    key: str
    digest: str
    split: Split
    family: str
    instruction: str
    files: Mapping[str, FileState]
    expected: Mapping[str, FileState]
    answer: str | None
    gold: tuple[str, ...]
    near_misses: tuple[tuple[str, ...], ...]
    hint: str
    budget: int = 64

    @property
    def ref(self) -> TaskRef:
        return TaskRef(self.key, self.digest, self.split, self.family)


class Names(Draw):
    """Draws from the vocabulary."""

    def names(self, count: int) -> list[str]:
        return self.some(NAMES, count)

    def words(self, count: int, *, but: Sequence[str] = ()) -> list[str]:
        return self.some([word for word in WORDS if word not in but], count)

    def text(self, *, but: Sequence[str] = ()) -> str:
        """Two or three lines of one word each."""
        return lines(self.words(self.number(2, 3), but=but))


@dataclass(frozen=True)
class Sketch:
    """A task before it is phrased.

    goal: what fills the phrasing. files: content by name. becomes: what each named path must turn into (None: gone).
    do: the commands, separated by "; ", one a turn. wrong: near misses in the same form. modes: permission bits at the
    start where they are not 644.
    """

    goal: tuple[str, ...]
    files: Mapping[str, str]
    do: str
    wrong: tuple[str, ...]
    becomes: Mapping[str, str | FileState | None]
    answer: str | None = None
    modes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Family:
    """Tasks of one kind. `phrasings` are filled with the sketch's goal."""

    draw: Callable[[Names], Sketch]
    phrasings: tuple[str, ...]


def lines(words: Sequence[str]) -> str:
    return "".join(f"{word}\n" for word in words)


def _write(draw: Names) -> Sketch:
    (a, c), (word, other) = draw.names(2), draw.words(2)
    files = {a: draw.text(but=[word]), c: draw.text()}
    wrong = (f"echo {word} >> {a}", f"echo {word} > {c}", f"echo {other} > {a}", f"echo {a} > {word}")
    return Sketch((word, a), files, f"echo {word} > {a}", wrong, {a: lines([word])})


def _append(draw: Names) -> Sketch:
    (a, c), (word, other) = draw.names(2), draw.words(2)
    files = {a: draw.text(), c: draw.text()}
    wrong = (f"echo {word} > {a}", f"echo {word} >> {c}", f"echo {other} >> {a}", f"echo {a} >> {word}")
    return Sketch((word, a), files, f"echo {word} >> {a}", wrong, {a: files[a] + lines([word])})


def _move(draw: Names) -> Sketch:
    a, b, c = draw.names(3)
    files = {a: draw.text(), c: draw.text()}
    wrong = (f"cp {a} {b}", f"mv {b} {a}", f"mv {c} {b}", f"rm {a}")
    return Sketch((a, b), files, f"mv {a} {b}", wrong, {a: None, b: files[a]})


def _copy(draw: Names) -> Sketch:
    a, b, c = draw.names(3)
    words = draw.words(4)
    files = {a: lines(words[:2]), c: lines(words[2:])}
    wrong = (f"mv {a} {b}", f"cp {b} {a}", f"cp {c} {b}", f"touch {b}")
    return Sketch((a, b), files, f"cp {a} {b}", wrong, {b: files[a]})


def _delete(draw: Names) -> Sketch:
    a, c, d = draw.names(3)
    files = {a: draw.text(), c: draw.text(), d: draw.text()}
    return Sketch((a,), files, f"rm {a}", (f"rm {c}", "rm *", f"mv {a} {c}", f"echo > {a}"), {a: None})


def _lines(draw: Names) -> Sketch:
    a, c = draw.names(2)
    count = draw.number(1, 8)
    words = draw.words(count + 1)
    files = {a: lines([f"{words[0]} {words[1]}", *words[2:]]), c: lines(draw.words(count % 8 + 1))}
    wrong = (f"wc -w {a}", f"wc -c {a}", f"wc -l {c}", f"cat {a}")
    return Sketch((a,), files, f"wc -l {a}", wrong, {}, answer=str(count))


def _matches(draw: Names) -> Sketch:
    a, c = draw.names(2)
    word, other, third = draw.words(3)
    count = draw.number(1, 5)
    rest = [other] * (1 if count != 1 else 2) + [third] * (count % 2)
    files = {a: lines(draw.some([word] * count + rest, count + len(rest))), c: draw.text(but=[word])}
    wrong = (f"grep {word} {a}", f"wc -l {a}", f"grep -c {other} {a}", f"grep -c {word} {c}")
    return Sketch((word, a), files, f"grep -c {word} {a}", wrong, {}, answer=str(count))


def _find(draw: Names) -> Sketch:
    first, *rest = sorted(draw.names(3))
    a = rest[draw.number(0, 1)]
    word, *others = draw.words(7)
    filling = {name: others[2 * index : 2 * index + 2] for index, name in enumerate([first, *rest])}
    elsewhere = filling[first][0]
    filling[a][draw.number(0, 1)] = word
    files = {name: lines(words) for name, words in filling.items()}
    wrong = ("ls", f"grep {word} *", f"grep -L {word} *", f"grep -l {elsewhere} *")
    return Sketch((word,), files, f"grep -l {word} *", wrong, {}, answer=a)


def _ends(draw: Names) -> tuple[str, str, dict[str, str], str, str]:
    """Two files whose first, last and smallest words all differ."""
    a, c = draw.names(2)
    words = draw.words(5)
    smallest = min(words[:3])
    first, last = draw.some([word for word in words[:3] if word != smallest], 2)
    return a, c, {a: lines([first, smallest, last]), c: lines(words[3:])}, first, last


def _first(draw: Names) -> Sketch:
    a, c, files, first, _ = _ends(draw)
    wrong = (f"tail -n 1 {a}", f"head -n 1 {c}", f"sort {a}", f"wc -l {a}")
    return Sketch((a,), files, f"head -n 1 {a}", wrong, {}, answer=first)


def _last(draw: Names) -> Sketch:
    a, c, files, _, last = _ends(draw)
    wrong = (f"head -n 1 {a}", f"tail -n 1 {c}", f"cat {a}", f"sort {a}")
    return Sketch((a,), files, f"tail -n 1 {a}", wrong, {}, answer=last)


def _unique(draw: Names) -> Sketch:
    a, c = draw.names(2)
    words = draw.words(draw.number(2, 6))
    repeated = words[: draw.number(1, 2)]
    files = {a: lines(words + repeated), c: lines(draw.words(7 if len(words) < 6 else 3))}
    wrong = (f"wc -l {a}", f"uniq {a} | wc -l", f"sort {a} | wc -l", f"sort -u {c} | wc -l", f"sort -u {a}")
    return Sketch((a,), files, f"sort -u {a} | wc -l", wrong, {}, answer=str(len(words)))


def _replace(draw: Names) -> Sketch:
    a, c = draw.names(2)
    old, new, *rest = draw.words(4)
    at = draw.number(0, 1)
    words = [old, rest[0]] if at else [rest[0], old]
    files = {a: lines(words), c: lines([rest[1], old])}
    wrong = (
        f"sed s/{old}/{new}/ {a}",
        f"sed -i s/{new}/{old}/ {a}",
        f"sed -i s/{old}/{new}/ {c}",
        f"sed -i s/{old}/{new}/ *",
    )
    wanted = lines([new if word == old else word for word in words])
    return Sketch((old, new, a), files, f"sed -i s/{old}/{new}/ {a}", wrong, {a: wanted})


def _mode(draw: Names) -> Sketch:
    a, c = draw.names(2)
    files = {a: draw.text(), c: draw.text()}
    flag, kind, start, end = (
        ("+x", "executable", 0o644, 0o755),
        ("-w", "read only", 0o644, 0o444),
        ("-x", "not executable", 0o755, 0o644),
    )[draw.number(0, 2)]
    wrong = (f"chmod {flag} {c}", f"chmod {'-w' if flag == '+x' else '+x'} {a}", f"chmod -r {a}", f"chmod {flag} *")
    becomes = {a: FileState("file", end, files[a].encode())}
    return Sketch((a, kind), files, f"chmod {flag} {a}", wrong, becomes, modes={a: start, c: start})


def _folder(draw: Names) -> Sketch:
    (a, c), (word,) = draw.names(2), draw.words(1)
    files = {a: draw.text(), c: draw.text()}
    wrong = (f"mv {a} {word}", f"mkdir {word}", f"mkdir {word}; cp {a} {word}", f"mkdir {word}; mv {c} {word}")
    becomes = {a: None, word: FileState("directory", 0o755), f"{word}/{a}": files[a]}
    return Sketch((a, word), files, f"mkdir {word}; mv {a} {word}", wrong, becomes)


def _copy_delete(draw: Names) -> Sketch:
    a, b, c = draw.names(3)
    words = draw.words(4)
    files = {a: lines(words[:2]), c: lines(words[2:])}
    wrong = (f"cp {a} {b}", f"rm {c}", f"cp {a} {b}; rm {a}", f"mv {a} {b}; rm {c}", f"cp {c} {b}; rm {a}")
    return Sketch((a, b, c), files, f"cp {a} {b}; rm {c}", wrong, {b: files[a], c: None})


def _write_copy(draw: Names) -> Sketch:
    (a, b, c), (word,) = draw.names(3), draw.words(1)
    files = {a: draw.text(but=[word]), c: draw.text()}
    wrong = (
        f"echo {word} > {a}",
        f"cp {a} {b}; echo {word} > {a}",
        f"echo {word} >> {a}; cp {a} {b}",
        f"echo {word} > {a}; mv {a} {b}",
    )
    return Sketch((word, a, b), files, f"echo {word} > {a}; cp {a} {b}", wrong, {a: lines([word]), b: lines([word])})


def _write_delete(draw: Names) -> Sketch:
    (a, c), (word,) = draw.names(2), draw.words(1)
    files = {a: draw.text(but=[word]), c: draw.text()}
    wrong = (f"echo {word} > {a}", f"rm {c}", f"echo {word} >> {a}; rm {c}", f"echo {word} > {c}; rm {a}")
    return Sketch((word, a, c), files, f"echo {word} > {a}; rm {c}", wrong, {a: lines([word]), c: None})


def _copy_append(draw: Names) -> Sketch:
    (a, b, c), (word,) = draw.names(3), draw.words(1)
    files = {a: draw.text(but=[word]), c: draw.text()}
    wrong = (
        f"cp {a} {b}",
        f"cp {a} {b}; echo {word} > {b}",
        f"cp {a} {b}; echo {word} >> {a}",
        f"mv {a} {b}; echo {word} >> {b}",
    )
    return Sketch((a, b, word), files, f"cp {a} {b}; echo {word} >> {b}", wrong, {b: files[a] + lines([word])})


HELD_OUT = ("write_delete", "copy_append")  # never in training: their commands are taught, their combination is not
FAMILIES: Mapping[str, Family] = {
    "write": Family(_write, ("write only {0} in {1}", "make {1} hold just {0}", "overwrite {1} with {0}")),
    "append": Family(_append, ("add {0} to the end of {1}", "append {0} to {1}", "put {0} after the last line of {1}")),
    "move": Family(_move, ("move {0} to {1}", "rename {0} to {1}", "give {0} the new name {1}")),
    "copy": Family(_copy, ("copy {0} to {1}", "make a copy of {0} named {1}", "duplicate {0} as {1}")),
    "delete": Family(_delete, ("delete {0}", "remove the file {0}", "get rid of {0}")),
    "lines": Family(_lines, ("how many lines are in {0}", "count the lines of {0}", "say the number of lines in {0}")),
    "matches": Family(
        _matches, ("how many lines of {1} have {0}", "count the lines with {0} in {1}", "how often is {0} in {1}")
    ),
    "find": Family(
        _find, ("which file has the word {0}", "find the file with {0} in it", "name the file that has {0}")
    ),
    "first": Family(
        _first, ("say the first line of {0}", "what is the first line of {0}", "which word is first in {0}")
    ),
    "last": Family(_last, ("say the last line of {0}", "what is the last line of {0}", "which word is last in {0}")),
    "unique": Family(
        _unique,
        (
            "how many different lines are in {0}",
            "count the different lines of {0}",
            "say the number of unique lines in {0}",
        ),
    ),
    "replace": Family(_replace, ("replace {0} with {1} in {2}", "change {0} to {1} in {2}", "in {2} swap {0} for {1}")),
    "mode": Family(_mode, ("make {0} {1}", "the file {0} should be {1}", "change {0} so that it is {1}")),
    "folder": Family(
        _folder,
        (
            "make a folder {1} and move {0} into it",
            "put {0} in a new folder {1}",
            "create the folder {1} then move {0} there",
        ),
    ),
    "copy_delete": Family(
        _copy_delete,
        (
            "copy {0} to {1} then delete {2}",
            "make a copy of {0} named {1} and remove {2}",
            "duplicate {0} as {1} then delete {2}",
        ),
    ),
    "write_copy": Family(
        _write_copy,
        (
            "write only {0} in {1} then copy {1} to {2}",
            "overwrite {1} with {0} and duplicate it as {2}",
            "make {1} hold just {0} then copy it to {2}",
        ),
    ),
    "write_delete": Family(
        _write_delete,
        (
            "write only {0} in {1} then delete {2}",
            "overwrite {1} with {0} and remove {2}",
            "make {1} hold just {0} then delete {2}",
        ),
    ),
    "copy_append": Family(
        _copy_append,
        (
            "copy {0} to {1} then add {2} to the end of {1}",
            "make a copy of {0} named {1} and append {2} to {1}",
            "duplicate {0} as {1} then append {2} to {1}",
        ),
    ),
}


def split_of(family: str, sketch: Sketch) -> Split:
    """70% train, 10% validation, 20% test by a hash of the goal; of a held-out family a third is validation."""
    share = int(content_digest([family, sketch.goal, sketch.answer]), 16) / 16**16
    if family in HELD_OUT:
        return "validation" if share < 1 / 3 else "test"
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


def _state(value: str | FileState) -> FileState:
    return value if isinstance(value, FileState) else FileState("file", 0o644, value.encode())


def task_at(family: str, index: int) -> Task:
    """Task number `index` of a family."""
    draw = Names(f"{family}/{index}")
    sketch = FAMILIES[family].draw(draw)
    phrasings = FAMILIES[family].phrasings
    instruction = phrasings[index % len(phrasings)].format(*sketch.goal)
    modes = sketch.modes or {}
    files = {name: FileState("file", modes.get(name, 0o644), text.encode()) for name, text in sketch.files.items()}
    expected = {name: state for name, state in files.items() if name not in sketch.becomes}
    expected |= {name: _state(value) for name, value in sketch.becomes.items() if value is not None}
    commands = tuple(sketch.do.split("; "))
    ending, wrong_ending = ("done", "done") if sketch.answer is None else (f"submit {sketch.answer}", SUBMIT_OUTPUT)
    content = [
        family,
        instruction,
        *(
            [(name, state.kind, state.mode, state.data.decode()) for name, state in tree.items()]
            for tree in (files, expected)
        ),
        sketch.answer,
        commands,
    ]
    return Task(
        key=f"{family}/{index:04d}",
        digest=content_digest(content),
        split=split_of(family, sketch),
        family=family,
        instruction=instruction,
        files=files,
        expected=expected,
        answer=sketch.answer,
        gold=(*commands, ending),
        near_misses=tuple((*wrong.split("; "), wrong_ending) for wrong in sketch.wrong),
        hint="try " + " then ".join(commands),
    )


def family_refs(family: str) -> Mapping[str, TaskRef]:
    """Every task of a family by key, whatever its split. One that was drawn before, phrasing apart, is left out."""
    with _DRAWING:  # else every thread of a first batch would draw them all
        return _family_refs(family)


@cache
def _family_refs(family: str) -> Mapping[str, TaskRef]:
    refs, seen = {}, set()
    for index in range(DRAWS):
        task = task_at(family, index)
        content = (task.gold, *((name, state.data) for name, state in task.files.items()))
        if content not in seen:
            seen.add(content)
            refs[task.key] = task.ref
    return refs


def task_refs(families: Sequence[str], split: Split) -> dict[str, TaskRef]:
    """The tasks of a split by key, family by family."""
    return {key: ref for family in families for key, ref in family_refs(family).items() if ref.split == split}


def task(key: str) -> Task:
    """The task with this key, as `TaskRef.key` has it.

    Raises:
        KeyError: no such task.
    """
    family, _, index = key.partition("/")
    if family not in FAMILIES:
        raise KeyError(f"unknown task family {family!r}; {nearest(family, FAMILIES)}")
    if key not in family_refs(family):
        raise KeyError(f"unknown task {key!r}; {nearest(key, family_refs(family))}")
    return task_at(family, int(index))
