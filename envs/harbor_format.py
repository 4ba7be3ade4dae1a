"""Harbor's task folders: read, written, and held to what can be honoured here.

    NAME/task.toml  NAME/instruction.md  NAME/environment/Dockerfile  NAME/tests/test.sh  NAME/solution/solve.sh

The format is that of harbor 0.25 on PyPI (schema 1.4). What Harbor has no word for stands in `[metadata]`, which it
leaves to everybody; `Wants` says what each of our keys there means.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retort.envs.base import Split, TaskRef, TextEnv, UsageError, checked_split, content_digest, nearest
from retort.sandboxes.base import FileState, Limits, Preferred

Files = Mapping[str, FileState]
SCOPES = ("work", "answer", "machine")
SANDBOXES = ("docker", "bwrap")
KEYS = ("scope", "root", "sandbox", "split", "family", "answer", "places", "hint")


@dataclass(frozen=True)
class HarborTask:
    """One task, whole. Files are named relative to their own folder.

    config: task.toml. context: environment/, the Dockerfile among it. near_misses: plans that fail; no folder has any.
    """

    name: str
    instruction: str
    config: Mapping[str, Any]
    context: Files
    tests: Files
    solution: Files = field(default_factory=dict)
    near_misses: tuple[tuple[str, ...], ...] = ()

    @property
    def digest(self) -> str:
        """Changes with everything that one could see of the task, near misses aside."""
        files = {
            place: {name: [state.kind, state.mode & 0o777, state.data.hex()] for name, state in held.items()}
            for place, held in (("context", self.context), ("tests", self.tests), ("solution", self.solution))
        }
        return content_digest([self.instruction, dict(self.config), files])


@dataclass(frozen=True)
class Wants:
    """What a task.toml asks for. Keys of ours are `retort_...` in `[metadata]`.

    scope (retort_scope): what is graded. "work": the work folder alone, copied into a sandbox that the agent never was
        in. "answer": nothing but the answer, in such a sandbox. "machine": all of the agent's container, in which the
        tests run once all its processes have been ended; what it made of bash and the like they run too.
    root (retort_root): whether the agent is root of its container; a "machine" has such a one, the others need it not.
    sandbox (retort_sandbox): "docker", or "bwrap" where the Dockerfile can be followed on this machine's own programs.
    answer (retort_answer): the file in which the agent may write an answer; `submit` writes it too.
    places (retort_places): folders beside the work folder in which files may be written.
    agent_s, verifier_s: seconds for all commands of the agent, and for the tests.
    """

    scope: str
    root: bool
    sandbox: str
    split: Split
    family: str
    answer: str | None
    places: tuple[str, ...]
    hint: str
    agent_s: float
    verifier_s: float
    workdir: str | None
    image: str | None
    env: Mapping[str, str]
    verifier_env: Mapping[str, str]
    solution_env: Mapping[str, str]
    limits: Limits


def ref_of(task: HarborTask) -> TaskRef:
    """The task's name for ever. Raises UsageError as `wants` does."""
    metadata = _table(task.config, "metadata", task.name)
    split = checked_split(metadata.get("retort_split", "test"))
    return TaskRef(task.name, task.digest, split, str(metadata.get("retort_family", "")))


