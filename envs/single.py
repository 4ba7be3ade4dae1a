"""A single-turn environment from a function: a prompt, one answer, and what your function says about it.

    def verify(prompt: str, answer: str) -> tuple[float, str]:
        right = answer.strip() == str(sum(map(int, prompt.split("+"))))
        return float(right), "" if right else "add once more"

    gymnasium.register("me/Add-v0", single_turn(["2+2", "3+4", "1+5"], verify, answers=["4", "7", "6"]))

The reward is the function's, and 1 or more is a success. Its text is feedback that a teacher may read and the student
does not; a `Feedback` of your own says for itself whether it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Self

from gymnasium.error import ResetNeeded
from retort.envs.base import (
    Feedback,
    NoGold,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    allotted,
    checked_split,
    content_digest,
    step_info,
)

# (prompt, answer) -> (reward, feedback); called from several threads at once.
Verify = Callable[[str, str], tuple[float, str | Feedback | None]]
Texts = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Question:
    """One task. answer: the reference that scores 1, where there is one."""

    prompt: str
    answer: str | None
    ref: TaskRef


@dataclass(frozen=True, eq=False)
class SingleTurn:
    """An entry point: called with a split, it makes the environment of it. All of them share the questions."""

    questions: tuple[Question, ...]
    verify: Verify
    near_misses: Callable[[str], Sequence[str]] | None = None

    def __call__(self, split: Split = "train") -> SingleTurnEnv:
        return SingleTurnEnv(self, split)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: gymnasium copies an environment's spec each time that it makes one, and nothing here ever changes."""
        return self


def single_turn(
    prompts: Texts,
    verify: Verify,
    *,
    answers: Texts | Callable[[str], str] | None = None,
    near_misses: Callable[[str], Sequence[str]] | None = None,
    family: str = "question",
) -> SingleTurn:
    """Makes a function into an environment: the entry point to register, in a module that workers can import.

    prompts: texts, which a hash of each deals to the splits; or the texts of each split by its name.
    verify: `(prompt, answer) -> (reward, feedback)` for any answer whatever. A finite reward; feedback is a text, a
        `Feedback` of turn 0, or None. What it raises counts as a failure of the infrastructure, never as a reward of 0.
    answers: references that score 1, in the order of the prompts, or a function of the prompt. Without them there is no
        gold policy, and nothing shows that the tasks can be solved.
    near_misses: plausible wrong answers to a prompt, for the checks and for a cold start that leaves room to learn.
    family: the first part of the tasks' keys.

    Raises:
        UsageError: prompts that are no texts or too few, one in two splits, or answers that do not match them.
    """
    rows = list(_rows(prompts, answers))
    dealt: Mapping[str, Split] = {}
    if not isinstance(prompts, Mapping):
        try:
            dealt = allotted(content_digest(prompt) for _, _, prompt, _ in rows)
        except UsageError as error:
            raise UsageError(f"{error}; give the prompts by split: {{'train': [...], 'test': [...]}}") from error
    questions = []
    for split, place, prompt, answer in rows:
        key = f"{family}/{place}" if split is None else f"{family}/{split}/{place}"
        ref = TaskRef(key, content_digest([prompt, answer]), split or dealt[content_digest(prompt)], family)
        questions.append(Question(prompt, answer, ref))
    _in_one_split(questions)
    return SingleTurn(tuple(questions), verify, near_misses)


