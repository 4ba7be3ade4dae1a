"""What a step measures of its episodes, its student and its teacher: flat numbers for the log.

Pure functions; what cannot be measured in a step (no teacher spoke, no token was sampled) is left out, and nothing is
filled in. Shares are of 1, lengths in tokens, log-probs and entropies in nats.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from retort.agents.base import Int32, Int64, Trajectory, succeeded
from retort.algos.base import Credit, TokenBatch
from retort.algos.batch import Rows
from retort.algos.divergences import k3
from retort.algos.grpo import Correction
from retort.algos.surrogates import importance
from retort.feedback.base import TeacherView
from torch import Tensor

LIMITS = ("turn_tokens", "trajectory_tokens", "context", "env")
QUANTILES = (10, 50, 90)
GRAM = 4
# Words of doubt and of looking again, which a teacher that knows the answer tends to drive out of its student.
MARKERS = frozenset(
    {"wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "seem", "might", "likely", "probably"}
    | {"possibly", "unsure", "uncertain"}
)
WORD = re.compile(r"[^\W\d_]+")


def outcome(played: Sequence[Trajectory]) -> dict[str, Any]:
    """Of all episodes of a step: how they went, how long they were, why they ended."""
    usable = [trajectory for trajectory in played if trajectory.usable]
    groups = grouped(usable).values()
    count, turns = max(len(usable), 1), [turn for trajectory in usable for turn in trajectory.turns]
    cuts = Counter(trajectory.truncated_by for trajectory in usable if trajectory.truncated)
    lengths = [trajectory.sampled_tokens for trajectory in usable]

    def share_of_groups(which: Iterable[bool]) -> float:
        return sum(which) / max(len(groups), 1)

    return {
        "episodes": len(played),
        "infrastructure_failures": len(played) - len(usable),
        "tokens": sum(lengths),
        "reward": sum(trajectory.reward for trajectory in usable) / count,
        "success": sum(map(succeeded, usable)) / count,
        "truncated": sum(trajectory.truncated for trajectory in usable) / count,
        **{f"truncated_{limit}": cuts[limit] / count for limit in LIMITS},
        "turns": len(turns) / count,
        "response_tokens": sum(lengths) / count,
        "response_tokens_max": max(lengths, default=0),
        "groups_of_equal_reward": share_of_groups(len({item.reward for item in group}) == 1 for group in groups),
        "groups_all_failed": share_of_groups(not any(map(succeeded, group)) for group in groups),
        "groups_all_succeeded": share_of_groups(all(map(succeeded, group)) for group in groups),
        "prefix_breaks": sum(len(trajectory.rows) - 1 for trajectory in usable),
        "invalid_actions": sum(turn.invalid for turn in turns) / max(len(turns), 1),
        "repetition": repetition([ids for trajectory in usable for ids in actions(trajectory)]),
        "epistemic_markers": markers(turn.action for turn in turns),
    }


def actions(trajectory: Trajectory) -> list[Int32]:
    """The sampled tokens of each turn."""
    return [trajectory.rows[turn.row].token_ids[turn.start : turn.stop] for turn in trajectory.turns]


def grouped(trajectories: Iterable[Trajectory]) -> dict[int, list[Trajectory]]:
    """Episodes by their group, in order."""
    groups: dict[int, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group, []).append(trajectory)
    return groups


def repetition(actions: Sequence[NDArray[Any]]) -> float:
    """Share of tokens that stand in a run of four which occurs more than once in the same action."""
    total = sum(len(action) for action in actions)
    long = [np.asarray(action, np.int64) for action in actions if len(action) >= GRAM]
    if not long:
        return 0.0
    # Each run gets a number: first pairs of tokens do, then pairs of pairs, then those with the action they stand in.
    ends = np.cumsum([len(action) for action in long])
    of = np.repeat(np.arange(len(long)), [len(action) for action in long])
    tokens = np.concatenate(long)
    pairs = _numbered(tokens[:-1], tokens[1:])
    runs = _numbered(pairs[:-2], pairs[2:])
    inside = of[: len(runs)] == of[GRAM - 1 :]
    keys = _numbered(of[: len(runs)][inside], runs[inside])
    again = np.zeros(int(ends[-1]), bool)
    starts = np.flatnonzero(inside)[np.bincount(keys)[keys] > 1]
    for offset in range(GRAM):
        again[starts + offset] = True
    return float(again.sum() / total)


def _numbered(first: Int64, second: Int64) -> Int64:
    """A number for each pair, the same for the same pair."""
    codes = first * (int(second.max(initial=0)) + 1) + second
    numbers: Int64 = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    return numbers


def markers(texts: Iterable[str]) -> float:
    """Epistemic markers (`MARKERS`) in a hundred words."""
    words = [word for text in texts for word in WORD.findall(text.lower())]
    return 100 * sum(word in MARKERS for word in words) / max(len(words), 1)


def left_out(played: Sequence[Trajectory], kept: Sequence[Trajectory], batch: TokenBatch) -> dict[str, float]:
    """Episodes that did not enter the batch, and rows in it that a signal passes by, by cause.

    played: all episodes of the step; kept: those in the batch, after a recipe's `keep`; `groups_kept` is their share of
    the groups, and what is measured of a batch is measured of them alone.
    """
    usable = sum(item.usable for item in played)
    equal = torch.zeros(len(batch.group), dtype=torch.bool)
    for group in batch.group.unique().tolist():  # type: ignore[no-untyped-call]
        rows = batch.group == group
        equal[rows] = bool((batch.reward[rows] == batch.reward[rows][0]).all())
    return {
        "dropped_infrastructure": len(played) - usable,
        "dropped_equal_reward": usable - len(kept),
        "groups_kept": len(grouped(kept)) / max(1, len(grouped(item for item in played if item.usable))),
        "dropped_no_token": sum(not item.sampled_tokens for item in kept),
        "rows": len(batch.mask),
        "rows_equal_reward": int(equal.sum()),
        **({"rows_without_teacher": int((~batch.has_teacher).sum())} if len(batch.teacher_mask) else {}),
    }


def of_student(batch: TokenBatch, rows: Rows, credit: Credit, correction: Correction | None) -> dict[str, float]:
    """Entropy, distance from the policy that sampled and from the one at the start.

    The entropy is -mean log-prob of the sampled tokens: unbiased, because they were sampled from that very policy.
    """
    mask = batch.mask
    behind = [batch.step - row.version[row.mask] for row in rows.rows]
    versions = np.concatenate(behind).astype(np.float64)
    found = {
        "entropy": -batch.behaviour_logp[mask].mean().item(),
        "staleness": float(versions.mean()),
        "staleness_max": float(versions.max()),
    }
    if batch.reference_logp is not None:
        found["kl_start"] = kl_to(batch, batch.reference_logp)
    if correction is None:
        return found
    raw = importance(batch.proximal_logp, batch.behaviour_logp, mask, high=float("inf"), level=correction.level)[mask]
    weight = credit.weight["behaviour"][mask] if "behaviour" in credit.weight else raw
    outside = (raw < correction.low) | (raw > correction.high)
    return {
        **found,
        "importance": weight.mean().item(),
        "importance_max": raw.max().item(),
        "importance_bounded": outside.float().mean().item(),
        "tokens_masked": (weight == 0).float().mean().item(),
    }


def kl_to(batch: TokenBatch, other_logp: Tensor) -> float:
    """KL of the policy before this update to another: the mean of k3 over the sampled tokens."""
    return k3(batch.proximal_logp, other_logp)[batch.mask].mean().item()


def of_teacher(batch: TokenBatch, views: Sequence[TeacherView]) -> dict[str, Any]:
    """How much the teacher covers, and how it differs on channel 0 from the student: gap = teacher - student.

    The mean gap over what a student samples is minus the KL to its teacher, so that it is below 0 even for the best of
    teachers. What tells a good one is that it likes won episodes better than lost ones.
    """
    tokens = max(int(batch.mask.sum()), 1)
    covered = int(batch.teacher_mask.any(0).sum()) if batch.teacher_mask.shape[0] else 0
    found: dict[str, Any] = {
        "teacher_coverage": covered / tokens,
        "context_tokens_cut": sum(view.cut for view in views),
        "teacher_scores_missing": sum(len(view.covers) for view in views) - int(batch.teacher_mask.sum()),
    }
    if not batch.teacher_mask.shape[0] or not (taught := batch.teacher_mask[0] & batch.mask).any():
        return found
    gap = batch.teacher_logp[0] - batch.proximal_logp
    told = gap[taught]
    marks = torch.quantile(told.double(), torch.tensor(QUANTILES, dtype=torch.float64) / 100).tolist()
    turns = batch.turn.masked_fill(~taught, -1)
    found["gap"] = told.mean().item()
    found |= {f"gap_p{mark}": value for mark, value in zip(QUANTILES, marks, strict=True)}
    found["gap_by_turn"] = [_mean(gap, turns == turn) for turn in range(int(turns.max()) + 1)]
    for name, rows in (("won", batch.success), ("lost", ~batch.success)):
        if (those := taught & rows.unsqueeze(-1)).any():
            found[f"gap_{name}"] = _mean(gap, those)
    if batch.teacher_support_logp is not None:
        found["teacher_support_mass"] = _mean(batch.teacher_support_logp[0].exp().sum(-1), taught)
    return found


def _mean(values: Tensor, where: Tensor) -> float | None:
    return values[where].mean().item() if where.any() else None


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers alone, one name each, nested ones as `seconds/rollout` or `gap_by_turn/0`."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": number for key, number in flat(value).items()}
        elif isinstance(value, list | tuple):
            found |= flat({f"{name}/{place}": item for place, item in enumerate(value)})
        elif isinstance(value, int | float):
            found[name] = value
    return found
