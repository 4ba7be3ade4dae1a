"""Shared by all tests: quiet libraries, no silent skips in CI, a Docker engine, teachers, what may not run together."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before torch is imported anywhere: as in retort/__init__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # several share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
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


READY = re.compile(r"ready: .* teaches at (http://\S+)")
START_S = 300


@dataclass(eq=False)
class Teacher:
    """A process that teaches, once `url` has been asked for."""

    process: subprocess.Popen[bytes]
    log: Path
    _url: str = ""

    @property
    def url(self) -> str:
        limit = time.monotonic() + START_S
        while not self._url:
            said = self.log.read_text()
            if found := READY.search(said):
                self._url = found[1]
                break
            assert self.process.poll() is None, said
            assert time.monotonic() < limit, said
            time.sleep(0.05)
        return self._url

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def _teaching(folder: Path, log: Path, *arguments: str, python: str = sys.executable) -> Iterator[Teacher]:
    """`retort teach`, as it is typed."""
    command = [python, "-m", "retort", "teach", str(folder), "--port", "0", *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=out, stderr=out)
    teacher = Teacher(process, log)
    try:
        yield teacher
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@dataclass
class Link:
    """A way to a real server that can be told to fail, at the questions that are put to it.

    fail: statuses to answer with, in turn, instead of asking. refuse: which bodies to answer with 500. before: called
    at each question. slow_s: before each answer. flip: answers to damage. relabel: what weights are called in answers,
    in place of a number. cut: pass on nothing at all. asked, open, most: questions so far, now, and at once.
    """

    target: str
    fail: list[int] = field(default_factory=list)
    refuse: Callable[[bytes], bool] = lambda body: False
    before: Callable[[int], None] = lambda number: None
    slow_s: float = 0.0
    flip: int = 0
    relabel: str = ""
    cut: bool = False
    asked: int = 0
    open: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def damaged(self, told: bytes) -> bytes:
        """An answer as it is passed on."""
        with self.lock:
            flipped, self.flip = self.flip > 0, max(0, self.flip - 1)
        if flipped:
            middle = len(told) // 2
            told = told[:middle] + bytes([told[middle] ^ 1]) + told[middle + 1 :]
        return told


@contextmanager
def _linked(target: str) -> Iterator[tuple[str, Link]]:
    state = Link(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asks = self.path == "/score" or self.path.startswith("/inference")
            with state.lock:
                state.asked += asks
                state.open += asks
                state.most = max(state.most, state.open)
                number, status = state.asked, state.fail.pop(0) if state.fail and asks else 0
            try:
                if state.cut:
                    self.close_connection = True
                    return
                if asks:
                    state.before(number)
                    time.sleep(state.slow_s)
                if status or (asks and state.refuse(body)):
                    self.answer(status or 500, b"told to fail", "text/plain")
                    return
                sent = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                got = client.request(self.command, target + self.path, content=body, headers=sent, timeout=120)
                told = state.damaged(got.content) if asks else got.content
                if state.relabel:
                    told = re.sub(rb'("(?:weight_)?version": ?)"\d+"', rb'\1"%b"' % state.relabel.encode(), told)
                self.answer(got.status_code, told, got.headers.get("Content-Type", "text/plain"))
            except httpx.HTTPError:
                self.close_connection = True  # without an answer, as the server itself did
            finally:
                with state.lock:
                    state.open -= asks

        def answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = pass_on

        def log_message(self, *_: Any) -> None:
            pass

    client = httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        client.close()


@pytest.fixture(scope="session")
def teaching() -> Callable[..., Any]:
    """A context with a real `retort teach` process: folder, log file, further arguments."""
    return _teaching


@pytest.fixture(scope="session")
def link() -> Callable[[str], Any]:
    """A context with a way to a server, by its URL, that can be told to fail, and what tells it so."""
    return _linked
