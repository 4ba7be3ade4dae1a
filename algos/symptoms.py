"""Known failures of training, in words: what was seen, since when, and what usually helps; and a term that is dead.

Pure functions of a run's lines in metrics.jsonl. A symptom looks at the mean of the last few lines that can tell of it
and at that of the first few; a line that lacks a number, or in which the term in question weighs nothing, cannot tell.
Sources of the failures: arXiv:2604.08527 (length, repetition), arXiv:2605.15155 and arXiv:2601.20802 (entropy under
self-distillation), arXiv:2503.14476 (groups of equal rewards), arXiv:2604.13016 (overlap).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from typing import Any

Line = Mapping[str, Any]
Means = Mapping[str, float]


class DeadTermError(RuntimeError):
    """A term of the loss, or the teacher, should have taught and did not for many steps. The message says which, since
    when, and what was counted meanwhile."""


@dataclass(frozen=True)
class Symptom:
    """One known failure.

    needs: what a line must have to tell. holds: of the means over the last and over the first `window` telling lines.
    seen: how that is said, from the means `now` and `base`. helps: what usually helps. tells: whether a line may tell.
    """

    name: str
    needs: tuple[str, ...]
    holds: Callable[[Means, Means], bool]
    seen: str
    helps: str
    window: int = 5
    tells: Callable[[Line], bool] = lambda line: True

    def found(self, lines: Sequence[Line]) -> str | None:
        """The sentence, where the last line tells of it and the failure is there."""
        if not lines or not self._telling(lines[-1]):
            return None
        last = list(islice(filter(self._telling, reversed(lines)), self.window))[::-1]
        first = list(islice(filter(self._telling, lines), self.window))
        if len(last) < self.window:
            return None
        now, base = self._means(last), self._means(first)
        if not self.holds(now, base):
            return None
        seen = self.seen.format(now=now, base=base)
        return f"{self.name}: {seen} (steps {_span(last)}). What usually helps: {self.helps}."

    def _telling(self, line: Line) -> bool:
        return all(line.get(key) is not None for key in self.needs) and self.tells(line)

    def _means(self, lines: Sequence[Line]) -> Means:
        return {key: sum(line[key] for line in lines) / len(lines) for key in self.needs}


def _longer(now: Means, base: Means) -> bool:
    grown = now["response_tokens"] / max(base["response_tokens"], 1e-9)
    worse = any(now[key] >= base[key] + 0.05 for key in ("truncated", "repetition"))
    return (grown >= 1.1 and worse) or (grown >= 1.5 and now["reward"] <= base["reward"])


def _collapsed(now: Means, base: Means) -> bool:
    return now["entropy"] <= base["entropy"] / 5 and now["success"] < 0.9


def _exploded(now: Means, base: Means) -> bool:
    return now["entropy"] >= 1.5 * base["entropy"] and now["entropy"] >= base["entropy"] + 0.2


def _no_better(now: Means, base: Means) -> bool:
    return now["gap_won"] - now["gap_lost"] <= 0.1 * abs(now["gap_lost"])


def _by_group(line: Line) -> bool:
    return "rows_live" in line and line.get("weight_policy", 0) > 0


def _by_teacher(line: Line) -> bool:
    weights = [line[name] for term in ("distil", "sdar", "contrast") if (name := f"weight_{term}") in line]
    return all(weights) and line.get("mix", 1) != 0 and line.get("w_opd", 1) != 0


SYMPTOMS = (
    Symptom(
        "length inflation",
        ("response_tokens", "truncated", "repetition", "reward"),
        _longer,
        "an episode has {now[response_tokens]:.1f} tokens where it had {base[response_tokens]:.1f}, with "
        "{now[truncated]:.0%} of episodes cut (before {base[truncated]:.0%}), {now[repetition]:.0%} of tokens repeated "
        "({base[repetition]:.0%}) and a reward of {now[reward]:.2f} ({base[reward]:.2f})",
        "a teacher that does not move (teacher.kind=fixed), a reward beside it (srpo, sdar), kl_coef above 0, a "
        "penalty on length (dapo with limit), or a smaller lr",
    ),
    Symptom(
        "entropy collapse",
        ("entropy", "success"),
        _collapsed,
        "{now[entropy]:.3f} nats a token where there were {base[entropy]:.3f}, and {now[success]:.0%} of episodes "
        "succeed",
        "a smaller lr, a higher upper clip (clip_high=0.28, which acts where learner.mini_batches or learner.epochs is "
        "above 1), kl_coef above 0, an alpha or beta nearer to forward KL, or a teacher that does not move",
    ),
    Symptom(
        "entropy explosion",
        ("entropy", "success"),
        _exploded,
        "{now[entropy]:.2f} nats a token where there were {base[entropy]:.2f}, and {now[success]:.0%} of episodes "
        "succeed",
        "a smaller lr, a reward beside the teacher (srpo, sdar), a clip on its pull (opsd), or a look at what the "
        "teacher reads (retort preview)",
    ),
    Symptom(
        "zero-variance groups",
        ("groups_of_equal_reward", "groups_all_failed", "groups_all_succeeded"),
        lambda now, base: now["groups_of_equal_reward"] > 0.5,
        "{now[groups_of_equal_reward]:.0%} of groups have equal rewards and teach the policy term nothing "
        "({now[groups_all_failed]:.0%} failed throughout, {now[groups_all_succeeded]:.0%} succeeded throughout)",
        "other tasks, of the right difficulty; a larger group_size; tasks played anew (dapo, or there a larger "
        "resample); feedback for what failed "
        "(srpo)",
        tells=_by_group,
    ),
    Symptom(
        "overlap falling",
        ("topk_overlap",),
        lambda now, base: now["topk_overlap"] <= 0.9 * base["topk_overlap"],
        "{now[topk_overlap]:.0%} of the teacher's likeliest tokens are among the student's, where "
        "{base[topk_overlap]:.0%} were",
        "a smaller lr, a cold start in the teacher's format (sft), a teacher that follows slowly (teacher.kind=ema), "
        "or a shorter privileged text",
        window=2,
        tells=_by_teacher,
    ),
    Symptom(
        "teacher no better",
        ("gap_won", "gap_lost"),
        _no_better,
        "the teacher likes tokens of won episodes no better than those of lost ones, by {now[gap_won]:.2f} and "
        "{now[gap_lost]:.2f} nats against the student",
        "a look at what it reads (retort preview): feedback that says what to do, its own task's and not another's, in "
        "a format that the model knows (sft teaches it)",
        window=10,
        tells=_by_teacher,
    ),
    Symptom(
        "sampler mismatch",
        ("sampler_gap_nats", "importance_bounded"),
        lambda now, base: now["sampler_gap_nats"] >= 1 or now["importance_bounded"] > 0.02,
        "log-probs of the policy that sampled and of the learner differ by up to {now[sampler_gap_nats]:.2f} nats, and "
        "the correction bounds {now[importance_bounded]:.1%} of tokens",
        "learner.dtype=float32, fewer updates between rollouts, or correction.outside=mask",
    ),
)


def onset(lines: Sequence[Line]) -> list[str]:
    """What sets in with the last line: a sentence each, none that an earlier line's `warnings` has said already."""
    said = {text.partition(":")[0] for line in lines[:-1] for text in line.get("warnings", ())}
    return [text for item in SYMPTOMS if item.name not in said and (text := item.found(lines))]


