"""The training loop: the data flow from episodes to updated weights, one step after another.

    episodes -> guard -> rows -> batch -> student scores -> teacher views -> teacher scores -> credit -> loss -> update

A step is a function of the run's configuration, its number and the state in the last checkpoint, so that a run that was
killed goes on from there and ends with the same weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retort.agents.base import Trajectory
from retort.agents.scoring import Scored
from retort.agents.store import write
from retort.algos.base import Recipe, TokenBatch
from retort.algos.batch import Rows, collate, flatten, with_proximal, with_reference, with_teacher
from retort.algos.config import TrainConfig, load_recipe
from retort.algos.episodes import seed_of
from retort.algos.runs import Run
from retort.algos.setup import Parts, Watch, assemble, restore, save
from retort.feedback.base import TeacherView, guard

JUDGE = 1 << 32  # a place in the tree of seeds that no episode has


@dataclass
class Clock:
    """Seconds spent in each stage of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def silent(stage: str, done: int, metrics: dict[str, Any]) -> None:
    """Watches nothing."""


def train(run: Run, watch: Watch = silent) -> Path:
    """Trains from the last whole checkpoint to the end and returns the folder of the last one.

    watch: called with ("traces", played, {}) while expert traces are played and ("step", number, metrics) after each
        update; a "total" in the metrics says how many there will be.

    Raises:
        ConfigError: the configuration asks for what cannot be had here.
        CheckpointError: the newest checkpoint is not whole.
        LeakError: privileged text reached the student.
    """
    config, recipe = run.config, load_recipe(run.config.recipe)
    with assemble(run, recipe, watch) as parts:
        start = restore(run, parts)
        run.rewind(start)
        watch("step", start, {"total": config.steps})
        for step in range(start, config.steps):
            metrics = train_step(run, recipe, parts, step, watch)
            run.log(metrics)
            watch("step", step + 1, metrics)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                run.save(step + 1, lambda folder: save(folder, parts))
    return run.checkpoints()[-1]


def train_step(run: Run, recipe: Recipe, parts: Parts, step: int, watch: Watch) -> dict[str, Any]:
    """One update; returns what it measured."""
    config, clock = run.config, Clock()
    with clock.stage("rollout"):
        played = parts.episodes(step)
    trajectories = [trajectory for trajectory in played if trajectory.usable]
    metrics = _outcome(played)
    if recipe.rollouts:
        guard(trajectories, parts.chat.tokenizer)
        if config.store_rollouts:
            write(run.rollouts(step + 1), played)
        trajectories = _kept(recipe, trajectories)
        if recipe.judge is not None:
            with clock.stage("judge"):
                judge = recipe.judge(config.options)
                trajectories = list(judge(trajectories, parts.policy, parts.chat, seed_of(config.seed, step, JUDGE)))
    if not any(trajectory.sampled_tokens for trajectory in trajectories):
        return {"step": step + 1, **metrics, "skipped": "no usable episode has a model token", "seconds": clock.seconds}
    rows = flatten(trajectories)
    batch = collate(trajectories, rows, step=step, vocabulary=parts.learner.vocabulary)
    if recipe.rollouts:
        with clock.stage("student"):
            if not own_words(recipe, config):
                k = {"student": getattr(config.options, "k", 0), "full": sys.maxsize}.get(recipe.support, 0)
                asked: dict[str, Any] = {"k": k, "entropy": recipe.student_entropy}
                heat = batch.temperature.tolist()
                scored = parts.learner.score(rows.sequences, rows.positions, temperature=heat, **asked)
                batch = with_proximal(batch, rows, scored)
            if parts.reference is not None:
                with parts.learner.arithmetic():
                    told = parts.reference.logp(
                        rows.sequences,
                        rows.positions,
                        temperature=batch.temperature.tolist(),
                        max_tokens=config.learner.micro_tokens,
                    )
                batch = with_reference(batch, rows, told)
        with clock.stage("teacher"):
            views = teacher_views(recipe, config, parts, trajectories, rows, step)
            with parts.learner.arithmetic():
                scores = teacher_scores(recipe, config, parts, views, batch)
            batch = with_teacher(batch, views, scores, recipe.channels)
            metrics |= _coverage(batch, views)
    with clock.stage("update"):
        credit = recipe.credit(batch, config.options)
        stats = parts.learner.update(batch, credit, recipe.loss, config.options)
    gap = (batch.proximal_logp - batch.behaviour_logp)[batch.mask].abs().max().item()
    if parts.teacher is not None and not stats.skipped:
        parts.teacher.follow()
    if parts.memory is not None:
        parts.memory.learn(trajectories)
    parts.policy.version = step + 1
    return {
        "step": step + 1,
        **metrics,
        **stats.metrics(),
        **credit.metrics,
        "sampler_gap_nats": max(gap, stats.gap),
        **{f"share_{name}": share for name, share in credit.share.items()},
        "seconds": clock.seconds,
    }