def wants(task: HarborTask, *, offline: bool = False) -> Wants:
    """Reads a task's configuration. offline: a task that asks for the network by name is run without one.

    Raises:
        UsageError: a key that cannot be honoured here, or a value that is none; the message names task and key.
    """
    name = task.name
    metadata, environment, agent, verifier, solution = (
        _table(task.config, key, name) for key in ("metadata", "environment", "agent", "verifier", "solution")
    )
    for key in (key for key in metadata if str(key).startswith("retort_")):
        if key.removeprefix("retort_") not in KEYS:
            raise UsageError(f"{name}: unknown key metadata.{key}; {nearest(key, [f'retort_{own}' for own in KEYS])}")
    for path, refused in REFUSED.items():
        where, _, last = path.rpartition(".")
        value = (_table(task.config, where, name) if where else task.config).get(last)
        if value and (why := refused(value)):
            raise UsageError(f"{name}: {path} = {value!r} cannot be honoured: {why}")
    network = environment.get("network_mode") or ("public" if environment.get("allow_internet") else None)
    if network in ("public", "allowlist") and not offline:
        raise UsageError(f"{name}: it asks for the network, and sandboxes have none; offline=True runs it all the same")
    scope = _one_of(metadata.get("retort_scope", "work"), SCOPES, f"{name}: metadata.retort_scope")
    root = metadata.get("retort_root", scope == "machine")
    if root is not True and (root is not False or scope == "machine"):
        raise UsageError(f"{name}: metadata.retort_root: expected a boolean, true for a machine, found {root!r}")
    answer = metadata.get("retort_answer")
    if scope == "answer" and answer is None:
        raise UsageError(f"{name}: retort_scope = 'answer' needs retort_answer, the file of the answer")
    if answer is not None and not str(answer).startswith("/"):
        raise UsageError(f"{name}: metadata.retort_answer: expected an absolute path, found {answer!r}")
    places = metadata.get("retort_places", [])
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise UsageError(f"{name}: metadata.retort_places: expected a list of folders, found {places!r}")
    return Wants(
        scope=scope,
        root=root,
        sandbox=_one_of(metadata.get("retort_sandbox", "docker"), SANDBOXES, f"{name}: metadata.retort_sandbox"),
        split=checked_split(metadata.get("retort_split", "test")),
        family=str(metadata.get("retort_family", "")),
        answer=answer,
        places=tuple(places),
        hint=str(metadata.get("retort_hint", "")),
        agent_s=_seconds(agent, f"{name}: agent"),
        verifier_s=_seconds(verifier, f"{name}: verifier"),
        workdir=environment.get("workdir"),
        image=environment.get("docker_image"),
        env=_variables(environment, f"{name}: environment"),
        verifier_env=_variables(verifier, f"{name}: verifier"),
        solution_env=_variables(solution, f"{name}: solution"),
        limits=_limits(environment, name),
    )


def _unless(*allowed: object) -> Callable[[object], str]:
    return lambda value: "" if value in allowed else f"expected {' or '.join(repr(one) for one in allowed)}"


def _because(why: str) -> Callable[[object], str]:
    return lambda _: why


# What a value of a key means that nothing here can do: (value) -> why, or "" where it can.
REFUSED: Mapping[str, Callable[[object], str]] = {
    "steps": _because("tasks of several steps are not supported"),
    "agent.user": _because("who the agent is hangs on retort_root"),
    "verifier.user": _because("the tests run as whoever the agent is"),
    "verifier.environment": _because("the tests run in the task's own environment, fresh unless it is a 'machine'"),
    "verifier.environment_mode": _unless("shared"),
    "environment.os": _unless("linux"),
    "environment.gpus": _because("no sandbox has a GPU"),
    "environment.tpu": _because("no sandbox has a TPU"),
    "environment.mcp_servers": _because("an agent has a shell and no MCP client"),
    "environment.skills_dir": _because("an agent has a shell and no skills"),
    "environment.healthcheck": _because("there is none here; an ENTRYPOINT is waited for until it runs its command"),
}


