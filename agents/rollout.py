"""Episodes: one coroutine plays one, and a runner keeps a bounded number of them going.

What the model samples enters a row as it was sampled; what the environment says is appended as the ids that the chat
format adds. Where the format cannot be extended, the episode goes on in a new row, rendered afresh, and nothing is
re-encoded in silence.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import gymnasium
import numpy as np
from retort.agents.base import (
    Completion,
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
from retort.envs.base import Failure, Feedback, TaskRef, TextEnv, UsageError

Env = gymnasium.Env[str, str]
T = TypeVar("T")
log = logging.getLogger(__name__)


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
    prompted: bool = False

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
    observation, info = await _ask(call, env.reset, seed=request.seed, options=options)
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
        prompt = Prompt(tuple(row.token_ids), tuple(record.messages))
        completion = await policy.generate(
            prompt,
            replace(sampling, max_new_tokens=room),
            episode=request.episode,
            seed=turn_seed(request.seed, number),
        )
        start, stop = row.sample(completion, number)
        action = chat.text(completion.token_ids)
        record.messages.append({"role": "assistant", "content": action})
        turn = Turn(observation, action, len(record.rows) - 1, start, stop, 0.0, completion.finish_reason)
        record.turns.append(turn)
        cut = completion.finish_reason is Finish.LENGTH
        if cut and not (budget.act_on_cut and limit == "turn_tokens"):
            record.truncated_by = limit
            return
        observation, reward, terminated, truncated, info = await _ask(call, env.step, action)
        record.observation = observation
        record.turns[-1] = replace(turn, reward=_finite(reward))
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


async def _ask(call: Calls, function: Callable[..., tuple[Any, ...]], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """What the environment answers, its first item being text.

    Raises:
        EnvironmentFault: the environment raised, or its text is none that UTF-8 can hold.
    """
    try:
        answer: tuple[Any, ...] = await call(function, *args, **kwargs)
        answer[0].encode()
    except Exception as error:
        raise EnvironmentFault(f"{function.__name__}: {type(error).__name__}: {error}") from error
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


@dataclass(eq=False)
class _Slot:
    """A place where one episode runs at a time, and the environment that is kept for it."""

    policy: Policy
    env: Env | None = None
    fault: str | None = None


class Runner:
    """Plays batches of episodes, at most `concurrency` at once, each slot with an environment that it keeps.

    Episodes are dealt to the policy's `cohorts` in turn, where it has any; a slot's next episode begins before its
    last one ends, so that a policy which waits for all of its open episodes never runs short in between.
    """

    def __init__(
        self,
        make_env: Callable[[], Env],
        policy: Policy,
        chat: Chat,
        *,
        env_id: str,
        concurrency: int = 32,
        sampling: Sampling | None = None,
        budget: Budget | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1, found {concurrency}")
        self.policy = policy
        self.chat = chat
        self.env_id = env_id
        self.sampling = sampling or Sampling()
        self.budget = budget or Budget()
        self._make_env = make_env
        cohorts: Sequence[Policy] = getattr(policy, "cohorts", (policy,))
        self._cohorts = cohorts[:concurrency]
        self._slots = [_Slot(self._cohorts[index % len(self._cohorts)]) for index in range(concurrency)]
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="retort-env")
        self._made = False
        self._closed = False

    def run(
        self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None
    ) -> list[Trajectory]:
        """Plays every request; the trajectories in the order of the requests. `on_done` hears of each as it ends."""
        return _run_loop(lambda: self.arun(requests, on_done))

    async def arun(
        self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None
    ) -> list[Trajectory]:
        """`run`, for callers that have an event loop.

        Raises:
            ValueError: two requests of one name.
        """
        if self._closed:
            raise RuntimeError("the runner is closed")
        if len({request.episode for request in requests}) < len(requests):
            raise ValueError("two requests have the same episode name")
        found: list[Trajectory | None] = [None] * len(requests)
        queues = [deque(range(start, len(requests), len(self._cohorts))) for start in range(len(self._cohorts))]
        starts: list[tuple[_Slot, deque[int], int]] = []
        for number, slot in enumerate(self._slots):
            queue = queues[number % len(queues)]
            if queue:
                starts.append((slot, queue, queue.popleft()))
        for slot, _, index in starts:
            await self._enter(slot, requests[index])

        async def work(slot: _Slot, queue: deque[int], index: int) -> None:
            following: int | None = index
            while following is not None:
                index, following = following, None
                try:
                    found[index] = trajectory = await self._episode(slot, requests[index])
                    if queue:
                        following = queue.popleft()
                        await self._enter(slot, requests[following])
                finally:
                    await slot.policy.end(requests[index].episode)
                if on_done is not None:
                    on_done(trajectory)

        workers = [asyncio.create_task(work(*start)) for start in starts]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            for request in requests:
                for cohort in self._cohorts:
                    await cohort.end(request.episode)
        return [trajectory for trajectory in found if trajectory is not None]

    async def _enter(self, slot: _Slot, request: EpisodeRequest) -> None:
        """Gives the slot an environment, where it has none, and opens the episode with its policy."""
        slot.fault = None
        if slot.env is None:
            try:
                slot.env = await self._call(self._make_env)
            except Exception as error:
                if not self._made:
                    raise
                slot.fault = f"make: {type(error).__name__}: {error}"
                return
            self._made = True
        # The wrapped environment answers as the bare one does; gymnasium.Env is what its type says.
        await slot.policy.begin(request.episode, cast(TextEnv, slot.env))

    async def _episode(self, slot: _Slot, request: EpisodeRequest) -> Trajectory:
        """Plays one episode; an environment that failed is closed, and the slot makes another for its next."""
        if slot.env is None:
            return self._unplayed(slot, request)
        trajectory = await run_episode(
            slot.env,
            slot.policy,
            self.chat,
            request,
            env_id=self.env_id,
            sampling=self.sampling,
            budget=self.budget,
            call=self._call,
        )
        if trajectory.failure is Failure.INFRASTRUCTURE:
            log.warning("episode %s failed and is not counted: %s", request.episode, trajectory.error)
            env, slot.env = slot.env, None
            await self._call(_close, env)
        return trajectory

    def _unplayed(self, slot: _Slot, request: EpisodeRequest) -> Trajectory:
        return Trajectory(
            episode=request.episode,
            group=request.group,
            task=TaskRef(key=request.task or "unknown", digest="", split="train"),
            rows=(),
            turns=(),
            messages=(),
            reward=0.0,
            success=None,
            failure=Failure.INFRASTRUCTURE,
            terminated=False,
            truncated=False,
            provenance=Provenance(
                self.env_id,
                slot.policy.name,
                slot.policy.version,
                self.chat.tokenizer_digest,
                self.chat.template_digest,
                self.sampling,
                request.seed,
                "unknown",
                "unknown",
            ),
            error=slot.fault,
        )

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))

    def close(self) -> None:
        """Closes every environment. May be called again."""
        self._closed = True
        envs = [slot.env for slot in self._slots if slot.env is not None]
        for slot in self._slots:
            slot.env = None
        if envs:
            list(self._threads.map(_close, envs))
        self._threads.shutdown()


def playable(played: list[Trajectory]) -> list[Trajectory]:
    """The same episodes, of which the infrastructure held in at least one.

    Raises:
        UsageError: it failed in all of them; the message is the first one's.
    """
    if played and not any(item.usable for item in played):
        raise UsageError(f"no episode could be played; the first of {len(played)} failed with {played[0].error}")
    return played


def _close(env: Env) -> None:
    """Closes an environment; one that fails even at that is reported, and the run goes on."""
    try:
        env.close()
    except Exception as error:
        log.warning("an environment did not close: %s: %s", type(error).__name__, error)


def _run_loop(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end, in a thread of its own where this one has an event loop already (a notebook)."""
    found: list[T] = []

    # asyncio writes its main task out as text when it ends, result and all: thousands of tokens for nobody to read.
    async def keep() -> None:
        found.append(await start())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(keep())
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(keep())).result()
    return found[0]
