"""An agent's code: taken out of its words, run on a task's cases in a sandbox, and in words what became of it.

    action --code_in--> code --tried--> outcomes --same, described--> feedback

The code runs in a ground of `retort.sandboxes.verifier`, in processes that know the inputs and no more
(`retort.envs.trial`). What comes out is data; it is compared here, where none of the agent's code ever runs.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.envs import trial
from retort.sandboxes.base import Sandbox, SandboxError
from retort.sandboxes.verifier import Verdict, verify

SKIPPED = "skipped"  # an end beside those of `trial`: the case was not run
ANSWER_BYTES = 65_536  # what one case may print or return
SLACK_S = 10.0  # seconds for everything around the agent's code
SHOWN = 160  # characters of a value in feedback
PASSED, NO_CODE, TOO_LONG = "all tests pass", "no code in the answer", "answer too long"
UNENDED = "the tests did not come to their end"

FENCE = re.compile(r"^([ \t]*)```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)

STATEMENT = re.compile(
    r"^\s*(?:(?:async\s+)?def|class|import|from|return|for|while|if|with|print)\b|^\s*\w+\s*=", re.MULTILINE
)

# Starts the runner as a process that shares nothing with the check, with the same order of sets each time.
CHECK = """
import os, sys
folder = sys.argv[1]
command = [sys.executable, "-s", "-B", folder + "/trial.py", folder]
opened = [(os.POSIX_SPAWN_OPEN, 0, folder + "/cases", os.O_RDONLY, 0)]
pid = os.posix_spawn(command[0], command, {**os.environ, "PYTHONHASHSEED": "0"}, file_actions=opened)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@dataclass(frozen=True)
class Outcome:
    """What one case came to.

    end: one of the words in `trial`, or SKIPPED. value: what was returned or printed, where the end is VALUE.
    error: the error's own line. frames: (line, function, text) of the agent's own code. found: functions there are.
    case: the arguments, where the runner chose them.
    """

    end: str
    value: Any = None
    error: str = ""
    frames: tuple[tuple[int, str, str], ...] = ()
    found: tuple[str, ...] = ()
    case: tuple[Any, ...] = ()


def code_in(action: str, name: str | None = None) -> str:
    """The code that an answer holds: of its Markdown fences the last that defines `name`, or else the last; without a
    fence the whole text. Thoughts up to `</think>` are left out, and a fence that was cut off counts."""
    text = action.rpartition("</think>")[2].encode(errors="replace").decode()
    found = (re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in FENCE.findall(text))
    blocks = [block for block in found if block.strip()]
    defines = re.compile(rf"^\s*(async\s+)?def\s+{re.escape(name or '')}\b", re.MULTILINE)
    fitting = [block for block in blocks if name and defines.search(block)]
    return str((fitting or blocks or [text])[-1])


def is_no_code(action: str) -> bool:
    """Whether an answer holds nothing that was meant as code: nothing at all, or words without a fence, none of which
    begins a line as Python does, and over the first line of which Python stumbles."""
    if blocks := FENCE.findall(action.rpartition("</think>")[2]):
        return not any(block.strip() for _, block in blocks)
    code = code_in(action).strip()
    if not code or STATEMENT.search(code):
        return not code
    try:
        ast.parse(code)
    except SyntaxError as error:
        return error.lineno == 1
    except (ValueError, RecursionError, MemoryError):  # NUL, or a knot: for the tests to say
        pass
    return False


def files_of(source: str, name: str | None, seconds: float) -> dict[str, str]:
    """The files that `trial.py` works from, itself included, for `verify`."""
    job = json.dumps({"name": name, "seconds": seconds, "bytes": ANSWER_BYTES})
    return {"trial.py": Path(trial.__file__).read_text(), "job.json": job, trial.FILE: source}


def tried(
    ground: Sandbox, empty: bytes, source: str, name: str | None, cases: Sequence[Any], seconds: float
) -> list[Outcome]:
    """The outcome of each case, in order. The ground is reset first; `empty` is a snapshot of a clean work folder.

    cases: a list of arguments each (name is that of a function), or a program's input (name is None).
    seconds: for all cases together. After one that ran out of them, or code that does not compile, none is run.

    Raises:
        SandboxError: the cases could not be begun; nothing has been learned about the code.
    """
    lines = "".join(f"{json.dumps(trial.encode(case))}\n" for case in cases)
    files = {**files_of(source, name, seconds), "cases": lines}
    verdict = verify(ground, empty, CHECK, files, timeout=seconds + SLACK_S)
    said = begun(verdict)
    if not verdict.passed:
        return [Outcome(trial.DIED, error=UNENDED)] * len(cases)
    outcomes = [outcome_of(line) for line in said[: len(cases)]]
    return outcomes + [Outcome(SKIPPED)] * (len(cases) - len(outcomes))


