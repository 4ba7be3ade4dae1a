"""Checks of answers: what wins stands neither in the prompt nor in what is said to whoever does nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from retort.envs.base import Feedback, Source
from retort.envs.checks_feedback import LEAK_TOKENS, WORD, spaced
from retort.envs.probe import Episode, Fault, Subject, follow_plan, play, shown

SECRET_LENGTH = 3  # characters; shorter answers stand in any text by chance
# What a line says right before it gives the answer away.
ANNOUNCED = (
    r"(\b(answer|solution)\b\W{{0,8}}(is\W{{1,3}})?|####\s*"
    r"|\b(hint|secret|code|password)\b\s*(is|=)\W{{1,3}}|\bhint:\s*){words}[\s.)\"'`]*$"
)


def the_answer_is_not_in_the_prompt(subject: Subject) -> Iterator[Fault]:
    """No whole ANSWER or SOLUTION of LEAK_TOKENS words, and none of any length right after the word for it."""
    for episode in subject.played("gold"):
        told = [
            item for step in episode.steps for item in step.info.get("feedback") or () if isinstance(item, Feedback)
        ]
        hidden = [item.text for item in told if item.source in (Source.ANSWER, Source.SOLUTION) and not item.visible]
        whole = [text for text in hidden if stands_in(episode.observation, text)]
        spoken = [step.action for step in episode.steps]
        announced = [text for text in {*hidden, *spoken} if text.strip() and _announced(text, episode.observation)]
        for text in whole[:1] or announced[:1]:
            yield Fault(
                f"{episode}: the first observation holds the answer {shown(text)}",
                "take it out of the prompt; where copying is the task, if only in some, announce it by no word "
                "such as hint, and send no ANSWER and SOLUTION in these: they are no secret",
            )


def stands_in(prompt: str, answer: str) -> bool:
    """Whether a prompt holds the whole answer, of LEAK_TOKENS words at least: one that says so is no secret."""
    return len(WORD.findall(answer)) >= LEAK_TOKENS and spaced(answer) in spaced(prompt)


def _announced(answer: str, prompt: str) -> bool:
    """Whether a line of the prompt ends in words such as "answer: ", "hint: " or "#### ", and then this very answer."""
    words = r"\s+".join(map(re.escape, answer.split()))
    return bool(re.search("(?im)" + ANNOUNCED.format(words=words), prompt))


def the_answer_is_not_told_for_nothing(subject: Subject) -> Iterator[Fault]:
    """Not each of the tasks that go on in silence tells the null player, later than in the prompt, what wins at once.

    A text that holds another task's answer too is a list of choices.
    """
    answers = _last_actions(subject)
    found = []
    for silent in subject.played("null"):
        if len(silent.steps) < 2 or silent.ref.key not in answers:
            continue
        answer = answers[silent.ref.key]
        others = set(answers.values()) - {answer}
        places = [place for place, step in enumerate(silent.steps[:-1]) if _tells(step.observation, answer, others)]
        if not places or not others or _holds(silent.observation, answer):
            return
        if not _wins(subject, silent, [""] * (places[0] + 1) + [answer]):
            return
        found.append((silent, places[0], answer))
    for silent, place, answer in found:
        yield Fault(
            f"{silent}, action {place}: the observation tells {shown(answer)}, which wins, to whoever says nothing",
            "take the answer out of what every action is told; what an agent must find out, let its own actions reveal",
        )


def answer_in_every_prompt(subject: Subject) -> str:
    """A remark where each first observation holds a one-action solution of its task, and no other task's; else empty.

    It is no fault: where copying or reading is the task, the answer belongs there.
    """
    answers = _last_actions(subject)
    episodes = subject.played("null")
    if not episodes or any(episode.ref.key not in answers for episode in episodes):
        return ""
    for episode in episodes:
        answer = answers[episode.ref.key]
        others = set(answers.values()) - {answer}
        if not others or not _tells(episode.observation, answer, others, words=False):
            return ""
        if not _wins(subject, episode, [answer]):
            return ""
    example = shown(answers[episodes[0].ref.key])
    return f"every prompt holds its answer, such as {example}: sound only where copying or reading is the task"


def _last_actions(subject: Subject) -> dict[str, str]:
    """What the gold player says last, by task, where it is long enough to be no chance."""
    said = {episode.ref.key: episode.steps[-1].action.strip() for episode in subject.played("gold")}
    return {key: action for key, action in said.items() if len(action) >= SECRET_LENGTH}


def _holds(text: str, answer: str, *, words: bool = True) -> bool:
    """Whether it stands there in whole words, or (with words) its last word does, where that is long enough."""
    last = answer.split()[-1]
    wanted = [answer, last] if words and len(last) >= SECRET_LENGTH else [answer]
    return any(spaced(item) in spaced(text) for item in wanted)


def _tells(text: str, answer: str, others: set[str], *, words: bool = True) -> bool:
    return _holds(text, answer, words=words) and not any(_holds(text, other, words=words) for other in others)


def _wins(subject: Subject, episode: Episode, plan: list[str]) -> bool:
    again = play(subject.env, episode.ref, follow_plan(plan), "echo")
    return len(again.steps) == len(plan) and again.over and again.total >= 1


CHECKS = (
    the_answer_is_not_in_the_prompt,
    the_answer_is_not_told_for_nothing,
)
