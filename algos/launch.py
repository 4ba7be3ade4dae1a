"""From a configuration to a finished run: what the command line and a Python script call."""

from __future__ import annotations

from pathlib import Path

from retort.agents.chat import Chat
from retort.algos.config import TrainConfig, load_recipe, preset, resolve
from retort.algos.runs import Run, check
from retort.algos.setup import Watch
from retort.algos.train import silent, train
from retort.envs.catalogue import make


def launch(config: TrainConfig, folder: Path, watch: Watch = silent) -> Run:
    """Trains a new run in `folder`. The untrained tiny model is cold-started beside it first, or was before.

    Raises:
        ConfigError: the folder already holds a run, or the configuration cannot be had.
    """
    # What cannot be made or loaded leaves no folder behind.
    make(config.env, split="train", **config.env_args).close()
    if config.model != "tiny":
        Chat.load(config.model)
    if config.model == "tiny" and load_recipe(config.recipe).rollouts:
        name = f"cold-start-{config.env.rpartition('/')[2]}-seed{config.seed}"
        start = cold_start(config, folder.parent / name, watch)
        config = config.model_copy(update={"model": str(start)})
    run = Run.create(folder, config)
    train(run, watch)
    return run


def resume_run(folder: Path, watch: Watch = silent) -> Run:
    """Goes on with a run from its last whole checkpoint; one that is finished stays as it is."""
    run = Run.open(folder)
    train(run, watch)
    return run


def cold_start(config: TrainConfig, folder: Path, watch: Watch = silent) -> Path:
    """The checkpoint of a tiny model that imitated traces of the same environment; made, gone on with, or found.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    shared = {"env": config.env, "env_args": config.env_args, "seed": config.seed, "threads": config.threads}
    wanted = resolve({**preset("sft", "tiny"), **shared, "concurrency": config.concurrency})
    run = Run.create_or_open(folder, wanted)
    if not run.checkpoints() or check(run.checkpoints()[-1]) < run.config.steps:
        train(run, watch)
    return run.checkpoints()[-1]
