"""Limits on all processes of a sandbox together, by cgroups of version 2 or 1.

Every sandbox gets a group below one called `retort`, named after the supervisor that made it (PID namespace, pid and
start time of that process), so that groups whose supervisor is dead can be told and removed, and no others.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from retort.sandboxes.base import Limits, SandboxStartupError
from retort.sandboxes.owner import is_dead, owner

ROOT = Path("/sys/fs/cgroup")
WANTED = ("memory", "pids")
PERIOD_US = 100_000
OVERHEAD = 2  # processes of ours in the group: bubblewrap and the init
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Tree:
    """Where groups can be made: for each controller the folder that holds `retort`. Version 2 has one for all."""

    version: int
    parents: dict[str, Path]


@dataclass(frozen=True)
class Group:
    """The group of one sandbox: a folder for each controller."""

    version: int
    folders: dict[str, Path]

    def joins(self) -> list[Path]:
        """The files to write a pid into."""
        return [folder / "cgroup.procs" for folder in dict.fromkeys(self.folders.values())]

    def oom_kills(self) -> int:
        """How many processes the memory limit has killed."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        for line in (self.folders["memory"] / name).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def remove(self) -> None:
        """Raises OSError when processes are still in it after a second."""
        for folder in dict.fromkeys(self.folders.values()):
            _remove(folder, 1.0)
            _remove(folder.parent, None)


def tree(root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> Tree | None:
    """Where this process may make groups that limit memory and pids; None where it may not."""
    if (root / "cgroup.controllers").exists():
        path = next(line.split(":", 2)[2] for line in own.read_text().splitlines() if line.startswith("0::"))
        here = root / path.lstrip("/")
        for parent in (root, *(above for above in (here, *here.parents) if above.is_relative_to(root))):
            # Controllers must be handed on, and moving a process needs a say in the common ancestor.
            handed = (parent / "cgroup.subtree_control").read_text().split() if parent.is_dir() else []
            if set(WANTED) <= set(handed) and _writable(parent) and os.access(parent / "cgroup.procs", os.W_OK):
                return Tree(2, dict.fromkeys(handed, parent))
        return None
    parents = {name: root / name for name in (*WANTED, "cpu") if _writable(root / name)}
    return Tree(1, parents) if set(WANTED) <= set(parents) else None


def make(where: Tree, limits: Limits) -> Group:
    """A new group with these limits.

    Raises:
        SandboxStartupError: the kernel refused it.
    """
    wanted = [name for name in (*WANTED, "cpu") if name in where.parents and (name != "cpu" or limits.cpus is not None)]
    name = f"{owner()}-{next(NUMBERS)}"
    folders = {controller: where.parents[controller] / "retort" / name for controller in wanted}
    group = Group(where.version, folders)
    try:
        for folder in dict.fromkeys(folders.values()):
            _create(folder, wanted if where.version == 2 else ())
        for file, value in _settings(where.version, limits):
            path = folders[file.split(".")[0]] / file
            if path.exists():  # swap accounting may be off
                path.write_text(value)
    except OSError as error:
        for folder in folders.values():
            _remove(folder, None)
        raise SandboxStartupError(f"a cgroup could not be made: {error}") from error
    return group


def sweep(where: Tree) -> None:
    """End what is in the groups of supervisors that are dead, which is on its way out already, and remove them."""
    dead: dict[str, bool] = {owner(): False}  # by owner, who may have many
    for top in {parent / "retort" for parent in where.parents.values()}:
        for name in os.listdir(top) if top.is_dir() else []:
            whose = "-".join(name.split("-")[:3])
            if whose not in dead:
                dead[whose] = is_dead(whose)
            if dead[whose] and (top / name).is_dir():
                _end(top / name)


def _end(folder: Path) -> None:
    """Kill what is left in a group and remove it; what cannot be ended within a second stays for the next sweep."""
    try:
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in (folder / "cgroup.procs").read_text().split():
                if pid != "0":  # who is in another PID namespace
                    os.kill(int(pid), signal.SIGKILL)
        _remove(folder, 1.0)
    except OSError:  # another supervisor sweeps too, or the kernel is not done with it
        pass


def _settings(version: int, limits: Limits) -> list[tuple[str, str]]:
    names = {
        1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max"),
        2: ("memory.max", "memory.swap.max", "pids.max"),
    }[version]
    found: list[tuple[str, str]] = []
    if limits.memory_mb is not None:
        size = str(limits.memory_mb << 20)
        found += [(names[0], size), (names[1], size if version == 1 else "0")]
    if limits.pids is not None:
        found += [(names[2], str(limits.pids + OVERHEAD))]
    if limits.cpus is not None:
        quota = str(round(limits.cpus * PERIOD_US))
        period = str(PERIOD_US)
        found += (
            [("cpu.max", f"{quota} {period}")]
            if version == 2
            else [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)]
        )
    return found


def _create(folder: Path, hand_on: Sequence[str]) -> None:
    for attempt in itertools.count():
        try:
            folder.parent.mkdir(exist_ok=True)
            if hand_on:
                (folder.parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in hand_on))
            folder.mkdir()
            return
        except FileNotFoundError:  # another supervisor has just removed the empty parent
            if attempt == 10:
                raise


def _remove(folder: Path, patience_s: float | None) -> None:
    """Remove an empty group; with patience, wait for it to become empty and raise if it does not."""
    deadline = time.monotonic() + (patience_s or 0)
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if patience_s is None:
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK) and not os.statvfs(folder).f_flag & os.ST_RDONLY
