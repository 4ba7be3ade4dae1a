"""Policies that act without a model: the gold solution, nothing, noise, a plan, and a noisy apprentice.

They read the environment that `begin` gives them and write their actions through a `Chat`, so that their episodes
are rows of tokens like any other. Each token's log-prob is 0.0: what a script writes has probability 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from retort.agents.base import Completion, EnvironmentFault, Finish, Int64, Prompt, Sampling, TokenScores
from retort.agents.chat import Chat
from retort.envs.base import TextEnv

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

# (environment, observation, turn, random numbers of this call) -> action
Script = Callable[[TextEnv, str, int, np.random.Generator], str]


class ByteTokenizer:
    """UTF-8 bytes and the three ChatML tokens: enough to record a script's episodes, with nothing to install."""

    name_or_path = "bytes"
    unk_token_id: int | None = None
    eos_token_id: int | None = 257
    clean_up_tokenization_spaces = False

    def encode(self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """The bytes of `text`; what looks like a special token is one, unless `split_special_tokens`."""
        if split_special_tokens:
            return list(text.encode())
        for offset, token in enumerate(SPECIALS):
            if token in text:
                before, _, after = text.partition(token)
                return [*self.encode(before), 256 + offset, *self.encode(after)]
        return list(text.encode())

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """The text of `token_ids`; bytes that are not UTF-8 become U+FFFD."""
        special = [b"" if skip_special_tokens else token.encode() for token in SPECIALS]
        return b"".join(bytes([i]) if i < 256 else special[i - 256] for i in token_ids).decode(errors="replace")

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a special token, else None."""
        return 256 + SPECIALS.index(token) if token in SPECIALS else None

    def __len__(self) -> int:
        return 256 + len(SPECIALS)

    def __repr__(self) -> str:
        return "ByteTokenizer()"


class ScriptedPolicy:
    """Plays what `script` says. One object serves any number of episodes at once."""

    def __init__(self, script: Script, chat: Chat, *, name: str) -> None:
        self.name = name
        self.version = 0
        self._script = script
        self._chat = chat
        self._episodes: dict[str, tuple[TextEnv, int]] = {}

    async def begin(self, episode: str, env: TextEnv) -> None:
        self._episodes[episode] = (env, 0)

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        """The script's next action, cut at `sampling.max_new_tokens`.

        Raises:
            EnvironmentFault: the environment raised while the script read it.
        """
        env, turn = self._episodes[episode]
        self._episodes[episode] = (env, turn + 1)
        try:
            text = self._script(env, prompt.messages[-1]["content"], turn, np.random.default_rng(seed))
        except Exception as error:
            raise EnvironmentFault(f"{self.name}: {type(error).__name__}: {error}") from error
        ids = self._chat.action_ids(text)
        kept = tuple(ids[: sampling.max_new_tokens])
        finish = Finish.STOP if len(kept) == len(ids) else Finish.LENGTH
        return Completion(kept, (0.0,) * len(kept), finish, (self.version,) * len(kept))

    async def end(self, episode: str) -> None:
        self._episodes.pop(episode, None)

    async def score(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        *,
        ids: Sequence[Int64] | None = None,
        k: int = 0,
        entropy: bool = False,
        temperature: float = 1.0,
    ) -> list[TokenScores]:
        raise NotImplementedError(f"policy {self.name!r} is a script and has no distribution to score with")


def gold(chat: Chat) -> ScriptedPolicy:
    """Plays each environment's own solution."""
    return ScriptedPolicy(lambda env, observation, turn, rng: _gold(env, observation), chat, name="gold")


def null(chat: Chat) -> ScriptedPolicy:
    """Says nothing, every turn."""
    return ScriptedPolicy(lambda env, observation, turn, rng: "", chat, name="null")


def random(chat: Chat) -> ScriptedPolicy:
    """Samples the action space with the call's own seed."""

    def act(env: TextEnv, observation: str, turn: int, rng: np.random.Generator) -> str:
        env.action_space.seed(int(rng.integers(2**31)))
        return env.action_space.sample()

    return ScriptedPolicy(act, chat, name="random")


def plan(actions: Sequence[str], chat: Chat) -> ScriptedPolicy:
    """Plays `actions` in order, then says nothing."""
    fixed = tuple(actions)
    return ScriptedPolicy(
        lambda env, observation, turn, rng: fixed[turn] if turn < len(fixed) else "", chat, name="plan"
    )


def _gold(env: TextEnv, observation: str) -> str:
    action: str = env.get_wrapper_attr("gold")(observation)
    return action


def apprentice(chat: Chat, skill: float) -> ScriptedPolicy:
    """Plays an environment's solution with probability `skill`, and one of its near misses else.

    The choice is made by the seed of the episode's first action. Where there are no near misses it plays the solution.
    """
    plans: dict[int, Sequence[str] | None] = {}

    def act(env: TextEnv, observation: str, turn: int, rng: np.random.Generator) -> str:
        if turn == 0:
            misses = env.get_wrapper_attr("near_misses")()
            right = rng.random() < skill or not misses
            plans[id(env)] = None if right else misses[int(rng.integers(len(misses)))]
        chosen = plans[id(env)]
        if chosen is None:
            return _gold(env, observation)
        action: str = env.get_wrapper_attr("follow")(chosen, turn, observation)
        return action

    return ScriptedPolicy(act, chat, name="apprentice")
