"""Environments that are registered for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import pytest
from retort.envs.check import CheckError, Fault, check_env


@pytest.fixture
def register() -> Iterator[Any]:
    made: list[gymnasium.Env[str, str]] = []

    def make(kind: Any, *, unwatched: bool = True, **options: Any) -> gymnasium.Env[str, str]:
        env_id = f"check/{kind.__name__}-v0"
        gymnasium.register(env_id, entry_point=kind, disable_env_checker=unwatched)
        made.append(gymnasium.make(env_id, **options))
        return made[-1]

    yield make
    for env in made:
        gymnasium.registry.pop(env.spec.id)  # type: ignore[union-attr]


@pytest.fixture
def found_in(register: Any) -> Callable[[Any, str], list[Fault]]:
    """What one check finds in an environment that keeps the contract else. Each fault says how to mend it."""

    def found(kind: Any, check: str) -> list[Fault]:
        with pytest.raises(CheckError) as error:
            check_env(register(kind))
        own = [fault for fault in error.value.faults if fault.check == check]
        assert own, error.value
        assert all(fault.mend for fault in own)
        return own

    return found
