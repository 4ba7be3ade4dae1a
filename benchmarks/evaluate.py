"""Evaluation: episodes a second against how many are played at once, for every environment, with its gold solution.

Usage: python benchmarks/evaluate.py [--env ID ...] [--episodes N] [--repeats N] [--at-once N ...]

The same tasks each time, spread over the families of the test split, on environments that have played one episode
before; Harbor-v0 plays tasks of Shell-v0 that are written out for it. CPU is that of this process and of everything
below it, for one episode, with the most at once. What is missing here is named below the table.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import measure
from retort.agents.base import Sampling
from retort.agents.episode import EpisodeRequest
from retort.agents.evaluate import spread
from retort.agents.rollout import Runner
from retort.agents.scripted import byte_chat, gold
from retort.envs.base import TaskRef, TextEnv, UsageError
from retort.envs.catalogue import env_ids, make
from retort.envs.harbor_format import export_tasks
from retort.sandboxes.base import SandboxError


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats, at one number of episodes at once."""

    episodes: float
    won: float
    turns: float
    cpu_ms: float


def own_folder(env_id: str, folder: Path, count: int) -> dict[str, str]:
    """What the environment is made with: for Harbor-v0 a folder of tasks, exported from Shell-v0."""
    if env_id != "retort/Harbor-v0":
        return {}
    with contextlib.closing(make("retort/Shell-v0", split="test")) as env:
        shell = env.unwrapped
        assert isinstance(shell, TextEnv)
        export_tasks(shell, spread(list(shell.tasks()), count), folder)
    return {"folder": str(folder)}


def tasks_of(env_id: str, options: Mapping[str, str], count: int) -> list[TaskRef]:
    """`count` tasks, some of them more than once where there are fewer.

    Raises:
        SandboxError, ImportError, UsageError: the environment cannot be used here.
    """
    with contextlib.closing(make(env_id, split="test", **options)) as env:
        refs = list(env.get_wrapper_attr("tasks")())
        env.reset(seed=0, options={"task": refs[0].key})
    some = spread(refs, count)
    return (some * (count // len(some) + 1))[:count]


def speed(env_id: str, options: Mapping[str, str], tasks: Sequence[TaskRef], at_once: int, repeats: int) -> Speed:
    """Plays the tasks `repeats` times, after one episode on each environment."""
    chat = byte_chat()
    runner = Runner(
        partial(make, env_id, split="test", **options),
        gold(chat),
        chat,
        env_id=env_id,
        concurrency=at_once,
        sampling=Sampling(max_new_tokens=65_536),  # bytes
    )

    def requests(tasks: Sequence[TaskRef]) -> list[EpisodeRequest]:
        return [EpisodeRequest(task.key, number, number, f"{number:06d}") for number, task in enumerate(tasks)]

    found = []
    try:
        runner.run(requests(tasks[:at_once]))
        for _ in range(repeats):
            with measure.spending() as spent:
                played = runner.run(requests(tasks))
                used = spent()
            if broken := [item for item in played if not item.usable]:
                raise SystemExit(f"{env_id}: {broken[0].task.key} broke: {broken[0].error}")
            won = sum(bool(item.success) for item in played) / len(played)
            turns = sum(len(item.turns) for item in played) / len(played)
            found.append(Speed(len(played) / used.wall, won, turns, 1e3 * used.cpu / len(played)))
    finally:
        runner.close()
    return Speed(
        *(measure.median([getattr(item, name) for item in found]) for name in ("episodes", "won", "turns", "cpu_ms"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--env", nargs="+", help="by default all that there are")
    parser.add_argument("--episodes", type=int, default=128, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    rows, missing = [], []
    for env_id in args.env or env_ids():
        with tempfile.TemporaryDirectory(prefix="retort-evaluate-") as folder:
            try:
                options = own_folder(env_id, Path(folder), args.episodes)
                tasks = tasks_of(env_id, options, args.episodes)
            except (SandboxError, ImportError, UsageError) as error:
                missing.append(f"- {env_id} is missing: {error}")
                continue
            speeds = [speed(env_id, options, tasks, at_once, args.repeats) for at_once in args.at_once]
        gain = speeds[-1].episodes / speeds[0].episodes
        rows.append(
            (env_id, *(item.episodes for item in speeds), gain, speeds[-1].won, speeds[-1].turns, speeds[-1].cpu_ms)
        )
    counts = [f"{at_once} at once, episodes/s" for at_once in args.at_once]
    measure.table(("environment", *counts, "most to fewest", "won", "turns", "CPU ms an episode"), rows)
    print("\n".join(missing))


if __name__ == "__main__":
    main()