def _table(config: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    found = config.get(key, {})
    if not isinstance(found, Mapping):
        raise UsageError(f"{name}: task.toml: expected a table [{key}], found {found!r}")
    return found


def _one_of(value: object, valid: tuple[str, ...], what: str) -> str:
    if value not in valid:
        raise UsageError(f"{what}: found {value!r}; {nearest(str(value), valid)}")
    return str(value)


def _seconds(table: Mapping[str, Any], what: str) -> float:
    value = table.get("timeout_sec", 600.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UsageError(f"{what}.timeout_sec: expected a number of seconds above 0, found {value!r}")
    return float(value)


def _variables(table: Mapping[str, Any], what: str) -> dict[str, str]:
    """`env`, with ${NAME} and ${NAME:-default} as this process has them."""
    found = {}
    for name, value in _table(table, "env", what).items():
        text = str(value)
        if text.startswith("${") and text.endswith("}"):
            asked, given, default = text[2:-1].partition(":-")
            if asked not in os.environ and not given:
                raise UsageError(f"{what}.env.{name}: the variable {asked} is not set")
            text = os.environ.get(asked, default)
        found[name] = text
    return found


def _limits(environment: Mapping[str, Any], name: str) -> Limits:
    """Numbers of the task are demands: a sandbox that cannot hold one refuses it."""
    asked: dict[str, Any] = {"memory_mb": Preferred(2048), "disk_mb": Preferred(512), "pids": Preferred(256)}
    for key, limit, old in (
        ("cpus", "cpus", ""),
        ("memory_mb", "memory_mb", "memory"),
        ("storage_mb", "disk_mb", "storage"),
    ):
        value = environment.get(key, _old_size(environment.get(old), f"{name}: environment.{old}"))
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise UsageError(f"{name}: environment.{key}: expected a number above 0, found {value!r}")
        asked[limit] = value if key == "cpus" else int(value)
    return Limits(**asked)


def _old_size(value: object, what: str) -> int | None:
    """MiB from the older way to say it: "2G", "512M"."""
    if value is None:
        return None
    units = {"G": 1024.0, "M": 1.0, "K": 1 / 1024}
    text = str(value).strip().upper()
    try:
        return int(float(text[:-1]) * units[text[-1:]])
    except (KeyError, ValueError):
        raise UsageError(f"{what}: expected a size such as '2G', found {value!r}") from None


def read_task(folder: Path, name: str | None = None) -> HarborTask:
    """One task from its folder. name: its key; the folder's own name by default.

    Raises:
        UsageError: a file is missing or is not what it should be.
    """
    for needed in ("task.toml", "instruction.md", "tests/test.sh"):
        if not (folder / needed).is_file():
            raise UsageError(f"{folder}: expected a task in Harbor's format, found no {needed}")
    try:
        config = tomllib.loads((folder / "task.toml").read_text())
        instruction = (folder / "instruction.md").read_text()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder}: a file cannot be read: {error}") from error
    if (folder / "environment" / "docker-compose.yaml").exists():
        raise UsageError(f"{folder}: tasks of several containers (docker-compose.yaml) are not supported")
    held = {place: _read_files(folder / place) for place in ("environment", "tests", "solution")}
    if "Dockerfile" not in held["environment"] and not _table(config, "environment", str(folder)).get("docker_image"):
        raise UsageError(f"{folder}: expected environment/Dockerfile, or environment.docker_image in task.toml")
    return HarborTask(name or folder.name, instruction, config, held["environment"], held["tests"], held["solution"])


def read_tasks(folder: Path) -> dict[str, HarborTask]:
    """Every task at or below a folder, by its path relative to it, sorted.

    Raises:
        UsageError: there is none, or one that cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of tasks in Harbor's format, found none")
    places = sorted(path.parent for path in folder.rglob("task.toml"))
    if not places:
        raise UsageError(f"{folder}: expected folders with a task.toml, found none")
    names = {place: str(place.relative_to(folder)) if place != folder else folder.resolve().name for place in places}
    return {name: read_task(place, name) for place, name in names.items()}


def write_task(task: HarborTask, folder: Path) -> Path:
    """Writes `folder/NAME` for any harness that reads Harbor's format, and returns it.

    Raises:
        UsageError: it is there already.
    """
    import tomli_w

    place = folder / task.name
    if place.exists():
        raise UsageError(f"{place}: expected no such folder yet; a task is never written over another")
    place.mkdir(parents=True)
    (place / "task.toml").write_text(tomli_w.dumps(dict(task.config)))
    (place / "instruction.md").write_text(task.instruction)
    for name, files in (("environment", task.context), ("tests", task.tests), ("solution", task.solution)):
        (place / name).mkdir()
        for path, state in sorted(files.items()):
            _write(place / name / path, state)
    return place


def export_tasks(env: TextEnv, refs: Iterable[TaskRef], folder: Path, image: str | None = None) -> list[Path]:
    """Writes an environment's tasks below `folder`, one folder each. image: what their Dockerfiles start from instead.

    Raises:
        UsageError: the environment's tasks cannot be said in this format, or one is there already.
    """
    made = []
    for ref in refs:
        task = env.export(ref.key)
        if task is None:
            raise UsageError(f"{type(env).__name__} cannot be exported: its `export` gives no task for {ref.key!r}")
        made.append(write_task(_based_on(task, image) if image else task, folder))
    return made


def _based_on(task: HarborTask, image: str) -> HarborTask:
    file = task.context["Dockerfile"]
    text = re.sub(rb"^FROM\s+\S+", b"FROM " + image.encode(), file.data, count=1, flags=re.MULTILINE)
    return replace(task, context={**task.context, "Dockerfile": replace(file, data=text)})


def script(text: str) -> FileState:
    """A file that is run."""
    return FileState("file", 0o755, text.encode())


def _read_files(folder: Path) -> dict[str, FileState]:
    found: dict[str, FileState] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        mode = path.lstat().st_mode & 0o7777
        if path.is_symlink():
            state = FileState("link", 0o777, os.readlink(path).encode())
        else:
            state = FileState("directory", mode) if path.is_dir() else FileState("file", mode, path.read_bytes())
        found[str(path.relative_to(folder))] = state
    return found


def _write(path: Path, state: FileState) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if state.kind == "link":
        path.symlink_to(os.fsdecode(state.data))
    elif state.kind == "directory":
        path.mkdir(exist_ok=True)
        path.chmod(state.mode)
    else:
        path.write_bytes(state.data)
        path.chmod(state.mode)