def own_words(recipe: Recipe, config: TrainConfig) -> bool:
    """Whether the log-probs that the policy sampled with are the learner's own, and no others are asked for.

    The policy samples with the learner's weights. In float32 that is one number up to rounding, which the update
    measures; in bfloat16 the ways to compute it differ by too much, and the learner scores what was sampled.
    """
    return recipe.support == "sampled" and not recipe.student_entropy and config.learner.dtype == "float32"


def teacher_views(
    recipe: Recipe, config: TrainConfig, parts: Parts, trajectories: Sequence[Trajectory], rows: Rows, step: int
) -> list[TeacherView]:
    """What the teacher sees of each group. Shuffled feedback is another group's, by a seeded rotation."""
    if parts.teacher is None or config.feedback == "none":
        return []
    order = sorted({trajectory.group for trajectory in trajectories})
    members = {group: [i for i, item in enumerate(trajectories) if item.group == group] for group in order}
    if config.feedback == "shuffled" and len(order) < 2:
        return []  # the infrastructure failed in all other groups, and a group's own feedback is no control
    turn = int(np.random.default_rng([config.seed, step]).integers(1, len(order))) if len(order) > 1 else 0
    found: list[TeacherView] = []
    for place, group in enumerate(order):
        giver = order[(place + turn) % len(order)] if config.feedback == "shuffled" else group
        found += (parts.memory or recipe).views(
            [trajectories[index] for index in members[group]],
            [trajectories[index] for index in members[giver]],
            [rows.of[index] for index in members[group]],
            parts.chat,
            config.options,
        )
    return found


def teacher_scores(
    recipe: Recipe, config: TrainConfig, parts: Parts, views: Sequence[TeacherView], batch: TokenBatch
) -> list[Scored]:
    """The teacher's scores of the student's tokens, at the student's support and the student's temperature."""
    if parts.teacher is None or not views:
        return []
    support = batch.support_ids
    return parts.teacher.score(
        views,
        ids=None if support is None else [support[view.row, torch.from_numpy(view.covers)] for view in views],
        entropy=recipe.teacher_entropy,
        temperature=[float(batch.temperature[view.row]) for view in views],
        max_tokens=config.learner.micro_tokens,
    )


def _kept(recipe: Recipe, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The episodes of groups that teach something; all of them where none does."""
    groups: dict[int, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group, []).append(trajectory)
    kept = [item for group in groups.values() if recipe.keep is None or recipe.keep(group) for item in group]
    return kept or list(trajectories)


def _outcome(played: Sequence[Trajectory]) -> dict[str, Any]:
    usable = [trajectory for trajectory in played if trajectory.usable]
    groups: dict[int, set[float]] = {}
    for trajectory in usable:
        groups.setdefault(trajectory.group, set()).add(trajectory.reward)
    count = max(len(usable), 1)
    return {
        "episodes": len(played),
        "infrastructure_failures": len(played) - len(usable),
        "tokens": sum(trajectory.sampled_tokens for trajectory in usable),
        "reward": sum(trajectory.reward for trajectory in usable) / count,
        "entropy": _entropy(usable),
        "success": sum(bool(trajectory.success) for trajectory in usable) / count,
        "truncated": sum(trajectory.truncated for trajectory in usable) / count,
        "turns": sum(len(trajectory.turns) for trajectory in usable) / count,
        "groups_of_equal_reward": sum(len(rewards) == 1 for rewards in groups.values()) / max(len(groups), 1),
        "prefix_breaks": sum(len(trajectory.rows) - 1 for trajectory in usable),
    }


def _entropy(usable: Sequence[Trajectory]) -> float:
    """Nats a token: the mean of -log-prob of what was sampled, which is unbiased for the sampler's entropy."""
    logp = [row.behaviour_logp[row.mask] for trajectory in usable for row in trajectory.rows]
    whole = np.concatenate(logp) if logp else np.zeros(0)
    return float(-whole.mean()) if whole.size else 0.0


def _coverage(batch: TokenBatch, views: Sequence[TeacherView]) -> dict[str, float]:
    tokens = max(int(batch.mask.sum()), 1)
    covered = int(batch.teacher_mask.any(0).sum()) if batch.teacher_mask.shape[0] else 0
    return {
        "teacher_coverage": covered / tokens,
        "context_tokens_cut": sum(view.cut for view in views),
    }
