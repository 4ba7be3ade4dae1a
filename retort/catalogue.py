"""Which environments there are, and what is missing to use them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

import gymnasium
import retort
from retort.envs.base import SPLITS, TextEnv, UsageError, nearest
from retort.sandboxes.base import SandboxError


def env_ids() -> list[str]:
    """Ids of the built-in environments and of those that other distributions offer."""
    return sorted({*retort.BUILT_IN, *(entry.name for entry in entry_points(group="retort.envs"))})


def make(env_id: str, **arguments: Any) -> gymnasium.Env[str, str]:
    """`gymnasium.make` with an error that names the nearest environment or the argument that does not fit.

    Raises:
        UsageError: an unknown environment, one that is no text environment, or an argument that it refuses.
    """
    namespace_and_module = env_id.partition(":")
    if not namespace_and_module[1] and env_id not in gymnasium.registry:
        raise UsageError(f"unknown environment {env_id!r}; {nearest(env_id, env_ids())}")
    try:
        env: gymnasium.Env[str, str] = gymnasium.make(env_id, **arguments)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{env_id} cannot be made with {arguments}: {error}") from error
    if not isinstance(env.unwrapped, TextEnv):
        raise UsageError(f"{env_id}: expected a retort.envs.base.TextEnv, found {type(env.unwrapped).__name__}")
    return env


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
        return len(env.get_wrapper_attr("tasks")())
    finally:
        env.close()
