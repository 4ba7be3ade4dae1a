"""Judges: what a turn was worth, and what could be learned from what came after it.

A judge gives votes on one turn: a score of +1, -1 or 0, and perhaps a hint in words for whoever acts again. The rules
read what the environment itself said; the model is any `Policy`, asked in words about the action and the next state.
Source: OpenClaw-RL 2026, arXiv:2603.10165, whose prompts are not used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from retort.agents.base import Message, Policy, Prompt, Sampling, Trajectory
from retort.agents.chat import Chat
from retort.envs.base import Feedback, Source, TextEnv
from retort.feedback.hindsight import next_state

TAUGHT = (Source.HINT, Source.VERIFIER, Source.TEST_FAILURE, Source.RUNTIME_ERROR, Source.USER_REPLY)
QUESTION = """An assistant acted, and this is what came back.
It had read:
{observation}
It did:
{action}
What came back:
{after}
Was the action right? Answer with one line, VOTE: +1, VOTE: -1 or VOTE: 0 when nothing shows it. If what came back says
how to do better, add a second line, HINT: and the advice, without solving the task."""
VOTE = re.compile(r"VOTE:\s*([+-]?1|0)")
HINT = re.compile(r"HINT:\s*(.+)", re.DOTALL)


class Vote(NamedTuple):
    """score: +1, -1 or 0. hint: what should be done instead, or ""."""

    score: int
    hint: str = ""


class Judge(Protocol):
    """Gives the votes on every turn of every episode: `found[episode][turn]`, none where nothing came after the
    turn.
    """

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[list[list[Vote]]]: ...


def by_rules(trajectories: Sequence[Trajectory]) -> list[list[list[Vote]]]:
    """For environments with a verifier: one vote a turn, by its reward, or by the outcome for the last one. A turn that
    a user speaks of is right where it was rewarded and wrong else.

    The hint is what the environment answered to that turn beside what it showed; a turn that was right has none, since
    what is said of it is praise and not advice.
    """
    return [[_ruled(trajectory, turn) for turn in range(len(trajectory.turns))] for trajectory in trajectories]


def _ruled(trajectory: Trajectory, number: int) -> list[Vote]:
    turn, last = trajectory.turns[number], number == len(trajectory.turns) - 1
    replies = [item.text for item in turn.feedback if item.source is Source.USER_REPLY and item.visible]
    if last and trajectory.success is not None:
        score = 1 if trajectory.success else -1
    elif replies:  # a user who speaks of the answer has judged it
        score = 1 if turn.reward > 0 else -1
    else:
        score = (turn.reward > 0) - (turn.reward < 0)
    if score > 0:
        return [Vote(score)]
    hint = "\n".join(item.text for item in turn.feedback if item.source in TAUGHT and not item.visible)
    return [Vote(score, hint or "\n".join(replies))]


@dataclass(frozen=True)
class ModelJudge:
    """Asks a policy `votes` times about every turn. An answer that says no vote counts as 0, with no hint.

    policy, chat: of the judge. seed: of its sampling.
    """

    policy: Policy
    chat: Chat
    seed: int
    votes: int = 3
    temperature: float = 0.6
    max_tokens: int = 256

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[list[list[Vote]]]:
        asked = [
            (episode, turn, _question(trajectory, turn))
            for episode, trajectory in enumerate(trajectories)
            for turn in range(len(trajectory.turns))
            if next_state(trajectory, turn)
        ]
        found: list[list[list[Vote]]] = [[[] for _ in trajectory.turns] for trajectory in trajectories]
        answers = asyncio.run(self._answers([text for *_, text in asked for _ in range(self.votes)]))
        for place, answer in enumerate(answers):
            episode, turn, _ = asked[place // self.votes]
            found[episode][turn].append(read_vote(answer))
        return found

    async def _answers(self, questions: Sequence[str]) -> list[str]:
        names = [f"judge-{self.seed}-{number:06d}" for number in range(len(questions))]
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_tokens)
        for name in names:
            await self.policy.begin(name, _Nowhere())
        try:
            return await asyncio.gather(*(self._ask(*pair, sampling) for pair in zip(names, questions, strict=True)))
        finally:
            for name in names:
                await self.policy.end(name)

    async def _ask(self, name: str, question: str, sampling: Sampling) -> str:
        messages = (Message(role="user", content=question),)
        prompt = Prompt(tuple(self.chat.prompt(messages)), messages)
        number = int(name.rpartition("-")[2])
        done = await self.policy.generate(prompt, sampling, episode=name, seed=(self.seed << 24) + number)
        return self.chat.text(done.token_ids)


class _Nowhere(TextEnv):
    """A judge acts in no environment."""

    def tasks(self) -> Sequence[TextEnv]:  # type: ignore[override]
        return ()

    def gold(self, observation: str) -> str:
        raise NotImplementedError("a judge acts in no environment")


def _question(trajectory: Trajectory, turn: int) -> str:
    own = trajectory.turns[turn]
    return QUESTION.format(observation=own.observation, action=own.action, after=next_state(trajectory, turn))


def read_vote(answer: str) -> Vote:
    """The last vote in an answer, and the hint behind it."""
    scores = VOTE.findall(answer)
    hint = HINT.search(answer)
    return Vote(int(scores[-1]) if scores else 0, hint[1].strip() if hint and scores else "")


def with_judgement(trajectory: Trajectory, scores: Sequence[float | None], hints: Sequence[str | None]) -> Trajectory:
    """The episode with a judge's score as each turn's reward (None leaves it) and its hint as invisible feedback."""
    turns = []
    for number, (turn, score, hint) in enumerate(zip(trajectory.turns, scores, hints, strict=True)):
        said = (Feedback(hint, Source.JUDGE, number, visible=False),) if hint else ()
        reward = turn.reward if score is None else float(score)
        turns.append(replace(turn, reward=reward, feedback=(*turn.feedback, *said)))
    return replace(trajectory, turns=tuple(turns))
