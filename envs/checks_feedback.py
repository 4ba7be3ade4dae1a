"""Checks of what is said: feedback is typed and honest, secrets stay secret, and nobody speaks for the agent."""

from __future__ import annotations

import re
from collections.abc import Iterator

from retort.envs.base import Feedback
from retort.envs.probe import Fault, Subject, shown

LEAK_TOKENS = 8  # a run of so many words of invisible feedback in an observation is a leak; a whole shorter text too
WORD = re.compile(r"\w+|[^\w\s]")
# What chat formats put between messages: ChatML, Llama, Gemma, Mistral, DeepSeek, gpt-oss.
MARKUP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|start_header_id|end_header_id|eot_id|system|user|assistant|start|end|channel)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<｜(?:User|Assistant)｜>"
)


def feedback_names_its_action(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        for item in step.info.get("feedback") or ():
            if not isinstance(item, Feedback) or not isinstance(item.text, str):
                yield Fault(f"{episode}, action {turn}: {item!r}", "give Feedback(text, source, turn, visible)")
            elif item.turn != turn:
                yield Fault(
                    f"{episode}, action {turn}: feedback says turn {item.turn}", "count actions from 0 at reset"
                )


def visible_feedback_was_seen(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        for item in step.info.get("feedback") or ():
            if isinstance(item, Feedback) and item.visible and item.text not in step.observation:
                yield Fault(
                    f"{episode}, action {turn}: visible feedback {shown(item.text)} is not in the observation",
                    "visible means that the student read this very text; else set visible=False",
                )


def invisible_feedback_stays_hidden(subject: Subject) -> Iterator[Fault]:
    """No run of LEAK_TOKENS words of it (or all of a shorter one, of three at least) is in an observation, unless the
    agent had read or written it before."""
    for episode in subject.episodes:
        hidden = [
            (item.text, run)
            for step in episode.steps
            for item in step.info.get("feedback") or ()
            if isinstance(item, Feedback) and not item.visible
            for run in _runs(item.text)
        ]
        known, observation = "", episode.observation
        for place, step in enumerate([None, *episode.steps]):
            if step is not None:
                seen = [item.text for item in step.info.get("feedback") or () if getattr(item, "visible", False)]
                known += spaced(observation) + spaced(step.action) + "".join(map(spaced, seen))
                observation = step.observation
            for text, run in hidden:
                # What the instruction says from the start is nobody's secret.
                if step is not None and run in spaced(observation) and run not in known:
                    yield Fault(
                        f"{episode}, action {place - 1}: the observation shows invisible feedback {shown(text)}",
                        "keep it out of the observation, or make it visible",
                    )
                    break


def spaced(text: str) -> str:
    """Words and punctuation with one space around each, so that runs can be searched for."""
    return f" {' '.join(WORD.findall(str(text)))} "


def _runs(text: str) -> list[str]:
    words = spaced(text).split()
    if len(words) < 3:
        return []
    last = max(len(words) - LEAK_TOKENS, 0)
    return [f" {' '.join(words[at : at + LEAK_TOKENS])} " for at in range(last + 1)]


def nobody_speaks_for_the_agent(subject: Subject) -> Iterator[Fault]:
    """An observation is one message of the user's: no markup of a chat format, unless the agent wrote it before."""
    for episode in subject.episodes:
        written = ""
        said = [("reset", "", episode.observation)]
        said += [(f"action {turn}", step.action, step.observation) for turn, step in enumerate(episode.steps)]
        for where, action, observation in said:
            written += action
            if found := [mark for mark in MARKUP.findall(str(observation)) if mark not in written]:
                yield Fault(
                    f"{episode}, {where}: the observation has {found[0]!r}",
                    "observe plain text, a user's message; the agent's chat format adds the roles",
                )
                break


CHECKS = (
    feedback_names_its_action,
    visible_feedback_was_seen,
    invisible_feedback_stays_hidden,
    nobody_speaks_for_the_agent,
)
