"""Which environments there are, how one is made, and what is missing to use it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from retort.envs.arguments import spelled
from retort.envs.base import SPLITS, MissingPackage, Split, TextEnv, UsageError, missing, nearest
from retort.envs.raised import is_missing
from retort.envs.room import Room
from retort.sandboxes.base import Limits, SandboxError, SandboxUnavailable


def env_ids() -> list[str]:
    """Ids of the built-in environments and of those that other distributions offer."""
    built_in = (env_id for env_id, spec in gymnasium.registry.items() if spec.namespace == "retort")
    return sorted({*built_in, *(entry.name for entry in entry_points(group="retort.envs"))})


def make(env_id: str, *, split: str | None = None, **arguments: Any) -> gymnasium.Env[str, str]:
    """`gymnasium.make` with an error that names the nearest environment, or the argument that does not fit.

    split is passed on to an environment that takes one; any other offers tasks of all splits at once.

    Raises:
        UsageError: an unknown environment, one that is no text environment, an argument that it refuses, or none where
            it needs one.
    """
    spec = found(env_id)
    if split is not None and takes_split(spec):
        arguments["split"] = split
    _refuse_unknown(spec, arguments)
    if lacking := {name: what for name, what in needs(spec).items() if name not in arguments}:
        named = " and ".join(f"{name} ({what})" if what else name for name, what in lacking.items())
        raise UsageError(f"{env_id} needs {named}: {spelled(lacking)}")
    try:
        env: gymnasium.Env[str, str] = gymnasium.make(spec, **arguments)
    except MissingPackage as error:
        raise MissingPackage(f"{env_id}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{env_id} cannot be made with {arguments}: {error}") from error
    except (TypeError, KeyError) as error:
        raise UsageError(f"{env_id} cannot be made with {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(env.unwrapped, TextEnv):
        raise UsageError(f"{env_id}: expected a retort.envs.base.TextEnv, found {type(env.unwrapped).__name__}")
    return env


def found(env_id: str) -> EnvSpec:
    """The registered environment "ns/Name-v0", or "module:ns/Name-v0", whose module is imported first.

    Raises:
        UsageError: there is no such module or environment, with the nearest one.
    """
    module, colon, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not is_missing(module, error):
                raise
            raise UsageError(
                f"{env_id}: expected module:namespace/Name-v0 with a module that registers it: {error}"
            ) from error
    if name not in gymnasium.registry:
        space = f"{name.partition('/')[0]}/"
        own = [f"{module}{colon}{known}" for known in gymnasium.registry if known.startswith(space)]
        raise UsageError(f"unknown environment {env_id!r}; {nearest(env_id, dict.fromkeys([*own, *env_ids()]))}")
    return gymnasium.spec(name)


def takes_split(spec: EnvSpec) -> bool:
    """Whether an environment is made with a split. Raises UsageError where it cannot be imported."""
    return "split" in parameters(spec)


def parameters(spec: EnvSpec) -> dict[str, inspect.Parameter]:
    """What an environment is made with, by name.

    Raises:
        UsageError: what the registration names cannot be imported.
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    creator = _creator(spec)
    found = inspect.signature(creator).parameters if creator is not None else {}
    return {name: parameter for name, parameter in found.items() if parameter.kind in named}


def _creator(spec: EnvSpec) -> Any:
    target = spec.entry_point
    try:
        return load_env_creator(target) if isinstance(target, str) else target
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{spec.id} is registered as {target}, which cannot be imported: {error}") from error


def _refuse_unknown(spec: EnvSpec, arguments: Iterable[str]) -> None:
    """Raises UsageError for an argument that neither the environment nor `gymnasium.make` takes, with the nearest."""
    creator = _creator(spec)
    every = inspect.signature(creator).parameters.values() if creator is not None else ()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in every):
        return
    known = list(parameters(spec))
    for name in arguments:
        if name not in known and name not in inspect.signature(gymnasium.make).parameters:
            valid = nearest(name, known) if known else "it takes none"
            raise UsageError(f"{spec.id} takes no argument {name!r}; {valid}")


def needs(spec: EnvSpec) -> dict[str, str]:
    """Arguments that an environment cannot be made without, and what each is, where that is known: those without a
    default, and those in its `needs`. What it was registered with is given already."""
    given = [name for name, parameter in parameters(spec).items() if parameter.default is inspect.Parameter.empty]
    wanted = {**dict.fromkeys(given, ""), **getattr(_creator(spec), "needs", {})}
    return {name: what for name, what in wanted.items() if name not in spec.kwargs}


def tasks_elsewhere(made: Callable[[Split], gymnasium.Env[str, str]]) -> str:
    """Where tasks are instead, for the error of a split without any: half a sentence. made: an environment by split."""
    filled = []
    for split in SPLITS:
        with closing(made(split)) as env:
            if any(ref.split == split for ref in env.get_wrapper_attr("tasks")()):
                filled.append(split)
    return f"it has tasks in {' and '.join(filled)}" if filled else "nor has it any in another split"


def catalogue(ids: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """One entry an environment, as each is looked at: `id`, `tasks` by split, and `missing`, the reason, where it
    cannot be used here as it is. Only one that does not say its `counts` is made for it."""
    with ExitStack() as opened:
        rooms: dict[str, Room] = {}

        def room(sandbox: str) -> Room:
            if sandbox not in rooms:
                rooms[sandbox] = opened.enter_context(closing(Room(sandbox, Limits())))
            return rooms[sandbox]

        for env_id in env_ids() if ids is None else ids:
            yield _entry(env_id, room)


def _entry(env_id: str, room: Callable[[str], Room]) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": env_id}
    try:
        spec = found(env_id)
        if wanted := needs(spec):
            return {**entry, "missing": "needs " + " ".join(f"--env-arg {name}=..." for name in wanted)}
        # What it inherits is another's, and what it was registered with may change it.
        counts = {} if spec.kwargs else getattr(_creator(spec), "__dict__", {}).get("counts")
        if counts:
            entry["tasks"] = dict(counts)
            _look_for(spec, room)
        else:
            _try(env_id, entry)
    except (SandboxError, ImportError, UsageError) as error:
        entry["missing"] = str(error).removeprefix(f"{env_id}: ")
    except Exception as error:  # somebody else's environment is broken: the others are listed all the same
        entry["missing"] = f"{type(error).__name__}: {error}"
    return entry


def _look_for(spec: EnvSpec, room: Callable[[str], Room]) -> None:
    """Raises what making it, and its first reset, would: a package or a program is missing, or no sandbox starts."""
    kind = _creator(spec)
    for module, install in kind.packages.items():
        if find_spec(module) is None:
            raise missing(module, install)
    asked = parameters(spec).get("sandbox")
    if asked is not None and isinstance(name := asked.default, str):
        inside = room(name).fresh()
        for program, install in kind.programs.items():
            if inside.exec(f"command -v {program}").exit_code:
                raise SandboxUnavailable(f"there is no {program} in the sandbox {name!r}: {install}")


def _try(env_id: str, entry: dict[str, Any]) -> None:
    """Makes it for each split, counts its `tasks` into the entry, and resets it."""
    with ExitStack() as opened:
        made = {split: opened.enter_context(closing(make(env_id, split=split))) for split in SPLITS}
        entry["tasks"] = {
            split: sum(ref.split == split for ref in env.get_wrapper_attr("tasks")()) for split, env in made.items()
        }
        for split in [split for split in SPLITS if entry["tasks"][split]][:1]:
            made[split].reset(seed=0)  # without a sandbox this fails
