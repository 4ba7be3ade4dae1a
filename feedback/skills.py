"""Skills: short texts on how kinds of tasks are done, picked for a task and put into the teacher's first user message.

A library is a folder of Markdown files, one skill each:

    # Append a line
    keywords: append, add, end
    Use `echo text >> file`; a single > would replace the file.

Beside it a run distils skills of its own: for each family of tasks the shortest episode that succeeded. Four ways to
pick: "keyword" (most words in common with the task), "ucb" (success of the episodes that a skill was shown for, plus a
bonus for what was shown little), "full" (all), "random" (seeded by the task and the number of the update). "ucb" does
not look at the task, and what it counts is the success of students, none of whom read the skill: only the teacher does.
So it tells easy tasks from hard ones as much as good skills from bad.
Source: SDAR 2026, arXiv:2605.15155, its retrieved skills.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field
from retort.agents.base import Trajectory, succeeded
from retort.agents.chat import Chat
from retort.envs.base import UsageError
from retort.feedback.base import TeacherView
from retort.feedback.reprompt import Shown, solution_text, view

WORD = re.compile(r"[a-z0-9_.-]{2,}")


class SkillOptions(Shown):
    """folder: of Markdown files. own: whether the run's own successes become skills. pick, count: which are shown, and
    at most how many. explore: weight of the bonus of "ucb".
    """

    folder: str = ""
    own: bool = True
    pick: Literal["keyword", "ucb", "full", "random"] = "keyword"
    count: int = Field(default=2, ge=1)
    explore: float = Field(default=1.0, ge=0)
    template: str = "{prompt}\nSkills that may help:\n{text}\nNow solve it."


class Skilled(Protocol):
    """Options of a recipe whose teacher reads skills."""

    @property
    def skills(self) -> SkillOptions: ...


@dataclass(frozen=True)
class Skill:
    """How one kind of task is done."""

    name: str
    keywords: tuple[str, ...]
    text: str

    def to_markdown(self) -> str:
        """As a file of a library."""
        words = f"keywords: {', '.join(self.keywords)}\n" if self.keywords else ""
        return f"# {self.name}\n{words}{self.text}\n"


def parse(markdown: str, where: str) -> Skill:
    """The skill in one file. Raises UsageError where it has no title or no text."""
    title, _, rest = markdown.strip().partition("\n")
    if not title.startswith("# ") or not rest.strip():
        raise UsageError(f"{where}: expected '# TITLE', then perhaps 'keywords: a, b', then text, found {title[:60]!r}")
    first, _, below = rest.strip().partition("\n")
    words: tuple[str, ...] = ()
    if first.lower().startswith("keywords:"):
        words, rest = tuple(word.strip().lower() for word in first.partition(":")[2].split(",") if word.strip()), below
    return Skill(title[2:].strip(), words, rest.strip())


def read(folder: str | Path) -> list[Skill]:
    """A library, in the order of its files' names. Raises UsageError where there is none or two skills have one
    name.
    """
    files = sorted(Path(folder).glob("*.md"))
    if not files:
        raise UsageError(f"skills.folder: expected a folder with Markdown files, found none in {folder}")
    skills = [parse(file.read_text(), str(file)) for file in files]
    if len({skill.name for skill in skills}) < len(skills):
        raise UsageError(f"{folder}: two skills have one name")
    return skills


def write(folder: str | Path, skills: Sequence[Skill]) -> None:
    """One file a skill."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for skill in skills:
        name = re.sub(r"[^a-z0-9]+", "-", skill.name.lower()).strip("-")
        (Path(folder) / f"{name}.md").write_text(skill.to_markdown())


def distil(trajectories: Sequence[Trajectory], known: Mapping[str, Skill]) -> dict[str, Skill]:
    """`known`, and for each family the shortest success among it and these episodes."""
    found = dict(known)
    for trajectory in trajectories:
        if not succeeded(trajectory) or not trajectory.turns:
            continue
        name, task = f"own: {trajectory.task.family or trajectory.task.key}", trajectory.turns[0].observation
        text = f"{task}\n{solution_text(trajectory)}"
        if name not in found or len(text) < len(found[name].text):
            found[name] = Skill(name, tuple(sorted(words(task))), text)
    return found


