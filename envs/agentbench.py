"""`retort/AgentBenchOS-v0`: the shell tasks of AgentBench, read from inspect-evals as tasks in Harbor's format.

Questions about a prepared machine, answered with `submit ANSWER`, and changes to be made on it. What inspect-evals does
with a task is kept: paths below /root and /usr become /home/agent, which is home and work folder; init scripts run
there; the check is the task's own. Three things differ. The expected answer is found where the agent never
was, so that one cannot change the machine until the answer is easy. Random content is the same each time. Neither agent
nor check has a login shell: what the agent wrote into a profile would run with the check. The data's 119 test tasks are
in the split test, its 26 dev tasks in validation.

Source: Liu et al., AgentBench (arXiv:2308.03688), in inspect-evals 0.26.0 (MIT).
"""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retort.envs.arguments import spelled
from retort.envs.base import Split, UsageError, missing
from retort.envs.harbor import HarborEnv
from retort.envs.harbor_format import Files, HarborTask, script
from retort.envs.harbor_wants import Wants
from retort.sandboxes.base import FileState

INSTALL = "pip install --no-deps inspect-evals==0.26.0"
SCRIPTS = "data/os_interaction/scripts of a clone of github.com/THUDM/AgentBench"
HOME = "/home/agent"
ANSWER = "/tmp/answer.txt"
DATA = {"agent_bench_os.json": "dev", "agent_bench_os_test.json": "test"}
SPLIT = {"dev": "validation", "test": "test"}
HOW = (
    "Submit just the answer: a bare integer for counts and numbers, or the exact string asked for. Where a script or a "
    f"command is asked for, run it and submit its output. To submit is to write the answer into {ANSWER}."
)

# Why a task is left out: it cannot be had here as it was meant.
IMAGE = "its fixed answer is a property of the original image"
LEFT_OUT: Mapping[tuple[str, int], str] = {
    **{("dev", index): IMAGE for index in (8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 23)},
    ("dev", 24): "its agent is a second user",
    **{("test", index): "it installs sudo from the network" for index in (33, 34)},
    ("test", 38): "it counts what has bash in its name, which a sandbox's own processes do",
}
# Changes that are made by root, all over a machine; and questions about a machine that root has set up.
MACHINES = {("dev", 3), ("dev", 5), ("test", 19), ("test", 20), ("test", 30), ("test", 35)}
ROOTS = {("test", 28), ("test", 29), ("test", 37), ("test", 41), ("test", 112)}
# These ask about a system as an image is one: is npm installed, what is in /var/log?
SYSTEMS = {("dev", 22), ("test", 74), ("test", 104)}
# The agent makes the files that it is asked about: the answer is checked against its own.
OWN_FILES = {("test", index) for index in (57, 62, 71, 85, 113)}

# Random content is the same at each reset. Bash's own RANDOM is another one in each subshell, whatever was set before.
DRAW = "((drawn = (drawn * 1103515245 + 12345) % 2147483648) / 65536)"
NOISE = "/tmp/noise"  # in the place of /dev/urandom
# What runs behind has become the program that it shall be.
STARTED = """for pid in $(jobs -p); do
  while read -r name < /proc/$pid/comm && [[ $name = bash || $name = runuser ]]; do sleep 0.01; done 2>/dev/null
done
exec "$@"
"""
AT_HOME = f'bash -c "cd {HOME} && $(cat "$1")"'
# How a task is checked: test.sh by the shape of its check. Answers may count the processes that are older than the one
# above them, so the reference runs right below test.sh, and a solution in the place of solve.sh.
QUESTION = """#!/bin/bash
answer=$(cat {answer} 2>/dev/null) || {{ echo "expected an answer; found none"; exit 1; }}
{expected} || {{ echo "the reference solution failed"; exit 1; }}
{match} && exit 0
echo "expected $expected; found $answer"
exit 1
"""
CHANGE = f"""#!/bin/bash
set -- /tests/check.sh
{AT_HOME} && exit 0
echo "expected the task's check to pass; found that it failed"
exit 1
"""
ANSWERS = f"#!/bin/bash\nset -- /solution/example.sh\nexec {AT_HOME} > {ANSWER}\n"
DOES = f"#!/bin/bash\nset -- /solution/example.sh\n{AT_HOME}\n"

PROGRAMS = "chgrp comm du file fold getent groupadd groups nl nproc paste runuser su tac useradd usermod who whoami"
MAKING = threading.Lock()


