"""`retort/Shell-v0`: real shell commands on real files, in a sandbox, graded from outside.

The first observation is an instruction. An action is one line of text: `done`, `submit WORD`, or a shell command, whose
output (and exit code, when it is not 0) is the next observation. The terminal is the same for a whole episode.

The reward is 1 when the episode was ended with `done` or `submit WORD`, the work folder is exactly as it should be and
the word is right; anything else gives 0. Out of turns: truncated, reward 0. Grading reads the files after every process
of the agent has been ended, so nothing of the agent's takes part in it.
"""

from __future__ import annotations

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
from retort.envs.draw import Draw
from retort.envs.harbor_format import HarborTask
from retort.envs.room import Room, is_no_command, run_line, shown
from retort.envs.shell_harbor import as_harbor
from retort.envs.shell_tasks import FAMILIES, HELD_OUT, SUBMIT_OUTPUT, Task, task, task_refs
from retort.sandboxes.base import FileState, Limits, Sandbox, SandboxClosed, Terminal

PROTOCOL = "Each line you write is a shell command, or done, or submit WORD."
LOST = "the shell is gone"
DOUBTS = ("maybe", "perhaps", "probably", "hmm", "wait")


@dataclass(frozen=True)
class Grade:
    """goal: the named files are as they should be. untouched: all others are as they were. answer: the right word was
    submitted, or, where there is nothing to submit, `done` was said. verdict: what was expected and what was found.
    """

    goal: bool
    untouched: bool
    answer: bool
    verdict: str

    @property
    def components(self) -> dict[str, float]:
        return {"goal": float(self.goal), "untouched": float(self.untouched), "answer": float(self.answer)}

    @property
    def success(self) -> bool:
        return self.goal and self.untouched and self.answer