def begun(verdict: Verdict) -> list[str]:
    """The lines that followed the first, which says that everything stood ready before any of the agent's code ran.

    Raises:
        SandboxError: there is no such line.
    """
    first, *said = verdict.result.text.split("\n")[:-1] or [""]
    if first != json.dumps({"end": trial.READY}):
        raise SandboxError(f"the tests could not be begun: {verdict.result.stderr.decode(errors='replace')[-500:]}")
    return said


def outcome_of(line: str) -> Outcome:
    """What the sandbox said of a case. The agent's code may have written this."""
    try:
        told = json.loads(line)
        return Outcome(
            str(told["end"]),
            trial.decode(told.get("value")),
            str(told.get("error", "")),
            tuple((int(number), str(name), str(text)) for number, name, text in told.get("frames", ())),
            tuple(str(name) for name in told.get("found", ())),
            tuple(trial.decode(told.get("case", []))),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Outcome(trial.DIED, error="an unreadable report")


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal in structure and type; floats up to a relative 1e-9."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        kinds = {(type(key), key): item for key, item in other.items()}
        return len(one) == len(other) and all(
            (type(key), key) in kinds and same(item, kinds[type(key), key]) for key, item in one.items()
        )
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def same_text(one: Any, other: Any) -> bool:
    """Whether two printed texts are equal, blanks at the ends of lines and blank lines at the end apart."""
    return isinstance(one, str) and isinstance(other, str) and _printed(one) == _printed(other)


def _printed(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n").split("\n")


def brief(value: Any, limit: int = SHOWN) -> str:
    """A value as Python writes it, or a text as it is, cut in the middle."""
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= limit else f"{text[: (limit + 1) // 2]} ... {text[len(text) - limit // 2 :]}"


def shown(value: Any) -> str:
    """`repr`, or in words what has none."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return "a number too long, or too deep a structure, to show"


def called(name: str, arguments: Sequence[Any]) -> str:
    """A call as one writes it."""
    return f"{name}({', '.join(map(shown, arguments))})"


def described(outcome: Outcome, where: str, name: str | None, seconds: float) -> str:
    """Why a case has no value to compare, for the agent to read. where: the case in words."""
    return ENDS.get(outcome.end, _died)(outcome, brief(where), name, seconds)


def _syntax(outcome: Outcome, where: str, name: str | None, seconds: float) -> str:
    return "\n".join([brief(outcome.error), *(f"  line {line}: {text}" for line, _, text in outcome.frames if line)])


def _raised(outcome: Outcome, where: str, name: str | None, seconds: float) -> str:
    frames = [
        f"  line {line}{'' if function == '<module>' else f', in {function}'}: {text}"
        for line, function, text in outcome.frames
    ]
    return "\n".join([f"{where}: {brief(outcome.error)}", *frames])


def _missing(outcome: Outcome, where: str, name: str | None, seconds: float) -> str:
    return f"no function {name} in the answer; found {', '.join(outcome.found) or 'none'}"


def _timeout(outcome: Outcome, where: str, name: str | None, seconds: float) -> str:
    return f"{where}: no answer in time ({seconds:g} s for all tests)"


def _long(outcome: Outcome, where: str, name: str | None, seconds: float) -> str:
    return f"{where}: output too long (more than {ANSWER_BYTES} bytes)"


def _died(outcome: Outcome, where: str, name: str | None, seconds: float) -> str:
    return f"{where}: the process ended without an answer ({brief(outcome.error)})"


ENDS: Mapping[str, Callable[[Outcome, str, str | None, float], str]] = {
    trial.SYNTAX: _syntax,
    trial.RAISED: _raised,
    trial.MISSING: _missing,
    trial.TIMEOUT: _timeout,
    trial.LONG: _long,
    trial.DIED: _died,
}
