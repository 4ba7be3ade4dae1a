"""`retort/Code-v0`: write a Python function or a program; hidden tests run it in a sandbox.

The first observation says what to write and shows two tests. Each action is a whole answer, with or without prose and
Markdown fences around it. It is run on every test; the next observation says what is wrong, of the tests that were
shown alone. The episode ends with an answer that passes everything (reward 1) or with the last of `max_turns` answers
(reward 0).

The agent's code never meets an expected output: it is given inputs, in processes that know nothing else, and what it
returns or prints is compared here, strictly by type and structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from gymnasium.error import ResetNeeded
from retort.envs import trial
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
from retort.envs.candidate import NO_CODE, PASSED, SKIPPED, TOO_LONG, Outcome, code_in, described, is_no_code, tried
from retort.envs.code_tasks import FAMILIES, HELD_OUT, VISIBLE, Task, Test, task, task_refs
from retort.envs.room import Room
from retort.sandboxes.base import Limits
from retort.sandboxes.verifier import take

ALMOST = "the shown tests pass, a hidden test fails"


@dataclass(frozen=True)
class Grade:
    """right: by test, the visible ones first. seen: what the agent reads, and its kind. hidden: the first hidden test
    that failed, or ""."""

    compiles: bool
    right: tuple[bool, ...]
    seen: str
    kind: Source
    hidden: str

    @property
    def success(self) -> bool:
        return all(self.right)

    @property
    def components(self) -> dict[str, float]:
        shown, hidden = self.right[:VISIBLE], self.right[VISIBLE:]
        return {
            "compiles": float(self.compiles),
            "visible": sum(shown) / len(shown),
            "hidden": sum(hidden) / len(hidden),
        }


class CodeEnv(TextEnv):
    """Small Python functions and programs, tested in a sandbox.

    split: "train", "validation" or "test". max_turns: answers in an episode. sandbox: "bwrap", "docker:IMAGE" (with a
    python3 in it), or "unsafe", which runs the agent's code on this machine with nothing around it.
    families: which of `FAMILIES`; None is all that the split has (`HELD_OUT` is never in training).
    explain: the first observation also says how to answer. answer_s: seconds for all tests of one answer.

    Raises:
        UsageError: an unknown value, with the nearest valid one.
        SandboxError: from `reset` and `step`, when no sandbox can be started or none is left.
    """

    held_out = HELD_OUT
    counts = {"train": 2158, "validation": 435, "test": 1007}  # noqa: RUF012

    def __init__(
        self,
        split: Split = "train",
        sandbox: str = "bwrap",
        max_turns: int = 3,
        families: Sequence[str] | None = None,
        explain: bool = True,
        answer_s: float = 3.0,
    ) -> None:
        for name, value in (("max_turns", max_turns), ("answer_s", answer_s)):
            if value <= 0:
                raise UsageError(f"{name}: expected a number above 0, found {value}")
        self.split, self.max_turns, self.explain, self.answer_s = checked_split(split), max_turns, explain, answer_s
        self.families = checked_families(self.split, families, FAMILIES, HELD_OUT)
        self.observation_space, self.action_space = TextSpace(), TextSpace(20_000)
        self._room, self._empty = Room(sandbox, Limits()), b""  # _empty: a work folder with nothing in it
        self._refs: dict[str, TaskRef] = {}
        self._listed: tuple[TaskRef, ...] = ()
        self._task: Task | None = None
        self._turn, self._over = 0, True

    def tasks(self) -> Sequence[TaskRef]:
        if not self._listed:
            self._refs = task_refs(self.families, self.split)
            self._listed = tuple(self._refs.values())
        return self._listed

    def backend(self) -> str:
        return self._room.sandbox

    def gold(self, observation: str) -> str:
        """The whole solution of the current task."""
        del observation
        return self._current().solution

    def near_misses(self) -> Sequence[Sequence[str]]:
        """The solution with one natural slip each; every one fails a test."""
        return [[source] for source in self._current().wrong]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        refs = self.tasks()
        key = (options or {}).get("task")
        # A known key needs no search through thousands of tasks.
        ref = self._refs[key] if key in self._refs and len(options or {}) == 1 else refs[self.pick(refs, options)]
        room = self._room.fresh()
        self._empty = self._empty or take(room)
        self._task, self._turn, self._over = task(ref.key), 0, False
        text = self._task.instruction
        if self.explain:
            tries = f"You have {self.max_turns} attempts, each a whole answer." if self.max_turns > 1 else ""
            text = f"Answer with Python code alone. {tries}".rstrip() + f"\n{text}"
        return text, step_info(ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        job = self._current()
        if self._over:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text with code in it, found {type(action).__name__}")
        grade = self._graded(job, action)
        turn, self._turn = self._turn, self._turn + 1
        self._over = grade.success or self._turn >= self.max_turns
        seen = Feedback(grade.seen, grade.kind, turn, visible=True)
        info = step_info(
            job.ref,
            # Only at the end: an agent that goes on must not read the like of what its teacher was told.
            feedback=(seen, *lessons(job, grade, turn)) if self._over else (seen,),
            components=grade.components,
            success=grade.success if self._over else None,
            invalid=not self.action_space.contains(action) or is_no_code(action),
        )
        return grade.seen, float(grade.success), self._over, False, info

    def close(self) -> None:
        self._task, self._over = None, True
        self._room.close()

    def _current(self) -> Task:
        if self._task is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._task

    def _graded(self, job: Task, action: str) -> Grade:
        source = dedent(code_in(action, job.name))
        for refused, why in ((not self.action_space.contains(action), TOO_LONG), (not source.strip(), NO_CODE)):
            if refused:
                return Grade(False, (False,) * len(job.tests), why, Source.RUNTIME_ERROR, "")
        cases = [test.given for test in job.tests]
        return graded(job, tried(self._room.held, self._empty, source, job.name, cases, self.answer_s), self.answer_s)


def graded(job: Task, outcomes: Sequence[Outcome], seconds: float) -> Grade:
    """Compare what became of an answer with what each test expects. seconds: what it had for all of them."""
    pairs = list(zip(job.tests, outcomes, strict=True))
    right = tuple(outcome.end == trial.VALUE and job.right(test, outcome.value) for test, outcome in pairs)
    seen, kind = PASSED, Source.VERIFIER
    failed = [at for at in range(VISIBLE, len(pairs)) if not right[at] and outcomes[at].end != SKIPPED]
    hidden = _told(job, *pairs[failed[0]], seconds)[0] if failed else ""
    if not all(right[:VISIBLE]):
        seen, kind = _told(job, *pairs[right.index(False)], seconds)
    elif not all(right):
        seen, kind = ALMOST, Source.TEST_FAILURE
    return Grade(outcomes[0].end != trial.SYNTAX, right, seen, kind, hidden)


def _told(job: Task, test: Test, outcome: Outcome, seconds: float) -> tuple[str, Source]:
    if outcome.end == trial.VALUE:
        return job.verdict(test, outcome.value), Source.TEST_FAILURE
    return described(outcome, job.where(test), job.name, seconds), Source.RUNTIME_ERROR


def lessons(job: Task, grade: Grade, turn: int) -> tuple[Feedback, ...]:
    """What a teacher may see at the end and the student never does."""
    texts = [(Source.SOLUTION, job.solution)]
    if not grade.success:
        texts.insert(0, (Source.HINT, job.hint))
    if grade.hidden:
        texts.insert(0, (Source.VERIFIER, grade.hidden))
    return tuple(Feedback(text, source, turn, visible=False) for source, text in texts)