class AgentBenchEnv(HarborEnv):
    """AgentBench's OS tasks.

    split: "test" or "validation" (the data's dev). sandbox: "bwrap"; or "docker", for an image of this machine's own
    programs, in which the tasks run too that want root; or "docker:IMAGE". scripts: data/os_interaction/scripts of a
    clone of github.com/THUDM/AgentBench: the init scripts of 11 more tasks, which inspect-evals does not hold. The rest
    is as in HarborEnv.

    Raises:
        MissingPackage: inspect-evals is not installed.
        UsageError: an unknown value.
    """

    needs = {}  # noqa: RUF012
    counts = {"train": 0, "validation": 8, "test": 95}  # noqa: RUF012
    packages = {"inspect_evals": INSTALL}  # noqa: RUF012

    def __init__(
        self,
        split: Split = "test",
        sandbox: str = "bwrap",
        scripts: str | Path | None = None,
        only: Sequence[str] | None = None,
        max_turns: int = 30,
        command_s: float = 60.0,
        observation_chars: int = 2000,
        explain: bool = True,
    ) -> None:
        self._root = str(sandbox).startswith("docker")
        super().__init__(scripts, split, sandbox, only, False, max_turns, command_s, observation_chars, explain)

    def _load(self, folder: str | Path | None) -> Mapping[str, HarborTask]:
        found = load(Path(folder) if folder is not None else None)
        return {key: task for key, task in found.items() if self._root or _metadata(task)["retort_sandbox"] == "bwrap"}

    def _absent(self, name: str, found: Mapping[str, HarborTask]) -> str:
        part, _, index = name.partition("-")
        place = (part, int(index) if index.isdigit() else -1)
        if place not in records():
            return super()._absent(name, found)
        if place in LEFT_OUT:
            return f"task {name!r} is left out: {LEFT_OUT[place]}"
        if place in MACHINES | ROOTS | SYSTEMS:
            return f"task {name!r} wants more than bubblewrap has: --env-arg sandbox=docker"
        return f"task {name!r} begins with a script of {SCRIPTS}: {spelled(['scripts'])}"

    def _backend(self, asked: Wants) -> str:
        if self.sandbox != "docker":
            return super()._backend(asked)
        return f"docker:{image_of_this_machine()}"


def load(scripts: Path | None = None) -> dict[str, HarborTask]:
    """Every task that can be had here, as "dev-0006" or "test-0014". scripts: as in AgentBenchEnv.

    Raises:
        MissingPackage: inspect-evals is not installed.
        UsageError: there are no such scripts.
    """
    if scripts is not None and not list(scripts.glob("*/init")):
        raise UsageError(f"scripts: expected {SCRIPTS}, found {scripts}: {spelled(['scripts'])}")
    found: dict[str, HarborTask] = {}
    for place, record in records().items():
        init = _init(_at_home(record), scripts)
        if place not in LEFT_OUT and init is not None:
            task = _task(place, _at_home(record), init, _data() / "scripts")
            found[task.name] = task
    return found


def records() -> dict[tuple[str, int], Mapping[str, Any]]:
    """The package's data by part and number. Raises MissingPackage."""
    return {
        (part, int(record["id"])): record
        for file, part in DATA.items()
        for record in json.loads((_data() / file).read_text())
    }


def _data() -> Path:
    package = find_spec("inspect_evals")  # which takes seconds to import
    if package is None or not package.submodule_search_locations:
        raise missing("inspect_evals", INSTALL)
    return Path(package.submodule_search_locations[0], "agent_bench", "data")


def image_of_this_machine() -> str:
    """The name of an image in which the tasks can run: this machine's programs, those that manage users among them."""
    with MAKING:  # many episodes begin at once
        return _image(os.environ.get("DOCKER_HOST", ""))


@cache
def _image(_: str) -> str:
    from retort.sandboxes.docker import image_of
    from retort.sandboxes.images import PROGRAMS as USUAL
    from retort.sandboxes.images import add_logins, folder_of_this_machine

    with tempfile.TemporaryDirectory(prefix="retort-agentbench-") as folder:
        made = folder_of_this_machine(Path(folder), [*USUAL.split(), *PROGRAMS.split()])
        add_logins(made)
        (made / "root/var/log/apt").mkdir(parents=True)
        (made / "root/var/log/apt/history.log").write_text("Start-Date: 2026-01-01  00:00:00\n" * 100)
        return image_of(made)


def _at_home(value: Any) -> Any:
    """As inspect-evals does it: texts in tables, and none in lists."""
    if isinstance(value, dict):
        return {key: _at_home(part) for key, part in value.items()}
    return value.replace("/root", HOME).replace("/usr", HOME) if isinstance(value, str) else value


def _init(record: Mapping[str, Any], scripts: Path | None) -> list[str] | None:
    """The scripts that set the scene, in order; None where one is in the clone alone and there is none."""
    create = record.get("create")
    steps = create.get("init") if isinstance(create, dict) else None
    made: list[str] = []
    for step in steps if isinstance(steps, list) else [steps]:
        if isinstance(step, dict) and "file" in step:
            held = sorted(scripts.glob(f"*/{step['file']}")) if scripts else []
            if not held:
                return None
            made.append(_at_home(held[-1].read_text()))
        elif isinstance(step, dict) and "code" in step:
            made += [line for line in step["code"].split("\n") if line.strip()]
        elif isinstance(step, str):
            made.append(step)
    return made


