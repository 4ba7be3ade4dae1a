"""The training loop: the data flow from episodes to updated weights, one step after another.

    episodes -> guard -> rows -> batch -> student scores -> teacher views -> teacher scores -> credit -> loss -> update

A step is a function of the run's configuration, its number and the state in the last checkpoint, so that a run that was
killed goes on from there and ends with the same weights. (Not where vLLM samples: its answers depend on what else it is
asked and, with `max_staleness`, on when new weights arrive.)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retort.agents import store
from retort.agents.base import Trajectory
from retort.agents.teachers import Pool
from retort.algos import signals
from retort.algos.base import Recipe, TokenBatch
from retort.algos.batch import Rows, collate, flatten, with_proximal, with_reference, with_teacher
from retort.algos.config import TrainConfig, load_recipe
from retort.algos.diagnostics import grouped, left_out, of_student, of_teacher, outcome
from retort.algos.episodes import seed_of
from retort.algos.in_step import check_in_step
from retort.algos.mirror import mirrored
from retort.algos.runs import Run
from retort.algos.setup import Parts, Watch, assemble, restore, save
from retort.algos.symptoms import DeadTermError, dead, onset
from retort.algos.taught import teacher_scores, teacher_views, whose_word
from retort.feedback.base import guard

JUDGE, DEAL = 1 << 32, (1 << 32) + 1  # places in the tree of seeds that no episode has


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
        update; a "total" in the metrics says how many there will be, and "warnings" which known failures set in.

    Raises:
        ConfigError: the configuration asks for what cannot be had here; so MissingPackage.
        CheckpointError: the newest checkpoint is not whole.
        LeakError: privileged text reached the student.
        DeadTermError: a term of the loss, or the teacher, taught nothing for `dead_after` steps.
    """
    config, recipe = run.config, load_recipe(run.config.recipe)
    with mirrored(run) as send, assemble(run, recipe, watch) as parts:
        start = restore(run, parts)
        parts.policy.update(parts.learner.model, start)
        run.rewind(start)
        lines = run.metrics()
        watch("step", start, {"total": config.steps})
        for step in range(start, config.steps):
            lines.append(train_step(run, recipe, parts, step, watch))
            lines[-1]["warnings"] = onset(lines)
            run.log(lines[-1])
            send(lines[-1])
            watch("step", step + 1, lines[-1])
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                run.save(step + 1, lambda folder: save(folder, parts))
            _check_alive(run, recipe, lines)
    return run.checkpoints()[-1]


def _check_alive(run: Run, recipe: Recipe, lines: Sequence[dict[str, Any]]) -> None:
    """Ends a run in which part of the loss does nothing; without any feedback that is what was asked for."""
    config = run.config
    if not config.dead_after or config.feedback == "none":
        return
    if (found := dead(lines, config.dead_after, taught=bool(recipe.channels))) is not None:
        raise DeadTermError(f"{found}. The last checkpoint: {next(reversed(run.checkpoints()), 'none yet')}")


def train_step(run: Run, recipe: Recipe, parts: Parts, step: int, watch: Watch) -> dict[str, Any]:
    """One update, of as many optimiser steps as the learner is told to make; returns what it measured."""
    config, clock = run.config, Clock()
    with clock.stage("rollout"):
        played = parts.episodes(step)
    trajectories = [trajectory for trajectory in played if trajectory.usable]
    metrics = outcome(played)
    if not recipe.rollouts:
        del metrics["success"], metrics["reward"]  # the expert's, whatever the policy learns
    else:
        guard(trajectories, parts.chat.tokenizer)
        if config.store_rollouts:
            store.write(run.rollouts(step + 1), played)
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
            batch = _with_student(recipe, config, parts, batch, rows)
        with clock.stage("teacher"):
            views = teacher_views(recipe, config, parts.chat, parts.memory, trajectories, rows, step)
            teacher, arithmetic = parts.scorer or parts.teacher, parts.learner.arithmetic
            if parts.scorer is None:  # other programs know their own limits
                whole, views = views, [view for view in views if len(view.token_ids) <= parts.learner.context]
                metrics["views_too_long"] = len(whole) - len(views)
            scores = teacher_scores(recipe, config, teacher, views, batch, trajectories, arithmetic)
            batch = with_teacher(batch, views, scores, recipe.channels)
        with clock.stage("probe"):
            metrics |= parts.probe(batch, rows, views)
    with clock.stage("update"):
        credit = recipe.credit(batch, config.options)
        deal = seed_of(config.seed, step, DEAL)
        stats = parts.learner.update(batch, credit, recipe.loss, config.options, seed=deal)
    if recipe.rollouts and config.signals_every and step % config.signals_every == 0:
        with clock.stage("signals"):
            whose, by = whose_word(config, parts.scorer or parts.teacher)
            told = signals.table(
                trajectories, batch, credit, views, parts.chat, recipe.loss, config.options, teacher=whose, by=by
            )
            signals.write(run.signals(step + 1), told)
    if recipe.rollouts:
        with clock.stage("measure"):
            metrics |= left_out(played, trajectories, batch)
            metrics |= of_student(batch, rows, credit, getattr(config.options, "correction", None))
            metrics |= of_teacher(batch, views)
            metrics |= {"teachers": parts.scorer.metrics()} if isinstance(parts.scorer, Pool) else {}
    gap = (batch.proximal_logp - batch.behaviour_logp)[batch.mask].abs().max().item()
    if parts.teacher is not None and not stats.skipped:
        parts.teacher.follow()
    if parts.memory is not None:
        parts.memory.learn(trajectories)
    with clock.stage("sync"):
        parts.policy.update(parts.learner.model, step + 1)
    return {
        "step": step + 1,
        **metrics,
        **stats.metrics(),
        **credit.metrics,
        "sampler_gap_nats": max(gap, stats.gap),
        **{f"share_{name}": share for name, share in credit.share.items()},
        "seconds": clock.seconds,
    }


def _with_student(recipe: Recipe, config: TrainConfig, parts: Parts, batch: TokenBatch, rows: Rows) -> TokenBatch:
    """Adds what the learner, and the frozen reference where there is one, say of the tokens before the update."""
    heat = batch.temperature.tolist()
    if not own_words(recipe, config):
        k = {"student": getattr(config.options, "k", 0), "full": sys.maxsize}.get(recipe.support, 0)
        asked: dict[str, Any] = {"k": k, "entropy": recipe.student_entropy}
        scored = parts.learner.score(rows.sequences, rows.positions, temperature=heat, **asked)
        batch = with_proximal(batch, rows, scored)
        check_in_step(batch, rows, config)
    if parts.reference is not None:
        limit = config.learner.micro_tokens
        with parts.learner.arithmetic():
            told = parts.reference.logp(rows.sequences, rows.positions, temperature=heat, max_tokens=limit)
        batch = with_reference(batch, rows, told)
    return batch


def own_words(recipe: Recipe, config: TrainConfig) -> bool:
    """Whether the log-probs that the policy sampled with are the learner's own, and no others are asked for.

    The policy samples with the learner's weights. In float32 that is one number up to rounding, which the update
    measures; in bfloat16 the ways to compute it differ by too much, and the learner scores what was sampled. So it does
    where another engine samples.
    """
    exact = config.engine == "hf" and config.learner.dtype == "float32"
    return exact and recipe.support == "sampled" and not recipe.student_entropy


def _kept(recipe: Recipe, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The episodes of groups that teach something; all of them where none does."""
    groups = grouped(trajectories).values()
    kept = [item for group in groups if recipe.keep is None or recipe.keep(group) for item in group]
    return kept or list(trajectories)
