"""`retort/ReasoningGym-v0`: one question of the package `reasoning-gym`, one answer, the package's own verifier.

The observation is the question. The action is the answer: what stands inside the last <answer></answer>, or the whole
text where there are no such tags. The reward is what the package's `score_answer` gives it, from 0 to 1; some of its
verifiers give a little for an answer that can be read. Success is a score of 1. The episode ends with the answer.

Nine of the verifiers evaluate the answer as Python. What is no number, list or formula never reaches them and scores 0.
Two may simplify a formula for minutes: they do so in a process of their own, and after five seconds it is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.error import ResetNeeded
from retort.envs.base import (
    Feedback,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    checked_split,
    needed,
    step_info,
)
from retort.envs.reasoning_gym_judge import TIMED, Judge, is_quick
from retort.envs.reasoning_gym_tasks import (
    INSTALL,
    Question,
    Score,
    checked_generator,
    dataset,
    questions,
    score,
    untouched_generators,
)

PROTOCOL = "Write the answer alone, or inside <answer></answer>."
SHOWN = 200  # characters of an answer in a verdict
LONGEST = 20_000  # characters of an action
RIGHT = Feedback("found as expected", Source.VERIFIER, 0, visible=False)
NOTHING = Score(0.0, readable=False)  # some verifiers give a little for an empty answer


class ReasoningGymEnv(TextEnv):
    """Questions of one generator.

    generator: which of the package's. split: "train", "validation" or "test". size: questions in the split; there are
    fewer where the generator does not know so many. config: the generator's own options, such as {"max_terms": 3}.
    explain: the observation also says how to answer.

    The first `tasks()` or `reset` draws the questions, two to four for each that is kept. Most generators take less
    than a millisecond for one; "knight_swap" takes a second.

    Raises:
        MissingPackage: reasoning-gym is not installed.
        UsageError: an unknown or refused generator, an option that it does not take.
    """

    counts = {"train": 100, "validation": 100, "test": 100}  # noqa: RUF012
    packages = {"reasoning_gym": INSTALL}  # noqa: RUF012

    def __init__(
        self,
        generator: str = "chain_sum",
        split: Split = "train",
        size: int = 100,
        config: Mapping[str, Any] | None = None,
        explain: bool = True,
    ) -> None:
        if size < 1:
            raise UsageError(f"size: expected at least 1 question, found {size}")
        self.generator, self.split, self.size = checked_generator(generator), checked_split(split), size
        self.config, self.explain = json.dumps(dict(config or {}), sort_keys=True), explain
        self._extract = needed("reasoning_gym.utils", INSTALL).extract_answer
        with untouched_generators():
            self._verifier = dataset(self.generator, self.config)
        self._judge = Judge(self.generator, self.config) if self.generator in TIMED else None
        self.observation_space, self.action_space = TextSpace(), TextSpace(LONGEST)
        self._questions: dict[str, Question] = {}
        self._listed: tuple[TaskRef, ...] = ()
        self._question: Question | None = None
        self._over = False

    def tasks(self) -> Sequence[TaskRef]:
        if not self._listed:
            drawn = questions(self.generator, self.config, self.split, self.size)
            self._questions = {question.ref.key: question for question in drawn}
            self._listed = tuple(question.ref for question in drawn)
        return self._listed

    def gold(self, observation: str) -> str:
        return self._current().answer

    def near_misses(self) -> Sequence[Sequence[str]]:
        """The answers of other questions, as far as they are wrong here, and the right one in half a sentence."""
        question = self._current()
        others = [other.answer for other in list(self._questions.values())[:4]]
        plans = [*others, f"It is {question.answer}, or {others[0]}."]
        return [[plan] for plan in plans if self._graded(question, plan).worth < 1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        refs = self.tasks()
        self._question, self._over = self._questions[refs[self.pick(refs, options)].key], False
        text = self._question.text
        return f"{text}\n{PROTOCOL}" if self.explain else text, step_info(self._question.ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        question = self._current()
        if self._over:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        self._over = True
        reward, verdict, readable = self._graded(question, action)
        told = RIGHT if reward >= 1 else Feedback(verdict, Source.VERIFIER, 0, visible=False)
        info = step_info(
            question.ref,
            feedback=(told, *question.lessons),
            components={"score": reward},
            success=reward >= 1,
            invalid=not readable,
        )
        return "", reward, True, False, info

    def close(self) -> None:
        self._question = None
        if self._judge is not None:
            self._judge.close()

    def _current(self) -> Question:
        if self._question is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._question

    def _graded(self, question: Question, action: str) -> Score:
        """The reward of an action, what was expected and found, and whether it could be read."""
        if len(action) > LONGEST:
            return Score(0.0, f"expected at most {LONGEST} characters; found {len(action)}", readable=False)
        tagged = self._extract(action) if "<" in action else None
        answer = action.strip() if tagged is None else tagged
        found = self._score(question, answer) if answer or not question.answer else NOTHING
        if found.worth >= 1:
            return found
        verdict = f"expected {_brief(question.answer)}; found {_brief(answer)}"
        if found.worth > 0:
            verdict += f", worth {found.worth:.2g}"
        return found._replace(trouble=f"{verdict}, {found.trouble}" if found.trouble else verdict)

    def _score(self, question: Question, answer: str) -> Score:
        if self._judge is not None and not is_quick(self.generator, answer):
            return self._judge.score(question.entry, answer)
        return score(self.generator, self._verifier, question.entry, answer)


def _brief(text: str) -> str:
    text = text.encode(errors="replace").decode()
    return (text if len(text) <= SHOWN else f"{text[:SHOWN]} ...") or "nothing"
