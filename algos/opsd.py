"""OPSD: the policy learns from itself with the reference solution in its prompt, and with nothing else.

    S, T = student and teacher over the vocabulary         M = (1-beta) S + beta T
    c_v  = beta T_v log(T_v / M_v) + (1-beta) S_v log(S_v / M_v);   beta 0: T_v log(T_v / S_v), 1: S_v log(S_v / T_v)
    L    = token-mean of  sum over v of  min(c_v, clip)

The clip is one for each token and vocabulary entry, before the sum: a few entries of style cannot rule a position.
Negative summands stay, so a position's loss may be below 0. No reward enters. Source: OPSD 2026, arXiv:2601.18734, and
its authors' later code, whose choices are the defaults here: forward KL, clip 0.05, a fixed teacher.

Changed: the vocabulary is the student's `k` likeliest entries and one bucket for the rest, which is exact where k is
the whole vocabulary; temperature is the run's own, where the authors sample and score at 1.1 (`sampling.temperature`).
Left out: nothing that we know of.
"""

from __future__ import annotations

from pydantic import Field
from retort.algos import sdpo
from retort.algos.aggregate import lift, token_mean
from retort.algos.base import Credit, Options, Recipe, Student, TeacherOptions, Term, TokenBatch
from retort.algos.divergences import Rest, jsd_summands
from retort.algos.grpo import Correction
from retort.envs.base import Source
from retort.feedback.hints import Hint, views
from torch import Tensor


class OPSDOptions(Options):
    """k: entries of the student's support. beta: of the divergence. clip: of one entry's summand, in nats; None is
    none.

    rest: what becomes of the other entries. hint: what the teacher reads. correction: for the policy that sampled.
    """

    k: int = Field(default=100, ge=1)
    beta: float = Field(default=0.0, ge=0, le=1)
    clip: float | None = Field(default=0.05, gt=0)
    rest: Rest = "tail"
    correction: Correction = Correction()
    hint: Hint = Hint(sources=(Source.SOLUTION, Source.ANSWER))
    teacher: TeacherOptions = TeacherOptions(kind="fixed")


def divergence(student_logp: Tensor, teacher_logp: Tensor, *, beta: float = 0.0, clip: float | None = 0.05) -> Tensor:
    """[...] from log-probs [...,V]: the generalised JSD, each entry's summand at most `clip`. The teacher has no
    gradient.

    Raises:
        ValueError: beta outside of 0 to 1.
    """
    return _clipped(student_logp, teacher_logp, beta, clip)[0]


def _clipped(student_logp: Tensor, teacher_logp: Tensor, beta: float, clip: float | None) -> tuple[Tensor, Tensor]:
    """The divergence, and where an entry of the position was clipped."""
    summands = jsd_summands(student_logp, lift(teacher_logp).detach(), beta)
    limit = float("inf") if clip is None else clip
    return summands.clamp(max=limit).sum(-1), (summands > limit).any(-1)


def credit(batch: TokenBatch, options: OPSDOptions) -> Credit:
    """Which tokens have a teacher."""
    return sdpo.credit(batch, options)


def loss(batch: TokenBatch, credit: Credit, student: Student, options: OPSDOptions) -> tuple[Term, ...]:
    """The clipped divergence from the teacher."""
    pair = sdpo.supports(batch, credit, student, options.rest)
    if pair is None:
        return ()
    value, at_bound = _clipped(*pair, options.beta, options.clip)
    value = value * credit.weight["behaviour"]
    return (Term("distil", value, credit.mask["taught"], 1.0, token_mean, clipped=at_bound),)


RECIPE = Recipe(options=OPSDOptions, credit=credit, loss=loss, views=views, support="student", channels=1)
