"""Evaluates an agent: plays the tasks of a split, keeps every episode, and goes on where it was cut off."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from retort.agents.base import Sampling, Trajectory
from retort.agents.episode import Budget, EpisodeRequest
from retort.agents.evaluation import EvalConfig, Evaluation, Facts, Recorder, refuse_played
from retort.agents.policies import Player, load_player
from retort.agents.report import Report, report
from retort.agents.rollout import Runner, playable
from retort.envs.base import SPLITS, TaskRef, UsageError, nearest
from retort.envs.catalogue import make, tasks_elsewhere

Watch = Callable[[str, int, dict[str, Any]], None]


def evaluate(
    env_id: str,
    model: str,
    *,
    split: str = "test",
    n: int = 1,
    ks: Sequence[int] = (1,),
    limit: int | None = None,
    temperature: float = 1.0,
    turn_tokens: int = 256,
    context_tokens: int | None = None,
    concurrency: int = 32,
    seed: int = 0,
    env_args: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    out: Path | None = None,
    watch: Watch | None = None,
) -> Report:
    """Plays a model, or a script, on the tasks of a split, and sums it up.

    model, model_args: as `retort.agents.policies.load_player` takes them. out: a folder that keeps the configuration,
    every episode and the report, and that `resume` goes on with; without it nothing is written.

    Raises:
        UsageError: an unknown environment, argument, split or model, a k beyond n, a folder that holds an evaluation,
            or infrastructure that failed in every episode.
    """
    config = EvalConfig(
        env=env_id,
        model=model,
        split=split,
        n=n,
        ks=tuple(ks),
        limit=limit,
        temperature=temperature,
        turn_tokens=turn_tokens,
        context_tokens=context_tokens,
        seed=seed,
        env_args=dict(env_args or {}),
        model_args=dict(model_args or {}),
        concurrency=concurrency,
    )
    if out is not None:
        refuse_played(out)
    facts = look(config)
    return begin(config, facts, lambda: None if out is None else Evaluation.create(out, config, facts)).play(watch)


def resume(folder: Path, *, concurrency: int | None = None, watch: Watch | None = None) -> Report:
    """Plays what an evaluation lacks: episodes that were never played, or that the infrastructure broke.

    Raises:
        UsageError: no evaluation, or one of other tasks or of another verifier than are found now.
        StoreError: a file of episodes is corrupted.
    """
    return reopen(folder, concurrency).play(watch)


@dataclass(frozen=True)
class Session:
    """An evaluation that is ready to be played, once. evaluation: its folder, where it has one. close: the player's."""

    config: EvalConfig
    facts: Facts
    runner: Runner
    evaluation: Evaluation | None
    close: Callable[[], object] = tuple

    def play(self, watch: Watch | None = None) -> Report:
        """Plays what is missing, writes it down, and sums up."""
        recorder = None if self.evaluation is None else Recorder(self.evaluation)
        try:
            played = play(
                self.runner,
                self.facts.tasks,
                n=self.config.n,
                seed=self.config.seed,
                known={} if self.evaluation is None else self.evaluation.played(),
                keep=None if recorder is None else recorder.add,
                watch=watch,
                held_out=self.facts.held_out,
            )
        except BaseException:
            if recorder is not None:
                recorder.close()
            raise
        finally:
            self.runner.close()
            self.close()
        summary = report(played, ks=self.config.ks, held_out=self.facts.held_out)
        if self.evaluation is not None:
            self.evaluation.finish(played, summary)
        return summary


def reopen(path: Path, concurrency: int | None = None) -> Session:
    """A session that goes on with what lies in a folder."""
    evaluation = Evaluation.open(path)
    facts = look(evaluation.config)
    evaluation.check(facts)
    config = evaluation.config.model_copy(update={} if concurrency is None else {"concurrency": concurrency})
    return begin(config, facts, lambda: evaluation)


def begin(config: EvalConfig, facts: Facts, folder: Callable[[], Evaluation | None]) -> Session:
    """A session of what `look` found. `folder` makes its folder, once all else is known to be right."""
    with ExitStack() as stack:
        player = load_player(config.model, config.model_args)
        stack.callback(player.close)
        session = Session(config, facts, _runner(config, player), folder(), player.close)
        stack.pop_all()  # who plays the session closes the player
    return session


