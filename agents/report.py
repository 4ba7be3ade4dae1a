"""What an evaluation says: success over tasks, with standard errors that know that rollouts of one task are alike.

    pass@k = 1 - C(n-c, k) / C(n, k)      some of k rollouts succeed, unbiased (Chen et al. 2021, arXiv:2107.03374)
    pass^k = C(c, k) / C(n, k)            all of k succeed (Yao et al. 2024, arXiv:2406.12045)
    stderr = std over tasks of each one's mean / sqrt(tasks)      (Miller 2024, arXiv:2411.00640)

An episode that the infrastructure broke leaves the denominator and is counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import comb, sqrt
from statistics import fmean, stdev
from typing import Any

from retort.agents.base import Trajectory

# How an episode can end, best first: won, ended without success, cut by a limit (as in `Trajectory.truncated_by`), or
# broken by what is not the agent's fault.
OUTCOMES = ("won", "wrong", "env", "turn_tokens", "trajectory_tokens", "context", "infrastructure")


@dataclass(frozen=True)
class Rate:
    """Success of some tasks. n: tasks; episodes: rollouts that count; outcomes: all rollouts, by how they ended;
    held_out: never in training."""

    name: str
    success: float
    stderr: float
    n: int
    episodes: int
    outcomes: Mapping[str, int] = field(default_factory=dict)
    held_out: bool = False


@dataclass(frozen=True)
class Share:
    """How many rollouts ended in one way. share, stderr: of the rollouts that count, over tasks."""

    name: str
    share: float
    stderr: float
    episodes: int


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    overall: all families that are trained on; held_out: the families that never are, or None; families: each of both.
    pass_at_k, pass_hat_k: by k, over the tasks of `overall` with at least k rollouts, and their standard errors.
    failures: every way in which rollouts ended without success, held-out families included. truncated: share of
    rollouts. turns, tokens, and prompt_tokens (read, all turns together): means of an episode. invalid: share of
    actions that the environment could not read as one. policy_s, env_s: mean seconds on the clock that an episode
    waited for its policy, and for its environment; two reports of the same episodes are equal whatever the clock said.
    """

    overall: Rate
    families: tuple[Rate, ...]
    held_out: Rate | None
    pass_at_k: Mapping[int, float]
    pass_hat_k: Mapping[int, float]
    pass_at_k_stderr: Mapping[int, float]
    pass_hat_k_stderr: Mapping[int, float]
    failures: tuple[Share, ...]
    infrastructure_failures: int
    truncated: float
    turns: float
    tokens: float
    prompt_tokens: float
    invalid: float
    policy_s: float = field(default=0.0, compare=False)
    env_s: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with `success`, `stderr` and `n` of `overall` at the top."""
        return {**asdict(self.overall), **asdict(self)}


def outcome(item: Trajectory) -> str:
    """How an episode ended: one of OUTCOMES."""
    if not item.usable:
        return "infrastructure"
    return "won" if item.success else item.truncated_by or "wrong"


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


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over tasks and its standard error; 0 for a single task, and for none."""
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return (fmean(values) if values else 0.0), error


def rate(
    name: str, by_task: Sequence[Sequence[bool]], outcomes: Mapping[str, int] | None = None, held_out: bool = False
) -> Rate:
    """Mean success over tasks, and its standard error."""
    success, error = mean_and_error([fmean(won) for won in by_task])
    return Rate(name, success, error, len(by_task), sum(map(len, by_task)), outcomes or {}, held_out)


def report(played: Sequence[Trajectory], *, ks: Sequence[int] = (1,), held_out: Sequence[str] = ()) -> Report:
    """Sums up episodes; those of one task belong together."""
    usable = [item for item in played if item.usable]
    apart = [item for item in played if item.task.family in held_out]
    main = [item for item in played if item.task.family not in held_out]
    families: dict[str, list[Trajectory]] = defaultdict(list)
    for item in played:
        families[item.task.family].append(item)
    at, at_errors = _over_k(main, ks, pass_at_k)
    hat, hat_errors = _over_k(main, ks, pass_hat_k)
    turns, count = [turn for item in usable for turn in item.turns], max(len(usable), 1)
    return Report(
        overall=_rate("all", main),
        families=tuple(_rate(name, families[name], name in held_out) for name in sorted(families)),
        held_out=_rate("held out", apart, True) if apart else None,
        pass_at_k=at,
        pass_hat_k=hat,
        pass_at_k_stderr=at_errors,
        pass_hat_k_stderr=hat_errors,
        failures=tuple(_failures(played, usable)),
        infrastructure_failures=len(played) - len(usable),
        truncated=sum(item.truncated for item in usable) / count,
        turns=len(turns) / count,
        tokens=sum(turn.usage.completion if turn.usage else turn.stop - turn.start for turn in turns) / count,
        prompt_tokens=sum(turn.usage.prompt if turn.usage else turn.start for turn in turns) / count,
        invalid=sum(turn.invalid for turn in turns) / max(len(turns), 1),
        policy_s=sum(item.policy_s for item in usable) / count,
        env_s=sum(item.env_s for item in usable) / count,
    )


def by_task(played: Iterable[Trajectory], measure: Callable[[Trajectory], bool]) -> dict[str, list[bool]]:
    """What `measure` says of every episode that counts, by the task's key."""
    found: dict[str, list[bool]] = defaultdict(list)
    for item in played:
        if item.usable:
            found[item.task.key].append(measure(item))
    return found


def won(item: Trajectory) -> bool:
    return bool(item.success)


def _rate(name: str, played: Sequence[Trajectory], held_out: bool = False) -> Rate:
    counts = Counter(map(outcome, played))
    ordered = {kind: counts[kind] for kind in OUTCOMES if counts[kind]}
    return rate(name, list(by_task(played, won).values()), ordered, held_out)


def _over_k(
    played: Sequence[Trajectory], ks: Sequence[int], measure: Callable[[int, int, int], float]
) -> tuple[dict[int, float], dict[int, float]]:
    """The mean over tasks and its standard error by k, for the k that some task has rollouts for."""
    tasks = list(by_task(played, won).values())
    values = {k: [measure(len(own), sum(own), k) for own in tasks if len(own) >= k] for k in ks}
    found = {k: mean_and_error(some) for k, some in values.items() if some}
    return {k: mean for k, (mean, _) in found.items()}, {k: error for k, (_, error) in found.items()}


def _failures(played: Sequence[Trajectory], usable: Sequence[Trajectory]) -> Iterable[Share]:
    counts = Counter(map(outcome, played))
    for kind in OUTCOMES[1:]:
        if counts[kind]:
            tasks = by_task(usable, lambda item, kind=kind: outcome(item) == kind)  # type: ignore[misc]
            yield Share(kind, *mean_and_error([fmean(own) for own in tasks.values()]), counts[kind])
