"""Shared by all tests: quiet libraries, no silent skips in CI, one Docker engine, and what may not run side by side."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before torch is imported anywhere: as in retort/__init__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # several share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from retort.sandboxes.base import SandboxUnavailable
from retort.sandboxes.docker import engine
from retort.sandboxes.engine import private_engine
from retort.sandboxes.images import folder_of_this_machine

# Other processes may hold the cores: no test depends on a time.
settings.register_profile("retort", deadline=None)
settings.load_profile("retort")


# Tests that count what a host holds, or wait for what it does, and those that share a Docker engine.
ONE_AFTER_ANOTHER = ("tests/sandboxes/", "tests/envs/test_agentbench.py", "tests/envs/test_harbor.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, one process takes those, and each other file goes to whoever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "one after another" if nodeid.startswith(ONE_AFTER_ANOTHER) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # by how many tests there are in a file; below it is by how long they take
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where they are shared, what takes long begins first, so that nobody waits for it at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (not item.nodeid.startswith(ONE_AFTER_ANOTHER), item.path not in slow))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("RETORT_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped where skips count as failures: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """An engine that answers: the machine's, or as root one of our own. As root it fails where none comes up."""
    try:
        with engine():
            pass
    except SandboxUnavailable:
        if os.geteuid() != 0:
            pytest.skip("no Docker engine answers, and only root can start one")
    else:
        yield os.environ.get("DOCKER_HOST", "")
        return
    with (
        tempfile.TemporaryDirectory(prefix="retort-engine-") as folder,
        private_engine(Path(folder) / "e") as host,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("DOCKER_HOST", host)
        yield host


@pytest.fixture(scope="session")
def engine_python() -> str:
    """The interpreter that has vLLM: this one, or that of `make vllm`. Where there can be one, there must be."""
    if find_spec("vllm"):
        return sys.executable
    found = Path(__file__).parents[1] / os.environ.get("ENGINE", ".venv-vllm") / "bin" / "python"
    if not found.exists():
        absent = f"vLLM is not at {found}: 'make vllm' puts it there"
        can_be = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
        pytest.fail(absent) if can_be else pytest.skip(absent)
    return str(found)


@pytest.fixture(scope="session")
def docker_image(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that builds an image of this machine's own programs."""
    return folder_of_this_machine(tmp_path_factory.mktemp("image"))
