"""How good an agent is: success over tasks, with standard errors that know that rollouts of one task are alike.

    pass@k = 1 - C(n-c, k) / C(n, k)      some of k rollouts succeed, unbiased (Chen et al. 2021, arXiv:2107.03374)
    pass^k = C(c, k) / C(n, k)            all of k succeed (Yao et al. 2024, arXiv:2406.12045)
    stderr = std over tasks of each one's mean success / sqrt(tasks)

An episode that the infrastructure broke leaves the denominator and is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from math import comb, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from retort.agents import scripted
from retort.agents.base import Policy, Sampling, Trajectory
from retort.agents.chat import Chat
from retort.agents.episode import Budget, EpisodeRequest
from retort.agents.rollout import Runner, playable
from retort.envs.base import SPLITS, TaskRef, UsageError, nearest
from retort.envs.catalogue import make

SCRIPTS = ("gold", "null", "random")
Watch = Callable[[str, int, dict[str, Any]], None]


@dataclass(frozen=True)
class Rate:
    """Success of some tasks. n: tasks; episodes: rollouts that count."""

    name: str
    success: float
    stderr: float
    n: int
    episodes: int


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    overall: all families that are trained on; held_out: the families that never are, or None. pass_at_k, pass_hat_k: by
    k, over the tasks of `overall` with at least k rollouts. turns, tokens: means of an episode. truncated: share.
    """

    overall: Rate
    families: tuple[Rate, ...]
    held_out: Rate | None
    pass_at_k: Mapping[int, float]
    pass_hat_k: Mapping[int, float]
    infrastructure_failures: int
    truncated: float
    turns: float
    tokens: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, with `success`, `stderr` and `n` of `overall` at the top."""
        return {**asdict(self.overall), **asdict(self)}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that some of k out of n rollouts, c of them successes, succeeds. Raises ValueError unless k <= n."""
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"expected 1 <= k <= n and 0 <= c <= n, found n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """The chance that all of k out of n rollouts succeed. Raises ValueError unless k <= n."""
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"expected 1 <= k <= n and 0 <= c <= n, found n={n}, c={c}, k={k}")
    return comb(c, k) / comb(n, k)


def rate(name: str, by_task: Sequence[Sequence[bool]]) -> Rate:
    """Mean success over tasks, and its standard error; 0 for a single task."""
    means = [fmean(outcomes) for outcomes in by_task]
    error = stdev(means) / sqrt(len(means)) if len(means) > 1 else 0.0
    return Rate(name, fmean(means) if means else 0.0, error, len(means), sum(map(len, by_task)))


def report(played: Sequence[Trajectory], *, ks: Sequence[int] = (1,), held_out: Sequence[str] = ()) -> Report:
    """Sums up episodes; those of one task belong together."""
    usable = [item for item in played if item.usable]
    outcomes: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item in usable:
        outcomes[item.task.family, item.task.key].append(bool(item.success))
    names = sorted({family for family, _ in outcomes})
    families = tuple(rate(name, [won for (own, _), won in outcomes.items() if own == name]) for name in names)
    main = [won for (family, _), won in outcomes.items() if family not in held_out]
    apart = [won for (family, _), won in outcomes.items() if family in held_out]

    def mean_over_tasks(measure: Callable[[int, int, int], float], k: int) -> float | None:
        found = [measure(len(won), sum(won), k) for won in main if len(won) >= k]
        return fmean(found) if found else None

    count = max(len(usable), 1)
    return Report(
        overall=rate("all", main),
        families=families,
        held_out=rate("held out", apart) if apart else None,
        pass_at_k={k: value for k in ks if (value := mean_over_tasks(pass_at_k, k)) is not None},
        pass_hat_k={k: value for k in ks if (value := mean_over_tasks(pass_hat_k, k)) is not None},
        infrastructure_failures=len(played) - len(usable),
        truncated=sum(item.truncated for item in usable) / count,
        turns=sum(len(item.turns) for item in usable) / count,
        tokens=sum(item.sampled_tokens for item in usable) / count,
    )


def spread(tasks: Sequence[TaskRef], limit: int | None) -> list[TaskRef]:
    """At most `limit` tasks, as many from each family as can be, in a fixed order."""
    if limit is None or limit >= len(tasks):
        return list(tasks)
    turns: dict[str, int] = defaultdict(int)
    ranked = []
    for place, task in enumerate(tasks):
        ranked.append((turns[task.family], place))
        turns[task.family] += 1
    return [tasks[place] for _, place in sorted(sorted(ranked)[:limit], key=lambda item: item[1])]


def play(
    runner: Runner, tasks: Sequence[TaskRef], *, n: int, seed: int, watch: Watch | None = None
) -> list[Trajectory]:
    """n episodes of each task. An episode's seed depends on `seed`, its task and its number alone."""
    done = 0

    def count(_: Trajectory) -> None:
        nonlocal done
        done += 1
        if watch is not None:
            watch("episodes", done, {"total": len(tasks) * n})

    requests = [
        EpisodeRequest(task.key, _seed(seed, task, member), number, f"{number:06d}-{member:04d}")
        for number, task in enumerate(tasks)
        for member in range(n)
    ]
    return playable(runner.run(requests, on_done=count))


