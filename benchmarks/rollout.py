"""Episodes a second of real bash in `retort/Shell-v0`, with 32 at once: a script's, and the tiny model's.

Usage: python benchmarks/rollout.py [--model FOLDER] [--repeats N] [--episodes N] [--slots N] [--threads N]

CPU is that of this process and of every sandbox below it. The parts of an episode are CPU time of the threads they run
in; what no part claims is the loop, the threads and the interpreter between them. Idle: cores that nobody of ours used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import measure
import torch
from retort.agents.base import Policy, Sampling
from retort.agents.chat import Chat
from retort.agents.hf import HFPolicy
from retort.agents.rollout import Runner
from retort.agents.scripted import ByteTokenizer, gold
from retort.algos.episodes import own_rollouts
from retort.envs.catalogue import make
from retort.sandboxes.bwrap import BwrapSandbox

PARTS = ("model", "sandbox, host side", "sandbox, guest side", "tokenising", "rest of the loop", "idle")


@dataclass(frozen=True)
class Measured:
    """Medians over the repeats. parts: CPU milliseconds an episode, by the names of PARTS."""

    episodes: float
    tokens: float
    turns: float
    cpu_ms: float
    cores: float
    parts: dict[str, float]


def measured(policy: Policy, chat: Chat, meter: measure.Meter, args: Any, max_new_tokens: int) -> Measured:
    """Plays `--repeats` times the same number of episodes, after a warm-up."""
    make_env = partial(make, measure.ENV, split="train")
    env = make_env()
    tasks = env.get_wrapper_attr("tasks")()
    env.close()

    def metered() -> Any:
        made: Any = make_env()
        for name in ("reset", "step"):
            setattr(made, name, meter.timed("sandbox, host side", getattr(made, name)))
        return made

    sampling = Sampling(max_new_tokens=max_new_tokens)
    runner = Runner(metered, policy, chat, env_id=measure.ENV, concurrency=args.slots, sampling=sampling)
    group = 8
    episodes = own_rollouts(runner, tasks, prompts=args.episodes // group, group_size=group, seed=0)
    found: list[Measured] = []
    try:
        episodes(0)
        for repeat in range(args.repeats):
            meter.seconds.clear()
            with measure.spending() as spent:
                played = episodes(repeat + 1)
            assert all(trajectory.usable for trajectory in played)
            found.append(summary(played, spent(), meter))
    finally:
        runner.close()
    return median_of(found)


def summary(played: Any, spent: measure.Spent, meter: measure.Meter) -> Measured:
    count, cores = len(played), len(os.sched_getaffinity(0))
    claimed = {name: meter.seconds.get(name, 0.0) for name in PARTS}
    rest = spent.own - sum(claimed.values())
    claimed |= {"sandbox, guest side": spent.below, "rest of the loop": rest, "idle": cores * spent.wall - spent.cpu}
    return Measured(
        episodes=count / spent.wall,
        tokens=sum(trajectory.sampled_tokens for trajectory in played) / spent.wall,
        turns=sum(len(trajectory.turns) for trajectory in played) / count,
        cpu_ms=1e3 * spent.cpu / count,
        cores=spent.cpu / spent.wall,
        parts={name: 1e3 * seconds / count for name, seconds in claimed.items()},
    )


def median_of(found: list[Measured]) -> Measured:
    def middle(get: Callable[[Measured], float]) -> float:
        return measure.median([get(item) for item in found])

    return Measured(
        *(middle(lambda item, name=name: getattr(item, name)) for name in ("episodes", "tokens", "turns")),
        cpu_ms=middle(lambda item: item.cpu_ms),
        cores=middle(lambda item: item.cores),
        parts={name: middle(lambda item, name=name: item.parts[name]) for name in PARTS},
    )


def metered_model(folder: str, meter: measure.Meter, **options: Any) -> tuple[HFPolicy, Chat]:
    policy: Any = HFPolicy.load(folder, **options)
    policy.complete = meter.timed("model", policy.complete)
    return policy, metered_chat(policy.chat, meter)


def metered_chat(chat: Any, meter: measure.Meter) -> Chat:
    for name in ("prompt", "extend", "text"):
        setattr(chat, name, meter.timed("tokenising", getattr(chat, name)))
    return chat  # type: ignore[no-any-return]


def one_slot(times: int) -> tuple[float, float, float]:
    """A warm reset, a fresh terminal and one command in it: median and fastest-tenth milliseconds, and CPU ms."""
    wall = []
    with BwrapSandbox() as sandbox, measure.spending() as spent:
        for _ in range(times):
            start = time.perf_counter()
            sandbox.reset()
            sandbox.open_terminal().run("echo hi")
            wall.append(1e3 * (time.perf_counter() - start))
        used = spent()
    return measure.median(wall), sorted(wall)[times // 10], 1e3 * used.cpu / times


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--episodes", type=int, default=512, help="of one repeat")
    parser.add_argument("--slots", type=int, default=32)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = measure.cold_model(args.model)
    found: dict[str, Measured] = {}
    meter = measure.Meter()
    found["gold script, no model"] = measured(
        gold(script := metered_chat(Chat(ByteTokenizer()), meter)), script, meter, args, 65_536
    )
    kinds = {
        "tiny model, repeatable (training)": {},
        "tiny model, whoever is ready (evaluation)": {"barrier": False},
    }
    for name, options in kinds.items():
        meter = measure.Meter()
        policy, chat = metered_model(folder, meter, **options)
        found[name] = measured(policy, chat, meter, args, 16)
    print(f"{args.slots} episodes at once, {args.repeats} x {args.episodes} episodes, torch threads: ", end="")
    print(torch.get_num_threads())
    first = next(iter(found.values()))
    measure.table(
        ("player", "episodes/s", "ratio", "sampled tokens/s", "turns", "CPU ms an episode", "cores used"),
        [
            (name, item.episodes, item.episodes / first.episodes, item.tokens, item.turns, item.cpu_ms, item.cores)
            for name, item in found.items()
        ],
    )
    print("Where the time of an episode goes, CPU milliseconds:")
    measure.table(("part", *found), [(part, *(item.parts[part] for item in found.values())) for part in PARTS])
    middle, fast, cpu = one_slot(300)
    print(
        f"One slot, warm reset and one command: {middle:.2f} ms at the median, {fast:.2f} ms in the fastest tenth, ",
        end="",
    )
    print(f"{cpu:.2f} ms of CPU, sandbox and supervisor together.")


if __name__ == "__main__":
    main()
