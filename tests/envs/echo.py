"""The sound environment that the broken ones of the `test_check*.py` beside it derive from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium.error import ResetNeeded
from retort.envs.base import SPLITS, Failure, Feedback, Source, Split, TaskRef, TextEnv, TextSpace, content_digest


class Echo(TextEnv):
    """Say the word back, in at most three turns. Sound: the broken ones below derive from it."""

    def __init__(self, split: Split = "train") -> None:
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        start = SPLITS.index(split) * 10
        words = [f"word{number}" for number in range(start, start + 10)]
        self.refs = [TaskRef(f"echo/{word}", content_digest(word), split, "echo") for word in words]
        self.word, self.turn, self.over = "", 0, True

    def tasks(self) -> Sequence[TaskRef]:
        return self.refs

    def gold(self, observation: str) -> str:
        return self.word

    def near_misses(self) -> Sequence[Sequence[str]]:
        return [["sword"], ["", "words"]]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.ref = self.refs[self.pick(self.refs, options)]
        self.word, self.turn, self.over = self.ref.key.removeprefix("echo/"), 0, False
        return f"say {self.word}", {**self.info(()), "tools": []}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.over:
            raise ResetNeeded("reset first")
        right, turn = action == self.word, self.turn
        self.turn += 1
        self.over = right or self.turn == 3
        feedback = [Feedback(f"you said {len(action)} characters", Source.TOOL_RESULT, turn, True)]
        if self.over:
            feedback.append(Feedback(f"the secret of it is {self.word}", Source.VERIFIER, turn, False))
        info = self.info(feedback, right if self.over else None)
        return feedback[0].text, float(right), right, self.over and not right, info

    def info(self, feedback: Sequence[Feedback], success: bool | None = None) -> dict[str, Any]:
        return {
            "feedback": tuple(feedback),
            "reward_components": {},
            "success": success,
            "failure": Failure.POLICY if success is False else None,
            "task": self.ref,
        }
