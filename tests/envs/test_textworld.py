"""TextWorld-v0 on games made here by the real package: play, recovery, what is refused, the cache, what is left."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.error import ResetNeeded
from retort.envs import textworld_games
from retort.envs.base import SPLITS, Failure, Feedback, MissingPackage, Source, UsageError
from retort.envs.check import check_env
from retort.envs.textworld import PROTOCOL, REFUSED, TextWorldEnv, _bare, _command
from retort.envs.textworld_digests import DIGESTS
from retort.envs.textworld_games import DIFFICULTIES, FAMILIES, SEEDS, GameFailed, game_file

import retort  # noqa: F401  (registers the environment)

# In the same order in every test, so that few games are made.
HUNT = "treasure_hunter/1/3000"
COOK = "cooking/1/3000"


def digest(family: str, seed: int, difficulty: int = 1, split: str = "test") -> str:
    return DIGESTS[family, difficulty][split].split()[seed - SEEDS["test"][0]]


@pytest.fixture
def env() -> Iterator[TextWorldEnv]:
    made = gymnasium.make("retort/TextWorld-v0", split="test")
    assert isinstance(made.unwrapped, TextWorldEnv)
    yield made.unwrapped
    made.close()


def finish(env: TextWorldEnv, observation: str) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
    """Follows gold from here to the end."""
    steps: list[tuple[str, float, bool, bool, dict[str, Any]]] = []
    while not (steps and (steps[-1][2] or steps[-1][3])):
        steps.append(env.step(env.gold(steps[-1][0] if steps else observation)))
    return steps


def hidden(info: dict[str, Any]) -> dict[Source, str]:
    return {item.source: item.text for item in info["feedback"] if not item.visible}


def test_every_task_is_known_and_no_game_is_in_two_splits() -> None:
    everywhere: set[str] = set()
    for difficulty in DIFFICULTIES:
        counts = {}
        for split in SPLITS:
            refs = TextWorldEnv(split, difficulty=difficulty).tasks()
            counts[split] = len(refs)
            assert {ref.family for ref in refs} == set(FAMILIES)
            assert not everywhere & {ref.digest for ref in refs}
            everywhere |= {ref.digest for ref in refs}
        assert counts == {"train": 80, "validation": 20, "test": 20}
    assert len(everywhere) == 360


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])  # test_architecture checks all families of training
def test_the_contract(split: str) -> None:
    with gymnasium.make("retort/TextWorld-v0", split=split, families=("treasure_hunter",)) as env:
        check_env(env, per_family=1)


@pytest.mark.slow
def test_gold_wins_in_each_family(env: TextWorldEnv) -> None:
    for family in FAMILIES:
        said, _ = env.reset(options={"task": f"{family}/1/3000"})
        *before, (_, reward, terminated, truncated, info) = finish(env, said)
        assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True), family
        assert info["reward_components"] == {"score": 1.0}
        assert all(step[1] == 0.0 and step[4]["success"] is None for step in before)
        assert hidden(info) == {Source.VERIFIER: "expected the game won; found it won"}


def test_a_game_as_it_is_read(env: TextWorldEnv) -> None:
    said, info = env.reset(options={"task": HUNT})
    assert said.startswith(f"{PROTOCOL}\nWho's got a virtual machine")
    assert said.endswith("You can: go east; go south; inventory; look")
    assert "$" not in said
    assert "-= Bedroom =-\nYou are in a bedroom." in said
    assert (info["task"].key, info["feedback"], info["success"]) == (HUNT, (), None)
    assert env.gold(said) == "go south"
    observation, reward, terminated, truncated, info = env.step("go south")
    assert observation.startswith("-= Chamber =-\n")
    assert observation.splitlines()[-1].endswith("; take pillow")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["feedback"] == (Feedback(observation, Source.TERMINAL_STATE, 0, visible=True),)
    observation, reward, terminated, *_ = env.step("take pillow")
    assert (reward, terminated) == (1.0, True)
    assert observation.splitlines()[-2:] == ["*** The End ***", "You scored 1 out of a possible 1, in 3 turns."]
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("look")


def test_gold_finds_back_after_wrong_moves(env: TextWorldEnv) -> None:
    said, _ = env.reset(options={"task": HUNT})
    assert env.gold(said) == "go south"
    for wrong in ("go east", "dance", "inventory"):
        said = env.step(wrong)[0]
    assert env.gold(said) == "go west"
    steps = finish(env, said)
    assert [len(steps), steps[-1][1]] == [3, 1.0]


def test_out_of_turns(env: TextWorldEnv) -> None:
    said, _ = env.reset(options={"task": HUNT})
    steps = [env.step("go east"), *(env.step("look") for _ in range(7))]
    observation, reward, terminated, truncated, info = steps[-1]
    assert [step[3] for step in steps] == [False] * 7 + [True]
    assert (reward, terminated, truncated, info["success"], info["failure"]) == (
        0.0,
        False,
        True,
        False,
        Failure.POLICY,
    )
    assert "You can:" not in observation
    assert hidden(info) == {
        Source.VERIFIER: "expected the game won; found no end",
        Source.HINT: "next: go west",
        Source.SOLUTION: "go west\ngo south\ntake pillow",
    }
    assert said


def test_a_game_can_be_lost(env: TextWorldEnv) -> None:
    said, _ = env.reset(options={"task": COOK})
    way = env._way()
    env.step(env.gold(said))
    observation, reward, terminated, truncated, info = env.step("eat yellow potato")
    assert (reward, terminated, truncated, info["failure"]) == (0.0, True, False, Failure.POLICY)
    assert "*** You lost! ***" in observation
    assert hidden(info)[Source.VERIFIER] == "expected the game won; found it lost"
    assert hidden(info)[Source.SOLUTION] == "\n".join(way[1:])
    assert 0 < info["reward_components"]["score"] < 1


@pytest.mark.parametrize(
    "action",
    ["save", "restore", "quit", "Q", "restart", "undo", "script", "tw-extra-infos inventory", "tw-trace-actions",
     "recording on", "transcripx", "look\\x", "look then save", "verify", "", "```\n```", "x" * 2_000, "\0", "日本"],
)  # fmt: skip
def test_the_interpreter_itself_is_not_reached(
    env: TextWorldEnv, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said, _ = env.reset(options={"task": HUNT})
    observation, reward, terminated, *_ = env.step(action)
    assert (reward, terminated) == (0.0, False)
    if not action.startswith("look"):
        assert observation.startswith(REFUSED)
    assert list(tmp_path.iterdir()) == []
    assert env.gold(said) == "go south"
    assert env.step("look")[0].startswith("-= Bedroom =-")


def test_the_end_cannot_be_said(env: TextWorldEnv) -> None:
    said, _ = env.reset(options={"task": HUNT})
    for action in ("say *** The End ***", "*** The End ***", "take *** The End ***"):
        assert env.step(action)[1:3] == (0.0, False)
    assert finish(env, said)[-1][1] == 1.0


@pytest.mark.parametrize(
    ("action", "command"),
    [
        ("go south", "go south"),
        ("> go south.", "go south"),
        ("```\ngo south\n```", "go south"),
        ("```text\n`go south`\n", "go south"),
        ("\n\n go south \n take pillow", "go south"),
        ("go south. take pillow", "go south"),
        ("go south, Then take pillow", "go south,"),
        ("go soûth", "go so th"),
        ("\\SUx:m_ EqT#", "SUx m EqT"),
        ("- go south", "- go south"),
        ("", ""),
    ],
)
def test_commands_are_read_leniently(action: str, command: str) -> None:
    assert _command(action) == command


def test_bare() -> None:
    assert _bare("\n\n-= Attic =-\nOld.\n\n\n>      -= Attic =-0/1") == "-= Attic =-\nOld."
    assert _bare("\n  *** The End ***\n\n\nWould you like to RESTART, RESTORE\n> x") == "*** The End ***"


def test_options(env: TextWorldEnv) -> None:
    with gymnasium.make("retort/TextWorld-v0", split="test", admissible=False, explain=False, max_turns=1) as made:
        said, _ = made.reset(options={"task": HUNT})
        assert said.startswith("Who's got")
        assert "You can:" not in said
        assert made.step("look")[3] is True
    assert env.reset(seed=5, options={"task": HUNT}) == env.reset(seed=6, options={"task": HUNT})
    with pytest.raises(KeyError, match="unknown task"):
        env.reset(options={"task": "cooking/1/1000"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"families": ("cookin",)}, "unknown family 'cookin'; did you mean 'cooking'"),
        ({"families": "cooking"}, "expected a tuple of names"),
        ({"families": ()}, "at least one name"),
        ({"difficulty": 4}, "difficulty: expected 1, 2 or 3, found 4"),
        ({"max_turns": 0}, "max_turns: expected at least 1, found 0"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        gymnasium.make("retort/TextWorld-v0", **options)
    assert message in str(caught.value)


def test_ends_and_closing() -> None:
    env = TextWorldEnv()
    with pytest.raises(ResetNeeded):
        env.step("look")
    with pytest.raises(ResetNeeded):
        env.gold("")
    env.close()
    env.close()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(MissingPackage, match=r"pip install --no-deps textworld==1\.7\.0 jericho"):
        TextWorldEnv()


def test_importing_the_package_draws_nothing_here() -> None:
    code = """
