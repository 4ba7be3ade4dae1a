"""What an update does to every token: its branch, gate, mask, credit and teacher, a row of a table for each.

    push = -d loss / d logit of the sampled token, times the model tokens of the batch, before the update

It says for every recipe alike how hard the step pulls a token up (above 0) or down. `logp`, and all that follows from
it, is of the learner before the update.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from retort.agents.base import Trajectory
from retort.agents.chat import Chat
from retort.agents.record import write_whole
from retort.algos.aggregate import count_of
from retort.algos.base import Credit, Student, Term, TokenBatch
from retort.algos.learner import Loss, live, select
from retort.feedback.base import TeacherView
from torch import Tensor

VERSION = b"1"
KEY = b"retort.signals"
CHUNK = 1 << 16  # padded tokens at once: the gradient through a support needs several times their entries


def terms_and_push(batch: TokenBatch, credit: Credit, loss: Loss, options: Any) -> tuple[tuple[Term, ...], Tensor]:
    """The terms of the whole batch before the update, and the push [B,T] of every token."""
    with torch.no_grad():
        terms = loss(batch, credit, batch.before, options)
    counts = {term.name: count_of(term.aggregate, term.mask) for term in terms}
    push, width = torch.zeros_like(batch.proximal_logp), batch.tokens.shape[1]
    for index in torch.split(torch.arange(len(batch.tokens)), max(1, CHUNK // max(width, 1))):
        part = select(batch, index, width)
        student = _leaves(part.before)
        found = loss(part, select(credit, index, width), student, options)
        total = sum(t.weight * t.aggregate(t.value, t.mask, count=counts[t.name]) for t in found)
        if isinstance(total, Tensor) and total.requires_grad:
            push[index] = -_logit_gradient(total, part, student)
    return terms, push * int(batch.mask.sum())


def _leaves(student: Student) -> Student:
    def leaf(value: Tensor) -> Tensor:
        return value.detach().clone().requires_grad_()

    said = {f.name: value for f in fields(student) if (value := getattr(student, f.name)) is not None}
    return Student(**{name: leaf(value) for name, value in said.items()})


def _logit_gradient(total: Tensor, batch: TokenBatch, student: Student) -> Tensor:
    """[B,T] the gradient for the sampled token's logit, through all log-probs that the loss looked at.

    With p the softmax of z / temperature, each of these is divided by the temperature: d logp_j / d z_v is
    1[j = v] - p_v, d rest / d z_v is p_v / rest - p_v where v is of the rest, else -p_v, and d H / d z_v is
    -p_v (logp_v + H).
    """
    logp, support, rest, entropy = student.logp, student.support_logp, student.rest_logp, student.entropy
    leaves = [leaf for leaf in (logp, support, rest, entropy) if leaf is not None]
    grads = iter(torch.autograd.grad(total, leaves, allow_unused=True))
    p = logp.detach().exp()

    def gradient(leaf: Tensor | None) -> Tensor | None:
        return None if leaf is None else next(grads)

    found = torch.zeros_like(p)
    if (own := gradient(logp)) is not None:
        found = found + own * (1 - p)
    at = None if batch.support_ids is None else batch.support_ids == batch.tokens.unsqueeze(-1)
    if (of := gradient(support)) is not None and at is not None:
        found = found + (of * at).sum(-1) - of.sum(-1) * p
    if (left := gradient(rest)) is not None and at is not None and rest is not None:
        inside = torch.where(at.any(-1), 0.0, (logp - rest).detach().exp())
        found = found + left * (inside - p)
    if (bonus := gradient(entropy)) is not None and entropy is not None:
        found = found - bonus * p * (logp + entropy)
    return (found / batch.temperature.unsqueeze(-1)).detach()


def table(
    trajectories: Sequence[Trajectory],
    batch: TokenBatch,
    credit: Credit,
    views: Sequence[TeacherView],
    chat: Chat,
    loss: Loss,
    options: Any,
    teacher: str,
    by: Sequence[str] = (),
) -> pa.Table:
    """One row for each model token of the batch, in order. teacher: whose weights taught, in words. by: the name of who
    scored each view, where several may; "" is nobody.

    Null: what no teacher spoke of, and the gate of a recipe without one. `gate` multiplies the weights that a recipe
    gives tokens beside the correction for the policy that sampled, which is `importance`.
    """
    terms, push = terms_and_push(batch, credit, loss, options)
    row, at = batch.mask.nonzero(as_tuple=True)

    def told(values: Tensor, where: Tensor | None = None) -> pa.Array:
        gone = None if where is None else ~where[row, at].numpy()
        return pa.array(values[row, at].numpy(), mask=gone)

    episode = batch.episode[row].numpy()
    gates = [weight for name, weight in credit.weight.items() if name != "behaviour"]
    taught = batch.teacher_mask[0] if len(batch.teacher_mask) else torch.zeros_like(batch.mask)
    columns: dict[str, pa.Array] = {
        "episode": _named([trajectory.episode for trajectory in trajectories], episode),
        "task": _named([trajectory.task.key for trajectory in trajectories], episode),
        "group": pa.array(batch.group[row].numpy()),
        "reward": pa.array(batch.reward[row].numpy()),
        "success": pa.array(batch.success[row].numpy()),
        "row": pa.array(row.numpy().astype(np.int32)),
        "turn": pa.array(batch.turn[row, at].numpy().astype(np.int32)),
        "position": pa.array(at.numpy().astype(np.int32)),
        "token_id": pa.array(batch.tokens[row, at].numpy().astype(np.int32)),
        "text": _texts(batch.tokens[row, at].numpy(), chat),
        "behaviour_logp": told(batch.behaviour_logp),
        "logp": told(batch.proximal_logp),
        "branch": _branches(terms, row, at),
        "mask": told(_any([live(term) for term in terms], batch.mask)),
        "clipped": told(_any([live(t) & t.clipped for t in terms if t.clipped is not None], batch.mask)),
        "gate": told(torch.stack(gates).prod(0), taught) if gates else pa.nulls(len(row), pa.float32()),
        "credit": told(credit.advantage),
        "push": told(push),
    }
    if "behaviour" in credit.weight:
        columns["importance"] = told(credit.weight["behaviour"])
    columns |= {f"value_{term.name}": told(term.value, term.mask) for term in terms}
    for channel, mask in enumerate(batch.teacher_mask):
        end, logp = f"_{channel}" if channel else "", batch.teacher_logp[channel]
        columns[f"teacher_logp{end}"] = told(logp, mask)
        columns[f"gap{end}"] = told(logp - batch.proximal_logp, mask)
        seen = [number for number, view in enumerate(views) if view.channel == channel and len(view.covers)]
        own = [views[number] for number in seen]
        contexts = [chat.tokenizer.decode(view.token_ids[: view.at[0]].tolist()) for view in own]
        columns[f"teacher_context{end}"] = _of_views(contexts, own, batch)
        if by:
            columns[f"teacher{end}"] = _of_views([by[number] for number in seen], own, batch)
    weights = {term.name: float(term.weight) for term in terms}
    about = {"step": batch.step + 1, "weights": weights, "teacher": teacher, "channels": len(batch.teacher_mask)}
    return pa.table(columns).replace_schema_metadata({KEY: VERSION, b"retort.about": json.dumps(about).encode()})


def _any(masks: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(like), *masks]).any(0)


def _named(names: Sequence[str], codes: NDArray[Any], gone: NDArray[Any] | None = None) -> pa.Array:
    """Text that repeats, once each."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=gone), pa.array(names, pa.string()))


