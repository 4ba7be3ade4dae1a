"""Everything a training run holds: model, chat, policy, environments, learner, teacher; and how it is kept.

Only here does a configuration become objects.
"""

from __future__ import annotations

import fnmatch
import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from retort.agents import store
from retort.agents.base import Engine, EngineError, Policy, Sampling, Trajectory
from retort.agents.chat import Chat
from retort.agents.engines import Apart, make_engine
from retort.agents.episode import Budget, EpisodeRequest
from retort.agents.hf import HFPolicy, load_model
from retort.agents.rollout import Runner, playable
from retort.agents.scripted import ByteTokenizer, apprentice
from retort.agents.teachers import Pool
from retort.agents.teaching import TeacherSpec, meet
from retort.agents.tiny import build
from retort.algos.ahead import played_ahead, shared_loop
from retort.algos.base import Memory, Recipe, TeacherOptions
from retort.algos.config import ConfigError, SamplingOptions, TrainConfig, refusal
from retort.algos.episodes import Episodes, drawn, expert_traces, own_rollouts, seed_of
from retort.algos.learner import Learner
from retort.algos.probe import Probe
from retort.algos.runs import Run, check
from retort.algos.teacher import Teacher
from retort.algos.traces import examples, texts
from retort.envs.base import TaskRef, nearest
from retort.envs.catalogue import make, tasks_elsewhere
from retort.feedback.reprompt import Reprompt
from safetensors.torch import load_file
from safetensors.torch import load_model as load_model_file

Watch = Callable[[str, int, dict[str, Any]], None]


@dataclass(eq=False)
class Parts:
    """What the loop works with."""

    policy: Engine
    chat: Chat
    learner: Learner
    teacher: Teacher | None
    reference: Teacher | None
    memory: Memory | None
    episodes: Episodes
    probe: Probe
    scorer: Apart | Pool | None = None


@contextmanager
def assemble(run: Run, recipe: Recipe, watch: Watch) -> Iterator[Parts]:
    """Makes the parts of a run and closes them after it.

    Raises:
        ConfigError: the model, the environment and the recipe do not go together.
    """
    config = run.config
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.model == "tiny" and recipe.rollouts:
        raise ConfigError("the tiny model is untrained: cold-start it (retort train sft) and give its checkpoint")
    played = [] if recipe.rollouts else kept_traces(run, watch)
    reprompt: Reprompt = getattr(config.options, "reprompt", Reprompt())
    folder = config.model
    if config.model == "tiny":
        folder = str(kept_init(run, texts(played, reprompt)))
    chat = Chat.load(folder)
    learner = Learner(load_model(folder), config.learner)
    if recipe.rollouts and (asked := config.sampling.context_tokens) > learner.context:
        raise ConfigError(f"sampling.context_tokens: the model reads {learner.context} tokens, found {asked}")
    itself = recipe.channels and config.scorer == "learner" and not config.teachers
    teacher = Teacher(learner.model, config.options.teacher) if itself else None  # type: ignore[attr-defined]
    reference = Teacher(learner.model, TeacherOptions(kind="fixed")) if config.options.needs_reference else None
    probe = Probe(learner, teacher, reference, config.probe_every if recipe.rollouts else 0)
    memory = recipe.memory(config.options) if recipe.memory else None
    cohorts = config.sampling.cohorts
    own = HFPolicy(learner.model, chat, name=config.model, cohorts=cohorts, arithmetic=learner.arithmetic)
    if not recipe.rollouts:
        rows = examples(played, chat, config.traces, reprompt, config.seed)
        count = config.prompts * config.group_size
        traces = expert_traces(rows, count=count, seed=config.seed)
        yield Parts(own, chat, learner, teacher, reference, memory, traces, probe)
        return
    with (
        nullcontext(own) if config.engine == "hf" else engine_apart(run, chat, learner) as policy,
        training_runners(config, policy, chat) as (runners, tasks),
        _frozen(),
    ):
        groups = {"prompts": config.prompts, "group_size": config.group_size, "seed": config.seed}
        again = getattr(config.options, "resample", 0)
        ways = [own_rollouts(runner, tasks, **groups, keep=recipe.keep, resample=again) for runner in runners]
        breaks = [runner.stop for runner in runners]
        with played_ahead(ways, steps=config.steps, breaks=breaks) as episodes:
            scorer: Apart | Pool | None = _pool(config, chat, learner, tasks) if config.teachers else None
            scorer = scorer or _scorer(config, policy, chat)
            yield Parts(policy, chat, learner, teacher, reference, memory, episodes, probe, scorer)