def _task(place: tuple[str, int], record: Mapping[str, Any], init: list[str], scripts: Path) -> HarborTask:
    part, index = place
    evaluation, tests, solution = record["evaluation"], {}, {}
    example = _code(evaluation.get("example"), scripts)
    check = evaluation.get("check")
    question = check is None or (isinstance(check, list) and check[0] is None)
    if question:
        tests["test.sh"] = script(_question(evaluation))
        expected = evaluation.get("match", example)
        tests["match.txt" if "match" in evaluation else "example.sh"] = _text(str(expected))
        if check is not None:
            name = check[1]["file"]
            tests[name] = _text((scripts / name).read_text())
    else:
        tests |= {"test.sh": script(CHANGE), "check.sh": _text(_code(check, scripts))}
    if example:
        solution = {"solve.sh": script(ANSWERS if question else DOES), "example.sh": _text(example)}
    else:
        solution = {"solve.sh": script(f"#!/bin/bash\ncat > {ANSWER} <<'EOF'\n{evaluation['match']}\nEOF\n")}
    machine = place in MACHINES
    metadata: dict[str, Any] = {
        "retort_scope": "machine" if machine else "work" if not question or place in OWN_FILES else "answer",
        "retort_sandbox": "docker" if place in MACHINES | ROOTS | SYSTEMS else "bwrap",
        "retort_root": place in MACHINES | ROOTS,
        "retort_split": SPLIT[part],
        "retort_family": "question" if question else "change",
        "retort_places": ["/home"],
    }
    if question:
        metadata["retort_answer"] = ANSWER
    return HarborTask(
        f"{part}-{index:04d}",
        record["description"].strip() + (f"\n\n{HOW}\n" if question else "\n"),
        {
            "schema_version": "1.4",
            "task": {"name": f"agentbench/os-{part}-{index:04d}", "keywords": list(record.get("labels", []))},
            "metadata": metadata,
            "agent": {"timeout_sec": 600.0},
            "verifier": {"timeout_sec": 600.0},
            "environment": {"network_mode": "no-network"},
        },
        _context(record, init, place in MACHINES | ROOTS),
        tests,
        solution,
        (("submit about 3",),) if question and "integer" in str(check) else (),
    )


def _question(evaluation: Mapping[str, Any]) -> str:
    check = evaluation.get("check")
    reference = f"set -- /tests/example.sh\n{AT_HOME} > /tmp/expected && expected=$(cat /tmp/expected)"
    return QUESTION.format(
        answer=ANSWER,
        expected="expected=$(cat /tests/match.txt)" if "match" in evaluation else reference,
        match=f'python3 /tests/{check[1]["file"]} "$answer" "$expected"' if check else '[ "$answer" = "$expected" ]',
    )


def _context(record: Mapping[str, Any], init: list[str], machine: bool) -> Files:
    """The Dockerfile, and the scripts that it runs; FROM is for other harnesses."""
    lines = ["FROM python:3.11-bookworm", f"WORKDIR {HOME}", f"ENV HOME={HOME}"]
    files: dict[str, FileState] = {}
    if machine:
        lines.append("RUN mkdir -p /usr/local/bin /tmp")
    if "bin/find" in json.dumps(record):
        lines.append('RUN mkdir -p bin && cp "$(command -v find)" bin/find')
    start = record.get("start", "")
    if start or (isinstance(record.get("create"), dict) and record["create"].get("init_at_start")):
        files["start.sh"] = script("\n".join([*init, start, STARTED]))
        lines += ["COPY start.sh /tmp/start.sh", 'ENTRYPOINT ["bash", "/tmp/start.sh"]']
    else:
        for number, text in enumerate(init):
            files[f"init-{number}.sh"] = script(_repeatable(text))
            path = f"/tmp/init-{number}.sh"
            lines += [f"COPY init-{number}.sh {path}", f"RUN bash --login {path} && rm {path}"]
        if any(NOISE.encode() in state.data for state in files.values()):
            files["noise"] = FileState("file", 0o644, random.Random(3).randbytes(1 << 16))
            lines = [*lines[:3], f"COPY noise {NOISE}", *lines[3:], f"RUN rm {NOISE}"]
    return {"Dockerfile": _text("\n".join(lines) + "\n"), **files}


def _repeatable(text: str) -> str:
    """An init script that draws the same each time."""
    drawn = re.sub(r"\$RANDOM\b|\$\{RANDOM\}", f"$({DRAW})", text.strip().replace("/dev/urandom", NOISE))
    return "drawn=3\n" + re.sub(r"\bRANDOM\b", DRAW, drawn) + "\n"


def _code(held: Any, scripts: Path) -> str:
    """The shell code of a check or an example, in whichever of its shapes."""
    if isinstance(held, list):
        held = held[0]
    if isinstance(held, dict):
        held = (scripts / held["file"]).read_text() if "file" in held else held.get("code")
    return str(held or "")


def _metadata(task: HarborTask) -> Mapping[str, Any]:
    found: Mapping[str, Any] = task.config["metadata"]
    return found


def _text(text: str) -> FileState:
    return FileState("file", 0o644, text.encode())
