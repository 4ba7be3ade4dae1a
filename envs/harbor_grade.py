"""The grading of a Harbor task: its tests are laid into a sandbox where nothing of the agent's runs, and run there.

The reward is the number in reward.json or reward.txt below /logs/verifier, held between 0 and 1; where neither was
written, 1 for tests that end with status 0. Both files are made anew, empty, just before: what lay there never counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from retort.envs.harbor_format import HarborTask
from retort.envs.harbor_guard import FILES, START, guarded, without_traps
from retort.envs.harbor_place import REWARDS, put
from retort.envs.harbor_wants import Wants
from retort.sandboxes.base import ExecResult, ExecTimeout, Layout, Sandbox

TELLING = re.compile(r"fail|error|expect|found|assert|differ|missing|got ", re.IGNORECASE)
VERDICT_CHARS = 400


@dataclass(frozen=True)
class Grade:
    """reward: from 0 to 1. components: what it is made of. verdict: what the tests said, cut to what tells."""

    reward: float
    components: Mapping[str, float]
    verdict: str


def judged(ground: Sandbox, layout: Layout, task: HarborTask, asked: Wants, answer: bytes | None) -> Grade:
    """Runs a task's tests where nothing of the agent's is running, and reads the reward that they write.

    layout: that of the sandbox.

    Raises:
        SandboxError: the sandbox is gone; nothing has been learned about the agent.
    """
    try:
        if asked.answer and answer is not None:
            ground.write_file(asked.answer, answer)
        if asked.scope == "work" and not without_traps(ground, layout.work):
            return Grade(
                0.0, {"tests": 0.0}, "expected no links to where tests keep things; found some that are locked"
            )
        ground.write_files(dict.fromkeys(REWARDS, b""), mode=0o666)
        ground.write_files(FILES)
        put(ground, {f"/tests/{name}": state for name, state in task.tests.items()})
    except OSError as error:  # on the agent's own machine: something of its lies in the way
        return Grade(0.0, {"tests": 0.0}, f"expected a place for the tests; found {error.strerror}".lower())
    starts = task.tests["test.sh"].data.startswith(b"#!")
    ground.write_file("/tests/test.sh", task.tests["test.sh"].data, mode=0o755)
    command = ["/tests/test.sh"] if starts else ["bash", "/tests/test.sh"]
    try:
        done = ground.exec([*START, *command], env=guarded(asked, layout), timeout=asked.verifier_s)
    except ExecTimeout as late:
        return Grade(
            0.0, {"tests": 0.0}, f"expected tests that end in {asked.verifier_s:g} s; {_telling(late.partial)}"
        )
    ground.freeze()
    written = [_content(ground, path) for path in REWARDS]
    for read, text in zip((_from_json, _from_text), written, strict=True):
        if text.strip():
            try:
                found = read(text)
                reward = found.get("reward", sum(found.values()) / len(found))
            except (ValueError, TypeError, AttributeError, ZeroDivisionError):
                return Grade(0.0, {"tests": 0.0}, f"expected a number as reward; found {text.strip()[:40]!r}")
            return Grade(min(max(reward, 0.0), 1.0), found, _telling(done))
    reward = float(done.exit_code == 0)
    return Grade(reward, {"tests": reward}, _telling(done))


def _from_json(text: str) -> dict[str, float]:
    found = json.loads(text)
    numbers = {
        str(key): float(value) for key, value in (found.items() if isinstance(found, dict) else [("reward", found)])
    }
    if not all(math.isfinite(value) for value in numbers.values()):
        raise ValueError("not finite")
    return numbers


def _from_text(text: str) -> dict[str, float]:
    if not math.isfinite(reward := float(text)):
        raise ValueError("not finite")
    return {"reward": reward}


def _content(sandbox: Sandbox, path: str) -> str:
    """What was written there; a folder, a link to nowhere and the like hold no reward."""
    try:
        return sandbox.read_file(path).decode(errors="replace")
    except OSError:
        return ""


def _telling(done: ExecResult) -> str:
    """The lines of a test's output that say what was wrong, or its end; how it ended, where it said nothing."""
    text = (done.stdout + b"\n" + done.stderr).decode(errors="replace").replace("\0", "")
    lines = [line.strip()[:120] for line in text.splitlines() if line.strip()]
    told = [line for line in lines if TELLING.search(line)] or lines[-4:]
    short = "\n".join(told)[-VERDICT_CHARS:]
    return short or ("the tests passed" if done.exit_code == 0 else f"the tests ended with {done.exit_code}")