class SingleTurnEnv(TextEnv):
    """The questions of one split. Made by a `SingleTurn`, through `gymnasium.make`."""

    def __init__(self, made: SingleTurn, split: Split = "train") -> None:
        self.split = checked_split(split)
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        self._made = made
        self._own = {question.ref.key: question for question in made.questions if question.ref.split == split}
        self._refs = tuple(question.ref for question in self._own.values())
        self._question: Question | None = None
        self._open = False

    def tasks(self) -> Sequence[TaskRef]:
        return self._refs

    def gold(self, observation: str) -> str:
        """The reference answer. Raises NoGold where none was given."""
        if (answer := self._current().answer) is None:
            raise NoGold("there is no gold answer: give single_turn its answers=, one for each prompt")
        return answer

    def near_misses(self) -> Sequence[Sequence[str]]:
        give = self._made.near_misses
        return [[answer] for answer in give(self._current().prompt)] if give is not None else ()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._question, self._open = self._own[self._refs[self.pick(self._refs, options)].key], True
        return self._question.prompt, step_info(self._question.ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        question = self._current()
        if not self._open:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        self._open = False
        reward, said = judged(self._made.verify, question.prompt, action)
        seen = "\n".join(item.text for item in said if item.visible)
        if question.answer is not None:
            said += tuple(Feedback(question.answer, kind, 0, False) for kind in (Source.ANSWER, Source.SOLUTION))
        info = step_info(
            question.ref, feedback=said, components={"verify": reward}, success=reward >= 1, invalid=not action.strip()
        )
        return seen, reward, True, False, info

    def _current(self) -> Question:
        if self._question is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._question


def judged(verify: Verify, prompt: str, action: str) -> tuple[float, tuple[Feedback, ...]]:
    """What the function says, as a finite reward and typed feedback.

    Raises:
        UsageError: it says anything else; the message names the prompt.
    """
    verdict: Any = verify(prompt, action)
    where = f"verify of the prompt {prompt[:80]!r}"
    if not isinstance(verdict, tuple) or len(verdict) != 2:
        raise UsageError(f"{where}: expected (reward, feedback), found {verdict!r}; return both, such as (1.0, None)")
    reward, said = verdict
    try:
        reward = float(reward)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: expected a number as the reward, found {reward!r}") from error
    if not isfinite(reward):
        raise UsageError(f"{where}: expected a finite reward, found {reward}")
    if isinstance(said, str):
        said = Feedback(said, Source.VERIFIER, 0, visible=False) if said else None
    if said is not None and not isinstance(said, Feedback):
        raise UsageError(f"{where}: expected a text, a Feedback or None as feedback, found {said!r}")
    return reward, () if said is None else (replace(said, turn=0),)


def _rows(
    prompts: Texts, answers: Texts | Callable[[str], str] | None
) -> Iterator[tuple[Split | None, int, str, str | None]]:
    """(split or None, place, prompt, answer), with every text looked at."""
    if isinstance(prompts, Mapping):
        if isinstance(answers, Sequence):
            raise UsageError("answers: expected them by split, as the prompts are, found one list")
        if isinstance(answers, Mapping) and set(answers) != set(prompts):
            raise UsageError(f"answers: expected the splits {sorted(prompts)}, found {sorted(answers)}")
        for name, own in prompts.items():
            given = answers[name] if isinstance(answers, Mapping) else answers
            for _, place, prompt, answer in _rows(own, given):
                yield checked_split(name), place, prompt, answer
        return
    if isinstance(answers, Mapping):
        raise UsageError(f"answers: expected a list as long as the prompts, found a dict by {sorted(answers)}")
    for name, given in (("prompts", prompts), ("answers", answers)):
        if isinstance(given, str):
            raise UsageError(f"{name}: expected a list of texts, found one text {given[:80]!r}")
    if isinstance(answers, Sequence) and len(answers) != len(prompts):
        raise UsageError(f"answers: expected {len(prompts)}, one for each prompt, found {len(answers)}")
    for place, prompt in enumerate(prompts):
        answer = answers(prompt) if callable(answers) else answers[place] if answers is not None else None
        for text in (prompt, answer):
            if not isinstance(text, str) and (text is not None or prompt is None):
                raise UsageError(f"prompt {place}: expected texts, found {text!r}")
        yield None, place, prompt, answer


def _in_one_split(questions: Sequence[Question]) -> None:
    """Raises UsageError where one prompt is in two splits."""
    owner: dict[str, Question] = {}
    for question in questions:
        first = owner.setdefault(question.prompt, question)
        if first.ref.split != question.ref.split:
            both = f"{first.ref.key} and {question.ref.key}"
            raise UsageError(f"the prompt {question.prompt[:80]!r} is {both}: expected it in one split")
