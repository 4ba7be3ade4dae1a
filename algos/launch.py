"""From a configuration to a finished run: what the command line and a Python script call."""

from __future__ import annotations

from pathlib import Path

from retort.agents.chat import Chat
from retort.agents.engines import check_installed
from retort.agents.lookup import look_up
from retort.algos.config import ConfigError, TrainConfig, dump, load_recipe, preset, resolve
from retort.algos.mirror import INSTALL
from retort.algos.runs import Run, check
from retort.algos.setup import Watch, check_teachers, training_tasks
from retort.algos.traces import TraceOptions
from retort.algos.train import silent, train
from retort.envs.base import content_digest, needed
from retort.feedback.reprompt import Reprompt


def launch(config: TrainConfig, folder: Path, watch: Watch = silent) -> Run:
    """Trains a new run in `folder`. The untrained tiny model is cold-started beside it first, or was before.

    Raises:
        ConfigError: the folder already holds a run, or the configuration cannot be had.
        MissingPackage: an optional package is missing; the message has the command that adds it.
        EngineError: a teacher is not there, or has another tokenizer.
    """
    if "split" in config.env_args:
        raise ConfigError("env_args.split: a run trains on the train split; evaluate on another one")
    # What cannot be made or loaded leaves no folder behind.
    training_tasks(config)
    if config.wandb:
        needed("wandb", INSTALL)
    check_installed(config.engine)
    rollouts = load_recipe(config.recipe).rollouts
    if config.model != "tiny":
        look_up(config.model, trains=True)
        Chat.load(config.model)
        if rollouts and config.traces != TraceOptions():
            raise ConfigError("traces.* are for sft and for cold-starting the tiny model, and this run does neither")
    elif rollouts:
        wanted = cold_config(config)
        name = f"cold-start-{config.env.rpartition('/')[2]}-seed{config.seed}-{content_digest(dump(wanted))[:8]}"
        config = config.model_copy(update={"model": str(cold_start(wanted, folder.parent / name, watch))})
    if config.teachers:
        check_teachers(config, Chat.load(config.model))
    run = Run.create(folder, config)
    train(run, watch)
    return run


def resume_run(folder: Path, watch: Watch = silent) -> Run:
    """Goes on with a run from its last whole checkpoint; one that is finished stays as it is."""
    run = Run.open(folder)
    train(run, watch)
    return run


def cold_config(config: TrainConfig) -> TrainConfig:
    """How the tiny model is cold-started for a run: the same tasks, seed, device, traces and teacher's format."""
    base = preset("sft", "tiny")
    same = {name: getattr(config, name) for name in ("env", "env_args", "seed", "threads")}
    learner = {**base["learner"], "device": config.learner.device}
    reprompt = getattr(config.options, "reprompt", Reprompt())
    options = {"reprompt": reprompt.model_dump()}
    return resolve({**base, **same, "traces": config.traces.model_dump(), "learner": learner, "options": options})


def cold_start(config: TrainConfig, folder: Path, watch: Watch = silent) -> Path:
    """The checkpoint of a finished `cold_config` run: made, gone on with, or found in `folder`.

    watch: hears of its stages as "cold start: STAGE".

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    run = Run.create_or_open(folder, config)
    if not run.checkpoints() or check(run.checkpoints()[-1]) < config.steps:
        train(run, lambda stage, done, metrics: watch(f"cold start: {stage}", done, metrics))
    return run.checkpoints()[-1]
