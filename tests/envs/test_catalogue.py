"""What an environment takes, and what is said of one that cannot be made as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest
from retort.envs.base import UsageError
from retort.envs.catalogue import catalogue, found, make, needs
from retort.envs.shell import ShellEnv

import retort  # noqa: F401


class Wants(ShellEnv):
    """Cannot be made without a word."""

    def __init__(self, word: str, split: Any = "train", **more: Any) -> None:
        super().__init__(split, **more)


class Plain(ShellEnv):
    """Takes nothing at all, and has every split."""

    def __init__(self) -> None:
        super().__init__("validation")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kinds = {f"catalogue/{kind.__name__}-v0": kind for kind in (Wants, Plain)}
    for env_id, kind in kinds.items():
        gymnasium.register(env_id, entry_point=kind, disable_env_checker=True)
    yield
    for env_id in kinds:
        gymnasium.registry.pop(env_id)


def test_an_argument_that_it_does_not_take() -> None:
    with pytest.raises(UsageError) as error:
        make("retort/Shell-v0", split="test", max_turn=3)
    assert str(error.value).startswith(
        "retort/Shell-v0 takes no argument 'max_turn'; did you mean 'max_turns'? valid: split, sandbox, "
    )
    with pytest.raises(UsageError, match=r"catalogue/Plain-v0 takes no argument 'word'; it takes none"):
        make("catalogue/Plain-v0", word="x")


def test_arguments_of_gymnasium_and_any_where_any_are_taken() -> None:
    make("catalogue/Plain-v0", max_episode_steps=3).close()
    make("catalogue/Wants-v0", word="x", max_turns=3).close()
    with pytest.raises(UsageError, match=r"cannot be made with {'word': 'x', 'odd': 1}: TypeError: .*'odd'"):
        make("catalogue/Wants-v0", word="x", odd=1)


def test_what_it_cannot_be_made_without() -> None:
    assert needs(found("catalogue/Wants-v0")) == ["word"]
    assert needs(found("retort/Harbor-v0")) == ["folder"]
    assert needs(found("retort/Shell-v0")) == needs(found("retort/AgentBenchOS-v0")) == []
    wants, plain = catalogue(["catalogue/Wants-v0", "catalogue/Plain-v0"])
    assert wants == {"id": "catalogue/Wants-v0", "missing": "needs --env-arg word=..."}
    assert (plain["tasks"]["train"], plain["tasks"]["validation"] > 0, "missing" in plain) == (0, True, False)
