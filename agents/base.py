"""The agent contract: policies that take and give token ids, and trajectories that keep them exact.

Log-probs are natural logarithms (nats) in float32 of the distribution that was actually sampled from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from retort.envs.base import Failure, Feedback, TaskRef, TextEnv, UsageError

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


class Origin(IntEnum):
    """Where a token of a row came from. A student row with a PRIVILEGED token ends the run."""

    PROMPT = 0
    OBSERVATION = 1
    SAMPLED = 2
    PRIVILEGED = 3


SAMPLED = np.uint8(Origin.SAMPLED)  # looked up for every row


class Finish(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. temperature 0 is greedy; top_p 1 and top_k 0 leave the distribution whole."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256


@dataclass(frozen=True)
class Prompt:
    """What a policy continues: exact ids, and the same conversation as messages for policies that read text.

    tools: JSON schemas that the ids show and the messages do not.
    """

    token_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of one action as a server counts them, where the ids here are not those of its tokenizer."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Completion:
    """What a policy wrote. The stop token, where there was one, is the last id and has a log-prob like any other.

    versions: the policy version that sampled each token. A log-prob that nobody knows is NaN.
    """

    token_ids: tuple[int, ...]
    logp: tuple[float, ...]
    finish_reason: Finish
    versions: tuple[int, ...]
    usage: Usage | None = None


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of N positions of one sequence.

    logp: [N] of the token that stands there. entropy: [N] in nats. topk_ids, topk_logp: [N,K]. rest_logp: [N], the
    log-mass outside `topk_ids`.
    """

    logp: Float32
    entropy: Float32 | None = None
    topk_ids: Int64 | None = None
    topk_logp: Float32 | None = None
    rest_logp: Float32 | None = None


class EnvironmentFault(RuntimeError):
    """The environment broke while an episode ran. The episode is an infrastructure failure, never a reward of 0."""


class ContextFull(RuntimeError):
    """The prompt and an answer do not fit into the policy's context: the episode is truncated by `context`."""


class EngineError(UsageError):
    """An engine that cannot be used as it is: another model or tokenizer, other settings, weights that do not fit."""


class Policy(Protocol):
    """Anything that can play: a model in this process, a server, a script.

    name: what provenance calls it. version: rises with every update of the weights.
    """

    name: str
    version: int

    async def begin(self, episode: str, env: TextEnv) -> None:
        """An episode starts. Engines may reserve a cache; scripts keep the environment that they read."""
        ...

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        """Continue the prompt. The same weights, prompt, sampling and seed give the same tokens.

        Raises:
            EnvironmentFault: the infrastructure behind the policy failed; the episode is not counted.
            ContextFull: the prompt does not fit.
        """
        ...

    async def end(self, episode: str) -> None:
        """The episode is over; whatever was kept for it is freed. May be called again."""
        ...

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
        """Log-probs of `sequences[i][p]` given what stands before p, for p in `positions[i]` (each at least 1).

        ids: for each sequence [N,K] vocabulary ids to score beside the token itself; or the top `k` of the policy.

        Raises:
            NotImplementedError: by name, for what this engine cannot give.
        """
        ...


class Engine(Policy, Protocol):
    """A policy whose weights follow a learner's."""

    def update(self, model: Any, version: int) -> None:
        """From now on it plays with the weights of `model`, and they are called `version`.

        Raises:
            EngineError: they are not those of the model that it was made for, or it did not take them.
        """
        ...


@dataclass(frozen=True)
class Provenance:
    """Where a trajectory comes from: enough to trust it, or to make it again."""

    env_id: str
    policy: str
    policy_version: int
    tokenizer_digest: str
    template_digest: str
    sampling: Sampling
    seed: int
    backend: str
    verifier_version: str


@dataclass(frozen=True)
class Turn:
    """One action. `start` and `stop` span its sampled tokens in row number `row`.

    observation: what was read before acting. reward: what the step that followed gave. feedback: what it taught.
    invalid: the environment could not read it as an action. usage: as in `Completion`.
    """

    observation: str
    action: str
    row: int
    start: int
    stop: int
    reward: float
    finish_reason: Finish
    feedback: tuple[Feedback, ...] = ()
    invalid: bool = False
    usage: Usage | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One unbroken token sequence of an episode, all arrays [T].

    origin: an `Origin` for each token. turn: the 0-based action a sampled token belongs to, else -1.
    behaviour_logp: NaN where nothing was sampled. version: of the policy that sampled, else -1.
    """

    token_ids: Int32
    origin: UInt8
    turn: Int32
    behaviour_logp: Float32
    version: Int32

    @property
    def mask(self) -> Bool:
        """True on the tokens that the model sampled."""
        result: Bool = self.origin == SAMPLED
        return result


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One whole episode.

    rows: usually one; a prefix that could not be kept starts another, and `len(rows) - 1` counts the breaks.
    reward: the sum over turns. success: the environment's word. failure and error: whose fault, and what was raised.
    truncated_by: where `truncated`, what ran out: "turn_tokens", "trajectory_tokens", "context", or "env" for a limit
        of the environment's own, such as its number of turns.
    policy_s, env_s: seconds on the clock that the episode waited for its policy, and for its environment.
    """

    episode: str
    group: int
    task: TaskRef
    rows: tuple[Row, ...]
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    reward: float
    success: bool | None
    failure: Failure | None
    terminated: bool
    truncated: bool
    provenance: Provenance
    truncated_by: str | None = None
    error: str | None = None
    reward_components: Mapping[str, float] = field(default_factory=dict)
    final_observation: str = ""
    policy_s: float = 0.0
    env_s: float = 0.0

    @property
    def feedback(self) -> tuple[Feedback, ...]:
        """All feedback of the episode, in order."""
        return tuple(item for turn in self.turns for item in turn.feedback)

    @property
    def usable(self) -> bool:
        """Whether it may enter a batch: the infrastructure held."""
        return self.failure is not Failure.INFRASTRUCTURE

    @property
    def sampled_tokens(self) -> int:
        """How many tokens the model sampled."""
        return int(sum(int(row.mask.sum()) for row in self.rows))


def succeeded(trajectory: Trajectory) -> bool:
    """The environment's word. Where it gave none: a positive reward, unless the episode was cut before its end."""
    if trajectory.success is not None:
        return trajectory.success
    return not trajectory.truncated and trajectory.reward > 0


class Tokenizer(Protocol):
    """The little that chat rendering asks of a tokenizer; those of transformers have it."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str: ...