import random, numpy
def state(): return random.getstate(), [str(part) for part in numpy.random.get_state()], numpy.random.get_state()[2]
before = state()
from retort.envs.textworld_games import package
package()
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_lost_cache_is_made_again_and_two_may_ask_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    before = random.getstate(), np.random.get_state()[2], set(os.listdir("/tmp")), threading.active_count()
    children = set(psutil.Process().children())  # other tests' engine among them
    wanted = ("treasure_hunter", 1, 3000, digest("treasure_hunter", 3000))
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: game_file(*wanted), range(2)))
    assert paths[0] == paths[1]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["game.json", "game.z8"]
    assert [path.name for path in paths[0].parent.parent.iterdir()] == [paths[0].parent.name]
    made = paths[0].stat().st_mtime_ns
    assert game_file(*wanted).stat().st_mtime_ns == made
    (paths[0].parent / "game.json").unlink()
    assert game_file(*wanted).stat().st_mtime_ns > made
    shutil.rmtree(tmp_path / "cache")
    assert game_file(*wanted).exists()
    assert list((tmp_path / "home").iterdir()) == []
    assert before[:2] == (random.getstate(), np.random.get_state()[2])
    assert not [name for name in set(os.listdir("/tmp")) - before[2] if name.startswith(("tmp_inform", "tw_"))]
    assert set(psutil.Process().children()) <= children


