"""Policies that act without a model: the gold solution, nothing, noise, a plan, and a noisy apprentice.

They read the environment that `begin` gives them and write their actions through a `Chat`, so that their episodes
are rows of tokens like any other. Each token's log-prob is 0.0: what a script writes has probability 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from retort.agents.base import Completion, EnvironmentFault, Finish, Int64, Prompt, Sampling, TokenScores
from retort.agents.chat import Chat
from retort.envs.base import TextEnv
from retort.envs.raised import told

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

# What one episode's script says: (observation, turn, random numbers of this call) -> action.
Script = Callable[[str, int, np.random.Generator], str]


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


def byte_chat() -> Chat:
    """A chat over bytes, for scripts where no model's tokenizer is at hand."""
    return Chat(ByteTokenizer())


class ScriptedPolicy:
    """Plays a script. `script(env)` makes one for each episode, so one policy serves any number of them at once.

    threads: 0 runs scripts in the event loop; a script that waits for something runs in one of so many threads, lest
    the other episodes wait with it.
    """

    def __init__(self, script: Callable[[TextEnv], Script], chat: Chat, *, name: str, threads: int = 0) -> None:
        self.name = name
        self.version = 0
        self._script = script
        self._chat = chat
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="retort-script") if threads else None
        self._episodes: dict[str, Script] = {}
        self._turns: dict[str, int] = {}

    async def begin(self, episode: str, env: TextEnv) -> None:
        self._episodes[episode], self._turns[episode] = self._script(env), 0

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        """The script's next action, cut at `sampling.max_new_tokens`.

        Raises:
            EnvironmentFault: the environment raised while the script read it.
        """
        turn, self._turns[episode] = self._turns[episode], self._turns[episode] + 1
        script, said = self._episodes[episode], prompt.messages[-1]["content"]
        rng = np.random.default_rng(seed)
        try:
            if self._threads is None:
                text = script(said, turn, rng)
            else:
                text = await asyncio.get_running_loop().run_in_executor(self._threads, script, said, turn, rng)
        except Exception as error:
            raise EnvironmentFault(f"{self.name}: {told(error)}") from error
        ids = self._chat.action_ids(text)
        kept = tuple(ids[: sampling.max_new_tokens])
        finish = Finish.STOP if len(kept) == len(ids) else Finish.LENGTH
        return Completion(kept, (0.0,) * len(kept), finish, (self.version,) * len(kept))

    async def end(self, episode: str) -> None:
        self._episodes.pop(episode, None)
        self._turns.pop(episode, None)

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
    return ScriptedPolicy(lambda env: lambda observation, turn, rng: _gold(env, observation), chat, name="gold")


def null(chat: Chat) -> ScriptedPolicy:
    """Says nothing, every turn."""
    return plan((), chat, name="null")


def random(chat: Chat) -> ScriptedPolicy:
    """Samples the action space with the call's own seed."""

    def script(env: TextEnv) -> Script:
        def act(observation: str, turn: int, rng: np.random.Generator) -> str:
            env.action_space.seed(int(rng.integers(2**31)))
            return env.action_space.sample()

        return act

    return ScriptedPolicy(script, chat, name="random")


def plan(actions: Sequence[str], chat: Chat, *, name: str = "plan") -> ScriptedPolicy:
    """Plays `actions` in order, then says nothing."""
    fixed = tuple(actions)
    return ScriptedPolicy(
        lambda env: lambda observation, turn, rng: fixed[turn] if turn < len(fixed) else "", chat, name=name
    )


def apprentice(chat: Chat, skill: float) -> ScriptedPolicy:
    """Plays the solution in a share `skill` of episodes, else one of the environment's near misses.

    Raises:
        ValueError: `skill` is not a probability.
    """
    if not 0 <= skill <= 1:
        raise ValueError(f"skill: expected a probability, found {skill}")

    def script(env: TextEnv) -> Script:
        missed: list[str] | None = None

        def act(observation: str, turn: int, rng: np.random.Generator) -> str:
            nonlocal missed
            if turn == 0 and rng.random() >= skill:
                misses = env.get_wrapper_attr("near_misses")()
                missed = list(misses[rng.integers(len(misses))]) if misses else None
            if missed is None:
                return _gold(env, observation)
            follow = env.get_wrapper_attr("follow")
            return str(follow(missed, turn, observation)) if turn < len(missed) else ""

        return act

    return ScriptedPolicy(script, chat, name="apprentice")


def _gold(env: TextEnv, observation: str) -> str:
    return str(env.get_wrapper_attr("gold")(observation))