def _texts(ids: NDArray[Any], chat: Chat) -> pa.Array:
    """What each token says; half a character is U+FFFD."""
    unique, codes = np.unique(ids, return_inverse=True)
    return _named([chat.tokenizer.decode([int(token)]) for token in unique], codes)


def _branches(terms: Sequence[Term], row: Tensor, at: Tensor) -> pa.Array:
    """The names of the terms that a token counts in, joined by "+"."""
    codes = np.zeros(len(row), np.int64)
    for place, term in enumerate(terms):
        codes |= term.mask[row, at].numpy().astype(np.int64) << place
    unique, places = np.unique(codes, return_inverse=True)
    names = ["+".join(t.name for place, t in enumerate(terms) if code >> place & 1) for code in unique.tolist()]
    return _named(names, places)


def _of_views(said: Sequence[str], views: Sequence[TeacherView], batch: TokenBatch) -> pa.Array:
    """Of each token, what is said of the view that covers it, if anything is. Views: of one channel."""
    which = np.full(batch.mask.shape, -1)
    for number, view in enumerate(views):
        which[view.row, view.covers] = number if said[number] else -1
    codes = which[batch.mask.numpy()]
    return _named(said, codes.clip(0), codes < 0)


def write(path: Path, signals: pa.Table) -> None:
    """Writes the file whole or not at all; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = io.BytesIO()
    pq.write_table(signals, held, compression="zstd")
    write_whole(path, held.getvalue())
