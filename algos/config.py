"""One configuration for a run: complete, resolved, and strict about every key.

Keys are set as `key=value`. A key is written in full (`learner.lr`, `options.teacher.rate`) or by its last part where
only one key ends so (`lr`, `rate`). Values are read as TOML where they can be, else as text.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import retort.algos
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from retort.agents.card import WORDS
from retort.agents.engines import check_engine
from retort.agents.teaching import TeacherSpec
from retort.algos.base import Options, Recipe, TeacherOptions
from retort.algos.learner import LearnerOptions
from retort.algos.traces import TraceOptions
from retort.envs.arguments import parse
from retort.envs.base import UsageError, nearest

NAME = re.compile(r"[A-Za-z0-9_-]+")


class ConfigError(UsageError):
    """A configuration that cannot be meant; the message says what was expected and what was found."""


class SamplingOptions(BaseModel):
    """How training episodes are sampled. Training needs the whole distribution: there is no top-p and no top-k.

    cohorts: parts of the episodes that take turns, one generating while the other acts: worth it where environments are
    slow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=1.0, gt=0)
    turn_tokens: int = Field(default=64, ge=1)
    context_tokens: int = Field(default=1024, ge=8)
    cohorts: int = Field(default=1, ge=1)


class TrainConfig(BaseModel):
    """Everything a run depends on. What is random is derived from `seed` and the number of the step.

    steps: updates of the policy. prompts, group_size: tasks a step and episodes a task. concurrency: episodes at once.
    engine: what samples: "hf", the learner's own model; "vllm" in this process; or "vllm:URL", a server or several.
        engine_args: of vLLM's `EngineArgs`, or of `agents.vllm_server.Serving`. gap_limit: nats between what the engine
        says of its tokens and what the learner says, beyond which the run ends; 0 is by precision. max_staleness: steps
        that are played while the learner works on an earlier one, so that a token may be as many updates old.
    scorer: who computes a teacher's log-probs: "learner", this process; "engine", for a teacher whose weights are the
        learner's current ones; or "vllm:URL", servers with a teacher of their own and the same tokenizer.
    teachers: models that teach in place of the policy itself, by a name of one's own, each for the tasks that are
        routed to it (`agents/teaching.py`); in the order in which they are asked.
    feedback: "own", or "shuffled" between tasks (a control that must not help), or "none".
    probe_every: steps between measurements that take a pass of their own, and perhaps a
        copy of the model (`algos/probe.py`); 0 is never.
    signals_every: steps between those whose every token is stored with its gap, gate and credit; 0 is never.
    dead_after: a term of the loss that weighs something and teaches nothing for so many steps ends the run; 0 never.
    wandb: the project that metrics are mirrored to, beside metrics.jsonl; "" is none.
    checkpoint_every, keep: steps between checkpoints, and how many of them stay. threads: of torch; 0 leaves its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    env: str = "retort/Shell-v0"
    env_args: dict[str, Any] = {}
    model: str = "tiny"
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=60, ge=1)
    prompts: int = Field(default=16, ge=1)
    group_size: int = Field(default=8, ge=1)
    concurrency: int = Field(default=32, ge=1)
    engine: str = "hf"
    engine_args: dict[str, Any] = {}
    gap_limit: float = Field(default=0.0, ge=0)
    max_staleness: int = Field(default=0, ge=0)
    scorer: str = "learner"
    teachers: dict[str, TeacherSpec] = {}
    feedback: Literal["own", "shuffled", "none"] = "own"
    probe_every: int = Field(default=0, ge=0)
    signals_every: int = Field(default=10, ge=0)
    dead_after: int = Field(default=20, ge=0)
    wandb: str = ""
    checkpoint_every: int = Field(default=10, ge=1)
    keep: int = Field(default=2, ge=1)
    store_rollouts: bool = True
    threads: int = Field(default=0, ge=0)
    sampling: SamplingOptions = SamplingOptions()
    traces: TraceOptions = TraceOptions()
    learner: LearnerOptions = LearnerOptions()
    options: SerializeAsAny[Options] = Options()

    @model_validator(mode="after")
    def _has_a_teacher(self) -> TrainConfig:
        recipe = load_recipe(self.recipe)
        if self.feedback != "own" and not recipe.channels:
            raise ValueError(f"feedback={self.feedback} is for recipes with a teacher; {self.recipe} has none")
        if self.feedback != "own" and not recipe.privileged:
            raise ValueError(f"feedback={self.feedback}: the teacher of {self.recipe} reads no feedback")
        return self

    @model_validator(mode="after")
    def _has_another_group(self) -> TrainConfig:
        if self.feedback == "shuffled" and self.prompts < 2:
            raise ValueError("feedback=shuffled takes it from another task: expected prompts of at least 2, found 1")
        return self

    @model_validator(mode="after")
    def _engine_can_play(self) -> TrainConfig:
        if self.engine == "hf":
            if self.engine_args:
                raise ValueError("engine_args are for engine=vllm; the learner's own model takes none")
            return self
        check_engine(self.engine)
        if not load_recipe(self.recipe).rollouts:
            raise ValueError(f"engine={self.engine}: {self.recipe} learns from expert traces and samples nothing")
        if self.sampling.cohorts > 1:
            raise ValueError("sampling.cohorts are for engine=hf; vLLM batches whoever is ready")
        return self

    @model_validator(mode="after")
    def _may_be_stale(self) -> TrainConfig:
        if not self.max_staleness:
            return self
        if self.engine == "hf":
            raise ValueError("max_staleness needs engine=vllm: weights that learn cannot sample at the same time")
        if load_recipe(self.recipe).judge is not None or self.scorer == "engine":
            raise ValueError(f"max_staleness: {self.recipe} asks the engine while it plays later steps; set it to 0")
        if not hasattr(self.options, "correction"):
            raise ValueError(f"max_staleness: {self.recipe} does not correct for older weights; set it to 0")
        return self

    @model_validator(mode="after")
    def _scorer_can_give_it(self) -> TrainConfig:
        if self.scorer == "learner":
            return self
        kind = getattr(self.options, "teacher", TeacherOptions()).kind
        if refused := refusal(self, "vLLM", ()):
            raise ValueError(f"scorer={self.scorer}: {refused}; or scorer=learner")
        if self.scorer == "engine":
            if self.engine == "hf" or kind != "current":
                raise ValueError("scorer=engine needs engine=vllm and teacher.kind=current, whose weights it has")
            return self
        check_engine(self.scorer)
        if ":" not in self.scorer or kind != "fixed":
            raise ValueError("scorer: expected learner, engine, or vllm:URL with teacher.kind=fixed")
        return self

    @model_validator(mode="after")
    def _teachers_can_teach(self) -> TrainConfig:
        recipe = load_recipe(self.recipe)
        if not self.teachers:
            if not recipe.privileged and (self.scorer in ("learner", "engine")):
                raise ValueError(
                    f"{self.recipe} learns from another model that reads what the student read: expected one, such as "
                    "teachers.NAME.model=FOLDER, http://HOST:PORT or vllm:URL; found none"
                )
            return self
        if self.scorer != "learner":
            raise ValueError(f"teachers score in the place of scorer={self.scorer}: expected one of the two")
        if getattr(self.options, "teacher", TeacherOptions()).kind != "fixed":
            raise ValueError("teachers have weights of their own, which do not follow the student: teacher.kind=fixed")
        for name, spec in self.teachers.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"teachers: expected a name of letters, digits, - and _, found {name!r}")
            who, gives = ("vLLM", ()) if spec.serves == "vllm" else ("it", tuple(WORDS))
            if refused := refusal(self, who, gives):
                raise ValueError(f"teachers.{name}: {refused}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_recipe(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(options := data.get("options", {}), Mapping):
            own = load_recipe(str(data.get("recipe"))).options
            return {**data, "options": own.model_validate(_on_defaults(own, options))}
        return data


def _on_defaults(options: type[Options], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and in a table of which only a part is given what the recipe has there.

    A teacher of another kind has nothing of the recipe's: its rate and cadence are those of its kind.
    """
    found = dict(given)
    for name, value in given.items():
        default = options.model_fields[name].default if name in options.model_fields else None
        if not (isinstance(default, BaseModel) and isinstance(value, Mapping)):
            continue
        if isinstance(default, TeacherOptions) and value.get("kind", default.kind) != default.kind:
            continue
        found[name] = {**default.model_dump(exclude_unset=True), **value}
    return found


