"""Harbor's task folders, read and written.

    NAME/task.toml  NAME/instruction.md  NAME/environment/Dockerfile  NAME/tests/test.sh  NAME/solution/solve.sh

The format is that of harbor 0.25 on PyPI (schema 1.4).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retort.envs.base import TaskRef, TextEnv, UsageError, checked_split, content_digest
from retort.sandboxes.base import FileState

Files = Mapping[str, FileState]


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


def ref_of(task: HarborTask) -> TaskRef:
    """The task's name for ever. Raises UsageError as `wants` does."""
    metadata = table_of(task.config, "metadata", task.name)
    split = checked_split(metadata.get("retort_split", "test"))
    return TaskRef(task.name, task.digest, split, str(metadata.get("retort_family", "")))


def table_of(config: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    """A table of task.toml, empty where there is none. Raises UsageError for what is none."""
    found = config.get(key, {})
    if not isinstance(found, Mapping):
        raise UsageError(f"{name}: task.toml: expected a table [{key}], found {found!r}")
    return found


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
    if "Dockerfile" not in held["environment"] and not table_of(config, "environment", str(folder)).get("docker_image"):
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
