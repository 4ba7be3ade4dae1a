"""Episodes played ahead: while the learner works on a step, the engine plays the next ones with the weights it has.

Step s is begun no sooner than `ahead` updates before its own, so that no token of it is older than that; which weights
sampled a token stands at the token. That depends on how fast both sides are, so that the same seed need not give the
same weights; nor need it with vLLM at all, whose batches depend on who happens to wait.

The steps under way share one event loop, and each has slots of its own: a step waits for its slowest episode, and holds
up no other. A step's episodes are a function of its number: after a kill they are played again, and none is lost
or counted twice.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from retort.agents.base import Trajectory
from retort.algos.episodes import Episodes


class Ahead:
    """Gives the episodes of each step in turn, while those of the following steps are played.

    ways: as many ways to play a step as there are steps at once, the one that is asked for among them. breaks: what
        breaks off the steps under way.
    """

    def __init__(
        self,
        ways: Sequence[Episodes],
        threads: ThreadPoolExecutor,
        *,
        steps: int,
        breaks: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._ways, self._threads, self._steps, self._breaks = ways, threads, steps, breaks
        self._begun: dict[int, Future[list[Trajectory]]] = {}

    def __call__(self, step: int) -> list[Trajectory]:
        """The episodes of `step`; what broke there is raised here."""
        for number in range(step, min(step + len(self._ways), self._steps)):
            if number not in self._begun:
                # Who plays `number` has played a step before `step`, and is free.
                self._begun[number] = self._threads.submit(self._ways[number % len(self._ways)], number)
        return self._begun.pop(step).result()

    def stop(self) -> None:
        """Begins nothing more, and breaks off what is under way."""
        for future in self._begun.values():
            future.cancel()
        for broken_off in self._breaks:
            broken_off()


@contextmanager
def played_ahead(
    ways: Sequence[Episodes], *, steps: int, breaks: Sequence[Callable[[], object]] = ()
) -> Iterator[Episodes]:
    """The same episodes, by several ways at once; the only one of one way plays each step when it is asked for.

    breaks: what breaks off the ways, called when the block is over.
    """
    if len(ways) == 1:
        yield ways[0]
        return
    with ThreadPoolExecutor(len(ways), thread_name_prefix="retort-rollouts") as threads:
        made = Ahead(ways, threads, steps=steps, breaks=breaks)
        try:
            yield made
        finally:
            made.stop()


@contextmanager
def shared_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, which is over when the block is and what was broken off has cleaned up."""
    loop = asyncio.new_event_loop()
    # A daemon, since whoever is interrupted here leaves it behind, and the interpreter must end all the same.
    thread = threading.Thread(target=loop.run_forever, name="retort-loop", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _others() -> None:
    """Waits for every other task of this loop."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