def wants(recipe: Recipe) -> dict[str, str]:
    """What a recipe needs of its teacher beside the log-probs of sampled tokens, in words by the names of a card."""
    asked = {"support": recipe.support in ("student", "full"), "entropy": recipe.teacher_entropy}
    return {name: WORDS[name] for name, wanted in asked.items() if wanted}


def refusal(config: TrainConfig, who: str, gives: Collection[str]) -> str:
    """Why a teacher that gives no more than this cannot teach the run, with the nearest that works; "" where it can."""
    recipe = load_recipe(config.recipe)
    able = [name for name in recipes() if (other := load_recipe(name)).channels and not set(wants(other)) - set(gives)]
    if not recipe.channels:
        return f"{config.recipe} needs no teacher at all; {nearest(config.recipe, able)}"
    if found := [words for name, words in wants(recipe).items() if name not in gives]:
        said = f"recipe {config.recipe} needs {' and '.join(found)}, which {who} cannot give"
        return f"{said}; {nearest(config.recipe, able)}"
    if config.sampling.temperature != 1 and "temperature" not in gives:
        return f"{who} scores at temperature 1, found {config.sampling.temperature:g}; set sampling.temperature=1"
    return ""


def recipes() -> list[str]:
    """Names of all modules in `retort.algos` that define RECIPE."""
    names = (module.name for module in pkgutil.iter_modules(retort.algos.__path__))
    return sorted(name for name in names if hasattr(importlib.import_module(f"retort.algos.{name}"), "RECIPE"))


