"""Each fault of rewards is found in an environment that has it alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from echo import Echo
from gymnasium.error import ResetNeeded
from retort.envs import checks_rewards
from retort.envs.base import Failure, Split
from retort.envs.check import CheckError, Subject, check_env
from retort.envs.room import Room
from retort.sandboxes.base import Limits


class WrongGold(Echo):
    def gold(self, observation: str) -> str:
        return "wrong" if self.word == "word0" else self.word


class Generous(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return super().step(self.word if action in ("", "done") else action)


class LaxGrader(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return super().step(self.word if action.startswith("sword") else action)


class Stingy(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, reward / 2, *rest  # type: ignore[return-value]


class GoldOfAlmostOne(Echo):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        failure = Failure.POLICY if terminated else info["failure"]
        return (
            observation,
            0.9 * reward,
            terminated,
            truncated,
            {
                **info,
                "success": False if self.over else None,
                "failure": failure,
            },
        )


class GradesInside(Echo):
    """The check lies in the folder where the agent's commands run."""

    sandbox = "bwrap"

    def __init__(self, split: Split = "train") -> None:
        super().__init__(split)
        self.room = Room(self.sandbox, Limits())

    def gold(self, observation: str) -> str:
        return "done" if self.turn else f"echo {self.word} > said"

    def near_misses(self) -> Sequence[Sequence[str]]:
        return [["echo sword > said", "done"]]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        self.room.fresh().write_file("check.sh", f"grep -qx {self.word} said")
        return f"{observation} into the file said", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.over:
            raise ResetNeeded("reset first")
        turn, end = self.turn, action == "done"
        self.turn, self.over = turn + 1, end or turn == 2
        result = self.room.held.exec("bash check.sh" if end else action)
        right = end and result.exit_code == 0
        return "", float(right), end, self.over and not end, self.info((), right if self.over else None)

    def close(self) -> None:
        self.room.close()


class TrustsExitCodes(Echo):
    """Runs the agent's program and then its own test in one process."""

    def gold(self, observation: str) -> str:
        return f"print('{self.word}')"

    def near_misses(self) -> Sequence[Sequence[str]]:
        return [["print('sword')"] * 3]

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        code = action.strip("`").removeprefix("python\n")
        program = f"said = []\nprint = said.append\n{code}\nassert said == ['{self.word}']"
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=False)
        return super().step(action if done.returncode else self.word)


BROKEN: list[tuple[type[Echo], str, str]] = [
    (WrongGold, "gold_scores_one", "gold on echo/word0"),
    (Generous, "doing_nothing_scores_nothing", "the null player earns 1.00"),
    (LaxGrader, "near_misses_fail", "'sword' scores 1"),
    (Stingy, "gold_scores_one", "reward 0.5, success True"),
    (GoldOfAlmostOne, "gold_scores_one", "expected reward 1 and success True, found reward 0.9, success False"),
    (GradesInside, "forgeries_earn_nothing", "the forger of files earns 1.00 a task"),
    (TrustsExitCodes, "forgeries_earn_nothing", "the forger who ends the test earns 1.00"),
]


@pytest.mark.parametrize(("kind", "check", "found"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_found(found_in: Any, kind: type[Echo], check: str, found: str) -> None:
    assert any(found in fault.found for fault in found_in(kind, check))


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in BROKEN} == {check.__name__ for check in checks_rewards.CHECKS}


def test_a_plan_says_a_run_of_one_action_once(register: Any) -> None:
    class Lax(LaxGrader):
        def near_misses(self) -> Sequence[Sequence[str]]:
            return [["no", "no", "sword"]]

    with pytest.raises(CheckError, match=r"'no' \(2 times\), 'sword' scores 1"):
        check_env(register(Lax))


def test_nobody_forges_on_this_machine(register: Any) -> None:
    """Where commands reach our own files, overwriting what looks like a test could hit somebody's work."""

    class Unconfined(GradesInside):
        sandbox = "unsafe"

    env = register(Unconfined)
    players = {episode.player for episode in Subject(env, 1).episodes}
    env.close()
    assert "forger of files" not in players
    assert players > {"gold", "null", "forger who claims"}