class ShellEnv(TextEnv):
    """Small jobs on files, done by shell commands.

    split: "train", "validation" or "test". max_turns: actions in an episode, the last word included.
    sandbox: "bwrap", "docker:IMAGE" (a name, or the path of a folder with a Dockerfile), or "unsafe", which runs the
    agent's commands on this machine with nothing around them: naming it is the acknowledgement.
    families: which of `FAMILIES`; None is all that the split has (`HELD_OUT` is never in training).
    observation_chars: terminal output shown after a command; None leaves it to the task. explain: the first observation
    also says how to act, for models that were not taught. command_s: seconds before a command is ended.
    hedge: share of the scripted commands, right and wrong ones, that begin with a line of doubt (a comment of bash), so
    that whoever imitates them has a style to lose. What a model writes is as it is.

    Raises:
        UsageError: an unknown value, with the nearest valid one.
        SandboxError: from `reset`, when no sandbox can be started.
    """

    held_out = HELD_OUT
    counts = {"train": 8891, "validation": 1914, "test": 3595}  # noqa: RUF012

    def __init__(
        self,
        split: Split = "train",
        sandbox: str = "bwrap",
        max_turns: int = 4,
        families: Sequence[str] | None = None,
        observation_chars: int | None = None,
        explain: bool = False,
        command_s: float = 2.0,
        hedge: float = 0.0,
    ) -> None:
        if not 0 <= hedge <= 1:
            raise UsageError(f"hedge: expected a share from 0 to 1, found {hedge}")
        for name, value in (
            ("max_turns", max_turns),
            ("observation_chars", observation_chars),
            ("command_s", command_s),
        ):
            if value is not None and value <= 0:
                raise UsageError(f"{name}: expected a number above 0, found {value}")
        self.split, self.max_turns, self.explain = checked_split(split), max_turns, explain
        self._room = Room(sandbox, Limits(wall_s=command_s))
        self.families = checked_families(self.split, families, FAMILIES, HELD_OUT)
        self.observation_chars, self.command_s, self.hedge = observation_chars, command_s, hedge
        self.observation_space, self.action_space = TextSpace(), TextSpace(10_000)
        self._refs: dict[str, TaskRef] = {}
        self._listed: tuple[TaskRef, ...] = ()
        self._terminal: Terminal | None = None
        self._task: Task | None = None
        self._turn = 0

    def tasks(self) -> Sequence[TaskRef]:
        if not self._listed:
            self._refs = task_refs(self.families, self.split)
            self._listed = tuple(self._refs.values())
        return self._listed

    def export(self, key: str) -> HarborTask:
        return as_harbor(task(key))

    def backend(self) -> str:
        return self._room.sandbox

    def gold(self, observation: str) -> str:
        """The next action of the gold plan; right as long as the episode has followed it so far."""
        return self.follow(self._current().gold, self._turn, observation)

    def near_misses(self) -> Sequence[Sequence[str]]:
        """Natural mistakes for the current task. The last action may be SUBMIT_OUTPUT: play them through `follow`."""
        return self._current().near_misses

    def follow(self, plan: Sequence[str], turn: int, observation: str) -> str:
        """As in the contract; SUBMIT_OUTPUT becomes the first word of the observation, and a plan's end is `done`."""
        action = plan[turn] if turn < len(plan) else "done"
        if action != SUBMIT_OUTPUT:
            return hedged(action, f"{self._current().ref.key} {turn}", self.hedge)
        return f"submit {observation.split()[0]}" if observation.split() else "done"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        refs = self.tasks()
        key = (options or {}).get("task")
        # A known key needs no search through thousands of tasks.
        ref = self._refs[key] if key in self._refs and len(options or {}) == 1 else refs[self.pick(refs, options)]
        self._task, self._turn, self._terminal = None, 0, None
        job = task(ref.key)
        room = self._room.fresh()
        for name, state in job.files.items():
            room.write_file(name, state.data, mode=state.mode)
        self._terminal = room.open_terminal()
        self._terminal.run("")  # a shell that does not start is the host's fault; one that ends later, the agent's
        self._task = job
        text = f"{PROTOCOL}\n{job.instruction}" if self.explain else job.instruction
        return text, step_info(job.ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._current()
        if self._terminal is None:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected a line of text, found {type(action).__name__}")
        turn, self._turn = self._turn, self._turn + 1
        word = action.strip()
        if word == "done" or word.split()[:1] == ["submit"]:
            return self._end("", (), word.removeprefix("submit").strip() if word != "done" else None, said=True)
        try:
            observation, unknown = self._run(self._terminal, action)
        except SandboxClosed:  # while its own command ran: the agent's doing
            return self._end(LOST, (Feedback(LOST, Source.RUNTIME_ERROR, turn, True),), None, lost=True)
        seen = (Feedback(observation, Source.TERMINAL_STATE, turn, True),) if observation else ()
        if self._turn < self.max_turns:
            return observation, 0.0, False, False, step_info(self._current().ref, feedback=seen, invalid=unknown)
        return self._end(observation, seen, None, invalid=unknown)

    def close(self) -> None:
        self._terminal = self._task = None
        self._room.close()

    def _current(self) -> Task:
        if self._task is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._task

    def _run(self, terminal: Terminal, action: str) -> tuple[str, bool]:
        """What the terminal shows, and whether bash knew no such command."""
        if not self.action_space.contains(action):
            return "command too long", True
        result = run_line(self._room.held, terminal, action, self.command_s)
        return shown(result, self.observation_chars or self._current().budget), is_no_command(action, result)

    def _end(
        self,
        observation: str,
        seen: tuple[Feedback, ...],
        answer: str | None,
        *,
        said: bool = False,
        lost: bool = False,
        invalid: bool = False,
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        job, self._terminal = self._current(), None
        if lost:
            grade = Grade(False, False, False, "expected done; found no shell")
        else:
            grade = _graded_in(self._room.held, job, answer, said=said)
        info = step_info(
            job.ref,
            feedback=(*seen, *lessons(job, grade, self._turn - 1)),
            components=grade.components,
            success=grade.success,
            invalid=invalid,
        )
        return observation, float(grade.success), said or lost, not (said or lost), info


def graded(job: Task, found: Mapping[str, FileState], answer: str | None, *, said: bool) -> Grade:
    """Compare a work folder and an answer with what the task wants. said: the agent ended the episode itself."""
    paths = sorted({*job.files, *job.expected, *found})
    wrong = [path for path in paths if found.get(path) != job.expected.get(path)]
    asked = {path for path in paths if job.files.get(path) != job.expected.get(path)}
    right = said and answer == job.answer
    faults = [path for path in wrong if path in asked] + [path for path in wrong if path not in asked]
    if faults:
        verdict = _compare(faults[0], job.expected.get(faults[0]), found.get(faults[0]))
    elif not right:
        wanted = "done" if job.answer is None else f"submit {job.answer}"
        given = "no end" if not said else "done" if answer is None else f"submit {' '.join(answer.split()[:3])}"
        verdict = f"expected {wanted}; found {given}"
    else:
        verdict = "found as expected"
    return Grade(not asked.intersection(wrong), asked.issuperset(wrong), right, verdict)


def _graded_in(room: Sandbox, job: Task, answer: str | None, *, said: bool) -> Grade:
    room.freeze()
    try:
        found = room.tree()
    except OSError as error:  # the sandbox answered: the agent locked the folder, or made what no path can name
        return Grade(False, False, False, f"expected a readable folder; found {(error.strerror or 'none').lower()}")
    return graded(job, found, answer, said=said)


def _compare(path: str, wanted: FileState | None, got: FileState | None) -> str:
    """The first difference in one path, in few words."""
    path = path.encode(errors="replace").decode()[:24]
    if wanted is None:
        return f"expected no {path}; found {path}"
    if got is None:
        return f"expected {path}; found {path} missing"
    if wanted.kind != got.kind:
        return f"expected {path} as {wanted.kind}; found {got.kind}"
    if wanted.data != got.data:
        return f"expected {path} with {_brief(wanted.data)}; found {_brief(got.data)}"
    return f"expected {path} mode {wanted.mode:o}; found mode {got.mode:o}"


def _brief(data: bytes) -> str:
    words = data[:200].decode(errors="replace").split()
    return " ".join([word[:12] for word in words[:4]] + ["..."] * (len(words) > 4)) or "nothing"


def hedged(action: str, place: str, share: float) -> str:
    """A command behind a line of doubt, in a share of places (any text that names one). The last word stays bare, and
    a plan that doubts already as it is."""
    draw = Draw(f"hedge {place}")
    bare = action.startswith("#") or action.split()[:1] in (["done"], ["submit"])
    if bare or draw.number(1, 1000) > 1000 * share:
        return action
    return f"# {draw.some(DOUBTS, 1)[0]}\n{action}"


def lessons(job: Task, grade: Grade, turn: int) -> tuple[Feedback, ...]:
    """What a teacher may see at the end and the student never does."""
    texts = [(Source.VERIFIER, grade.verdict)]
    if not grade.success:
        texts.append((Source.HINT, job.hint))
    if job.answer is not None:
        texts.append((Source.ANSWER, job.answer))
    texts.append((Source.SOLUTION, "\n".join(job.gold)))
    return tuple(Feedback(text, source, turn, visible=False) for source, text in texts)