def load_recipe(name: str) -> Recipe:
    """The recipe in `retort/algos/<name>.py`, or in any module by its dotted path.

    Raises:
        ConfigError: there is no such module or it has no RECIPE; the message lists the right names.
    """
    path = name if "." in name else f"retort.algos.{name}"
    try:
        recipe = getattr(importlib.import_module(path), "RECIPE", None)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
            raise
        recipe = None
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"unknown recipe {name!r}; {nearest(name, recipes())}")
    return recipe


def resolve(base: Mapping[str, Any], settings: Iterable[str] = ()) -> TrainConfig:
    """The configuration that `base` (nested) and then `settings` (`key=value`) describe.

    Raises:
        ConfigError: an unknown or ambiguous key, or a value that does not fit, by name.
        UsageError: a setting that is no `key=value`.
    """
    tree: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    recipe = load_recipe(str(tree.get("recipe")))
    keys = list(_keys(TrainConfig, recipe.options))
    for key, value in map(parse, settings):
        _put(tree, _full_key(key, keys), value)
    learner, steps = tree.get("learner", {}), tree.get("steps", TrainConfig.model_fields["steps"].default)
    if isinstance(learner, Mapping) and learner.get("schedule", "constant") != "constant":
        # What follows from wrong steps is no fault of its own.
        tree["learner"] = {"decay_steps": steps, **learner} if _fit(steps) else {**learner, "schedule": "constant"}
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, keys)) from error


def _fit(steps: Any) -> bool:
    try:
        TypeAdapter(PositiveInt).validate_python(steps)
    except ValidationError:
        return False
    return True


def preset(recipe: str, model: str) -> dict[str, Any]:
    """Settings that were measured to work for a recipe on a model of this size; `--set` goes on top.

    The tiny model wants Muon and a thousand times the learning rate of a pretrained one.
    """
    rollouts = load_recipe(recipe).rollouts
    common: dict[str, Any] = {"recipe": recipe, "model": model}
    if not _is_small(model):
        rate = 1e-6 if rollouts else 1e-5
        return {**common, "learner": {"lr": rate}, "sampling": {"turn_tokens": 256, "context_tokens": 4096}}
    traces = {"tasks": 5500, "per_task": 2, "skill": 0.38}
    if rollouts:
        muon = {"optimiser": "muon", "lr": 3e-3, "schedule": "linear"}
        start = {"traces": traces} if model == "tiny" else {}
        return {
            **common,
            **start,
            "steps": 80,
            "prompts": 32,
            "probe_every": 10,
            "learner": muon,
            "sampling": {"turn_tokens": 16},
        }
    muon = {"optimiser": "muon", "lr": 0.02, "adam_lr": 3e-3, "schedule": "linear"}
    size = {"steps": 1000, "prompts": 32, "group_size": 1, "checkpoint_every": 100}
    return {**common, **size, "learner": muon, "traces": traces}


def _is_small(model: str) -> bool:
    adapter, described = Path(model) / "adapter_config.json", Path(model) / "config.json"
    if adapter.is_file():
        return _is_small(str(json.loads(adapter.read_text()).get("base_model_name_or_path")))
    return model == "tiny" or (described.is_file() and json.loads(described.read_text()).get("hidden_size", 0) <= 256)


def read(path: Path) -> TrainConfig:
    """The configuration of a run from its `config.toml`. Raises ConfigError when it is not one."""
    try:
        return resolve(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, found {error}") from error


def dump(config: TrainConfig) -> dict[str, Any]:
    """As plain nested data for TOML, which has no null: what is None is left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items() if item is not None}
        return [plain(item) for item in value] if isinstance(value, list) else value

    result: dict[str, Any] = plain(config.model_dump(mode="json"))
    return result


def _keys(model: type[BaseModel], options: type[Options], prefix: str = "") -> Iterable[str]:
    for name, info in model.model_fields.items():
        kind = options if model is TrainConfig and name == "options" else info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, options, f"{prefix}{name}.")
        else:
            yield prefix + name


def _full_key(key: str, keys: list[str]) -> str:
    if key in keys or key.partition(".")[0] in ("env_args", "engine_args", "teachers"):
        return key
    found = [full for full in keys if full.endswith("." + key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"the key {key!r} is ambiguous; expected one of {', '.join(found)}")
    raise ConfigError(f"unknown key {key!r}; {nearest(key, [*keys, *(full.rpartition('.')[2] for full in keys)])}")


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        branch = tree.get(part)
        tree[part] = dict(branch) if isinstance(branch, Mapping) else {}
        tree = tree[part]
    tree[last] = value


def _explain(error: ValidationError, keys: list[str]) -> str:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden" and fault["loc"][0] == "teachers":
            own = [f"teachers.{fault['loc'][1]}.{name}" for name in TeacherSpec.model_fields]
            lines.append(f"unknown key {where!r}; {nearest(where, own)}")
        elif fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}; {nearest(where, keys)}")
        elif not where:  # what does not go together says itself what was found; the input is everything
            lines.append(fault["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{where}: {fault['msg']}, found {fault['input']!r}")
    return "; ".join(lines)
