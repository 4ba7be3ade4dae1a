"""The verifier's ground: grading in a fresh place, on a copy that was taken before anything else could run.

    agent's sandbox --freeze, snapshot--> files --restore--> another sandbox --the task's own check--> exit status

Nothing the agent started is alive when its files are taken. The check runs in a sandbox that the agent never was in
(with bubblewrap, as root, under another uid), from files that come from the task and lie outside of the work folder,
with programs from folders that nobody inside can write, and an interpreter that reads neither the environment nor the
folder it is started in. How it ends is read by the supervisor from its own pipes: a result file decides nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retort.sandboxes.base import ExecResult, ExecTimeout, FileState, Sandbox

PYTHON = ("python3", "-I", "-B")


@dataclass(frozen=True)
class Verdict:
    """passed: the check ended with status 0 and said so itself. result: what it did, without its own last word."""

    passed: bool
    result: ExecResult


def take(work: Sandbox) -> bytes:
    """The work folder as it is, with every process inside ended first, for `verify`.

    Raises:
        SandboxClosed: the sandbox is gone. OSError: there is too much or too deep to take out.
    """
    work.freeze()
    return work.snapshot()


def verify(
    ground: Sandbox,
    taken: bytes,
    check: str,
    files: Mapping[str, bytes | str] | None = None,
    *,
    arguments: Sequence[str] = (),
    secret: str = "",
    timeout: float | None = None,
) -> Verdict:
    """Runs a task's check on what an agent left.

    ground: a sandbox that no agent has been in since its last reset; it is reset first. taken: from `take`.
    check: a Python program of the task. It starts in the work folder with the folder of `files` as `sys.argv[1]`, then
        `arguments`. It must end with status 0 to pass; where the agent's code runs, it must run as a process of its own
        (`subprocess`), for whoever shares the interpreter can end it with any status. It should read the task's files
        before that: a change to them that is undone again is not seen. Only the check itself is closed to the agent's
        code; a program that it starts as a helper is not.
    files: the task's own files by name, test files above all. They lie outside of the work folder, so that what the
        agent made of its copies does not matter. Nothing may change in their folder, `__pycache__` included.
    secret: what the check alone may read, on its `sys.stdin`: it lies on no disk, and no other process of the same uid
        may look into the check's memory. A process that the check forks (without an exec) has it too.
    timeout: seconds. A check that runs out of time has not passed.

    Raises:
        SandboxError: the ground is gone; nothing has been learned about the agent.
    """
    ground.reset()
    ground.restore(taken)
    place, word = f"/tmp/verifier-{secrets.token_hex(8)}", secrets.token_hex(16)
    ground.write_files({f"{place}/files/{name}": data for name, data in (files or {}).items()}, mode=0o444)
    ground.write_file(f"{place}/check.py", f"{check}\n", mode=0o444)
    ground.write_file(f"{place}/run.py", RUN, mode=0o444)
    given = ground.tree(f"{place}/files") if files else {}
    command = [*PYTHON, f"{place}/run.py", place, *arguments]
    try:
        result = ground.exec(
            command, stdin=(word + secret).encode(), timeout=timeout, env={"PYTHONDONTWRITEBYTECODE": "1"}
        )
    except ExecTimeout as late:
        return Verdict(False, late.partial)
    said = result.stderr.endswith(word.encode()) and _untouched(ground, f"{place}/files", given)
    return Verdict(said and result.exit_code == 0, replace(result, stderr=result.stderr.removesuffix(word.encode())))


def _untouched(ground: Sandbox, folder: str, given: Mapping[str, FileState]) -> bool:
    """Whether the task's own files are what they were: the agent's code runs under the same uid as the check."""
    ground.freeze()
    try:
        return not given or ground.tree(folder) == given
    except OSError:
        return False


# No process inside may read or write this one's memory, though it has the same uid.
# The last word is read before the check begins and said after it has come to its end: `os._exit(0)` does not say it.
RUN = """
import ctypes, io, os, runpy, sys
if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0):
    raise OSError("prctl")
said = sys.stdin.read()
word, sys.stdin = said[:32], io.StringIO(said[32:])
del said
place = sys.argv[1]
sys.argv = [place + "/check.py", place + "/files", *sys.argv[2:]]
try:
    runpy.run_path(place + "/check.py", run_name="__main__")
except SystemExit as end:
    if end.code not in (None, 0):
        raise
sys.stdout.flush()
sys.stderr.write(word)
"""