def words(text: str) -> set[str]:
    """The lower-case words of a text."""
    return set(WORD.findall(text.lower()))


class Shelf:
    """A run's skills, and how each has done."""

    def __init__(self, options: SkillOptions) -> None:
        self.options = options
        self.library = read(options.folder) if options.folder else []
        self.own: dict[str, Skill] = {}
        self.used: dict[str, list[float]] = {}  # name: [episodes, successes]
        self.updates = 0
        self._shown: dict[int, list[str]] = {}

    @property
    def skills(self) -> list[Skill]:
        """All that can be picked, in a fixed order."""
        return [*self.library, *(self.own[name] for name in sorted(self.own))]

    def pick(self, task: str) -> list[Skill]:
        """The skills for a task, by its first observation."""
        return PICKERS[self.options.pick](self, task)

    def views(
        self,
        group: Sequence[Trajectory],
        source: Sequence[Trajectory],
        rows: Sequence[Sequence[int]],
        chat: Chat,
        options: Skilled,
    ) -> list[TeacherView]:
        """A view of every row, where there is a skill to show."""
        tasks = [trajectory.turns[0].observation for trajectory in source if trajectory.turns]
        picked = self.pick(tasks[0]) if tasks else []
        self._shown[group[0].group] = [skill.name for skill in picked]
        text = "\n".join(skill.text for skill in picked)
        found: list[TeacherView] = []
        for trajectory, own in zip(group, rows, strict=True):
            for number, row in enumerate(own) if text else ():
                made = view(trajectory, row, number, (self.options.template, text), chat, self.options)
                if made is not None:
                    found.append(made)
        return found

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """Counts the success of what was shown, and distils what succeeded."""
        for trajectory in trajectories:
            for name in self._shown.get(trajectory.group, ()):
                count = self.used.setdefault(name, [0.0, 0.0])
                count[0] += 1
                count[1] += succeeded(trajectory)
        self._shown, self.updates = {}, self.updates + 1
        if self.options.own:
            self.own = distil(trajectories, self.own)

    def state_dict(self) -> dict[str, Any]:
        """What was learned."""
        return {"own": [asdict(skill) for skill in self.own.values()], "used": self.used, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it."""
        made = [Skill(item["name"], tuple(item["keywords"]), item["text"]) for item in state["own"]]
        self.own = {skill.name: skill for skill in made}
        self.used = {name: list(count) for name, count in state["used"].items()}
        self.updates = int(state["updates"])


def _by_keyword(shelf: Shelf, task: str) -> list[Skill]:
    asked = words(task)
    common = [(len(asked & {*skill.keywords, *words(skill.name)}), -place) for place, skill in enumerate(shelf.skills)]
    best = sorted(common, reverse=True)[: shelf.options.count]
    return [shelf.skills[-place] for shared, place in best if shared]


def _by_ucb(shelf: Shelf, task: str) -> list[Skill]:
    total = sum(count for count, _ in shelf.used.values())

    def bound(skill: Skill) -> float:
        count, won = shelf.used.get(skill.name, (0.0, 0.0))
        return won / count + shelf.options.explore * math.sqrt(2 * math.log(total) / count) if count else math.inf

    return sorted(shelf.skills, key=bound, reverse=True)[: shelf.options.count]


def _all(shelf: Shelf, task: str) -> list[Skill]:
    return shelf.skills


def _at_random(shelf: Shelf, task: str) -> list[Skill]:
    skills, generator = shelf.skills, np.random.default_rng([shelf.updates, zlib.crc32(task.encode())])
    count = min(shelf.options.count, len(skills))
    return [skills[int(place)] for place in generator.choice(len(skills), count, replace=False)] if skills else []


PICKERS: Mapping[str, Callable[[Shelf, str], list[Skill]]] = {
    "keyword": _by_keyword,
    "ucb": _by_ucb,
    "full": _all,
    "random": _at_random,
}