@pytest.mark.slow
def test_a_game_that_is_another_or_cannot_be_made_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(GameFailed, match="expected the game 0000, found"):
        game_file("treasure_hunter", 1, 3000, "0000")
    with pytest.raises(GameFailed, match="KeyError"):
        game_file("treasure_hunter", 9, 3000, "0000")
    assert list((tmp_path / "retort" / "textworld-1.7.0").iterdir()) == []


@pytest.mark.slow
def test_threads_play_side_by_side_and_leave_nothing(env: TextWorldEnv) -> None:
    env.reset(options={"task": HUNT})
    before = set(os.listdir("/tmp")), len(psutil.Process().open_files()), psutil.Process().num_fds()

    def played(turns: int) -> list[str]:
        with gymnasium.make("retort/TextWorld-v0", split="test", max_turns=30) as made:
            seen = []
            for _ in range(5):
                made.reset(options={"task": HUNT})
                for _ in range(turns):
                    made.step("go east")
                    made.step("go west")
                seen.append(made.step("go south")[0])
                assert made.step("take pillow")[1] == 1.0
            return seen

    with ThreadPoolExecutor(8) as pool:
        for seen in pool.map(played, range(8)):
            assert len(set(seen)) == 1
    assert not [name for name in set(os.listdir("/tmp")) - before[0] if name.startswith("tmp")]
    assert psutil.Process().num_fds() <= before[2] + 1
    assert textworld_games.package().g_rng is not None
