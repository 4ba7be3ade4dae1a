"""Where groups may be made, on folders shaped like the kernel's; that the limits hold is in test_bwrap."""

from __future__ import annotations

from pathlib import Path

from retort.sandboxes import cgroups
from retort.sandboxes.base import Limits
from retort.sandboxes.owner import owner


def folder(path: Path, subtree: str = "") -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.subtree_control").write_text(subtree)
    (path / "cgroup.procs").touch()


def version_2(root: Path, top: str, middle: str) -> Path:
    folder(root, top)
    (root / "cgroup.controllers").write_text("cpu memory pids")
    folder(root / "user", middle)
    folder(root / "user/session")
    own = root.parent / "own"
    own.write_text("0::/user/session\n")
    return own


def test_version_2_takes_the_root_where_it_hands_on(tmp_path: Path) -> None:
    own = version_2(tmp_path / "cg", "cpu memory pids", "memory pids")
    assert cgroups.tree(tmp_path / "cg", own) == cgroups.Tree(
        2, dict.fromkeys(("cpu", "memory", "pids"), tmp_path / "cg")
    )


def test_version_2_takes_a_delegated_ancestor(tmp_path: Path) -> None:
    own = version_2(tmp_path / "cg", "", "memory pids")
    assert cgroups.tree(tmp_path / "cg", own) == cgroups.Tree(
        2, dict.fromkeys(("memory", "pids"), tmp_path / "cg/user")
    )


def test_version_2_without_controllers_gives_none(tmp_path: Path) -> None:
    assert cgroups.tree(tmp_path / "cg", version_2(tmp_path / "cg", "", "memory")) is None


def test_version_1_needs_memory_and_pids(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    assert cgroups.tree(tmp_path, tmp_path / "own") is None
    (tmp_path / "pids").mkdir()
    assert cgroups.tree(tmp_path, tmp_path / "own") == cgroups.Tree(
        1, {"memory": tmp_path / "memory", "pids": tmp_path / "pids"}
    )


def test_version_2_settings() -> None:
    settings = dict(cgroups._settings(2, Limits(memory_mb=1, pids=3, cpus=0.5)))
    assert settings == {"memory.max": "1048576", "memory.swap.max": "0", "pids.max": "5", "cpu.max": "50000 100000"}


def test_sweep_removes_only_the_dead(tmp_path: Path) -> None:
    top = tmp_path / "retort"
    own = owner()
    namespace, pid, start = own.split("-")
    kept = {f"{own}-0", f"1{namespace}-{pid}-0-0", "theirs"}
    dead = {f"{namespace}-{pid}-{int(start) - 1}-0", f"{namespace}-999999999-5-0"}
    for name in kept | dead:
        (top / name).mkdir(parents=True)
    cgroups.sweep(cgroups.Tree(2, {"memory": tmp_path}))
    assert {path.name for path in top.iterdir()} == kept
