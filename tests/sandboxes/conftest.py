from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from retort.sandboxes import cgroups
from retort.sandboxes.base import Limits, Preferred, SandboxClosed
from retort.sandboxes.bwrap import BwrapSandbox
from retort.sandboxes.docker import DockerSandbox
from retort.sandboxes.guest import Guest
from retort.sandboxes.unsafe import UnsafeSandbox


def unsafe(limits: Limits = Limits()) -> Guest:  # noqa: B008 (frozen)
    return UnsafeSandbox(limits, i_understand=True)


@pytest.fixture(scope="session")
def docker(docker_image: Path) -> Callable[..., Guest]:
    return partial(DockerSandbox, docker_image)


@pytest.fixture(scope="session", params=["bwrap", "docker", "unsafe"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def maker(name: str, request: pytest.FixtureRequest) -> Callable[..., Guest]:
    if name == "docker":
        found: Callable[..., Guest] = request.getfixturevalue("docker")
        return found
    return {"bwrap": BwrapSandbox, "unsafe": unsafe}[name]


@pytest.fixture(scope="session")
def make(backend: str, request: pytest.FixtureRequest) -> Callable[..., Guest]:
    """Starts a sandbox of each backend."""
    return maker(backend, request)


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


@pytest.fixture(scope="session", params=["bwrap", "docker"])
def fence(request: pytest.FixtureRequest) -> Callable[..., Guest]:
    """Starts a sandbox of each backend that isolates."""
    return maker(request.param, request)


@pytest.fixture(scope="session")
def _fenced(fence: Callable[..., Guest]) -> Iterator[Guest]:
    with fence() as sandbox:
        yield sandbox


@pytest.fixture
def fenced(_fenced: Guest) -> Guest:
    """One warm sandbox of each backend that isolates, clean for each test."""
    _fenced.reset()
    return _fenced


@pytest.fixture(scope="session")
def _little(fence: Callable[..., Guest]) -> Iterator[list[Guest]]:
    made: list[Guest] = []
    yield made
    for sandbox in made:
        sandbox.close()


@pytest.fixture
def fenced_in_little(fence: Callable[..., Guest], _little: list[Guest]) -> Guest:
    """As `fenced`, with small limits; a new one where an attack has ended the last."""
    try:
        _little[-1].reset()
    except (IndexError, SandboxClosed):
        _little.append(fence(Limits(memory_mb=Preferred(96), pids=64, disk_mb=16, output_bytes=10_000)))
    return _little[-1]


@pytest.fixture(scope="session")
def python() -> Callable[[Guest, str], str]:
    """Runs a script inside: what it printed, or the last line of its error."""

    def run(sandbox: Guest, script: str) -> str:
        done = sandbox.exec(["python3", "-c", script], timeout=20)
        return (done.stdout or done.stderr.splitlines()[-1]).decode().strip()

    return run


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool]], bool]:
    """Waits for something that the kernel does in its own time; whether it came, within a minute."""

    def wait(true: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 60
        while not true() and time.monotonic() < deadline:
            time.sleep(0.02)
        return true()

    return wait


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
