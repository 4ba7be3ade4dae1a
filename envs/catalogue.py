"""Which environments there are, how one is made, and what is missing to use it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator
from retort.envs.base import SPLITS, MissingPackage, TextEnv, UsageError, nearest
from retort.sandboxes.base import SandboxError


def env_ids() -> list[str]:
    """Ids of the built-in environments and of those that other distributions offer."""
    built_in = (env_id for env_id, spec in gymnasium.registry.items() if spec.namespace == "retort")
    return sorted({*built_in, *(entry.name for entry in entry_points(group="retort.envs"))})


def make(env_id: str, *, split: str | None = None, **arguments: Any) -> gymnasium.Env[str, str]:
    """`gymnasium.make` with an error that names the nearest environment, or the argument that does not fit.

    split is passed on to an environment that takes one; any other offers tasks of all splits at once.

    Raises:
        UsageError: an unknown environment, one that is no text environment, or an argument that it refuses.
    """
    if ":" not in env_id and env_id not in gymnasium.registry:
        raise UsageError(f"unknown environment {env_id!r}; {nearest(env_id, env_ids())}")
    if split is not None and takes_split(env_id):
        arguments["split"] = split
    try:
        env: gymnasium.Env[str, str] = gymnasium.make(env_id, **arguments)
    except MissingPackage as error:
        raise MissingPackage(f"{env_id}: {error}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{env_id} cannot be made with {arguments}: {error}") from error
    if not isinstance(env.unwrapped, TextEnv):
        raise UsageError(f"{env_id}: expected a retort.envs.base.TextEnv, found {type(env.unwrapped).__name__}")
    return env


def takes_split(env_id: str) -> bool:
    """Whether an environment is made with a split."""
    target = gymnasium.spec(env_id).entry_point
    creator = load_env_creator(target) if isinstance(target, str) else target
    return creator is not None and "split" in inspect.signature(creator).parameters


def catalogue(ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One entry an environment: `id`, `tasks` by split, and `missing` where it cannot be used here."""
    return [_entry(env_id) for env_id in (env_ids() if ids is None else ids)]


def _entry(env_id: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": env_id}
    try:
        entry["tasks"] = {split: _count(env_id, split) for split in SPLITS}
        env = make(env_id)
        try:
            env.reset(seed=0)
        finally:
            env.close()
    except (SandboxError, ImportError, UsageError) as error:
        entry["missing"] = str(error)
    return entry


def _count(env_id: str, split: str) -> int:
    env = make(env_id, split=split)
    try:
        return sum(ref.split == split for ref in env.get_wrapper_attr("tasks")())
    finally:
        env.close()
