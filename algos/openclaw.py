"""OpenClaw-RL: every turn is judged by what came after it, and learns from the hint that can be drawn from there.

    reward of a turn = majority of the judge's votes, +1, -1 or 0            (no group, no normalisation)
    A = w_opd (teacher_logp - proximal_logp) + w_rl reward                    L = L_PPO(A)

The teacher is the policy itself with the longest of the hints that were voted for in the last user message, one view a
turn. A turn that nothing came after has no reward; one without a hint has no teacher. Source: OpenClaw-RL 2026,
arXiv:2603.10165, and its authors' code.

Changed: turns of one episode stay in one row, each with its own reward and view; a token whose teacher did not speak
gets no distillation, where the authors fill in 0.0; a turn with neither reward nor hint moves nothing and yet counts in
the denominator, where the authors mask a turn that nothing came after; the judge is the environment's own rules, or the
policy itself (`judge="self"`), not a second model. The authors ask for the turn's score and for the hint apart, each
with votes of its own; here one vote has both, so that a hint is a vote for itself, save where that vote calls the turn
right: such a turn has no teacher from it. `hindsight.context="next"` shows the next state itself and no hint. Left out:
the variant over the teacher's top entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from retort.agents.base import Policy, Trajectory
from retort.agents.chat import Chat
from retort.algos import grpo
from retort.algos.aggregate import lift
from retort.algos.base import Credit, Judging, Recipe, TeacherOptions, TokenBatch
from retort.feedback.hindsight import Hindsight, views
from retort.feedback.judge import Judge, ModelJudge, Vote, by_rules, with_judgement
from torch import Tensor

SHORTEST_HINT = 11  # characters


class OpenClawOptions(grpo.SurrogateOptions):
    """w_rl, w_opd: weights of the two signals. judge: the environment's own "rules", or the policy "self", which is
    asked `votes` times about every turn. hindsight: what the teacher reads.
    """

    clip_high: float = Field(default=0.28, gt=0)
    w_rl: float = Field(default=1.0, ge=0)
    w_opd: float = Field(default=1.0, ge=0)
    judge: Literal["rules", "self"] = "rules"
    votes: int = Field(default=3, ge=1)
    hindsight: Hindsight = Hindsight()
    teacher: TeacherOptions = TeacherOptions(kind="current")


def majority(votes: Sequence[int | Vote]) -> int:
    """The score that most of the votes give, 0 where two are level or there is none."""
    scores = Counter(vote if isinstance(vote, int) else vote[0] for vote in votes).most_common(2)
    if not scores or (len(scores) > 1 and scores[0][1] == scores[1][1]):
        return 0
    return scores[0][0]


def choose_hint(votes: Sequence[Vote]) -> str | None:
    """The longest hint of the votes with a score of +1, of more than ten characters; None where there is none."""
    hints = [hint for score, hint in votes if score == 1 and len(hint) >= SHORTEST_HINT]
    return max(hints, key=len) if hints else None


def advantage(
    reward: Tensor, teacher_logp: Tensor, old_logp: Tensor, *, w_rl: float = 1.0, w_opd: float = 1.0
) -> Tensor:
    """[B,T] from the turn's reward [B] (one row is one turn) or [B,T], without gradient."""
    r = lift(reward).detach()
    gap = (lift(teacher_logp) - lift(old_logp)).detach()
    return w_opd * gap + w_rl * (r.unsqueeze(-1) if r.dim() < gap.dim() else r)


def _rules(options: OpenClawOptions, policy: Policy, chat: Chat, seed: int) -> Judge:
    return by_rules


def _self(options: OpenClawOptions, policy: Policy, chat: Chat, seed: int) -> Judge:
    return ModelJudge(policy, chat, seed, votes=options.votes)


JUDGES: Mapping[str, Callable[[OpenClawOptions, Policy, Chat, int], Judge]] = {"rules": _rules, "self": _self}


def judging(options: OpenClawOptions) -> Judging:
    """Puts the majority's score in the place of each turn's reward, and the chosen hint beside it.

    A vote that has a hint is a vote for that hint, unless it calls the turn right: that would be praise.
    """

    def judge(trajectories: Sequence[Trajectory], policy: Policy, chat: Chat, seed: int) -> list[Trajectory]:
        found = JUDGES[options.judge](options, policy, chat, seed)(trajectories)
        return [
            with_judgement(
                trajectory,
                [float(majority(votes)) for votes in told],
                [choose_hint([Vote(1, vote.hint) for vote in votes if vote.score < 1]) for votes in told],
            )
            for trajectory, told in zip(trajectories, found, strict=True)
        ]

    return judge


def credit(batch: TokenBatch, options: OpenClawOptions) -> Credit:
    """The turn's own reward, and the teacher's gap where it spoke."""
    taught = batch.mask & batch.teacher_mask[0]
    teacher = torch.where(taught, batch.teacher_logp[0], batch.proximal_logp)
    a = advantage(batch.turn_reward, teacher, batch.proximal_logp, w_rl=options.w_rl, w_opd=options.w_opd)
    tokens = max(1, int(batch.mask.sum()))
    return Credit(
        advantage=a * batch.mask,
        weight={"behaviour": options.correction.weight(batch)},
        metrics={
            "tokens_taught": taught.sum().item() / tokens,
            "w_opd": options.w_opd,
            "turn_reward": batch.turn_reward[batch.mask].mean().item() if batch.mask.any() else 0.0,
        },
    )


RECIPE = Recipe(options=OpenClawOptions, credit=credit, loss=grpo.loss, views=views, channels=1, judge=judging)
