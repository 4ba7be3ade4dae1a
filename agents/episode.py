"""One episode, from the task to the trajectory.

What the model samples enters a row as it was sampled; what the environment says is appended as the ids that the chat
format adds. Where the format cannot be extended, the episode goes on in a new row, rendered afresh, and nothing is
re-encoded in silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from retort.agents.base import (
    Completion,
    ContextFull,
    EnvironmentFault,
    Finish,
    Message,
    Origin,
    Policy,
    Prompt,
    Provenance,
    Row,
    Sampling,
    Trajectory,
    Turn,
)
from retort.agents.chat import Chat
from retort.envs.base import Failure, Feedback, TaskRef
from retort.envs.raised import told

Env = gymnasium.Env[str, str]


@dataclass(frozen=True)
class Budget:
    """Limits in tokens; None is no limit. What overflows is truncated, and `truncated_by` says by which.

    turn_tokens: of one action, beside `Sampling.max_new_tokens`. trajectory_tokens: sampled in the whole episode.
    context_tokens: of one row, prompt, observations and actions together.
    act_on_cut: give the environment an action that was cut at turn_tokens, and go on, rather than end the episode.
    """

    turn_tokens: int | None = None
    trajectory_tokens: int | None = None
    context_tokens: int | None = None
    act_on_cut: bool = False

    def __post_init__(self) -> None:
        for name in ("turn_tokens", "trajectory_tokens", "context_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1 or None, found {value}")

    def room(self, sampling: Sampling, sampled: int, context: int) -> tuple[int, str]:
        """How many tokens the next action may have, and the name of the limit that says so."""
        limits = [(min(self.turn_tokens or sampling.max_new_tokens, sampling.max_new_tokens), "turn_tokens")]
        if self.trajectory_tokens is not None:
            limits.append((self.trajectory_tokens - sampled, "trajectory_tokens"))
        if self.context_tokens is not None:
            limits.append((self.context_tokens - context, "context"))
        return min(limits, key=lambda limit: limit[0])


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to play. task: a key, or None to let the environment draw. group: what its advantage is relative to.

    episode: a name that no other episode of the same run has; batches are formed in the order of names.
    """

    task: str | None
    seed: int
    group: int
    episode: str


@dataclass(eq=False)
class _Row:
    """A row as it grows."""

    token_ids: list[int]
    origin: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, prompt: Sequence[int]) -> _Row:
        row = cls([])
        row.add(prompt, Origin.PROMPT)
        return row

    def add(self, ids: Sequence[int], origin: Origin) -> None:
        count = len(ids)
        self.token_ids.extend(ids)
        self.origin.extend([int(origin)] * count)
        self.turn.extend([-1] * count)
        self.logp.extend([np.nan] * count)
        self.version.extend([-1] * count)

    def sample(self, completion: Completion, turn: int) -> tuple[int, int]:
        """Appends what was sampled, as it was sampled; where it starts and stops."""
        start = len(self.token_ids)
        self.token_ids.extend(completion.token_ids)
        self.origin.extend([int(Origin.SAMPLED)] * len(completion.token_ids))
        self.turn.extend([turn] * len(completion.token_ids))
        self.logp.extend(completion.logp)
        self.version.extend(completion.versions)
        return start, len(self.token_ids)

    def done(self) -> Row:
        return Row(
            token_ids=np.array(self.token_ids, np.int32),
            origin=np.array(self.origin, np.uint8),
            turn=np.array(self.turn, np.int32),
            behaviour_logp=np.array(self.logp, np.float32),
            version=np.array(self.version, np.int32),
        )


@dataclass(eq=False)
class _Record:
    """An episode as it is written down."""

    rows: list[_Row] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    components: dict[str, float] = field(default_factory=dict)
    task: TaskRef | None = None
    success: bool | None = None
    failure: Failure | None = None
    terminated: bool = False
    truncated_by: str | None = None
    error: str | None = None
    observation: str = ""
    policy_s: float = 0.0
    env_s: float = 0.0

    def told(self, info: Mapping[str, Any], turn: int) -> None:
        """Takes over what `info` says after turn number `turn` (-1: the reset)."""
        for item in info.get("feedback", ()):
            if not 0 <= item.turn <= max(turn, 0):
                raise EnvironmentFault(f"feedback names turn {item.turn}, found after turn {turn}: {item.text[:80]!r}")
            self.feedback.append(item)
        for name, value in info.get("reward_components", {}).items():
            self.components[name] = self.components.get(name, 0.0) + float(value)
        self.success = info.get("success", self.success)
        self.failure = info.get("failure", self.failure)

    @property
    def sampled(self) -> int:
        return sum(turn.stop - turn.start for turn in self.turns)


Calls = Callable[..., Any]


