"""The folder of a run: configuration, manifest, metrics, rollouts and checkpoints.

A checkpoint is written beside its place and renamed into it, so that what has a checkpoint's name is whole. Its
`progress.json` holds the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from retort.agents.record import manifest, write_json, write_whole
from retort.algos.config import ConfigError, TrainConfig, dump, read
from retort.envs.base import UsageError
from safetensors import SafetensorError


class CheckpointError(UsageError):
    """A checkpoint that is not whole; the message names the file and the newest whole one."""


@dataclass(frozen=True)
class Run:
    """One run folder. `step` counts finished updates."""

    folder: Path
    config: TrainConfig

    @staticmethod
    def create(folder: Path, config: TrainConfig) -> Run:
        """A new run. Raises ConfigError when the folder already holds one."""
        if (folder / "config.toml").exists():
            raise ConfigError(f"{folder} already holds a run: go on with it (--resume {folder}) or name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        write_json(folder / "manifest.json", manifest())
        write_whole(folder / "config.toml", tomli_w.dumps(dump(config)).encode())
        return Run(folder, config)

    @staticmethod
    def open(folder: Path) -> Run:
        """A run that exists. Raises ConfigError when there is none."""
        if not (folder / "config.toml").is_file():
            raise ConfigError(f"{folder}: expected a run folder with config.toml, found none")
        return Run(folder, read(folder / "config.toml"))

    @staticmethod
    def create_or_open(folder: Path, config: TrainConfig) -> Run:
        """The run in `folder` where it has this very configuration, or a new one.

        Raises:
            ConfigError: the folder holds a run of another configuration.
        """
        if not (folder / "config.toml").exists():
            return Run.create(folder, config)
        run = Run.open(folder)
        if dump(run.config) != dump(config):
            raise ConfigError(f"{folder} holds a run of another configuration: remove it or name another folder")
        return run

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines so far, a line that was cut by a crash excepted."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def warnings(self) -> list[str]:
        """Which known failures set in so far, in words."""
        return [text for line in self.metrics() for text in line.get("warnings", ())]

    def rewind(self, step: int) -> None:
        """Forgets metrics of steps after `step`, which will be done again."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_whole(self.folder / "metrics.jsonl", "".join(kept).encode())

    def rollouts(self, step: int) -> Path:
        """Where the episodes of a step lie."""
        return self.folder / "rollouts" / f"step-{step:06d}.parquet"

    def signals(self, step: int) -> Path:
        """Where what a step did to every token lies."""
        return self.folder / "signals" / f"step-{step:06d}.parquet"

    def signal_steps(self) -> list[int]:
        """The steps whose signals were stored, in order."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("signals/step-*.parquet"))

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(path for path in (self.folder / "checkpoints").glob("step-*") if path.is_dir())

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Lets `write` fill a folder, seals it, and makes it the checkpoint of `step`. Old ones over `keep` go.

        Raises:
            OSError: the disk is full, or the like; earlier checkpoints are as they were.
        """
        place = self.folder / "checkpoints" / f"step-{step:06d}"
        fresh = place.with_name(f".{place.name}.partial")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            write(fresh)
            files = {path.name: digest(path) for path in sorted(fresh.iterdir())}
            write_json(fresh / "progress.json", {"step": step, "files": files})
            _sync(fresh)
            if place.exists():
                shutil.rmtree(place)
            fresh.rename(place)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
            shutil.rmtree(fresh, ignore_errors=True)
            last = next(reversed(self.checkpoints()), None)
            raise OSError(f"could not save step {step} ({error}); the last whole checkpoint is {last}") from error
        for old in self.checkpoints()[: -self.config.keep]:
            shutil.rmtree(old)
        return place


def check(folder: Path) -> int:
    """The step of a checkpoint whose every file is as it was written.

    Raises:
        CheckpointError: a file is missing or changed; it is named, and so is the newest whole checkpoint beside it.
    """
    fault = _fault(folder)
    if fault is None:
        step: int = json.loads((folder / "progress.json").read_text())["step"]
        return step
    whole = [path for path in sorted(folder.parent.glob("step-*")) if path != folder and _fault(path) is None]
    advice = (
        f"the newest whole one is {whole[-1]}: remove {folder} to go on from there" if whole else "no other is whole"
    )
    raise CheckpointError(f"checkpoint {folder} is corrupted: {fault}; {advice}")


def _fault(folder: Path) -> str | None:
    try:
        told = json.loads((folder / "progress.json").read_text())
        files, _ = dict(told["files"]), int(told["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"progress.json cannot be read ({type(error).__name__})"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest(folder / name) != expected:
            return f"{name} has changed since it was written"
    return None


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
