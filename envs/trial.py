"""Inside of a sandbox: an agent's code on one case after another. It runs as a script and needs the standard library.

    python3 trial.py FOLDER < CASES

FOLDER/answer.py has the agent's code; FOLDER/job.json has `name` (of the function to call, or null for a program that
reads and prints), `seconds` (for all cases together) and `bytes` (that one case may answer). Each line of CASES is the
arguments of a call, or a program's input, as JSON; each outcome is a line of JSON. The first line says `ready`.

Every case runs in a child of its own, forked from a process that has not run any of the agent's code. Nothing here
knows what is expected: whoever reads the outcomes compares, so that an answer which takes this process over can only
say what it could have returned.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import types
from typing import Any

FILE = "answer.py"
READY, VALUE, RAISED, SYNTAX, MISSING, TIMEOUT, LONG, DIED = (
    "ready", "value", "raised", "syntax", "missing", "timeout", "long", "died",
)  # fmt: skip
LAST = (SYNTAX, MISSING, TIMEOUT)  # after these no other case can tell more
FRAMES, WORDS = 3, 300  # frames of a traceback, characters of a message


def encode(value: Any) -> Any:
    """A value as JSON that keeps lists, tuples, sets and dictionaries apart; what is no plain data becomes its type's
    name. A subclass counts as what it is built on."""
    if value is None or value is True or value is False:
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for name, kinds in (("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, kinds):
            return {name: [encode(item) for item in value]}
    return {"other": value.name if isinstance(value, Other) else type(value).__name__}


def main() -> None:
    folder, sys.path = sys.argv[1], sys.path[1:]  # nothing that the code imports comes from here
    with open(f"{folder}/job.json", encoding="utf-8") as file:
        job = json.load(file)
    with open(f"{folder}/{FILE}", encoding="utf-8", newline="") as file:
        source = file.read()
    deadline = time.monotonic() + job["seconds"]
    _say({"end": READY})
    with open(0, "rb", closefd=False) as cases:
        for line in cases:
            outcome = _tried(source, job["name"], json.loads(line), deadline, job["bytes"])
            _say(outcome)
            if outcome["end"] in LAST:
                break


def _say(outcome: dict[str, Any]) -> None:
    data = f"{json.dumps(outcome)}\n".encode()
    while data:
        data = data[os.write(1, data) :]


def _tried(source: str, name: str | None, case: Any, deadline: float, limit: int) -> dict[str, Any]:
    """What one case came to, in a child that is gone afterwards."""
    given, said, report = (os.memfd_create(word) for word in ("given", "said", "report"))
    try:
        if name is None:
            os.write(given, case.encode())
            os.lseek(given, 0, os.SEEK_SET)
        child = os.fork()
        if not child:
            _be_the_child(source, name, case, limit, (given, said, report))
        code = _wait(child, deadline)
        told, printed = os.pread(report, limit, 0), os.pread(said, limit, 0)
    finally:
        for fd in (given, said, report):
            os.close(fd)
    if code is None:
        return {"end": TIMEOUT}
    if max(len(told), len(printed)) >= limit:
        return {"end": LONG}
    if not told and not (name is None and code == 0):
        how = f"exit status {code}" if code >= 0 else f"signal {-code}"
        return {"end": DIED, "error": how}
    try:
        outcome: dict[str, Any] = dict(json.loads(told)) if told else {"end": VALUE}
        end = str(outcome["end"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return {"end": DIED, "error": "an unreadable report"}
    if name is None and end == VALUE:
        outcome["value"] = printed.decode(errors="replace")
    return outcome


def _wait(child: int, deadline: float) -> int | None:
    """The status of a child, or None where it was ended for being late. Its own session ends with it."""
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    in_time = poll.poll(max(deadline - time.monotonic(), 0) * 1000)
    os.close(handle)
    for end in (os.killpg, os.kill):  # before it is collected, so that the number is still its own
        try:
            end(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if in_time else None


def _be_the_child(source: str, name: str | None, case: Any, limit: int, fds: tuple[int, int, int]) -> None:
    """Runs the case, writes the report and ends the process."""
    try:
        os.setsid()
        given, said, report = fds
        nothing = os.open(os.devnull, os.O_WRONLY)
        for fd, place in ((given, 0), (said, 1), (nothing, 2)):
            os.dup2(fd, place)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        told = _text(_outcome(source, name, case), source).encode()
        while told:
            told = told[os.write(report, told) :]
    finally:
        os._exit(0)  # threads and all


def _text(outcome: dict[str, Any], source: str) -> str:
    try:
        return json.dumps(outcome)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, say
        return json.dumps(_raised(error, source))


def _outcome(source: str, name: str | None, case: Any) -> dict[str, Any]:
    try:
        code = compile(source, FILE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return _unreadable(error)
    module = types.ModuleType("answer" if name else "__main__")
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
        if name is None:
            sys.stdout.flush()
            return {"end": VALUE}
        function = vars(module).get(name)
        if not callable(function):
            return {"end": MISSING, "found": [key for key, item in vars(module).items() if _own(item)][:8]}
        return {"end": VALUE, "value": encode(function(*decode(case)))}
    except SystemExit as error:
        if name is None and error.code in (None, 0):
            sys.stdout.flush()
            return {"end": VALUE}
        return _raised(error, source)
    except BaseException as error:
        return _raised(error, source)


def decode(data: Any) -> Any:
    """The value that `encode` was given; what was no plain data is an `Other`."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, items),) = data.items()
    if kind == "other":
        return Other(str(items))
    if kind == "dict":
        return {decode(key): decode(item) for key, item in items}
    return {"tuple": tuple, "set": set}[kind](decode(item) for item in items)


class Other:
    """Something that is no plain data. It equals nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<a {self.name[:40]}>"


def _own(item: Any) -> bool:
    return isinstance(item, types.FunctionType) and item.__module__ == "answer"


def _unreadable(error: BaseException) -> dict[str, Any]:
    line = getattr(error, "lineno", None) or 0
    text = (getattr(error, "text", None) or "").strip("\n")[:WORDS]
    message = getattr(error, "msg", None) or str(error)
    return {"end": SYNTAX, "error": f"{type(error).__name__}: {message}"[:WORDS], "frames": [[line, "", text]]}


def _raised(error: BaseException, source: str) -> dict[str, Any]:
    """The error in a line, and the frames that are the agent's own: the outermost, and the innermost ones."""
    found, trace, lines = [], error.__traceback__, source.splitlines()
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE:
            found.append((trace.tb_lineno, trace.tb_frame.f_code.co_name))
        trace = trace.tb_next
    if len(found) > FRAMES:
        found = [found[0], *found[1 - FRAMES :]]
    frames = [[line, name, lines[line - 1].strip()[:WORDS] if 0 < line <= len(lines) else ""] for line, name in found]
    words = str(error)[:WORDS]
    return {"end": RAISED, "error": type(error).__name__ + (f": {words}" if words else ""), "frames": frames}


if __name__ == "__main__":
    main()
