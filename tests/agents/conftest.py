"""A tiny model with its tokenizer, a deterministic environment whose faults can be chosen, and a real vLLM server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from retort.agents import tiny
from retort.agents.base import Sampling
from retort.agents.chat import Chat
from retort.agents.hf import HFPolicy, load_model
from retort.envs.base import Failure, Feedback, Source, TaskRef, TextEnv, TextSpace

TEXTS = ["say 3 and then done\n", "you said done my friend\n", "cat card.csv | wc -l > out.txt\n"] * 30


class Echo(TextEnv):
    """Task number i lasts 1 + i % 4 turns and wants its last action to be "done". It can be told to break."""

    observation_space = TextSpace()
    action_space = TextSpace()
    made = 0
    closed = 0

    def __init__(self, breaks: Sequence[tuple[str, int]] = (), unclean: bool = False) -> None:
        type(self).made += 1
        self.breaks = set(breaks)
        self.unclean = unclean

    def tasks(self) -> Sequence[TaskRef]:
        return [TaskRef(f"echo-{number}", f"{number:016d}", "train", f"family-{number % 2}") for number in range(8)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        number = self.pick(self.tasks(), options)
        self.task, self.turns, self.turn = self.tasks()[number], 1 + number % 4, 0
        self._maybe_break()
        return f"say {number} and then done", {"task": self.task, "tools": []}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        self._maybe_break()
        last = self.turn == self.turns
        won = last and action == "done"
        lesson = Feedback(f"lesson of {self.turn - 1}", Source.VERIFIER, self.turn - 1, visible=False)
        info: dict[str, Any] = {"task": self.task, "feedback": (lesson,), "reward_components": {"done": float(won)}}
        if last:
            info |= {"success": won, "failure": None if won else Failure.POLICY}
        return f"you said {action[:12]}", float(won), last, False, info

    def gold(self, observation: str) -> str:
        return "done" if self.turn == self.turns - 1 else "say"

    def near_misses(self) -> Sequence[Sequence[str]]:
        return [["wrong"] * self.turns]

    def close(self) -> None:
        type(self).closed += 1
        if self.unclean:
            raise OSError("it will not close")

    def _maybe_break(self) -> None:
        if (self.task.key, self.turn) in self.breaks:
            raise OSError(f"the host of {self.task.key} went away")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def echo() -> type[Echo]:
    """A fresh class, whose counters start at 0."""
    return type("FreshEcho", (Echo,), {"made": 0, "closed": 0})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return tiny.build(tmp_path_factory.mktemp("tiny"), TEXTS, seed=3)


@pytest.fixture(scope="session")
def chat(folder: Path) -> Chat:
    return Chat.load(folder)


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    return load_model(folder)


@pytest.fixture
def policy_of(model: Any, chat: Chat) -> Callable[..., HFPolicy]:
    """Makes policies of the tiny model."""
    return partial(HFPolicy, model, chat, name="tiny")


# What stands in for NCCL where there is no GPU, in the server and in the learner: the store of the same group carries
# the tensors. Everything else is vLLM's own.
STORE = """
import torch


class Store:
    def __init__(self, group, device):
        self.group = group

    def broadcast(self, tensor, src, stream):
        told = self.group.broadcast_obj(tensor.numpy() if self.group.rank == src else None, src)
        if self.group.rank != src:
            tensor.copy_(torch.from_numpy(told))

    def destroy(self):
        self.group = None


def put():
    from vllm.distributed.device_communicators import pynccl

    pynccl.PyNcclCommunicator = Store
    torch.accelerator.current_device_index = lambda: 0
    torch.cuda.current_stream = lambda *_: None
"""


class Served:
    """A server in processes of its own, started as the documentation says. It takes its time to be there: `wait`."""

    def __init__(self, python: str, folder: Path, place: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.plugin, self._log = f"http://127.0.0.1:{port}", place / "plugin", place / "log.txt"
        told = self.plugin / "retort_store-0.dist-info"
        told.mkdir(parents=True)
        (self.plugin / "retort_store.py").write_text(STORE)
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: retort_store\nVersion: 0\n")
        (told / "entry_points.txt").write_text("[vllm.general_plugins]\nstore = retort_store:put\n")
        self._command = [python, "-m", "retort", "serve", str(folder), "--port", str(port), "--context-tokens", "1024"]
        self._command += ["--lora-rank", "4", "--", "--weight-transfer-config", '{"backend": "nccl"}']
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begins to start it."""
        mine = {"OMP_NUM_THREADS": "1", "TMPDIR": str(self._log.parent), "PYTHONPATH": str(self.plugin)}
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, env={**os.environ, **mine}, stdout=out, stderr=out, start_new_session=True
            )

    def wait(self) -> None:
        limit = time.monotonic() + 400
        while not self.healthy():
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < limit, self._log.read_text()[-4000:]
            time.sleep(0.5)

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """As a machine that goes down: at once, and with all its processes and what they shared."""
        assert self._process is not None
        shared = self._shared()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for path in shared:
            path.unlink(missing_ok=True)

    def _shared(self) -> set[Path]:
        """Files in memory that its processes have mapped: nobody removes them for processes that were killed."""
        assert self._process is not None
        found = set()
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with suppress(OSError):
                if os.getpgid(int(maps.parent.name)) == self._process.pid:
                    found |= set(re.findall(r"/dev/shm/\S+$", maps.read_text(), re.MULTILINE))
        return set(map(Path, found))

    def stop(self) -> None:
        assert self._process is not None
        shared = self._shared()
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(20)
        self.kill()
        for path in shared:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def server(engine_python: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests of this folder, which may still start."""
    made = Served(engine_python, folder, tmp_path_factory.mktemp("server"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def url(server: Served) -> str:
    """That of the server, which is there."""
    server.wait()
    return server.url


@pytest.fixture
def sampled(url: str) -> Callable[[], float]:
    """How many tokens the server has sampled so far."""

    def count() -> float:
        told = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.split()[-1]) for line in told if line.startswith("vllm:generation_tokens_total"))

    return count


@pytest.fixture
def changing(sampled: Callable[[], float]) -> Callable[..., list[Any]]:
    """Answers of 24 who ask the same again and again, while an engine's weights change from one model's to another's
    and back, until some were under way at a change."""

    async def change(engine: Any, asked: Any, before: Any, after: Any) -> list[Any]:
        done, over = list[Any](), asyncio.Event()

        async def keep_asking(number: int) -> None:
            while not over.is_set():
                sampling = Sampling(max_new_tokens=200)
                done.append(await engine.generate(asked, sampling, episode="", seed=100 * len(done) + number))

        asking = [asyncio.create_task(keep_asking(number)) for number in range(24)]
        for version in range(101, 160):
            begun = sampled()
            while await asyncio.to_thread(sampled) < begun + 100:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(engine.update, after if version % 2 else before, version)
            if any(len(set(item.versions)) > 1 for item in done):
                break
        over.set()
        await asyncio.gather(*asking)
        return done

    def changed(engine: Any, asked: Any, before: Any, after: Any) -> list[Any]:
        engine.update(before, 100)
        return asyncio.run(change(engine, asked, before, after))

    return changed