def look(config: EvalConfig) -> Facts:
    """What the environment says of the tasks that a configuration asks for.

    Raises:
        UsageError: an unknown environment, argument or split, a split without tasks, or a k beyond n.
    """
    if config.split not in SPLITS:
        raise UsageError(f"unknown split {config.split!r}; {nearest(config.split, SPLITS)}")
    if bad := [k for k in config.ks if not 1 <= k <= config.n]:
        raise UsageError(f"pass@k: expected 1 <= k <= n={config.n}, found {bad}")
    if "split" in config.env_args:
        raise UsageError("--env-arg split=...: expected --split, which also picks the tasks")
    env = make_env(config)
    try:
        tasks = [ref for ref in env.get_wrapper_attr("tasks")() if ref.split == config.split]
        held_out, version = env.get_wrapper_attr("held_out"), env.get_wrapper_attr("verifier_version")
    finally:
        env.close()
    if not tasks:
        elsewhere = tasks_elsewhere(lambda split: make(config.env, split=split, **config.env_args))
        raise UsageError(f"{config.env}: expected tasks in the {config.split} split, found none; {elsewhere}")
    return Facts(tuple(spread(tasks, config.limit)), tuple(held_out), str(version))


def make_env(config: EvalConfig) -> gymnasium.Env[str, str]:
    return make(config.env, split=config.split, **config.env_args)


def spread(tasks: Sequence[TaskRef], limit: int | None) -> list[TaskRef]:
    """At most `limit` tasks, as many from each family as can be, in a fixed order."""
    if limit is None or limit >= len(tasks):
        return list(tasks)
    turns: dict[str, int] = defaultdict(int)
    ranked = []
    for place, task in enumerate(tasks):
        ranked.append((turns[task.family], place))
        turns[task.family] += 1
    return [tasks[place] for _, place in sorted(sorted(ranked)[:limit], key=lambda item: item[1])]


def play(
    runner: Runner,
    tasks: Sequence[TaskRef],
    *,
    n: int,
    seed: int,
    known: Mapping[str, Trajectory] | None = None,
    keep: Callable[[Trajectory], None] | None = None,
    watch: Watch | None = None,
    held_out: Sequence[str] = (),
) -> list[Trajectory]:
    """n episodes of each task. An episode's seed depends on `seed`, its task and its number alone.

    known: episodes by name; those that count are not played again. keep: hears of each as it ends. watch: hears of the
    success so far, that of the families in `held_out` apart, as a report has it.
    """
    refs: dict[str, TaskRef] = {}
    requests: list[EpisodeRequest] = []
    for number, task in enumerate(tasks):
        for member in range(n):
            name = f"{number:06d}-{member:04d}"
            refs[name] = task
            requests.append(EpisodeRequest(task.key, _seed(seed, task, member), number, name))
    found = {name: item for name, item in (known or {}).items() if item.usable and name in refs}
    wins, counted = Counter[str](), Counter[str]()

    def count(item: Trajectory) -> None:
        name = "held_out" if item.task.family in held_out else "success"
        wins[name] += bool(item.success)
        counted[name] += item.usable

    def tell() -> None:
        if watch is not None:
            shares = {name: wins[name] / number for name, number in counted.items() if number}
            watch("episodes", len(found), {"total": len(refs), **shares})

    def done(item: Trajectory) -> None:
        # Where the environment did not even name its task, the request did.
        found[item.episode] = item = item if item.usable else replace(item, task=refs[item.episode])
        count(item)
        if keep is not None:
            keep(item)
        tell()

    for item in found.values():
        count(item)
    tell()
    runner.run([request for request in requests if request.episode not in found], on_done=done)
    return playable([found[name] for name in refs])


def _seed(seed: int, task: TaskRef, member: int) -> int:
    words = [seed, member, *task.key.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _runner(config: EvalConfig, player: Player) -> Runner:
    limits = [limit for limit in (config.context_tokens, player.context) if limit is not None]
    if config.context_tokens is not None and not player.counted:
        raise UsageError(f"context_tokens: the tokens of {config.model} are not counted here; leave it out")
    return Runner(
        partial(make_env, config),
        player.policy,
        player.chat,
        env_id=config.env,
        concurrency=config.concurrency,
        sampling=Sampling(
            temperature=config.temperature, max_new_tokens=config.turn_tokens if player.bounded else 65_536
        ),
        budget=Budget(context_tokens=min(limits, default=None)),
    )
