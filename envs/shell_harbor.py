"""A job of `retort/Shell-v0` as a task in Harbor's format: any harness that reads the format can give it to an agent.

Only what Debian's smallest image has is used. An answer is written into a file of the work folder.
"""

from __future__ import annotations

import hashlib
import shlex

from retort.envs.harbor_format import HarborTask, script
from retort.envs.shell_tasks import Task
from retort.sandboxes.base import FileState

IMAGE = "debian:bookworm-slim"
WORK = "/work"
ANSWER = "answer.txt"
TEST = f"""#!/bin/bash
# {WORK} must hold what tree.txt and sums.txt say and nothing else, and {ANSWER} what answer.txt says, if there is one.
reward=1
cd {WORK} || reward=0
list() {{ find . -mindepth 1 ! -path ./{ANSWER} -printf '%y %m %P %l\\n' | LC_ALL=C sort; }}
if ! differences=$(diff /tests/tree.txt <(list)); then
  sed -n 's/^< /expected /p; s/^> /found /p' <<< "$differences"
  reward=0
fi
if [ -s /tests/sums.txt ] && ! sha256sum --check --quiet --strict /tests/sums.txt; then reward=0; fi
if [ -f /tests/answer.txt ] && [ "$(cat {ANSWER})" != "$(cat /tests/answer.txt)" ]; then
  echo "expected the answer $(cat /tests/answer.txt); found $(head -c 40 {ANSWER})"
  reward=0
elif [ ! -f /tests/answer.txt ] && [ -e {ANSWER} ]; then
  echo "expected no {ANSWER}; found one"
  reward=0
fi
echo $reward > /logs/verifier/reward.txt
"""


def as_harbor(job: Task) -> HarborTask:
    """The job, whole. Another image than `IMAGE` needs bash, coreutils, findutils, diffutils, sed and grep."""
    name = job.key.replace("/", "-")
    lines = [f"FROM {IMAGE}", f"WORKDIR {WORK}", *([f"COPY files/ {WORK}/"] if job.files else [])]
    context = {f"files/{path}": state for path, state in job.files.items()}
    tests = {
        "test.sh": script(TEST),
        "tree.txt": _text("".join(sorted(f"{_line(path, state)}\n" for path, state in job.expected.items()))),
        "sums.txt": _text(
            "".join(
                f"{hashlib.sha256(state.data).hexdigest()}  ./{path}\n"
                for path, state in sorted(job.expected.items())
                if state.kind == "file"
            )
        ),
    }
    instruction = f"{job.instruction}\n\nWork in {WORK}. Nothing but what is asked for may change there.\n"
    commands = [
        "#!/bin/bash",
        f"cd {WORK} || exit 1",
        *(action for action in job.gold if action.split()[0] not in ENDS),
    ]
    metadata = {
        "retort_sandbox": "bwrap",
        "retort_split": job.split,
        "retort_family": job.family,
        "retort_hint": job.hint,
    }
    if job.answer is not None:
        tests["answer.txt"] = _text(f"{job.answer}\n")
        instruction += f"Write the answer, and nothing else, into {WORK}/{ANSWER}.\n"
        commands.append(f"echo {shlex.quote(job.answer)} > {ANSWER}")
        metadata["retort_answer"] = f"{WORK}/{ANSWER}"
    config = {
        "schema_version": "1.4",
        "task": {"name": f"retort/shell-{name}", "keywords": ["shell", job.family]},
        "metadata": metadata,
        "agent": {"timeout_sec": 120.0},
        "verifier": {"timeout_sec": 60.0},
        "environment": {"network_mode": "no-network"},
    }
    solution = {"solve.sh": script("\n".join(commands) + "\n")}
    files = {"Dockerfile": _text("\n".join(lines) + "\n"), **context}
    return HarborTask(name, instruction, config, files, tests, solution)


ENDS = ("done", "submit")


def _text(text: str) -> FileState:
    return FileState("file", 0o644, text.encode())


def _line(path: str, state: FileState) -> str:
    kind = {"file": "f", "directory": "d", "link": "l"}[state.kind]
    target = state.data.decode() if state.kind == "link" else ""
    return f"{kind} {state.mode:o} {path} {target}"