@contextmanager
def engine_apart(run: Run, chat: Chat, learner: Learner) -> Iterator[Apart]:
    """An engine with weights of its own, which are those that training begins with.

    Raises:
        EngineError: it reads fewer tokens than a conversation may have, or a server is not what it must be.
    """
    config, dtype, shared = run.config, run.config.learner.dtype, str(run.folder / "engine")
    rank, arguments = config.learner.lora_rank, config.engine_args
    made = make_engine(
        config.engine, config.model, chat, dtype=dtype, shared=shared, lora_rank=rank, arguments=arguments
    )
    with closing(made) as engine:
        if engine.context < config.sampling.context_tokens:
            asked = config.sampling.context_tokens
            raise EngineError(f"sampling.context_tokens: the engine reads {engine.context} tokens, found {asked}")
        engine.check(learner.model, dtype)
        yield engine


def _scorer(config: TrainConfig, policy: Any, chat: Chat) -> Apart | None:
    """Who scores a teacher's views, where it is not this process."""
    if config.scorer == "learner":
        return None
    if config.scorer == "engine":
        scorer: Apart = policy
        return scorer
    return make_engine(config.scorer, None, chat, arguments={})


def check_teachers(config: TrainConfig, chat: Chat) -> None:
    """Holds the teachers that can be met before anything is loaded against the student's chat and the recipe.

    Raises:
        UsageError: there is no such model.
        EngineError: nobody teaches there, or a teacher has another tokenizer or vocabulary.
        ConfigError: one cannot give what the recipe needs.
    """
    for name, card in meet(config.teachers, chat).items():
        if refused := refusal(config, f"the teacher at {config.teachers[name].model}", card.gives):
            raise ConfigError(f"teachers.{name}: {refused}")


def _pool(config: TrainConfig, chat: Chat, learner: Learner, tasks: Sequence[TaskRef]) -> Pool:
    """The teachers, which score in the place of the policy itself."""
    check_teachers(config, chat)
    for name, spec in config.teachers.items():
        check_routes(name, spec, [task.key for task in tasks])
    return Pool.make(config.teachers, chat, str(learner.device))


def check_routes(name: str, spec: TeacherSpec, tasks: Sequence[str]) -> None:
    """Raises ConfigError for a pattern that no task matches, with the nearest that one would."""
    for pattern in spec.tasks:
        if not fnmatch.filter(tasks, pattern):
            families = sorted({f"{task.rpartition('/')[0]}/*" for task in tasks if "/" in task}) or tasks
            raise ConfigError(
                f"teachers.{name}.tasks: no training task matches {pattern!r}; {nearest(pattern, families)}"
            )


