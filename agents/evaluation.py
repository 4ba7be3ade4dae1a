"""The folder of an evaluation: its configuration, every episode, and the report.

config.json         everything that decides what is played
manifest.json       versions, host, the tasks' digest, the verifier's version
episodes/           parts that are written while the evaluation goes, so that a kill loses a few seconds of it
episodes.parquet    every episode, once all are played; then the parts go
report.json         the numbers
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from retort.agents import store
from retort.agents.base import Trajectory
from retort.agents.record import manifest, write_json
from retort.agents.report import Report
from retort.envs.base import TaskRef, UsageError, content_digest

PART, PART_S = 64, 5.0  # a part is written once it has so many episodes, or is so old


class EvalConfig(BaseModel):
    """Everything that decides what is played. context_tokens: None is what the model can read."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    env: str
    model: str
    split: str = "test"
    n: int = Field(default=1, ge=1)
    ks: tuple[int, ...] = (1,)
    limit: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    turn_tokens: int = Field(default=256, ge=1)
    context_tokens: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    env_args: dict[str, Any] = {}
    model_args: dict[str, Any] = {}
    concurrency: int = Field(default=32, ge=1)

    def name(self) -> str:
        """What a folder of it is called: environment, model and seed."""
        parts = [part for part in re.split(r"[/#:]+", self.model) if part not in ("", "checkpoints")]
        model = "-".join(parts[-2:] if parts[-1].startswith("step-") else parts[-1:])
        return re.sub(r"[^\w.-]+", "-", f"{self.env.rpartition('/')[2]}-{model}-seed{self.seed}")


@dataclass(frozen=True)
class Facts:
    """What the environment says of what is played: the tasks, and how they are graded."""

    tasks: tuple[TaskRef, ...]
    held_out: tuple[str, ...]
    verifier_version: str

    def to_json(self) -> dict[str, Any]:
        digest = content_digest([[task.key, task.digest] for task in self.tasks])
        held_out, version = list(self.held_out), self.verifier_version
        return {"tasks": len(self.tasks), "tasks_digest": digest, "verifier_version": version, "held_out": held_out}


def refuse_played(folder: Path) -> None:
    """Raises UsageError where the folder holds an evaluation."""
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} already holds an evaluation: go on with it (--resume {folder}) or name another")


@dataclass(frozen=True)
class Evaluation:
    """One folder. What is not in it yet has not been played."""

    folder: Path
    config: EvalConfig

    @staticmethod
    def create(folder: Path, config: EvalConfig, facts: Facts) -> Evaluation:
        """A new one. Raises UsageError where the folder holds one already."""
        refuse_played(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "manifest.json", {**manifest(), **facts.to_json()})
        write_json(folder / "config.json", config.model_dump(mode="json"))
        return Evaluation(folder, config)

    @staticmethod
    def named(root: Path, config: EvalConfig, facts: Facts) -> Evaluation:
        """A new one below `root` in a folder of its own, called after its configuration."""
        number, folder = 1, root / config.name()
        while True:
            try:
                folder.mkdir(parents=True)
                return Evaluation.create(folder, config, facts)
            except FileExistsError:
                number += 1
                folder = root / f"{config.name()}-{number}"

    @staticmethod
    def open(folder: Path) -> Evaluation:
        """One that exists. Raises UsageError where there is none, or its configuration is not one."""
        path = folder / "config.json"
        if not path.is_file():
            raise UsageError(f"{folder}: expected the folder of an evaluation with config.json, found none")
        try:
            return Evaluation(folder, EvalConfig.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise UsageError(f"{path}: expected the configuration of an evaluation, found {error}") from error

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        return found

    def check(self, facts: Facts) -> None:
        """Raises UsageError where the tasks, or how they are graded, are not what they were."""
        told = self.manifest
        for key, found in facts.to_json().items():
            if told[key] != found:
                raise UsageError(
                    f"{self.folder} was begun with {key} {told[key]}, found {found}: its episodes cannot be mixed with "
                    "others; evaluate anew"
                )

    def played(self) -> dict[str, Trajectory]:
        """The episodes so far, by name: the one that counts where there are several.

        Raises:
            StoreError: a file is corrupted.
        """
        found: dict[str, Trajectory] = {}
        for path in self._files():
            for item in store.read(path):
                if item.episode not in found or not found[item.episode].usable:
                    found[item.episode] = item
        return found

    def keep(self, played: Sequence[Trajectory]) -> None:
        """Writes the next part."""
        last = max((int(path.stem.rpartition("-")[2]) for path in self._parts()), default=0)
        store.write(self.folder / "episodes" / f"part-{last + 1:06d}.parquet", played)

    def finish(self, played: Sequence[Trajectory], report: Report) -> None:
        """Writes all episodes into one file, and the report."""
        store.write(self.folder / "episodes.parquet", played)
        write_json(self.folder / "report.json", report.to_json())
        shutil.rmtree(self.folder / "episodes", ignore_errors=True)

    def drop_if_empty(self) -> None:
        """Removes what `create` wrote, where nothing was played since."""
        if not list(self._files()):
            for name in ("config.json", "manifest.json"):
                (self.folder / name).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _parts(self) -> list[Path]:
        return sorted((self.folder / "episodes").glob("part-*.parquet"))

    def _files(self) -> Iterator[Path]:
        if (self.folder / "episodes.parquet").exists():
            yield self.folder / "episodes.parquet"
        yield from self._parts()


class Recorder:
    """Writes episodes down as they end."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._held: list[Trajectory] = []
        self._usable = False
        self._written = time.monotonic()

    def add(self, item: Trajectory) -> None:
        """Takes an episode, and writes a part where it is time to."""
        self._held.append(item)
        self._usable = self._usable or item.usable
        if self._usable and (len(self._held) >= PART or time.monotonic() - self._written >= PART_S):
            self._write()

    def close(self) -> None:
        """Where an evaluation breaks off: writes what is held. One of which nothing was played leaves nothing."""
        if self._usable and self._held:
            self._write()
        self._evaluation.drop_if_empty()

    def _write(self) -> None:
        self._evaluation.keep(self._held)
        self._held, self._written = [], time.monotonic()