def dead(lines: Sequence[Line], after: int, *, taught: bool) -> str | None:
    """Which term has reached no token, or moved nothing, for the last `after` steps in which it weighed something.

    taught: whether the recipe has a teacher that should speak; one who covers no token is found too. Steps in which
    every episode succeeded leave nothing to teach and are passed over, as are those without a usable episode.
    """
    terms = [key.removeprefix("weight_") for key in lines[-1] if key.startswith("weight_")] if lines else []
    for term in terms:
        if lines[-1][f"weight_{term}"] <= 0:
            continue
        if still := _unbroken(lines, after, partial(_weighs, term=term), partial(_still, term=term)):
            share, slope = (max(line[f"{name}_{term}"] for line in still) for name in ("tokens", "slope"))
            weight = still[-1][f"weight_{term}"]
            return (
                f"the term {term!r} has taught nothing for {after} steps, {_span(still)}: it reached at most "
                f"{share:.0%} of the tokens, with a gradient of at most {slope:.3g}, and weighs {weight:.3g}. "
                f"{_causes(still)}"
            )
    if taught and (still := _unbroken(lines, after, _tells, lambda line: not line.get("teacher_coverage"))):
        words = f"the teacher has had nothing to say for {after} steps, {_span(still)}: it covers no token"
        return f"{words}. {_causes(still)}"
    return None


def _span(lines: Sequence[Line]) -> str:
    return f"{lines[0]['step']} to {lines[-1]['step']}"


def _unbroken(
    lines: Sequence[Line], after: int, counts: Callable[[Line], bool], holds: Callable[[Line], bool]
) -> list[Line]:
    """The last `after` of the lines that count, where all of them hold, else none."""
    last = list(islice(takewhile(holds, filter(counts, reversed(lines))), after))[::-1]
    return last if len(last) == after else []


def _tells(line: Line) -> bool:
    return line.get("success", 0) < 1 and "tokens_read" in line


def _weighs(line: Line, term: str) -> bool:
    return _tells(line) and line.get(f"weight_{term}", 0) > 0


def _still(line: Line, term: str) -> bool:
    return not line[f"tokens_{term}"] or not line[f"slope_{term}"]


CAUSES = {
    "teacher_coverage": "{:.0%} of tokens had a teacher",
    "rows_without_teacher": "{:.0f} rows a step had none",
    "rows_equal_reward": "{:.0f} rows a step were in groups of equal rewards",
    "groups_all_failed": "{:.0%} of groups failed throughout",
    "groups_all_succeeded": "{:.0%} of groups succeeded throughout",
    "dropped_equal_reward": "{:.0f} episodes a step were dropped for equal rewards",
    "dropped_infrastructure": "{:.0f} for the infrastructure",
    "dropped_no_token": "{:.0f} had no token",
}


def _causes(lines: Sequence[Line]) -> str:
    """What these steps counted that may explain it, and what to look at."""
    told = []
    for key, words in CAUSES.items():
        values = [line[key] for line in lines if line.get(key) is not None]
        if values and (key == "teacher_coverage" or any(values)):
            told.append(words.format(sum(values) / len(values)))
    return (
        f"In these steps {', '.join(told) or 'nothing was counted that explains it'}. Look at what the teacher reads "
        "(retort preview) and at the rewards; dead_after = 0 in its config.toml lets it go on with --resume"
    )
