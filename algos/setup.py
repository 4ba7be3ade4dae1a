"""Everything a training run holds: model, chat, policy, environments, learner, teacher; and how it is kept.

Only here does a configuration become objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from retort.agents import store
from retort.agents.base import Sampling, Trajectory
from retort.agents.chat import Chat
from retort.agents.hf import HFPolicy, load_model
from retort.agents.rollout import Budget, EpisodeRequest, Runner
from retort.agents.scripted import Apprentice, byte_chat
from retort.agents.tiny import build
from retort.algos.base import Recipe
from retort.algos.config import ConfigError, TrainConfig
from retort.algos.episodes import Episodes, drawn, expert_traces, own_rollouts, seed_of
from retort.algos.learner import Learner
from retort.algos.runs import Run, check
from retort.algos.teacher import Teacher
from retort.algos.traces import examples, texts
from retort.envs.base import TextEnv
from retort.feedback.reprompt import Reprompt
from safetensors.torch import load_file, save_file


@dataclass(eq=False)
class Parts:
    """What the loop works with."""

    policy: HFPolicy
    chat: Chat
    learner: Learner
    teacher: Teacher | None
    episodes: Episodes


@contextmanager
def assemble(run: Run, recipe: Recipe, watch: Callable[[str, int, dict[str, Any]], None]) -> Iterator[Parts]:
    """Makes the parts of a run and closes them after it.

    Raises:
        ConfigError: the model, the environment and the recipe do not go together.
    """
    config = run.config
    if config.threads:
        torch.set_num_threads(config.threads)
    played = [] if recipe.rollouts else _traces(run, watch)
    reprompt = getattr(config.options, "reprompt", Reprompt())
    model_folder = config.model
    if config.model == "tiny":
        if recipe.rollouts:
            raise ConfigError("model=tiny is untrained: cold-start it first (retort train sft) and give its folder")
        model_folder = str(run.folder / "init")
        build(run.folder / "init", texts(played, reprompt), seed=config.seed)
    model, chat = load_model(model_folder), Chat.load(model_folder)
    learner = Learner(model, config.learner)
    teacher = Teacher(learner.model, config.options.teacher) if recipe.channels else None
    policy = HFPolicy(learner.model, chat, name=config.model)
    count = config.prompts * config.group_size
    if not recipe.rollouts:
        rows = examples(played, chat, config.traces, reprompt, config.seed)
        yield Parts(policy, chat, learner, teacher, expert_traces(rows, count=count, seed=config.seed))
        return
    with open_runner(config, policy, chat) as (runner, env):
        tasks = env.get_wrapper_attr("tasks")()
        episodes = own_rollouts(
            runner, tasks, prompts=config.prompts, group_size=config.group_size, seed=config.seed
        )
        yield Parts(policy, chat, learner, teacher, episodes)
