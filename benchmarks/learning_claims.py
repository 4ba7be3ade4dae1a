"""What the literature claims, tested on the lines of benchmarks/learning.py: paired t-tests, corrected after Holm.

Seeds are paired: both arms of a claim began from the same weights and saw the same tasks in the same order.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]
LEVEL = 0.05  # of all claims together


def final(line: Line) -> float:
    return float(line["success"])


def liked(line: Line) -> float:
    """Of the right answers, the share as the user likes it."""
    return float(line["liked"])


def early(line: Line) -> float:
    """Success while training, over the first quarter of the episodes."""
    curve = line["curves"]["success"]
    return statistics.fmean(curve[: len(curve) // 4])


@dataclass(frozen=True)
class Claim:
    """One comparison. better, worse: what is said where `arm` is above or below `base` by `of`."""

    says: str
    arm: str
    base: str
    of: Callable[[Line], float]
    better: str = ""
    worse: str = ""


CLAIMS = (
    Claim(
        "SDPO beats GRPO early on", "sdpo", "grpo", early,
        "SDPO learns faster than GRPO in the first quarter.", "SDPO learns more slowly than GRPO in the first quarter.",
    ),
    Claim(
        "and at the end", "sdpo", "grpo", final, "SDPO ends above GRPO.", "SDPO ends below GRPO.",
    ),
    Claim(
        "SDPO by feedback alone against GRPO, early", "sdpo feedback alone", "grpo", early,
        "Feedback without solutions is faster than reward at first.",
        "Feedback without solutions is slower than reward at first.",
    ),
    Claim(
        "SDPO by feedback alone against GRPO, at the end", "sdpo feedback alone", "grpo", final,
        "Feedback without solutions ends above GRPO.", "Feedback without solutions ends below GRPO.",
    ),
    Claim(
        "SDPO by feedback alone against by solutions alone", "sdpo feedback alone", "sdpo solutions alone", final,
        "Feedback teaches SDPO more than siblings' solutions do.",
        "Siblings' solutions teach SDPO more than feedback does.",
    ),
    Claim(
        "SDPO with both against solutions alone", "sdpo", "sdpo solutions alone", final,
        "Feedback adds to what solutions teach SDPO.", "Feedback takes from what solutions teach SDPO.",
    ),
    Claim(
        "own solutions and feedback against another task's", "sdpo", "sdpo shuffled", final,
        "What SDPO's teacher reads must be of the task itself.", "SDPO is better off with another task's texts.",
    ),
    Claim(
        "a fixed teacher against one that follows", "sdpo fixed", "sdpo", final,
        "A fixed teacher is better than one that follows slowly.",
        "A teacher that follows slowly is better than a fixed one.",
    ),
    Claim(
        "the student as its own teacher", "sdpo current", "sdpo fixed", final,
        "A student that is its own teacher is better than a fixed one.",
        "A student that is its own teacher falls below a fixed one.",
    ),
    Claim(
        "a trust region", "sdpo trust region", "sdpo fixed", final,
        "A trust region is better than a fixed teacher.", "A trust region is worse than a fixed teacher.",
    ),
    Claim(
        "SRPO against GRPO, early", "srpo", "grpo", early, "SRPO is faster than GRPO.", "SRPO is slower than GRPO.",
    ),
    Claim(
        "SRPO against GRPO, at the end", "srpo", "grpo", final, "SRPO ends above GRPO.", "SRPO ends below GRPO.",
    ),
    Claim(
        "SRPO against SDPO, early", "srpo", "sdpo", early, "SRPO is faster than SDPO.", "SRPO is slower than SDPO.",
    ),
    Claim(
        "SRPO against SDPO, at the end", "srpo", "sdpo", final, "SRPO ends above SDPO.", "SRPO ends below SDPO.",
    ),
    Claim(
        "SRPO, own texts against another task's, early", "srpo", "srpo shuffled", early,
        "SRPO is faster with its own task's texts.", "SRPO is slower with its own task's texts.",
    ),
    Claim(
        "SRPO, own texts against another task's, at the end", "srpo", "srpo shuffled", final,
        "SRPO ends higher with its own task's texts.", "SRPO ends lower with its own task's texts.",
    ),
    Claim("OPSD alone against SDAR", "opsd", "sdar", final),
    Claim("the same, OPSD without its clip", "opsd unclipped", "sdar", final),
    Claim(
        "the same, OPSD by KL(S||T)", "opsd reverse", "sdar", final,
        "OPSD at its best here, without the clip and by KL(S||T), ends above SDAR.",
        "OPSD at its best here, without the clip and by KL(S||T), ends below SDAR.",
    ),
    Claim("SDAR against GRPO", "sdar", "grpo", final, "SDAR ends above GRPO.", "SDAR ends below GRPO."),
    Claim(
        "SDAR against itself at beta 0", "sdar", "sdar beta 0", final,
        "SDAR's gate does more than one that is always half open.",
        "SDAR's gate does less than one that is always half open.",
    ),
    Claim("RLSD against GRPO", "rlsd", "grpo", final, "RLSD ends above GRPO.", "RLSD ends below GRPO."),
    Claim("RLCSD against GRPO", "rlcsd", "grpo", final, "RLCSD ends above GRPO.", "RLCSD ends below GRPO."),
    Claim("RLCSD against OPSD", "rlcsd", "opsd", final),
    Claim("the same, OPSD without its clip", "rlcsd", "opsd unclipped", final),
    Claim(
        "the same, OPSD by KL(S||T)", "rlcsd", "opsd reverse", final,
        "RLCSD ends above OPSD at its best here.", "RLCSD ends below OPSD at its best here.",
    ),
    Claim(
        "OPSD without its clip against with it", "opsd unclipped", "opsd", final,
        "OPSD is better without its clip.", "OPSD is worse without its clip.",
    ),
    Claim(
        "OPSD by KL(S||T) against SDPO with a fixed teacher", "opsd reverse", "sdpo fixed", final,
        "OPSD by KL(S||T) ends above SDPO with a fixed teacher.",
        "OPSD by KL(S||T) ends below SDPO with a fixed teacher.",
    ),
    Claim(
        "hints alone against the cold start", "hindsight alone", "cold start of Reply", final,
        "Hints alone teach something.", "Hints alone take from what the cold start knew.",
    ),
    Claim(
        "the verdict alone against the cold start", "binary reward alone", "cold start of Reply", final,
        "The verdict alone teaches something.", "The verdict alone takes from what the cold start knew.",
    ),
    Claim(
        "both against the cold start", "reward and hindsight", "cold start of Reply", final,
        "Verdict and hints together teach something.", "Verdict and hints take from what the cold start knew.",
    ),
    Claim(
        "hints alone against the verdict alone, as liked", "hindsight alone", "binary reward alone", liked,
        "Hints teach what the user likes better than the verdict does.",
        "The verdict teaches what the user likes better than hints do.",
    ),
    Claim(
        "and right as well", "hindsight alone", "binary reward alone", final,
        "Hints alone end above the verdict alone.", "Hints alone end below the verdict alone.",
    ),
    Claim(
        "both against the verdict alone, as liked", "reward and hindsight", "binary reward alone", liked,
        "Hints add to the verdict, of what the user likes.", "Hints take from the verdict, of what the user likes.",
    ),
    Claim(
        "and right as well", "reward and hindsight", "binary reward alone", final,
        "Hints add to the verdict.", "Hints take from the verdict.",
    ),
    Claim(
        "both against hints alone, as liked", "reward and hindsight", "hindsight alone", liked,
        "The verdict adds to hints, of what the user likes.", "The verdict takes from hints, of what the user likes.",
    ),
    Claim(
        "and right as well", "reward and hindsight", "hindsight alone", final,
        "The verdict adds to hints.", "The verdict takes from hints.",
    ),
    Claim(
        "hints against hints on other answers, as liked", "hindsight alone", "hindsight shuffled", liked,
        "Hints on the answer itself teach more of what the user likes than hints on other answers.",
        "Hints on other answers teach more of what the user likes.",
    ),
    Claim(
        "the user's next message against a judge's hint", "next message alone", "hindsight alone", final,
        "The user's next message, thanks included, teaches more than a judge's hints.",
        "The user's next message, thanks included, teaches less than a judge's hints.",
    ),
    Claim(
        "both without a group against a group of 8", "reward and hindsight", "grpo in groups of 8", final,
        "Verdict and hints on single answers are better than groups of 8.",
        "Where one may ask eight times, a group of 8 is better than verdict and hints on single answers.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """mean: of the differences over `seeds` seeds. half: of its 95% interval. p: two-sided. holm: p after Holm."""

    claim: Claim
    mean: float
    half: float
    seeds: int
    p: float
    holm: float = 1.0

    @property
    def verdict(self) -> str:
        if self.holm >= LEVEL:
            return f"no difference that {self.seeds} seeds can show"
        return f"{self.claim.arm} is {'better' if self.mean > 0 else 'worse'}"

    @property
    def sentence(self) -> str:
        """The finding in words, with its figures; "" where there is no difference or nothing is made of it."""
        said = self.claim.better if self.mean > 0 else self.claim.worse
        return f"{said} ({self.mean:+.3f} ± {self.half:.3f}.)" if said and self.holm < LEVEL else ""


NAMES = {early: "early", final: "at the end", liked: "as liked"}


def two_sided(t: float, degrees: int) -> float:
    """Probability that Student's t is as far from 0, by its finite series (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    theta = math.atan(abs(t) / math.sqrt(degrees))
    odd = degrees % 2
    term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
    for k in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(theta) ** 2 * (k + 1) / (k + 2)
    inside = math.sin(theta) * total
    return max(0.0, 1 - ((theta + inside) * 2 / math.pi if odd else inside))


