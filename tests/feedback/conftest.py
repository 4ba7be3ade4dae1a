"""Episodes made by hand, in bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from retort.agents.base import Finish, Message, Origin, Provenance, Row, Sampling, Trajectory, Turn
from retort.agents.chat import Chat
from retort.agents.scripted import ByteTokenizer
from retort.envs.base import Feedback, TaskRef

Made = Callable[..., Trajectory]


@pytest.fixture
def chat() -> Chat:
    return Chat(ByteTokenizer())


@pytest.fixture
def made(chat: Chat) -> Made:
    def make(
        observations: Sequence[str],
        actions: Sequence[str],
        *,
        feedback: Sequence[Feedback] = (),
        success: bool = False,
        group: int = 0,
        episode: str = "e",
    ) -> Trajectory:
        messages = [Message(role="user", content=observations[0])]
        ids = list(chat.prompt(messages))
        origin, turn = [int(Origin.PROMPT)] * len(ids), [-1] * len(ids)
        turns = []
        for number, action in enumerate(actions):
            start = len(ids)
            ids += chat.action_ids(action)
            origin += [int(Origin.SAMPLED)] * (len(ids) - start)
            turn += [number] * (len(ids) - start)
            own = tuple(item for item in feedback if item.turn == number)
            last = number + 1 == len(actions)
            reward = float(success and last)
            turns.append(Turn(observations[number], action, 0, start, len(ids), reward, Finish.STOP, own))
            messages.append(Message(role="assistant", content=action))
            if not last:
                message = Message(role="user", content=observations[number + 1])
                delta = chat.extend(ids, message)
                assert delta is not None
                ids += delta
                origin += [int(Origin.OBSERVATION)] * len(delta)
                turn += [-1] * len(delta)
                messages.append(message)
        sampled = np.array(origin) == Origin.SAMPLED
        row = Row(
            np.array(ids, np.int32),
            np.array(origin, np.uint8),
            np.array(turn, np.int32),
            np.where(sampled, -1.0, np.nan).astype(np.float32),
            np.where(sampled, 0, -1).astype(np.int32),
        )
        return Trajectory(
            episode=episode,
            group=group,
            task=TaskRef("toy/1", "0", "train"),
            rows=(row,),
            turns=tuple(turns),
            messages=tuple(messages),
            reward=float(success),
            success=success,
            failure=None,
            terminated=True,
            truncated=False,
            provenance=Provenance("toy", "hand", 0, "", "", Sampling(), 0, "none", "1"),
        )

    return make