def _seed(seed: int, task: TaskRef, member: int) -> int:
    words = [seed, member, *task.key.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def load_policy(model: str) -> tuple[Policy, Chat]:
    """A policy by name: gold, null, random, a model folder or checkpoint, or a Hugging Face name.

    Raises:
        UsageError: none of these.
        FileNotFoundError: a model folder without a tokenizer.
    """
    if model in SCRIPTS:
        chat = Chat(scripted.ByteTokenizer())
        policy: Policy = getattr(scripted, model)(chat)
        return policy, chat
    from retort.agents.hf import HFPolicy
    from safetensors import SafetensorError

    folder = Path(model)
    if folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        inside = sorted(folder.glob("checkpoints/step-*"))
        advice = f"; did you mean {inside[-1]}?" if inside else ""
        raise UsageError(f"{model}: expected a model folder with config.json, found none{advice}")
    if "/" not in model and not folder.is_dir() and get_close_matches(model, SCRIPTS):
        raise UsageError(f"unknown model {model!r}; {nearest(model, SCRIPTS)}, a folder, or a Hugging Face name")
    try:
        loaded = HFPolicy.load(model, barrier=False, device="auto")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"model {model!r} cannot be loaded; {nearest(model, SCRIPTS)}, a folder or a name: {error}"
        ) from error
    return loaded, loaded.chat


def evaluate(
    env_id: str,
    model: str,
    *,
    split: str = "test",
    n: int = 1,
    ks: Sequence[int] = (1,),
    limit: int | None = None,
    temperature: float = 1.0,
    turn_tokens: int = 256,
    context_tokens: int = 2048,
    concurrency: int = 32,
    seed: int = 0,
    env_args: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Report:
    """Plays a model, or a script, on the tasks of a split, and sums it up.

    Raises:
        UsageError: an unknown environment, argument, split or model, or a k beyond n.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; {nearest(split, SPLITS)}")
    if bad := [k for k in ks if not 1 <= k <= n]:
        raise UsageError(f"pass@k: expected 1 <= k <= n={n}, found {bad}")
    make_env = partial(make, env_id, split=split, **(env_args or {}))
    env = make_env()
    tasks = [ref for ref in env.get_wrapper_attr("tasks")() if ref.split == split]
    held_out = tuple(env.get_wrapper_attr("held_out"))
    env.close()
    if not tasks:
        raise UsageError(f"{env_id}: expected tasks in the {split} split, found none")
    policy, chat = load_policy(model)
    whole = model in SCRIPTS
    sampling = Sampling(temperature=temperature, max_new_tokens=65_536 if whole else turn_tokens)
    budget = Budget(context_tokens=None if whole else context_tokens)
    runner = Runner(make_env, policy, chat, env_id=env_id, concurrency=concurrency, sampling=sampling, budget=budget)
    try:
        played = play(runner, spread(tasks, limit), n=n, seed=seed, watch=watch)
    finally:
        runner.close()
    return report(played, ks=ks, held_out=held_out)
