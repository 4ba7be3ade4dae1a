"""The algorithm contract: a batch of tokens, what each deserves, and what the student minimises.

An algorithm is one file of pure functions and a declaration, `RECIPE = Recipe(...)`:

    views(group, source, chat, options) -> [TeacherView]     what the teacher sees
    credit(batch, options) -> Credit                          what each token deserves; no gradient, the whole batch
    loss(batch, credit, student, options) -> (Term, ...)      what the student minimises, with gradient

Letters in shapes: B rows, T tokens of the longest row, K support entries, N teacher channels. Position t of every
[B,T] tensor speaks of token t itself, given the tokens before it; position 0 never carries loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

if TYPE_CHECKING:
    from retort.agents.base import Policy, Trajectory
    from retort.agents.chat import Chat
    from retort.feedback.base import TeacherView

Support = Literal["sampled", "student", "full"]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Everything a loss may look at. Log-probs are float32 nats at the behaviour's temperature.

    tokens, mask, turn: [B,T]; `mask` is true on model tokens; `turn` is -1 elsewhere.
    turn_reward: [B,T], the reward of the turn that a token belongs to.
    behaviour_logp: of the policy that sampled. proximal_logp: of the learner before this update. reference_logp: of the
        frozen initial policy, or None. 0 where `mask` is false.
    episode, group: [B] integers; rows of one episode share `episode`. reward, success, temperature: [B].
    teacher_mask, teacher_logp, teacher_entropy, teacher_rest_logp: [N,B,T].
    support_ids: [B,T,K]; proximal_support_logp: [B,T,K]; proximal_rest_logp, proximal_entropy: [B,T];
        teacher_support_logp: [N,B,T,K].
    Rest is the log-mass outside the support. step: the 0-based number of the update. vocabulary: entries in it.
    """

    tokens: Tensor
    mask: Tensor
    turn: Tensor
    turn_reward: Tensor
    behaviour_logp: Tensor
    proximal_logp: Tensor
    episode: Tensor
    group: Tensor
    reward: Tensor
    success: Tensor
    temperature: Tensor
    teacher_mask: Tensor
    teacher_logp: Tensor
    reference_logp: Tensor | None = None
    teacher_entropy: Tensor | None = None
    teacher_rest_logp: Tensor | None = None
    support_ids: Tensor | None = None
    proximal_support_logp: Tensor | None = None
    proximal_rest_logp: Tensor | None = None
    proximal_entropy: Tensor | None = None
    teacher_support_logp: Tensor | None = None
    step: int = 0
    vocabulary: int = 0

    @property
    def has_teacher(self) -> Tensor:
        """[B] bool: whether any of the row's tokens has a teacher on channel 0."""
        return self.teacher_mask[0].any(-1) if self.teacher_mask.shape[0] else self.mask.new_zeros(len(self.mask))

    @property
    def before(self) -> Student:
        """The student as it is before this update, without gradient."""
        return Student(self.proximal_logp, self.proximal_entropy, self.proximal_rest_logp, self.proximal_support_logp)


@dataclass(frozen=True, eq=False)
class Credit:
    """What each token deserves; carries no gradient.

    advantage: [B,T]. weight: named [B,T] tensors that the loss multiplies in. mask: named [B,T] bool tensors, such as
    the tokens routed to one term. share: named numbers, such as a term's share of all tokens. metrics: for the log.
    """

    advantage: Tensor
    weight: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    share: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Student:
    """The policy that is being updated, with gradient: logp, entropy, rest_logp [B,T]; support_logp [B,T,K]."""

    logp: Tensor
    entropy: Tensor | None = None
    rest_logp: Tensor | None = None
    support_logp: Tensor | None = None


