"""`retort/Harbor-v0`: any folder of tasks in Harbor's format, worked on in a terminal and graded where it counts.

An action is lines of shell, `done`, or, where the task asks for an answer, `submit ANSWER`. The terminal is the same
for a whole episode. When it ends, however it ends, all processes of the agent are ended; then the tests, which
the agent's sandbox never held, are run: in a sandbox that the agent never was in, on a copy of the work folder or with
the answer alone, unless the task says that it is about the whole machine (`retort.envs.harbor_wants`).

The reward is the number that the tests write, from 0 to 1 (`retort.envs.harbor_grade`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from gymnasium.error import ResetNeeded
from retort.envs.arguments import spelled
from retort.envs.base import (
    Feedback,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    checked_split,
    nearest,
    step_info,
)
from retort.envs.harbor_format import HarborTask, read_tasks, ref_of
from retort.envs.harbor_grade import Grade, judged
from retort.envs.harbor_place import Place, is_there, place_of, prepare, typed
from retort.envs.harbor_wants import Wants, wants
from retort.envs.room import Room, is_no_command, run_line, shown
from retort.sandboxes.base import Sandbox, SandboxClosed, Terminal

PROTOCOL = "You are at a shell in {work}. Each message you write is run in it. When you have finished, write: done"
ANSWER = "If an answer is asked for, end with: submit ANSWER"
LOST = "the shell is gone"
NO_ANSWER = "this task takes no answer: write done"
FENCED = re.compile(r".*?^```\w*[ \t]*\n(.*?)\n?```\Z", re.DOTALL | re.MULTILINE)


class HarborEnv(TextEnv):
    """Tasks in Harbor's format.

    folder: where they are. split: "train", "validation" or "test"; a task says its own (`retort_split`), else it is in
    test. sandbox: None for what each task says, "bwrap" or "docker" for all, or "docker:IMAGE" to follow their
    Dockerfiles inside of that image. only: names of tasks. offline: also run tasks that ask for the network, without.
    max_turns: actions in an episode. command_s: seconds for one action, within what the task gives to the agent.
    observation_chars: output shown after an action. explain: the first observation also says how to act.

    Raises:
        UsageError: no such folder, a task that cannot be honoured here, or an unknown value.
        SandboxError: from `reset`: no sandbox, no image, or a limit that cannot be held.
    """

    needs: ClassVar[Mapping[str, str]] = {"folder": "a folder of tasks in Harbor's format"}

    def __init__(
        self,
        folder: str | Path | None = None,
        split: Split = "test",
        sandbox: str | None = None,
        only: Sequence[str] | None = None,
        offline: bool = False,
        max_turns: int = 30,
        command_s: float = 60.0,
        observation_chars: int = 2000,
        explain: bool = True,
    ) -> None:
        for name, value in (
            ("max_turns", max_turns),
            ("command_s", command_s),
            ("observation_chars", observation_chars),
        ):
            if value <= 0:
                raise UsageError(f"{name}: expected a number above 0, found {value}")
        if sandbox is not None and sandbox.partition(":")[0] not in ("bwrap", "docker"):
            raise UsageError(f"unknown sandbox {sandbox!r}; {nearest(sandbox, ('bwrap', 'docker', 'docker:IMAGE'))}")
        self.split, self.sandbox, self.max_turns, self.explain = checked_split(split), sandbox, max_turns, explain
        self.command_s, self.observation_chars = command_s, observation_chars
        self.observation_space, self.action_space = TextSpace(), TextSpace(200_000)
        found = self._load(folder)
        for name in only or ():
            if name not in found:
                raise UsageError(self._absent(name, found))
        self._tasks = {name: task for name, task in found.items() if only is None or name in only}
        self._wants = {name: wants(task, offline=offline) for name, task in self._tasks.items()}
        self._refs = tuple(ref for ref in map(ref_of, self._tasks.values()) if ref.split == self.split)
        self._places: dict[str, Place] = {}
        self._opened: Place | None = None
        self._work: Room | None = None
        self._ground: Room | None = None
        self._key: str | None = None
        self._terminal: Terminal | None = None
        self._turn, self._left = 0, 0.0

    def _load(self, folder: str | Path | None) -> Mapping[str, HarborTask]:
        """The tasks by key. An environment on other data derives from this one and gives its own."""
        if folder is None:
            what = "expected a folder of tasks in Harbor's format, found none"
            raise UsageError(f"folder: {what}: folder='path/to/tasks', or {spelled(['folder'])}")
        return read_tasks(Path(folder))

    def _absent(self, name: str, found: Mapping[str, HarborTask]) -> str:
        """Why there is no task of that name, and what to do about it."""
        return f"unknown task {name!r}; {nearest(name, found)}"

    def tasks(self) -> Sequence[TaskRef]:
        return self._refs

    def backend(self) -> str:
        return self._opened.sandbox if self._opened else str(self.sandbox or "none")

    def export(self, key: str) -> HarborTask:
        return self._tasks[key]

    def gold(self, observation: str) -> str:
        """Writes the files of solution/, runs solve.sh, and says done. Raises UsageError where the task has none."""
        del observation
        task, asked = self._current()
        if not task.solution:
            raise UsageError(f"{task.name} has no solution/solve.sh")
        options = "".join(f"{key}={shlex.quote(value)} " for key, value in asked.solution_env.items())
        plan = (typed(task.solution), f"{options}bash /solution/solve.sh", "done")
        return plan[min(self._turn, 2)]

    def near_misses(self) -> Sequence[Sequence[str]]:
        return self._current()[0].near_misses

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        ref = self._refs[self.pick(self._refs, options)]
        self._key, self._terminal, self._turn = None, None, 0
        task, asked = self._tasks[ref.key], self._wants[ref.key]
        place = self._place(task, asked)
        room = self._enter(place).fresh()
        if is_there(room, "/tests") and asked.root:
            raise UsageError(f"{task.name}: its image holds /tests, where the agent would read what is kept from it")
        prepare(place, room, task.name)
        self._terminal = room.open_terminal()
        self._terminal.run("")  # a shell that does not start is the host's fault; one that ends later, the agent's
        self._key, self._left = ref.key, asked.agent_s
        how = PROTOCOL.format(work=place.layout.work) + (f"\n{ANSWER}" if asked.answer else "")
        return f"{how}\n\n{task.instruction}" if self.explain else task.instruction, step_info(ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        task, asked = self._current()
        if self._terminal is None:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        turn, self._turn = self._turn, self._turn + 1
        said = unfenced(action)
        if said.strip() == "done":
            return self._end("", (), None, terminated=True)
        if asked.answer and said.split()[:1] == ["submit"]:
            return self._end("", (), said.strip().removeprefix("submit").strip(), terminated=True)
        try:
            observation, unread = self._run(self._terminal, said, asked)
        except SandboxClosed:  # while its own command ran: the agent's doing
            self._terminal = None
            seen = (Feedback(LOST, Source.RUNTIME_ERROR, turn, True), *self._lessons(0.0, LOST))
            return LOST, 0.0, True, False, step_info(ref_of(task), feedback=seen, success=False)
        seen = (Feedback(observation, Source.TERMINAL_STATE, turn, True),) if observation else ()
        if self._turn < self.max_turns and self._left > 0:
            return observation, 0.0, False, False, step_info(ref_of(task), feedback=seen, invalid=unread)
        return self._end(observation, seen, None, terminated=False, invalid=unread)

    def close(self) -> None:
        self._key = self._terminal = self._opened = None
        for room in (self._work, self._ground):
            if room is not None:
                room.close()
        self._work = self._ground = None

    def _current(self) -> tuple[HarborTask, Wants]:
        if self._key is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._tasks[self._key], self._wants[self._key]

    def _place(self, task: HarborTask, asked: Wants) -> Place:
        if task.name not in self._places:
            place = place_of(task, asked, self._backend(asked))
            self._places[task.name] = replace(place, limits=replace(place.limits, wall_s=self.command_s))
        return self._places[task.name]

    def _backend(self, asked: Wants) -> str:
        return self.sandbox or asked.sandbox

    def _enter(self, place: Place) -> Room:
        """The agent's room; it and the tests' one are kept while tasks want the same of a sandbox."""
        old = self._opened
        if (
            self._work is None
            or old is None
            or (old.sandbox, old.limits, old.layout)
            != (
                place.sandbox,
                place.limits,
                place.layout,
            )
        ):
            self.close()
            self._work = Room(place.sandbox, place.limits, place.layout)
            self._ground = Room(place.sandbox, place.limits, place.layout)
        self._opened = place
        return self._work

    def _run(self, terminal: Terminal, action: str, asked: Wants) -> tuple[str, bool]:
        """What is observed, and whether the action was none."""
        if not self.action_space.contains(action):
            return "command too long", True
        if action.split()[:1] == ["submit"]:
            return NO_ANSWER, True
        assert self._work is not None
        result = run_line(self._work.held, terminal, action, min(self.command_s, self._left))
        self._left -= result.duration_s
        return shown(result, self.observation_chars), is_no_command(action, result)

    def _end(
        self,
        observation: str,
        seen: tuple[Feedback, ...],
        answer: str | None,
        *,
        terminated: bool,
        invalid: bool = False,
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        task, _ = self._current()
        self._terminal = None
        grade = self._graded(answer)
        success = grade.reward >= 1.0
        info = step_info(
            ref_of(task),
            feedback=(*seen, *self._lessons(grade.reward, grade.verdict)),
            components=grade.components,
            success=success,
            invalid=invalid,
        )
        return observation, grade.reward, terminated, not terminated, info

    def _lessons(self, reward: float, verdict: str) -> tuple[Feedback, ...]:
        """What a teacher may see at the end and the student never does."""
        task, asked = self._current()
        texts = [(Source.VERIFIER, verdict)]
        if reward < 1.0 and asked.hint:
            texts.append((Source.HINT, asked.hint))
        if "solve.sh" in task.solution:
            texts.append((Source.SOLUTION, task.solution["solve.sh"].data.decode(errors="replace").strip()))
        return tuple(Feedback(text, source, self._turn - 1, visible=False) for source, text in texts)

    def _graded(self, answer: str | None) -> Grade:
        task, asked = self._current()
        assert self._work is not None
        assert self._ground is not None
        assert self._opened is not None
        work = self._work.held
        work.freeze()
        try:
            given = answer.encode(errors="replace") if answer is not None else _answered(work, asked)
            if asked.scope == "machine":
                ground = work
                if is_there(work, "/tests"):
                    return Grade(0.0, {"tests": 0.0}, "expected no /tests; found one that the agent made")
            else:
                taken = work.snapshot() if asked.scope == "work" else None
                ground = self._ground.fresh()
                prepare(self._opened, ground, task.name)
                if taken is not None:
                    ground.restore(taken)
        except OSError as error:  # the sandbox answered: there is too much, or the agent locked it
            return Grade(0.0, {"tests": 0.0}, f"expected a readable work folder; found {error.strerror}".lower())
        return judged(ground, self._opened.layout, task, asked, given)


def unfenced(action: str) -> str:
    """What stands in the one code block that an action ends with, or else the action as it is."""
    text = action.strip()
    found = FENCED.match(text)
    return found[1] if found and len(re.findall(r"^```", text, re.MULTILINE)) == 2 else action


def _answered(work: Sandbox, asked: Wants) -> bytes | None:
    """The answer that the agent wrote into its file, if it did."""
    try:
        return work.read_file(asked.answer) if asked.answer else None
    except OSError:
        return None