@contextmanager
def _frozen() -> Iterator[None]:
    """Spares the garbage collector what stands already: a full collection would look at every object of the libraries
    below, which takes a good part of a step."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def training_runners(config: TrainConfig, policy: Policy, chat: Chat) -> Iterator[tuple[list[Runner], list[TaskRef]]]:
    """A runner for each step that may be under way, and the training tasks."""
    with ExitStack() as stack:
        count = config.max_staleness + 1
        made = [stack.enter_context(training_runner(config, policy, chat)) for _ in range(count)]
        loop = stack.enter_context(shared_loop()) if count > 1 else None
        for runner, _ in made:
            runner.loop = loop
        yield [runner for runner, _ in made], made[0][1]


def training_tasks(config: TrainConfig) -> list[TaskRef]:
    """The tasks of the training split.

    Raises:
        UsageError: the environment cannot be made, or has none.
    """
    with closing(make(config.env, split="train", **config.env_args)) as env:
        tasks = [ref for ref in env.get_wrapper_attr("tasks")() if ref.split == "train"]
    if not tasks:
        elsewhere = tasks_elsewhere(lambda split: make(config.env, split=split, **config.env_args))
        raise ConfigError(f"{config.env}: expected tasks in the train split, found none; {elsewhere}")
    return tasks


@contextmanager
def training_runner(config: TrainConfig, policy: Policy, chat: Chat) -> Iterator[tuple[Runner, list[TaskRef]]]:
    """A runner on the training split, and its tasks.

    Raises:
        ConfigError: the environment has no training tasks.
    """
    make_env = partial(make, config.env, split="train", **config.env_args)
    tasks = training_tasks(config)
    sampling = Sampling(temperature=config.sampling.temperature, max_new_tokens=config.sampling.turn_tokens)
    budget = Budget(context_tokens=config.sampling.context_tokens)
    runner = Runner(
        make_env, policy, chat, env_id=config.env, concurrency=config.concurrency, sampling=sampling, budget=budget
    )
    try:
        yield runner, tasks
    finally:
        runner.close()


def kept_traces(run: Run, watch: Watch) -> list[Trajectory]:
    """The run's expert traces: played once, and read from then on, so that a resumed run imitates the same."""
    path = run.folder / "traces.parquet"
    if not path.exists():
        store.write(path, play_traces(run.config, watch))
    return store.read(path)


def kept_init(run: Run, corpus: list[str]) -> Path:
    """The run's untrained tiny model and its tokenizer: made once, since ids mean what that tokenizer says."""
    place, fresh = run.folder / "init", run.folder / ".init.partial"
    if not place.exists():
        shutil.rmtree(fresh, ignore_errors=True)
        build(fresh, corpus, seed=run.config.seed).rename(place)
    return place


def play_traces(config: TrainConfig, watch: Watch) -> list[Trajectory]:
    """Episodes that the apprentice plays for real on training tasks, the same for the same seed."""
    chat, options = Chat(ByteTokenizer()), config.traces
    total, done = options.tasks * options.per_task, 0

    def count(_: Trajectory) -> None:
        nonlocal done
        done += 1
        watch("traces", done, {"total": total})

    unlimited = config.model_copy(
        update={"sampling": SamplingOptions(temperature=1.0, turn_tokens=4096, context_tokens=65_536)}
    )
    with training_runner(unlimited, apprentice(chat, options.skill), chat) as (runner, tasks):
        requests = [
            EpisodeRequest(task.key, seed_of(config.seed, number, member), number, f"trace-{number}-{member}")
            for number, task in enumerate(drawn(tasks, options.tasks, 0, config.seed))
            for member in range(options.per_task)
        ]
        return playable(runner.run(requests, on_done=count))


def save(folder: Path, parts: Parts) -> None:
    """Fills a checkpoint: an ordinary Hugging Face folder, and beside it what the next step needs."""
    # One file, whatever the size; an adapter does not look whether its base has other embeddings, which it never has.
    adapter = {"save_embedding_layers": False} if parts.learner.options.lora_rank else {}
    parts.learner.model.save_pretrained(folder, max_shard_size="1TB", **adapter)
    parts.chat.save(folder)
    torch.save(parts.learner.state_dict(), folder / "learner.pt")
    for name, frozen in (("teacher", parts.teacher), ("reference", parts.reference)):
        if frozen is not None:
            torch.save(frozen.state_dict(), folder / f"{name}.pt")
    if parts.memory is not None:
        (folder / "memory.json").write_text(json.dumps(parts.memory.state_dict(), ensure_ascii=False))


def restore(run: Run, parts: Parts) -> int:
    """Takes over the newest checkpoint of the run, if there is one; returns the number of finished steps.

    Raises:
        CheckpointError: it is not whole.
    """
    if not (found := run.checkpoints()):
        return 0
    folder = found[-1]
    step = check(folder)
    model = parts.learner.model
    if run.config.learner.lora_rank:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    else:
        load_model_file(model, folder / "model.safetensors")
    parts.learner.load_state_dict(torch.load(folder / "learner.pt", weights_only=True))
    for name, frozen in (("teacher", parts.teacher), ("reference", parts.reference)):
        if frozen is not None:
            frozen.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    if parts.memory is not None:
        parts.memory.load_state_dict(json.loads((folder / "memory.json").read_text()))
    return step
