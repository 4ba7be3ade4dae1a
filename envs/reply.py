"""`retort/Reply-v0`: a conversation with a user who has preferences, and tells them only in what they say of an answer.

The first observation is a request; an action is the answer. The next observation is what the user says of it, and the
next request: thanks; or, where the answer is right and not as they like it, a correction or complaint that names one
preference; or, where it is wrong, that it is, and the same request in other words. So the observation after an answer
judges it and says how to do better, and never holds the answer. The conversation ends after `max_turns` answers.

The requests of a conversation bring out the same preferences, so that what the user says of one answer helps with the
next. An answer that is right and meets every preference earns the share of one turn; all of them earn exactly 1.
Success is that the user thanks for the last answer: nobody can know a preference before the first complaint, so the
reward says how soon the policy did as the user likes, and success whether it did in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
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
    content_digest,
    step_info,
)
from retort.envs.draw import Draw
from retort.envs.reply_tasks import FAMILIES, Goal, goals_of, spoken
from retort.envs.reply_users import (
    AGAIN,
    NEW_USERS,
    USERS,
    User,
    Verdict,
    ideal,
    judged,
    likes,
    other_style,
    reaction,
    user,
    wish_ignored,
)

PROTOCOL = "A user asks, you answer. They have preferences: learn them from what they say."
PER_FAMILY: dict[Split, int] = {"train": 10, "validation": 2, "test": 2}  # conversations of a user
MOST_TURNS = 6  # requests that a conversation is drawn with


@dataclass(frozen=True)
class Talk:
    """A conversation before it is held: who asks, and (family, goal) of each request, in order."""

    ref: TaskRef
    who: User
    requests: tuple[tuple[str, Goal], ...]


class ReplyEnv(TextEnv):
    """Requests of a simulated user.

    split: "train", "validation" or "test"; no request is in two. max_turns: answers in a conversation, 1 to 6.
    user: 0 to 23, the one who asks; None is everybody. Users 20 to 23 are in validation and test alone.
    explain: the first observation also says what it is about.

    Raises:
        UsageError: an unknown value, with the valid ones.
    """

    blocking = False
    counts = {"train": 3800, "validation": 912, "test": 912}  # noqa: RUF012

    def __init__(
        self, split: Split = "train", max_turns: int = 3, user: int | None = None, explain: bool = False
    ) -> None:
        if not 1 <= max_turns <= MOST_TURNS:
            raise UsageError(f"max_turns: expected 1 to {MOST_TURNS}, found {max_turns}")
        self.split, self.max_turns, self.explain = checked_split(split), max_turns, explain
        self.users = _users(self.split, user)
        self.observation_space, self.action_space = TextSpace(), TextSpace(2_000)
        self._talks: dict[str, Talk] = {}
        self._listed: tuple[TaskRef, ...] = ()
        self._talk: Talk | None = None
        self._turn, self._place, self._earned, self._over = 0, 0, 0.0, False

    def tasks(self) -> Sequence[TaskRef]:
        if not self._listed:
            self._talks = {talk.ref.key: talk for number in self.users for talk in _talks(self.split, number)}
            self._listed = tuple(talk.ref for talk in self._talks.values())
        return self._listed

    def gold(self, observation: str) -> str:
        talk = self._current()
        return ideal(talk.who, *talk.requests[self._place])

    def near_misses(self) -> Sequence[Sequence[str]]:
        """Right content in another style, or against the user's wish; who has learned it and forgets it in the end."""
        talk = self._current()

        def plan(answer: Callable[[User, str, Goal], str]) -> list[str]:
            return [answer(talk.who, *request) for request in talk.requests[: self.max_turns]]

        styled, ignored, right = plan(other_style), plan(wish_ignored), plan(ideal)
        last = self.max_turns - 1
        plans = [styled, ignored, [*right[:last], styled[last]], [*right[:last], ""]]
        # An answer without letters is in capital ones too.
        return [plan for plan in plans if not judged(talk.who, *talk.requests[last], plan[last]).good]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        refs = self.tasks()
        key = (options or {}).get("task")
        # A known key needs no search through thousands of tasks.
        known = key if isinstance(key, str) and key in self._talks and len(options or {}) == 1 else None
        self._talk = self._talks[known or refs[self.pick(refs, options)].key]
        self._turn, self._place, self._earned, self._over = 0, 0, 0.0, False
        request = self._request()
        return f"{PROTOCOL}\n{request}" if self.explain else request, step_info(self._talk.ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        talk = self._current()
        if self._over:
            raise ResetNeeded("the conversation has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        family, goal = talk.requests[self._place]
        verdict = judged(talk.who, family, goal, action if self.action_space.contains(action) else "")
        turn, self._turn = self._turn, self._turn + 1
        self._over = self._turn == self.max_turns
        reward = self._reward(verdict)
        said = self._said(verdict)
        feedback = [
            Feedback(said, Source.USER_REPLY, turn, visible=True),
            Feedback(_verdict(verdict), Source.VERIFIER, turn, visible=False),
        ]
        if self._over:
            feedback += _lessons(talk, self.max_turns, family, goal, verdict, turn)
        components = {"content": float(verdict.content), "preferences": float(not verdict.unmet)}
        info = step_info(
            talk.ref,
            feedback=feedback,
            components=components,
            success=verdict.good if self._over else None,
            invalid=not action.strip(),  # one that is too long is not in the action space
        )
        self._place += verdict.content and not self._over
        next_up = not self._over and verdict.content
        return f"{said} {self._request()}" if next_up else said, reward, self._over, False, info

    def close(self) -> None:
        self._talk = None

    def _current(self) -> Talk:
        if self._talk is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._talk

    def _request(self) -> str:
        """The request that waits for an answer; when it is asked again, in other words."""
        talk = self._current()
        first = Draw(f"{talk.ref.key} request {self._place}").number(0, 5)
        return spoken(*talk.requests[self._place], first + self._turn - self._place)

    def _said(self, verdict: Verdict) -> str:
        """What the user says of the answer; a request that was not answered is part of it."""
        draw = Draw(f"{self._current().ref.key} reply {self._turn}")
        said = reaction(verdict, draw)
        if verdict.content or self._over:
            return said
        return f"{said} {AGAIN[draw.number(0, len(AGAIN) - 1)]} {self._request()}"

    def _reward(self, verdict: Verdict) -> float:
        if not verdict.good:
            return 0.0
        # The last share is what is missing to 1: a sum of rounded thirds need not be whole.
        share = 1 / self.max_turns
        whole = self._over and self._earned > 1 - 1.5 * share
        reward = 1 - self._earned if whole else share
        self._earned += reward
        return reward


def _users(split: Split, asked: int | None) -> tuple[int, ...]:
    met = tuple(number for number in range(USERS) if split != "train" or number not in NEW_USERS)
    if asked is None:
        return met
    if asked in NEW_USERS and asked not in met:
        raise UsageError(f"user {asked} is held out of training; 0 to {met[-1]} are in it")
    if asked not in met:
        raise UsageError(f"user: expected a number from 0 to {USERS - 1}, found {asked!r}")
    return (asked,)


@cache
def _talks(split: Split, number: int) -> tuple[Talk, ...]:
    """Every conversation of a user in a split."""
    return tuple(_talk(split, user(number), family, index) for family in FAMILIES for index in range(PER_FAMILY[split]))


def _talk(split: Split, who: User, family: str, index: int) -> Talk:
    """The first request is of `family`, the others of families that bring out the same preference."""
    key = f"u{who.number:02d}/{family}/{split}/{index:02d}"
    draw = Draw(key)
    alike = [name for name in FAMILIES if FAMILIES[name].style == FAMILIES[family].style]
    own, pool = list(goals_of(family, split)), [(name, goal) for name in alike for goal in goals_of(name, split)]
    first = (family, own[draw.number(0, len(own) - 1)])
    pool.remove(first)
    requests = [first, *(pool.pop(draw.number(0, len(pool) - 1)) for _ in range(MOST_TURNS - 1))]
    digest = content_digest([who.styles, who.kind, who.value, requests])
    return Talk(TaskRef(key, digest, split, family), who, tuple(requests))


def _verdict(verdict: Verdict) -> str:
    parts = [f"content {'right' if verdict.content else 'wrong'}"]
    parts += [f"{kind}: expected {want}; found {found}" for kind, want, found in verdict.unmet]
    return "; ".join(parts) if verdict.unmet else f"{parts[0]}; found as preferred"


def _lessons(talk: Talk, turns: int, family: str, goal: Goal, verdict: Verdict, turn: int) -> list[Feedback]:
    """What a teacher may see at the end and the student never does."""
    texts = [] if verdict.good else [(Source.HINT, f"this user likes {likes(talk.who, family)}")]
    texts += [
        (Source.ANSWER, ideal(talk.who, family, goal)),
        (Source.SOLUTION, "\n".join(ideal(talk.who, *request) for request in talk.requests[:turns])),
    ]
    return [Feedback(text, source, turn, visible=False) for source, text in texts]
