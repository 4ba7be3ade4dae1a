"""Episodes played ahead: while the learner works on a step, the engine plays the next ones with the weights it has.

Step s is begun no sooner than `ahead` updates before its own, so that no token of it is older than that; which weights
sampled a token stands at the token. Each step's episodes are a function of its number: after a kill they are played
again, and none is lost or counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from retort.agents.base import Trajectory
from retort.algos.episodes import Episodes


class Ahead:
    """Gives the episodes of each step in turn, of which at most `ahead` more are played or wait to be taken."""

    def __init__(self, episodes: Episodes, thread: ThreadPoolExecutor, *, ahead: int, steps: int) -> None:
        self._episodes, self._thread, self._ahead, self._steps = episodes, thread, ahead, steps
        self._begun: dict[int, Future[list[Trajectory]]] = {}

    def __call__(self, step: int) -> list[Trajectory]:
        """The episodes of `step`; what broke there is raised here."""
        for number in range(step, min(step + self._ahead + 1, self._steps)):
            if number not in self._begun:
                self._begun[number] = self._thread.submit(self._episodes, number)
        return self._begun.pop(step).result()

    def stop(self) -> None:
        """Begins nothing more."""
        for future in self._begun.values():
            future.cancel()


@contextmanager
def played_ahead(episodes: Episodes, *, ahead: int, steps: int) -> Iterator[Episodes]:
    """The same episodes, played in a thread of their own, one step after another; 0 plays each when it is asked for."""
    if not ahead:
        yield episodes
        return
    with ThreadPoolExecutor(1, thread_name_prefix="retort-rollouts") as thread:
        made = Ahead(episodes, thread, ahead=ahead, steps=steps)
        try:
            yield made
        finally:
            made.stop()
