from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from retort.sandboxes import cgroups
from retort.sandboxes.base import Limits
from retort.sandboxes.bwrap import BwrapSandbox
from retort.sandboxes.guest import Guest
from retort.sandboxes.unsafe import UnsafeSandbox


def unsafe(limits: Limits = Limits()) -> Guest:  # noqa: B008 (frozen)
    return UnsafeSandbox(limits, i_understand=True)


MAKERS: dict[str, Callable[..., Guest]] = {"bwrap": BwrapSandbox, "unsafe": unsafe}


@pytest.fixture(scope="session", params=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[..., Guest]:
    return MAKERS[request.param]


@pytest.fixture(scope="session")
def _shared(make: Callable[..., Guest]) -> Iterator[Guest]:
    with make() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(_shared: Guest) -> Guest:
    """One warm sandbox of each backend, clean for each test."""
    _shared.reset()
    return _shared


@pytest.fixture(scope="session")
def _shared_bwrap() -> Iterator[BwrapSandbox]:
    with BwrapSandbox() as sandbox:
        yield sandbox


@pytest.fixture
def bwrap(_shared_bwrap: BwrapSandbox) -> BwrapSandbox:
    _shared_bwrap.reset()
    return _shared_bwrap


@pytest.fixture
def groups() -> Callable[[int], set[Path]]:
    """The cgroups that a supervisor's sandboxes have now, by its pid."""
    where = cgroups.tree()
    if where is None:
        pytest.skip("no cgroups may be made here")

    def look(pid: int) -> set[Path]:
        tops = {parent / "retort" for parent in where.parents.values()}
        return {folder for top in tops if top.is_dir() for folder in top.glob(f"*-{pid}-*-*")}

    return look


@pytest.fixture
def living() -> Callable[[str], list[int]]:
    """Host processes whose command line holds a text."""

    def look(text: str) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if text.encode() in Path(f"/proc/{name}/cmdline").read_bytes() and int(name) != os.getpid():
                    found.append(int(name))
            except OSError:  # it has just ended
                continue
        return found

    return look
