"""Trace SFT: negative log-likelihood of the model tokens of expert traces.

    L = token-mean of -log pi(y_t | y_<t)

Source: Kim & Rush 2016, arXiv:1606.07947 (sequence-level distillation), with the traces as the teacher's samples.
Prompt and observation tokens carry no loss. Filtering by reward is left to whoever collects the traces.
"""

from __future__ import annotations

import torch
from retort.algos.aggregate import token_mean
from retort.algos.base import Credit, Options, Recipe, Student, Term, TokenBatch
from retort.feedback.reprompt import Reprompt


class SFTOptions(Options):
    """reprompt: the teacher's format, in which a share of the traces is written."""

    reprompt: Reprompt = Reprompt()


def credit(batch: TokenBatch, options: SFTOptions) -> Credit:
    """Every model token deserves 1."""
    return Credit(advantage=batch.mask.to(torch.float32))


def loss(batch: TokenBatch, credit: Credit, student: Student, options: SFTOptions) -> tuple[Term, ...]:
    """The negative log-likelihood."""
    return (Term("nll", -student.logp * credit.advantage, batch.mask, 1.0, token_mean),)


RECIPE = Recipe(options=SFTOptions, credit=credit, loss=loss, rollouts=False)
