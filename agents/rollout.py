"""Many episodes: a runner keeps a bounded number of them going, each slot with an environment that it keeps."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from retort.agents.base import Policy, Provenance, Sampling, Trajectory
from retort.agents.chat import Chat
from retort.agents.episode import Budget, Env, EpisodeRequest, run_episode
from retort.envs.base import Failure, TaskRef, TextEnv, UsageError

T = TypeVar("T")
log = logging.getLogger(__name__)
NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")


@dataclass(eq=False)
class _Slot:
    """A place where one episode runs at a time, and the environment that is kept for it."""

    policy: Policy
    env: Env | None = None
    fault: str | None = None


class Runner:
    """Plays batches of episodes, at most `concurrency` at once, each slot with an environment that it keeps.

    Episodes are dealt to the policy's `cohorts` in turn, where it has any; a slot's next episode begins before its
    last one ends, so that a policy which waits for all of its open episodes never runs short in between.
    """

    def __init__(
        self,
        make_env: Callable[[], Env],
        policy: Policy,
        chat: Chat,
        *,
        env_id: str,
        concurrency: int = 32,
        sampling: Sampling | None = None,
        budget: Budget | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1, found {concurrency}")
        self.policy = policy
        self.chat = chat
        self.env_id = env_id
        self.sampling = sampling or Sampling()
        self.budget = budget or Budget()
        self._make_env = make_env
        cohorts: Sequence[Policy] = getattr(policy, "cohorts", (policy,))
        self._cohorts = cohorts[:concurrency]
        self._slots = [_Slot(self._cohorts[index % len(self._cohorts)]) for index in range(concurrency)]
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="retort-env")
        self._faults: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._made = False
        self._closed = False
        # One that runs elsewhere, which several runners share; None is a new one for each `run`.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._playing: Future[list[Trajectory]] | None = None
        self._stopped = False

    def run(
        self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None
    ) -> list[Trajectory]:
        """Plays every request; the trajectories in the order of the requests. `on_done` hears of each as it ends.

        Raises:
            CancelledError: `stop` was called.
        """
        if self.loop is None:
            return run_loop(lambda: self.arun(requests, on_done))
        self._playing = asyncio.run_coroutine_threadsafe(self.arun(requests, on_done), self.loop)
        if self._stopped:  # `stop` may have looked before there was anything to cancel
            self._playing.cancel()
        return self._playing.result()

    def stop(self) -> None:
        """Breaks off what plays in a loop that is shared, and plays nothing more there. From any thread."""
        self._stopped = True
        if self._playing is not None:
            self._playing.cancel()

    async def arun(
        self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None
    ) -> list[Trajectory]:
        """`run`, for callers that have an event loop.

        Raises:
            ValueError: two requests of one name.
        """
        if self._closed:
            raise RuntimeError("the runner is closed")
        if len({request.episode for request in requests}) < len(requests):
            raise ValueError("two requests have the same episode name")
        found: list[Trajectory | None] = [None] * len(requests)
        queues = [deque(range(start, len(requests), len(self._cohorts))) for start in range(len(self._cohorts))]
        starts: list[tuple[_Slot, deque[int], int]] = []
        for number, slot in enumerate(self._slots):
            queue = queues[number % len(queues)]
            if queue:
                starts.append((slot, queue, queue.popleft()))
        # A barrier waits for all, so all are there before one begins. Otherwise nobody waits for another's environment,
        # but for the first one's, which shows whether any can be made.
        waits = getattr(self.policy, "barrier", False)
        for slot, _, index in starts if waits else starts[:1]:
            await self._enter(slot, requests[index])

        async def work(slot: _Slot, queue: deque[int], index: int, entered: bool) -> None:
            following: int | None = index
            if not entered:
                await self._enter(slot, requests[index])
            while following is not None:
                index, following = following, None
                try:
                    found[index] = trajectory = await self._episode(slot, requests[index])
                    if queue:
                        following = queue.popleft()
                        await self._enter(slot, requests[following])
                finally:
                    await slot.policy.end(requests[index].episode)
                if on_done is not None:
                    on_done(trajectory)

        workers = [asyncio.create_task(work(*start, waits or not place)) for place, start in enumerate(starts)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            for request in requests:
                for cohort in self._cohorts:
                    await cohort.end(request.episode)
        return [trajectory for trajectory in found if trajectory is not None]

    async def _enter(self, slot: _Slot, request: EpisodeRequest) -> None:
        """Gives the slot an environment, where it has none, and opens the episode with its policy."""
        slot.fault = None
        if slot.env is None:
            try:
                slot.env = await self._call(self._make_env)
            except Exception as error:
                if not self._made:
                    raise
                slot.fault = f"make: {type(error).__name__}: {error}"
                return
            self._made = True
        # The wrapped environment answers as the bare one does; gymnasium.Env is what its type says.
        await slot.policy.begin(request.episode, cast(TextEnv, slot.env))

    async def _episode(self, slot: _Slot, request: EpisodeRequest) -> Trajectory:
        """Plays one episode; an environment that failed is closed, and the slot makes another for its next."""
        if slot.env is None:
            self._tell(request.episode, slot.fault or "")
            return self._unplayed(slot, request)
        trajectory = await run_episode(
            slot.env,
            slot.policy,
            self.chat,
            request,
            env_id=self.env_id,
            sampling=self.sampling,
            budget=self.budget,
            call=self._call if slot.env.get_wrapper_attr("blocking") else _at_once,
        )
        if trajectory.failure is Failure.INFRASTRUCTURE:
            self._tell(request.episode, trajectory.error or "")
            env, slot.env = slot.env, None
            await self._call(_close, env)
        return trajectory

    def _unplayed(self, slot: _Slot, request: EpisodeRequest) -> Trajectory:
        return Trajectory(
            episode=request.episode,
            group=request.group,
            task=TaskRef(key=request.task or "unknown", digest="", split="train"),
            rows=(),
            turns=(),
            messages=(),
            reward=0.0,
            success=None,
            failure=Failure.INFRASTRUCTURE,
            terminated=False,
            truncated=False,
            provenance=Provenance(
                self.env_id,
                slot.policy.name,
                slot.policy.version,
                self.chat.tokenizer_digest,
                self.chat.template_digest,
                self.sampling,
                request.seed,
                "unknown",
                "unknown",
            ),
            error=slot.fault,
        )

    def _tell(self, episode: str, error: str) -> None:
        """Reports the first episode that failed of one cause: errors that differ in their numbers alone have one."""
        cause = NUMBER.sub("0", error)
        self._faults[cause] += 1
        if self._faults[cause] == 1:
            self._first[cause] = error
            log.warning("episode %s failed and is not counted: %s", episode, error)

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))

    def close(self) -> None:
        """Closes every environment, and says how many episodes failed of one cause. May be called again."""
        self._closed = True
        for cause, count in self._faults.items():
            if count > 1:
                log.warning("%d episodes in all failed like that one: %s", count, self._first[cause])
        self._faults.clear()
        envs = [slot.env for slot in self._slots if slot.env is not None]
        for slot in self._slots:
            slot.env = None
        if envs:
            list(self._threads.map(_close, envs))
        self._threads.shutdown()


async def _at_once(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return function(*args, **kwargs)


def playable(played: list[Trajectory]) -> list[Trajectory]:
    """The same episodes, of which the infrastructure held in at least one.

    Raises:
        UsageError: it failed in all of them; the message is the first one's.
    """
    if played and not any(item.usable for item in played):
        raise UsageError(
            f"nothing counted: no episode could be played; the first of {len(played)} failed with {played[0].error}"
        )
    return played


def _close(env: Env) -> None:
    """Closes an environment; one that fails even at that is reported, and the run goes on."""
    try:
        env.close()
    except Exception as error:
        log.warning("an environment did not close: %s: %s", type(error).__name__, error)


def run_loop(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end, in a thread of its own where this one has an event loop already (a notebook)."""
    found: list[T] = []

    # asyncio writes its main task out as text when it ends, result and all: thousands of tokens for nobody to read.
    async def keep() -> None:
        found.append(await start())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(keep())
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(keep())).result()
    return found[0]