def quantile(degrees: int, p: float = LEVEL) -> float:
    """The t that is passed on either side with probability p."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, degrees) > p else (low, middle)
    return high


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean, half of its 95% interval and p of at least two differences."""
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    degrees = len(differences) - 1
    p = two_sided(mean / error, degrees) if error else float(mean == 0)
    return mean, quantile(degrees) * error, p


def holm(ps: Sequence[float]) -> list[float]:
    """The p of each of several tests, such that those below a level have at most that chance of any false one."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


def compared(lines: Sequence[Line], claims: Sequence[Claim]) -> list[Found]:
    """Every claim that two seeds at least can tell of, corrected for how many there are."""
    found = []
    for claim in claims:
        arm, base = (
            {line["seed"]: claim.of(line) for line in lines if line["arm"] == name} for name in (claim.arm, claim.base)
        )
        differences = [arm[seed] - base[seed] for seed in sorted(arm.keys() & base.keys())]
        if len(differences) > 1:
            mean, half, p = paired(differences)
            found.append(Found(claim, mean, half, len(differences), p))
    corrected = holm([item.p for item in found])
    return [Found(i.claim, i.mean, i.half, i.seeds, i.p, least) for i, least in zip(found, corrected, strict=True)]


def tested(lines: Sequence[Line]) -> list[Found]:
    """All claims of the page."""
    return compared(lines, CLAIMS)


def table(found: Sequence[Found]) -> Iterator[str]:
    yield "## What the literature claims, in miniature\n"
    yield (
        "Differences over the same seeds with their 95% intervals (paired t); p; and p after Holm's correction over "
        f"all {len(found)} claims, which decides at {LEVEL:g}.\n"
    )
    yield "| claim | difference | seeds | p | p, Holm | here |\n|---|---:|---:|---:|---:|---|"
    for item in found:
        figures = f"{item.mean:+.3f} ± {item.half:.3f} | {item.seeds} | {item.p:.2g} | {item.holm:.2g}"
        yield f"| {item.claim.says.replace('|', chr(92) + '|')} | {figures} | {item.verdict} |"


def findings(lines: Sequence[Line], found: Sequence[Found]) -> Iterator[str]:
    """Sentences that the lines support, with their figures."""
    yield "\n## What we make of it\n"
    yield "Each sentence stands here only while the lines bear it out.\n"
    yield from (f"- {item.sentence}" for item in found if item.sentence)
    open_ = [item for item in found if item.holm >= LEVEL]
    alone = [item for item in open_ if item.p < LEVEL]
    yield (
        f"- {len(open_)} of {len(found)} claims show no difference after the correction. Of these, {len(alone)} would "
        "pass alone, which is a reason for more seeds and not a finding: "
        + ("; ".join(f"`{i.claim.arm}` - `{i.claim.base}` {NAMES[i.claim.of]} {i.mean:+.3f}" for i in alone) or "none")
        + "."
    )
    shares = [share for line in lines if line["arm"] == "sdpo" if (share := feedback_share(line)) is not None]
    if shares:
        yield (
            f"- Of what `sdpo`'s teacher reads, {statistics.fmean(shares):.0%} is feedback on a failed attempt and the "
            f"rest a sibling's solution ({len(shares)} seeds that logged it)."
        )
    halves = []
    for name in ("reward and hindsight", "hindsight alone", "binary reward alone", "grpo in groups of 8"):
        if counts := [half_way(line) for line in lines if line["arm"] == name]:
            halves.append(f"{statistics.fmean(counts):.0f} (`{name}`)")
    if halves:
        yield f"- Half of the way to where it ends takes {', '.join(halves)} answers in Reply."
    start = [final(line) for line in lines if line["arm"] == "cold start of Reply"]
    for name in ("binary reward alone", "hindsight alone", "reward and hindsight") if start else ():
        ends = [final(line) for line in lines if line["arm"] == name]
        above = sum(end > max(start) for end in ends)
        yield f"- {above} of {len(ends)} seeds of `{name}` end above every evaluation of the cold start."


def half_way(line: Line, window: int = 5) -> float:
    """Episodes until the mean success of the last `window` steps is half of the way from its first to its last."""
    curve, episodes = line["curves"]["success"], line["curves"]["episodes"]
    means = [statistics.fmean(curve[end - window : end]) for end in range(window, len(curve) + 1)]
    middle = (means[0] + means[-1]) / 2
    reached = next(place for place, mean in enumerate(means) if (mean >= middle) == (means[-1] >= middle))
    return float(sum(episodes[: reached + window]))


def feedback_share(line: Line) -> float | None:
    """Of a reprompted teacher's views, those of feedback: they are of groups without a success; all others with a
    view read a solution. None where the line lacks the counts.
    """
    curves = line["curves"]
    if "groups_all_failed" not in curves or "rows_without_teacher" not in curves:
        return None
    steps = zip(curves["groups_all_failed"], curves["episodes"], curves["rows_without_teacher"], strict=True)
    counts = [(failed * episodes, episodes - without) for failed, episodes, without in steps]
    return sum(count for count, _ in counts) / sum(views for _, views in counts)
