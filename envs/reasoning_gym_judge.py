"""Scoring in a process of its own, for verifiers that may think for minutes about one wrong answer.

The process ends itself when it has thought too long, so that neither a killed run nor a busy one leaves it behind. It
limits time and memory and nothing else: what an answer may say is checked before it comes here.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from retort.envs.reasoning_gym_tasks import Score, dataset, is_plain, score

TIMED = ("intermediate_integration", "simple_integration")  # they simplify whatever formula they are given
SECONDS = 5  # of CPU time, so that a busy machine changes no score
MEMORY = 2 << 30  # bytes


def is_quick(generator: str, answer: str) -> bool:
    """Whether an answer needs no process: a short polynomial beside another takes milliseconds at most."""
    return generator == "simple_integration" and is_plain(generator, answer)


class Judge:
    """The verifier of one generator, in a process that is started when first needed.

    config: the generator's options, as JSON.
    """

    def __init__(self, generator: str, config: str) -> None:
        self.generator, self.config = generator, config
        self._process: subprocess.Popen[str] | None = None

    def score(self, entry: Mapping[str, Any], answer: str) -> Score:
        """As `score` of the tasks; an answer that takes more than SECONDS, or too much memory, is worth nothing."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([self.generator, self.config, entry, answer]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return Score(*json.loads(line))
        self.close()
        if process.returncode != -signal.SIGPROF:
            raise RuntimeError(f"the process that scores {self.generator} ended with {process.returncode}")
        return Score(0.0, "which takes too long to check")

    def close(self) -> None:
        """Ends the process. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()  # what it was not sent is dropped, where `with` would raise

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from retort.envs.reasoning_gym_judge import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._process


def serve() -> None:
    """Reads questions and answers from stdin, a line each, and writes their scores until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    verifiers = cache(dataset)
    for line in sys.stdin:
        generator, config, entry, answer = json.loads(line)
        verifier = verifiers(generator, config)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        found = score(generator, verifier, entry, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), flush=True)
