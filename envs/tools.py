"""`retort/Tools-v0`: function calling over a shop's database, calendar and mail, graded by the state that is left.

The first observation is a job. An action is one or several tool calls, as JSON `{"name": ..., "arguments": {...}}`,
inside `<tool_call>` tags or not; what the tools answer, a line of JSON each, is the next observation. An action without
a call ends the episode: `done`, `answer: X`, or any other last message.

The reward is 1 when the database is exactly what the gold calls would have left, no rule of the job was broken, and the
last message holds the answer where one is asked for; anything else gives 0. Out of turns: truncated, reward 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium.error import ResetNeeded
from retort.envs.base import (
    Feedback,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    checked_families,
    checked_split,
    step_info,
)
from retort.envs.calls import Call, Unreadable, read_calls, spoken
from retort.envs.tools_scene import LABELS
from retort.envs.tools_tasks import FAMILIES, HELD_OUT, Task, task, task_refs
from retort.envs.tools_world import TABLES, Rows, World, compact, tools

PROTOCOL = (
    'Call tools with {"name": ..., "arguments": {...}}, one a line. '
    "When all is done, say done, or answer: X where something is asked.\n"
)
CALLS = 16  # in one action; the rest is not run
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?!\w)")


@dataclass(frozen=True)
class Grade:
    """state: what had to change is as it should be. untouched: all else is as it was. policy: no rule was broken.
    answer: the last message holds the answer, or, where none is asked, there was one. verdict: expected and found.
    """

    state: bool
    untouched: bool
    policy: bool
    answer: bool
    verdict: str

    @property
    def components(self) -> dict[str, float]:
        names = ("state", "answer", "policy", "untouched")
        return {name: float(getattr(self, name)) for name in names}

    @property
    def success(self) -> bool:
        return self.state and self.untouched and self.policy and self.answer


class ToolsEnv(TextEnv):
    """A shop's desk work through tools.

    split: "train", "validation" or "test". max_turns: actions in an episode, the last message included.
    families: which of `FAMILIES`; None is all that the split has (`HELD_OUT` is never in training).
    explain: the first observation also says how to act and which tools there are, for models whose chat format does
    not show `info["tools"]`.

    Raises:
        UsageError: an unknown value, with the nearest valid one.
    """

    held_out = HELD_OUT
    counts = {"train": 3153, "validation": 651, "test": 1229}  # noqa: RUF012
    blocking = False

    def __init__(
        self,
        split: Split = "train",
        max_turns: int = 8,
        families: Sequence[str] | None = None,
        explain: bool = False,
    ) -> None:
        if max_turns <= 0:
            raise UsageError(f"max_turns: expected a number above 0, found {max_turns}")
        self.split, self.max_turns, self.explain = checked_split(split), max_turns, explain
        self.families = checked_families(self.split, families, FAMILIES, HELD_OUT)
        self.observation_space, self.action_space = TextSpace(), TextSpace(10_000)
        self._refs: dict[str, TaskRef] = {}
        self._listed: tuple[TaskRef, ...] = ()
        self._task: Task | None = None
        self._world: World | None = None
        self._turn = 0

    def tasks(self) -> Sequence[TaskRef]:
        if not self._listed:
            self._refs = task_refs(self.families, self.split)
            self._listed = tuple(self._refs.values())
        return self._listed

    def backend(self) -> str:
        return "sqlite"

    def gold(self, observation: str) -> str:
        """The next action of the gold plan; right as long as the episode has followed it so far."""
        return self.follow(self._current().gold, self._turn, observation)

    def near_misses(self) -> Sequence[Sequence[str]]:
        return self._current().near_misses

    def follow(self, plan: Sequence[str], turn: int, observation: str) -> str:
        """As in the contract; a plan's end is `done`."""
        return plan[turn] if turn < len(plan) else "done"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.close()
        refs = self.tasks()
        key = (options or {}).get("task")
        # A known key needs no search through thousands of tasks.
        ref = self._refs[key] if key in self._refs and len(options or {}) == 1 else refs[self.pick(refs, options)]
        job = task(ref.key)
        self._task, self._turn, self._world = job, 0, opened(job)
        shown = "\n".join([PROTOCOL.rstrip(), *(tool.line for tool in tools().values()), ""]) if self.explain else ""
        return shown + job.instruction, step_info(job.ref, tools=[tool.schema for tool in tools().values()])

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        job, world = self._current(), self._world
        if world is None:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        turn, self._turn = self._turn, self._turn + 1
        if not self.action_space.contains(action):
            calls: list[Call | Unreadable] = [Unreadable("expected an action of at most 10000 characters")]
        else:
            calls = read_calls(spoken(action), tools())
        if not calls:
            return self._end(world, "", (), spoken(action), invalid=not spoken(action).strip())
        observation = "\n".join(_answers(world, calls))
        seen = (Feedback(observation, Source.TOOL_RESULT, turn, True),)
        invalid = any(isinstance(call, Unreadable) for call in calls)
        if self._turn < self.max_turns:
            return observation, 0.0, False, False, step_info(job.ref, feedback=seen, invalid=invalid)
        return self._end(world, observation, seen, None, invalid=invalid)

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
        self._world = self._task = None

    def _current(self) -> Task:
        if self._task is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._task

    def _end(
        self,
        world: World,
        observation: str,
        seen: tuple[Feedback, ...],
        last: str | None,
        *,
        invalid: bool = False,
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """last: the agent's last message; None where it ran out of turns."""
        job, self._world = self._current(), None
        grade = graded(job, world.rows(), world.broken, last)
        world.close()
        info = step_info(
            job.ref,
            feedback=(*seen, *lessons(job, grade, self._turn - 1)),
            components=grade.components,
            success=grade.success,
            invalid=invalid,
        )
        return observation, float(grade.success), last is not None, last is None, info


def _answers(world: World, calls: Sequence[Call | Unreadable]) -> list[str]:
    said = [world.call(call) if isinstance(call, Call) else compact({"error": call.reason}) for call in calls[:CALLS]]
    more = compact({"error": f"expected at most {CALLS} calls in an action, found {len(calls)}; the rest was not run"})
    return [*said, more] if len(calls) > CALLS else said


def opened(job: Task) -> World:
    """The world of a task as it is before anything happened."""
    return World(job.rows, job.today, job.rules, agrees=job.agrees)


def expected(job: Task) -> Rows:
    """The rows that the gold calls leave."""
    world = opened(job)
    try:
        for call in job.do:
            world.call(call)
        return world.rows()
    finally:
        world.close()


def graded(job: Task, found: Rows, broken: Sequence[tuple[str, str]], last: str | None) -> Grade:
    """Compare what an episode left with what the task wants. broken: rules, each with the call that broke it.
    last: the last message, None where there was none."""
    wanted = expected(job)
    faults = [fault for table in TABLES for fault in _faults(table, job.rows[table], wanted[table], found[table])]
    wrong, strange = [text for asked, text in faults if asked], [text for asked, text in faults if not asked]
    answered = last is not None and (job.answer is None or holds(last, job.answer, job.others))
    if broken:
        rule, name = broken[0]
        verdict = f"expected rule {LABELS[job.rules.index(rule)]} kept; found it broken by {name}"
    elif faults:
        verdict = (wrong or strange)[0]
    elif not answered:
        verdict = f"expected {job.last_word}; found {'no end' if last is None else _brief(last)}"
    else:
        verdict = "found as expected"
    return Grade(not wrong, not strange, not broken, answered, verdict)


def _faults(table: str, start: Sequence[Any], wanted: Sequence[Any], found: Sequence[Any]) -> list[tuple[bool, str]]:
    """Each difference: whether it is about something that had to change, and what was expected and found."""
    before, right, left = ({row[0]: row for row in rows} for rows in (start, wanted, found))
    faults = []
    for number, row in before.items():
        if not _same(right.get(number), left.get(number)):
            text = _difference(f"{table} {number}", right.get(number), left.get(number))
            faults.append((not _same(right.get(number), row), text))
    # New rows have ids in the order of the calls, which does not matter.
    new_right = [row for number, row in right.items() if number not in before]
    new_left = [row for number, row in left.items() if number not in before]
    missing, surplus = _without(new_right, new_left), _without(new_left, new_right)
    for place in range(max(len(missing), len(surplus))):
        pair = [rows[place] if place < len(rows) else None for rows in (missing, surplus)]
        faults.append((place < len(missing), _difference(f"new {table}", *pair)))
    return faults


def _loose(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row as it is compared: spaces, case and a last full stop do not matter."""
    return tuple(" ".join(cell.split()).casefold().rstrip(".") if isinstance(cell, str) else cell for cell in row)


def _same(first: Sequence[Any] | None, second: Sequence[Any] | None) -> bool:
    return first == second or (first is not None and second is not None and _loose(first) == _loose(second))


def _without(rows: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """The rows that have no equal among the others, ids apart, counting each of those once."""
    rest, left = Counter(_loose(row[1:]) for row in others), []
    for row in rows:
        if rest[_loose(row[1:])] > 0:
            rest[_loose(row[1:])] -= 1
        else:
            left.append(row)
    return left


def _difference(where: str, wanted: Any, found: Any) -> str:
    """The first difference between two rows in few words; None is no row."""
    if wanted is None:
        return f"expected no {where}; found {_row(found)}"
    if found is None:
        return f"expected {where} {_row(wanted)}; found none"
    for name, right, left in zip(wanted._fields[1:], wanted[1:], found[1:], strict=True):
        if _loose([right]) != _loose([left]):
            return f"expected {where} {name} {_brief(right)}; found {_brief(left)}"
    return f"expected {where} {_row(wanted)}; found {_row(found)}"


def _row(row: Any) -> str:
    return " ".join(_brief(cell) for cell in row[1:4])


def _brief(value: Any) -> str:
    words = str(value).split()
    return " ".join([word[:28] for word in words[:4]] + ["..."] * (len(words) > 4)) or "nothing"


def holds(said: str, answer: str, others: Sequence[str]) -> bool:
    """Whether a last message holds the answer: a number as its last number, anything else as words of their own, with
    none of the other answers beside. After `answer:` only what follows counts.
    """
    said = re.split(r"answer\s*:", said, flags=re.IGNORECASE)[-1]
    if answer.isdigit():
        numbers = NUMBER.findall(said)
        return bool(numbers) and float(numbers[-1].replace(",", "")) == float(answer)
    words = re.findall(r"\w+", said.casefold())
    return answer.casefold() in words and not any(other.casefold() in words for other in others)


def lessons(job: Task, grade: Grade, turn: int) -> tuple[Feedback, ...]:
    """What a teacher may see at the end and the student never does."""
    texts: Mapping[Source, str | None] = {
        Source.VERIFIER: grade.verdict,
        Source.HINT: None if grade.success else job.hint,
        Source.ANSWER: job.answer,
        Source.SOLUTION: "\n".join(job.gold),
    }
    return tuple(Feedback(text, source, turn, visible=False) for source, text in texts.items() if text is not None)