class Aggregate(Protocol):
    """Folds [B,T] into a scalar. `count` is the global denominator, so that micro-batches add up to the whole."""

    def __call__(self, x: Tensor, mask: Tensor, *, count: Tensor | float | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of the loss: `weight * aggregate(value, mask)`. The learner supplies the global count.

    active: [B,T] bool, the tokens of `mask` whose value depends on the student (all, where None). The others still
    count, but the learner need not compute them. clipped: [B,T] bool, where a bound of the loss holds its value or its
    gradient; None for a loss without one. It is logged and changes nothing.
    """

    name: str
    value: Tensor
    mask: Tensor
    weight: float
    aggregate: Aggregate
    active: Tensor | None = None
    clipped: Tensor | None = None


class Options(BaseModel):
    """Hyper-parameters of one recipe. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss looks at the log-probs of the policy as training began."""
        return False


class TeacherOptions(Options):
    """Which weights teach. A recipe with a teacher has these as its option `teacher`.

    kind: "fixed" (the policy as training began), "ema" (its moving average), "current", or "trust_region" (logits
        between those of the policy as training began and as it is).
    rate: share of the new weights that an "ema" teacher takes in, `theta_T <- (1 - rate) theta_T + rate theta`; with 1
        it is a snapshot. In a trust region, the share of the current logits.
    every: updates of the student for one of an "ema" teacher.
    """

    kind: Literal["fixed", "ema", "current", "trust_region"] = "fixed"
    rate: float = Field(default=0.05, ge=0, le=1)
    every: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _all_of_it_acts(self) -> TeacherOptions:
        moves = {"rate": ("ema", "trust_region"), "every": ("ema",)}
        for name, kinds in moves.items():
            if (value := getattr(self, name)) != type(self).model_fields[name].default and self.kind not in kinds:
                raise ValueError(f"{name}={value:g} needs kind={' or '.join(kinds)}, found kind={self.kind}")
        return self


class Views(Protocol):
    """Builds what the teacher sees for one group of episodes of the same task.

    `rows[i]` are the batch rows of episode i. `source` is where the privileged text comes from: the group itself, or
    another task's group in the shuffled control.
    """

    def __call__(
        self,
        group: Sequence[Trajectory],
        source: Sequence[Trajectory],
        rows: Sequence[Sequence[int]],
        chat: Chat,
        options: Any,
    ) -> Sequence[TeacherView]: ...


def no_views(
    group: Sequence[Trajectory],
    source: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    chat: Chat,
    options: Any,
) -> Sequence[TeacherView]:
    """For methods without a teacher."""
    return ()


class Judging(Protocol):
    """Adds what a judge says to episodes: feedback, and turn rewards where the method takes them from there."""

    def __call__(
        self, trajectories: Sequence[Trajectory], policy: Policy, chat: Chat, seed: int
    ) -> Sequence[Trajectory]: ...


class Memory(Protocol):
    """What a run learns beside its weights, such as skills. It is part of every checkpoint."""

    def views(
        self,
        group: Sequence[Trajectory],
        source: Sequence[Trajectory],
        rows: Sequence[Sequence[int]],
        chat: Chat,
        options: Any,
    ) -> Sequence[TeacherView]:
        """As `Views`."""
        ...

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """Takes in the episodes of a step, after its update."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class Recipe:
    """One algorithm, declared.

    support: which vocabulary entries the loss looks at beside the sampled token; `k` of them, from `Options.k`.
    student_entropy, teacher_entropy: whether it needs that entropy over the full vocabulary.
    channels: N, the number of teachers; with any, the options have a field `teacher: TeacherOptions`.
    privileged: whether its teacher reads more than the student did. One that does not has to be another model, so that
        there is no `teacher` among the options, and a run needs `teachers` or a `scorer`.
    rollouts: whether training data are the policy's own episodes (else expert traces).
    keep: whether a group of episodes teaches anything; other tasks are played in the place of groups that do not, at
        most `options.resample` times a step, and what is left of them leaves the batch.
    judge: makes, from the options, what adds a judgement to each episode before views and credit see it.
    memory: makes, from the options, what a run learns beside the weights; its `views` then take the place of `views`.
    """

    options: type[Options]
    credit: Callable[[TokenBatch, Any], Credit]
    loss: Callable[[TokenBatch, Credit, Student, Any], tuple[Term, ...]]
    views: Views = no_views
    support: Support = "sampled"
    student_entropy: bool = False
    teacher_entropy: bool = False
    channels: int = 0
    privileged: bool = True
    rollouts: bool = True
    keep: Callable[[Sequence[Trajectory]], bool] | None = None
    judge: Callable[[Any], Judging] | None = None
    memory: Callable[[Any], Memory] | None = None
