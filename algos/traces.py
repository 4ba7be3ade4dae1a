"""Expert traces: episodes that scripts played for real, written down as rows to imitate.

Trace distillation gives a model the format of an environment and a first share of successes; its own rollouts do the
rest. The traces of an apprentice, who is right some of the time and else makes a natural mistake, leave that rest to
be learned and teach the model to read feedback:

    plain      the task, and what the apprentice did, right or wrong
    corrected  the task with the feedback on a failed attempt, and what was right
    followed   the task with a solution shown, and exactly that done, right or wrong: what is shown is what counts

The last two are rows in the teacher's format. They are tagged PRIVILEGED and only `sft` may train on them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from retort.agents.base import Origin, Row, Trajectory, succeeded
from retort.agents.chat import Chat
from retort.feedback.reprompt import Reprompt, feedback_text, solution_text, view


class TraceOptions(BaseModel):
    """What is played and how much of it is shown.

    tasks, per_task: how many tasks, and episodes of each. skill: the apprentice's share of right plans.
    corrected, followed: shares of rows in the teacher's format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: int = Field(default=1500, ge=1)
    per_task: int = Field(default=3, ge=1)
    skill: float = Field(default=0.33, ge=0, le=1)
    corrected: float = Field(default=0.2, ge=0, le=1)
    followed: float = Field(default=0.15, ge=0, le=1)

    @model_validator(mode="after")
    def _leaves_plain_rows(self) -> TraceOptions:
        if self.corrected + self.followed >= 1:
            raise ValueError(f"expected corrected + followed below 1, found {self.corrected + self.followed}")
        return self


def encode(trajectory: Trajectory, chat: Chat) -> Row:
    """An episode's messages as one row of this chat's tokens, log-prob 0 where the script spoke.

    Raises:
        ValueError: the chat's template cannot extend a conversation without changing what stands.
    """
    spoken = [index for index, message in enumerate(trajectory.messages) if message["role"] == "assistant"]
    ids = list(chat.prompt(trajectory.messages[: spoken[0]]))
    origin, turn = [int(Origin.PROMPT)] * len(ids), [-1] * len(ids)
    for number, index in enumerate(spoken):
        action = chat.action_ids(trajectory.messages[index]["content"])
        ids += action
        origin += [int(Origin.SAMPLED)] * len(action)
        turn += [number] * len(action)
        if number + 1 < len(spoken):
            delta = chat.extend(ids, trajectory.messages[index + 1])
            if delta is None:
                raise ValueError(f"the template {chat.template_digest} cannot extend a conversation token by token")
            ids += delta
            origin += [int(Origin.OBSERVATION)] * len(delta)
            turn += [-1] * len(delta)
    sampled = np.array(origin) == Origin.SAMPLED
    return Row(
        token_ids=np.array(ids, np.int32),
        origin=np.array(origin, np.uint8),
        turn=np.array(turn, np.int32),
        behaviour_logp=np.where(sampled, 0.0, np.nan).astype(np.float32),
        version=np.where(sampled, 0, -1).astype(np.int32),
    )


def texts(played: Sequence[Trajectory], reprompt: Reprompt) -> list[str]:
    """Every text that a model of these traces will meet, privileged ones included: what a tokenizer is trained on."""
    found = []
    for item in played:
        found += [message["content"] for message in item.messages]
        for template, text in (
            (reprompt.feedback_template, feedback_text(item, reprompt.sources)),
            (reprompt.solution_template, solution_text(item)),
        ):
            if text and item.messages:
                found.append(template.format(prompt=item.messages[0]["content"], text=text))
    return found


def examples(
    played: Sequence[Trajectory], chat: Chat, options: TraceOptions, reprompt: Reprompt, seed: int
) -> list[Trajectory]:
    """One-row trajectories to imitate, in the shares that `options` asks for, in a seeded order."""
    plain = [replace(item, rows=(encode(item, chat),)) for item in played if item.usable and item.turns]
    groups: dict[int, list[Trajectory]] = defaultdict(list)
    for item in plain:
        groups[item.group].append(item)
    pairs = [
        (item, miss)
        for item in plain
        if succeeded(item)
        for miss in groups[item.group]
        if not succeeded(miss) and feedback_text(miss, reprompt.sources)
    ]
    rng = np.random.default_rng([seed, len(plain)])
    scale = len(plain) / max(1 - options.corrected - options.followed, 1e-9)
    found = list(plain)
    for index in rng.integers(len(pairs), size=int(scale * options.corrected)) if pairs else ():
        item, miss = pairs[index]
        found.append(_taught(item, (reprompt.feedback_template, feedback_text(miss, reprompt.sources)), chat, reprompt))
    for index in rng.integers(len(plain), size=int(scale * options.followed)):
        item = plain[index]
        found.append(_taught(item, (reprompt.solution_template, solution_text(item)), chat, reprompt))
    return [found[index] for index in rng.permutation(len(found))]


def _taught(item: Trajectory, shown: tuple[str, str], chat: Chat, reprompt: Reprompt) -> Trajectory:
    """The same actions behind the privileged text, every token of whose prompt is tagged."""
    row = item.rows[0]
    seen = view(item, 0, 0, shown, chat, reprompt)
    assert seen is not None  # an expert's episode has turns, and each has at least its stop token
    start = int(np.argmax(row.origin != Origin.PROMPT))
    prefix = len(seen.token_ids) - (len(row.token_ids) - start)

    def behind(values: NDArray[Any], fill: float) -> NDArray[Any]:
        return np.concatenate([np.full(prefix, fill, values.dtype), values[start:]])

    taught = Row(
        token_ids=seen.token_ids.astype(np.int32),
        origin=behind(row.origin, Origin.PRIVILEGED),
        turn=behind(row.turn, -1),
        behaviour_logp=behind(row.behaviour_logp, np.nan),
        version=behind(row.version, -1),
    )
    return replace(item, rows=(taught,))
