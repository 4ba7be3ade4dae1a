"""RLCSD: what a correct hint makes likelier and wrong hints do not.

    e    = teacher_logp(y | correct) - log mean over wrong hints of teacher_prob(y | wrong)
    pull = clip( beta mix tanh(e / tau), low, high )             selected: |pull| > delta
    A^   = A + pull where selected, never across 0; 0 where A is 0
    L    = token-mean over the others of L_PPO(A)  +  eta token-mean over the selected of L_PPO(A^)

What any hint does to the style stands in both halves of the contrast and cancels. Source: RLCSD 2026, arXiv:2606.11709,
and its authors' code. The correct hint is a successful sibling's solution, or the environment's where none succeeded; a
wrong hint is what a failed sibling did; never the episode's own, and all in one template. The teacher is a snapshot
every 10 updates. Changed: both denominators are those of the whole batch; the two hints are read by the weights of one
moment, and the gap's student cancels out of the contrast.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator
from retort.algos import grpo
from retort.algos.aggregate import lift, token_mean
from retort.algos.base import Credit, Recipe, Student, TeacherOptions, Term, TokenBatch
from retort.algos.surrogates import held, ppo, ratio_of
from retort.feedback.contrast import MOST_WRONG, Contrast, views
from torch import Tensor


class RLCSDOptions(grpo.PolicyOptions):
    """beta, mix, tau, low, high, delta: of the pull. eta: weight of the selected tokens. contrast: the hints."""

    beta: float = Field(default=1.0, ge=0)
    mix: float = Field(default=0.5, ge=0)
    tau: float = Field(default=0.02, gt=0)
    low: float = Field(default=-2.0, le=0)
    high: float = Field(default=2.0, ge=0)
    delta: float = Field(default=0.02, ge=0)
    eta: float = Field(default=1.0, ge=0)
    contrast: Contrast = Contrast()
    teacher: TeacherOptions = TeacherOptions(kind="ema", rate=1.0, every=10)

    @model_validator(mode="after")
    def _can_select(self) -> RLCSDOptions:
        if self.beta * self.mix <= self.delta < float("inf"):
            raise ValueError(f"delta={self.delta} is never passed: |pull| stays below beta * mix")
        return self


def contrast(correct_logp: Tensor, wrong_logp: Tensor, wrong_valid: Tensor) -> Tensor:
    """[B,T] e from correct_logp [B,T], wrong_logp [B,K,T] and wrong_valid, [B,K] or of each token [B,K,T].

    The mean is over the wrong hints that are valid; 0 where none is.
    """
    correct, wrong = lift(correct_logp).detach(), lift(wrong_logp).detach()
    valid = wrong_valid.bool()
    valid = valid if valid.dim() == wrong.dim() else valid.unsqueeze(-1)
    none = ~valid.any(1)
    # What has no valid hint is masked below; zeros keep its sum finite until then.
    some = valid | none.unsqueeze(1)
    mean = wrong.masked_fill(~some, -torch.inf).logsumexp(1) - some.sum(1).log()
    return (correct - mean).masked_fill(none, 0)


def credit(
    advantage: Tensor,
    contrast: Tensor,
    *,
    beta: float,
    tau: float,
    mix: float,
    low: float,
    high: float,
    delta: float,
) -> tuple[Tensor, Tensor]:
    """(A^ [B,T], selected [B,T] bool) from A and e, without gradient. The sign of A is never turned."""
    a = lift(advantage).detach()
    pull = (beta * mix * (lift(contrast).detach() / tau).tanh()).clamp(low, high)
    selected = pull.abs() > delta
    moved = torch.where(a > 0, (a + pull).clamp(min=0), (a + pull).clamp(max=0)).masked_fill(a == 0, 0)
    return torch.where(selected, moved, a), selected


def contrasted(batch: TokenBatch, options: RLCSDOptions) -> Credit:
    """GRPO's credit, moved where the hints disagree."""
    found = grpo.credit(batch, options)
    spoke = batch.teacher_mask  # [N,B,T], the correct hint first
    taught = batch.mask & spoke[0] & spoke[1:].any(0)
    e = contrast(batch.teacher_logp[0], batch.teacher_logp[1:].transpose(0, 1), spoke[1:].transpose(0, 1))
    keys = ("beta", "tau", "mix", "low", "high", "delta")
    chosen = {key: getattr(options, key) for key in keys}
    a, selected = credit(found.advantage, e.masked_fill(~taught, 0), **chosen)
    tokens = max(1, int(batch.mask.sum()))
    return replace(
        found,
        advantage=a,
        mask={"selected": selected},
        metrics={
            **found.metrics,
            "tokens_taught": taught.sum().item() / tokens,
            "selected": selected.sum().item() / tokens,
            "contrast_nats": e[taught].abs().mean().item() if taught.any() else 0.0,
        },
    )


def loss(batch: TokenBatch, credit: Credit, student: Student, options: RLCSDOptions) -> tuple[Term, ...]:
    """The surrogate, over the selected tokens and over all others, each by its own mean."""
    value = ppo(student.logp, batch.proximal_logp, credit.advantage, **options.clips) * credit.weight["behaviour"]
    at_bound = held(ratio_of(student.logp, batch.proximal_logp), credit.advantage, **options.clips)
    selected, live = credit.mask["selected"], credit.advantage != 0
    others = batch.mask & ~selected
    return (
        Term("policy", value, others, 1.0, token_mean, active=others & live, clipped=at_bound),
        Term("contrast", value, selected, options.eta, token_mean, active=selected & live, clipped=at_bound),
    )


RECIPE = Recipe(options=RLCSDOptions, credit=contrasted, loss=loss, views=views, channels=1 + MOST_WRONG)
