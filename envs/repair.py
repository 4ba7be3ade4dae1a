"""`retort/Repair-v0`: a small git repository with a bug and tests; find it and mend it in a terminal.

The first observation is a report like a user's. An action is a shell command (one line or several), whose output is the
next observation, or `done`. The terminal is the same for a whole episode.

The reward is 1 when the episode was ended with `done` and every test passes on a copy of the repository that was taken
when no process of the agent's was left: the repository's own tests, as they were given, and others that the agent never
sees; anything else gives 0. Out of turns: truncated, reward 0. What became of the test file decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    checked_split,
    step_info,
)
from retort.envs.repair_grading import Report, Suite, changes, run_tests, suite
from retort.envs.repair_tasks import HELD_OUT, Task, task, task_refs
from retort.envs.room import Room, is_no_command, run_line, shown
from retort.sandboxes.base import FileState, Limits, Sandbox, SandboxClosed, SandboxError, SandboxUnavailable, Terminal
from retort.sandboxes.verifier import take

PROTOCOL = "You are in a git repository. What you write is run as a shell command; write done when it is mended."
LAST_WORDS = ("done", "submit")
FENCED = re.compile(
    r"^```(?:bash|sh|shell|console)[ \t]*\n(.*?)\n?^```|\A```\n?(.*?)\n?```\Z", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
TOOK = re.compile(r"^(Ran \d+ tests?) in \d+\.\d+s$", re.MULTILINE)  # how unittest ends
LOST = "the shell is gone"
UNREADABLE = "expected a readable work folder; found none"
RUINED = "expected files that tests can run on; found some that end their sandbox"
INSTALL = "`apt-get install git python3`, on this machine or in the image"
BUILD_S = 60.0
# What this process has built, and what its tests say, by sandbox and digest.
_BUILT: dict[tuple[str, str], bytes] = {}
_FAILING: dict[tuple[str, str], Mapping[str, str]] = {}
# No pager, no colours, and no byte code: an edit within the second, of the same length, would go unnoticed.
READY = "export PAGER=cat GIT_PAGER=cat NO_COLOR=1 PYTHONDONTWRITEBYTECODE=1"
WHO = ("Robin", "robin@example.org", "2024-05-01T12:00:00+0000")
BUILD = f"""
set -e
export GIT_CONFIG_NOSYSTEM=1 GIT_COMMITTER_DATE={WHO[2]} GIT_AUTHOR_DATE={WHO[2]}
git init -q --template= -b main .
git config user.name {WHO[0]}
git config user.email {WHO[1]}
git config core.pager cat
git config color.ui false
touch -d {WHO[2]} * .gitignore
git add -- . ':!test_*'
git commit -q -m 'Add the modules'
git add .
git commit -q -m 'Add the tests'
git repack -adq
rm -rf .git/logs .git/COMMIT_EDITMSG .git/objects/??
touch -d {WHO[2]} .git
"""


class RepairEnv(TextEnv):
    """Repositories with one bug each, mended by shell commands.

    split: "train", "validation" or "test"; no project is in two. max_turns: actions in an episode, `done` included.
    sandbox: "bwrap", "docker:IMAGE" (with git, python3 and bash in it), or "unsafe", which runs the agent's commands on
    this machine with nothing around them. observation_chars: terminal output shown after a command. explain: the first
    observation also says how to act. command_s: seconds before a command is ended.

    Raises:
        UsageError: an unknown value, with the nearest valid one.
        SandboxUnavailable: from `reset`, when the sandbox has no git; SandboxError: when none can be started.
    """

    held_out = HELD_OUT
    counts = {"train": 219, "validation": 69, "test": 114}  # noqa: RUF012
    programs = dict.fromkeys(("git", "python3"), INSTALL)

    def __init__(
        self,
        split: Split = "train",
        sandbox: str = "bwrap",
        max_turns: int = 12,
        observation_chars: int = 2000,
        explain: bool = True,
        command_s: float = 10.0,
    ) -> None:
        for name, value in (
            ("max_turns", max_turns),
            ("observation_chars", observation_chars),
            ("command_s", command_s),
        ):
            if value <= 0:
                raise UsageError(f"{name}: expected a number above 0, found {value}")
        self.split, self.max_turns, self.explain = checked_split(split), max_turns, explain
        self.observation_chars, self.command_s = observation_chars, command_s
        self._room, self._ground = (Room(sandbox, Limits(wall_s=command_s)) for _ in range(2))
        self.observation_space, self.action_space = TextSpace(), TextSpace(10_000)
        self._terminal: Terminal | None = None
        self._task: Task | None = None
        self._turn = 0

    def tasks(self) -> Sequence[TaskRef]:
        return tuple(task_refs(self.split).values())

    def backend(self) -> str:
        return self._room.sandbox

    def gold(self, observation: str) -> str:
        """The next action of the gold plan; right as long as the episode has followed it so far."""
        del observation
        plan = self._current().gold
        return plan[self._turn] if self._turn < len(plan) else "done"

    def near_misses(self) -> Sequence[Sequence[str]]:
        """No edit, the tests edited, a repair undone, and repairs of the symptom alone or at the cost of a test."""
        return self._current().near_misses

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        refs = self.tasks()
        job = task(refs[self.pick(refs, options)].key)
        self._task, self._turn, self._terminal = None, 0, None
        room = self._room.fresh()
        room.restore(repository(room, self.backend(), job))
        self._terminal = room.open_terminal()
        self._terminal.run(READY)  # a shell that does not start is the host's fault; one that ends later, the agent's
        self._task = job
        return f"{PROTOCOL}\n{job.instruction}" if self.explain else job.instruction, step_info(job.ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        job = self._current()
        if self._terminal is None:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        turn, self._turn = self._turn, self._turn + 1
        command = command_of(action)
        if command is not None and command.strip("`. \n").lower() in LAST_WORDS:
            return self._end("", (), said=True)
        try:
            observation, unread = self._run(self._terminal, command)
        except SandboxClosed:  # while its own command ran: the agent's doing
            return self._end(LOST, (Feedback(LOST, Source.RUNTIME_ERROR, turn, True),), lost=True)
        seen = (Feedback(observation, Source.TERMINAL_STATE, turn, True),) if observation else ()
        if self._turn < self.max_turns:
            return observation, 0.0, False, False, step_info(job.ref, feedback=seen, invalid=unread)
        return self._end(observation, seen, invalid=unread)

    def close(self) -> None:
        self._terminal = self._task = None
        self._room.close()
        self._ground.close()

    def _current(self) -> Task:
        if self._task is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._task

    def _run(self, terminal: Terminal, command: str | None) -> tuple[str, bool]:
        """What the terminal shows, and whether there was no command."""
        if command is None:
            return "expected one command, found several fenced blocks", True
        if not self.action_space.contains(command):
            return "command too long", True
        result = run_line(self._room.held, terminal, command, self.command_s)
        # Without the seconds, so that the same actions are answered by the same words.
        return TOOK.sub(r"\1", shown(result, self.observation_chars)), is_no_command(command, result)

    def _end(
        self,
        observation: str,
        seen: tuple[Feedback, ...],
        *,
        said: bool = False,
        lost: bool = False,
        invalid: bool = False,
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        job, self._terminal = self._current(), None
        taken, left = (None, {}) if lost else _left(self._room.held)
        report = self._report(job, taken)
        test = left.get(job.test_file)
        untouched = test is not None and test.data == job.files[job.test_file].encode()
        success = said and not report.now
        info = step_info(
            job.ref,
            feedback=(*seen, *lessons(job, report, changes(job.files, left), self._turn - 1, said=said)),
            components={**report.components, "done": float(said), "tests_untouched": float(untouched)},
            success=success,
            invalid=invalid,
        )
        return observation, float(success), said or lost, not (said or lost), info

    def _report(self, job: Task, taken: bytes | None) -> Report:
        tests = suite(job.files[job.test_file], job.hidden)
        before = failing_before(self._ground, job, tests)
        if taken is None:
            return Report(before, dict.fromkeys((case.name for case in tests.cases), UNREADABLE))
        for _ in range(2):
            try:
                return Report(before, run_tests(self._ground.fresh(), taken, tests))
            except SandboxClosed:
                continue  # a ground may break once by itself, and twice only by what the agent left
            except OSError:
                break  # the ground answered: what was left cannot even be put there
        return Report(before, dict.fromkeys((case.name for case in tests.cases), RUINED))


def command_of(action: str) -> str | None:
    """The command in an action: what stands in its one fenced block, or all of it. None: there are several blocks."""
    blocks = list(FENCED.finditer(action.strip()))
    if not blocks or "<<" in action.partition("```")[0]:  # a fence in a here-document is part of a file
        return action
    return (blocks[0][1] or blocks[0][2] or "") if len(blocks) == 1 else None


def repository(room: Sandbox, backend: str, job: Task) -> bytes:
    """The task's repository as a snapshot, built in `room` by git the first time that a process needs it.

    Raises:
        SandboxUnavailable: there is no git, with the command that adds it.
        SandboxError: git did not build it; the message has its words.
    """
    key = (backend, job.digest)
    if key not in _BUILT:
        if room.exec("command -v git && command -v python3").exit_code:
            raise SandboxUnavailable(f"retort/Repair-v0 needs git and python3 in the sandbox {backend!r}: {INSTALL}")
        room.write_files(job.files)
        built = room.exec(BUILD, timeout=BUILD_S)
        if built.exit_code != 0:
            raise SandboxError(
                f"git did not build the repository of {job.key}: {built.stderr.decode(errors='replace')}"
            )
        _BUILT[key] = room.snapshot()
    return _BUILT[key]


def failing_before(ground: Room, job: Task, tests: Suite) -> Mapping[str, str]:
    """What fails in the repository as it was given, found the first time that a process needs it."""
    key = (ground.sandbox, job.digest)
    if key not in _FAILING:
        _FAILING[key] = run_tests(ground.fresh(), _BUILT[key], tests)
    return _FAILING[key]


def _left(room: Sandbox) -> tuple[bytes | None, Mapping[str, FileState]]:
    """The work folder for the verifier, and to be looked at. None: the agent made it one that cannot be read."""
    try:
        return take(room), room.tree()
    except OSError:  # the sandbox answered
        return None, {}


def lessons(job: Task, report: Report, diff: str, turn: int, *, said: bool) -> tuple[Feedback, ...]:
    """What a teacher may see at the end and the student never does."""
    texts = [
        (Source.TEST_FAILURE, report.summary()),
        (Source.VERIFIER, report.first() if report.now or said else "expected done; found no end"),
        (Source.VERIFIER, f"the edit:\n{diff}" if diff else "nothing was edited"),
    ]
    if report.now or not said:
        texts.append((Source.HINT, job.hint))
    texts.append((Source.SOLUTION, "\n".join(job.gold)))
    return tuple(Feedback(text, source, turn, visible=False) for source, text in texts)
