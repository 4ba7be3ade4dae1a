"""What an episode costs by its number of turns: close to linear, since caches are kept and nothing is rendered anew.

Usage: python benchmarks/turns.py [--model FOLDER] [--repeats N] [--threads N]

The environment is real but small: every episode lasts exactly N turns, whatever is said, and every observation is one
word. Each action has exactly the same number of tokens, so that only the number of turns differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import measure
import numpy as np
import torch
from retort.agents.base import Sampling
from retort.agents.episode import Budget, EpisodeRequest
from retort.agents.hf import HFPolicy
from retort.agents.rollout import Runner
from retort.envs.base import TaskRef, TextEnv, TextSpace

TURNS = (1, 2, 4, 8, 16)
EPISODES = 64
TOKENS = 8


class Steady(TextEnv):
    """Lasts `turns` turns and answers each with its number."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        self._turn = 0

    def tasks(self) -> Sequence[TaskRef]:
        return (TaskRef("steady", str(self.turns), "train"),)

    def gold(self, observation: str) -> str:
        return "ok"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._turn = 0
        return "How many lines has notes.txt? Submit the number.", {"task": self.tasks()[0]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turn += 1
        return f"file{self._turn}", 1.0, self._turn == self.turns, False, {"success": True}


def episode_ms(policy: HFPolicy, turns: int, repeats: int) -> tuple[float, float]:
    """Median milliseconds of an episode: of CPU, and on the clock."""
    runner = Runner(
        partial(Steady, turns),
        policy,
        policy.chat,
        env_id="Steady",
        sampling=Sampling(max_new_tokens=TOKENS),
        budget=Budget(turn_tokens=TOKENS, act_on_cut=True),
    )
    cpu, wall = [], []
    try:
        for repeat in range(repeats + 1):
            requests = [EpisodeRequest(None, number, number, f"{repeat}-{number:03d}") for number in range(EPISODES)]
            with measure.spending() as spent:
                played = runner.run(requests)
            used = spent()
            assert {len(trajectory.turns) for trajectory in played} == {turns}
            assert {trajectory.sampled_tokens for trajectory in played} == {turns * TOKENS}
            if repeat:  # the first is a warm-up
                cpu.append(1e3 * used.cpu / EPISODES)
                wall.append(1e3 * used.wall / EPISODES)
    finally:
        runner.close()
    return measure.median(cpu), measure.median(wall)


def main() -> None:
    args = measure.arguments(__doc__).parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    policy = HFPolicy.load(measure.cold_model(args.model))
    # No token stops a turn early: a turn's length is then the same for all.
    policy.chat.stop_ids = frozenset({-1})
    found = {turns: episode_ms(policy, turns, args.repeats) for turns in TURNS}
    base = found[1][0]
    measure.table(
        ("turns", "CPU ms an episode", "ratio to one turn", "CPU ms a turn", "ms on the clock"),
        [(turns, cpu, cpu / base, cpu / turns, wall) for turns, (cpu, wall) in found.items()],
    )
    exponent = np.polyfit(np.log(TURNS), np.log([found[turns][0] for turns in TURNS]), 1)[0]
    last = np.log2(found[16][0] / found[8][0])
    print(f"Fitted exponent {exponent:.2f}: cost ~ turns^{exponent:.2f}. From 8 to 16 turns alone: {last:.2f}.")


if __name__ == "__main__":
    main()