async def run_episode(
    env: Env,
    policy: Policy,
    chat: Chat,
    request: EpisodeRequest,
    *,
    env_id: str,
    sampling: Sampling,
    budget: Budget,
    call: Calls,
) -> Trajectory:
    """Plays one episode. `call(function, ...)` awaits a blocking function of the environment.

    The policy's `begin` and `end` are the caller's. What the environment raises is recorded, whatever came before it
    is kept; what the policy raises is raised.
    """
    record = _Record()
    version = policy.version
    try:
        await _play(env, policy, chat, request, record, sampling, budget, call)
    except EnvironmentFault as fault:
        record.failure, record.error = Failure.INFRASTRUCTURE, str(fault)
        record.success, record.terminated, record.truncated_by = None, False, None
    fallback = TaskRef(key=request.task or "unknown", digest="", split="train")
    turns = [
        replace(turn, feedback=tuple(item for item in record.feedback if item.turn == number))
        for number, turn in enumerate(record.turns)
    ]
    return Trajectory(
        episode=request.episode,
        group=request.group,
        task=record.task or fallback,
        rows=tuple(row.done() for row in record.rows),
        turns=tuple(turns),
        messages=tuple(record.messages),
        reward=float(sum(turn.reward for turn in turns)),
        success=record.success,
        failure=record.failure,
        terminated=record.terminated,
        truncated=record.truncated_by is not None,
        provenance=Provenance(
            env_id=env_id,
            policy=policy.name,
            policy_version=version,
            tokenizer_digest=chat.tokenizer_digest,
            template_digest=chat.template_digest,
            sampling=sampling,
            seed=request.seed,
            backend=env.get_wrapper_attr("backend")(),
            verifier_version=env.get_wrapper_attr("verifier_version"),
        ),
        truncated_by=record.truncated_by,
        error=record.error,
        reward_components=record.components,
        final_observation=record.observation,
        policy_s=record.policy_s,
        env_s=record.env_s,
    )


async def _play(
    env: Env,
    policy: Policy,
    chat: Chat,
    request: EpisodeRequest,
    record: _Record,
    sampling: Sampling,
    budget: Budget,
    call: Calls,
) -> None:
    options = None if request.task is None else {"task": request.task}
    observation, info = await _ask(record, call, env.reset, seed=request.seed, options=options)
    record.task = _task(info)
    record.told(info, -1)
    tools = tuple(info.get("tools", ()))
    while True:
        _observe(record, chat, observation, tools)
        row = record.rows[-1]
        room, limit = budget.room(sampling, record.sampled, len(row.token_ids))
        if room < 1:
            record.truncated_by = limit
            return
        number = len(record.turns)
        prompt = Prompt(tuple(row.token_ids), tuple(record.messages), tools)
        started = time.perf_counter()
        try:
            completion = await policy.generate(
                prompt,
                replace(sampling, max_new_tokens=room),
                episode=request.episode,
                seed=turn_seed(request.seed, number),
            )
        except ContextFull:
            record.truncated_by = "context"
            return
        finally:
            record.policy_s += time.perf_counter() - started
        start, stop = row.sample(completion, number)
        action = chat.text(completion.token_ids)
        record.messages.append({"role": "assistant", "content": action})
        turn = Turn(
            observation,
            action,
            len(record.rows) - 1,
            start,
            stop,
            0.0,
            completion.finish_reason,
            usage=completion.usage,
        )
        record.turns.append(turn)
        cut = completion.finish_reason is Finish.LENGTH
        if cut and not (budget.act_on_cut and limit == "turn_tokens"):
            record.truncated_by = limit
            return
        observation, reward, terminated, truncated, info = await _ask(record, call, env.step, action)
        record.observation = observation
        invalid = bool(info.get("invalid")) or not env.action_space.contains(action)
        record.turns[-1] = replace(turn, reward=_finite(reward), invalid=invalid)
        record.told(info, number)
        if terminated or truncated:
            record.terminated = bool(terminated)
            record.truncated_by = None if terminated else "env"
            return


def _observe(record: _Record, chat: Chat, observation: str, tools: Sequence[Mapping[str, Any]]) -> None:
    """Appends an observation to the row, or starts a row where the chat format cannot be extended."""
    message: Message = {"role": "user", "content": observation}
    record.observation = observation
    record.messages.append(message)
    if record.turns:
        row, last = record.rows[-1], record.turns[-1]
        delta = chat.extend(row.token_ids, message, sampled=last.stop - last.start)
        if delta is not None:
            row.add(delta, Origin.OBSERVATION)
            return
    record.rows.append(_Row.of(chat.prompt(record.messages, tools=tools)))


async def _ask(
    record: _Record, call: Calls, function: Callable[..., tuple[Any, ...]], *args: Any, **kwargs: Any
) -> tuple[Any, ...]:
    """What the environment answers, its first item being text.

    Raises:
        EnvironmentFault: the environment raised, or its text is none that UTF-8 can hold.
    """
    started = time.perf_counter()
    try:
        answer: tuple[Any, ...] = await call(function, *args, **kwargs)
        answer[0].encode()
    except Exception as error:
        raise EnvironmentFault(f"{function.__name__}: {told(error)}") from error
    finally:
        record.env_s += time.perf_counter() - started
    return answer


def _task(info: Mapping[str, Any]) -> TaskRef:
    task = info.get("task")
    if not isinstance(task, TaskRef):
        raise EnvironmentFault(f"reset: expected a TaskRef in info['task'], found {task!r}")
    return task


def _finite(reward: float) -> float:
    if not np.isfinite(reward):
        raise EnvironmentFault(f"step: expected a finite reward, found {reward}")
    return float(reward)


def turn_seed(seed: int, turn: int) -> int:
    """The seed that one action is sampled with: 64 bits that depend on the episode's seed and the turn."""
    return int(np.random.SeedSequence((seed, turn)).generate_state(1, np.uint64)[0])
