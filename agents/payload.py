"""What a learner asks of a teacher elsewhere and what that answers, as bytes: token ids and log-probs, and no text.

    17 bytes of MAGIC, which names the format | 32 bytes of SHA-256 of what follows | an Arrow stream, a row a sequence

Token ids and positions are int32, log-probs of the student's own tokens float32, those of alternatives float16. Only
what was asked for travels back, each value with the position and the token id that it speaks of. What is missing, not
finite or of another token becomes NaN when it is held against the question (`aligned`): a batch masks and counts it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from retort.agents.base import Int64, TokenScores

MAGIC = b"retort payload 1\n"
DIGEST = 32
KEY = b"retort.about"
MOST_LOGP = 1e-3  # nats: a sum in float32 may pass 0 by so much
QUESTION = {"token_ids": pa.int32(), "positions": pa.int32()}
ANSWER = {"positions": pa.int32(), "token_ids": pa.int32(), "logp": pa.float32()}
FURTHER = {"ids": pa.int32(), "ids_logp": pa.float16(), "rest_logp": pa.float32(), "entropy": pa.float32()}
FIELDS = {"ids": "topk_ids", "ids_logp": "topk_logp", "rest_logp": "rest_logp", "entropy": "entropy"}  # of TokenScores
Types = Mapping[str, type | tuple[type, ...]]


class PayloadError(ValueError):
    """Bytes that are no payload of this format, or not as they were sent; the message says what was found."""


@dataclass(frozen=True, eq=False)
class Question:
    """What `Policy.score` takes: positions [N] of each sequence, and for each sequence ids [N,K], or the top `k`."""

    sequences: Sequence[Int64]
    positions: Sequence[Int64]
    ids: Sequence[Int64] | None = None
    k: int = 0
    entropy: bool = False
    temperature: float = 1.0

    @property
    def width(self) -> int:
        """K: alternatives of each position."""
        return self.k if self.ids is None else max((rows.shape[1] for rows in self.ids), default=0)


@dataclass(frozen=True, eq=False)
class Answer:
    """Scores of positions [N] of each sequence, and the token that each is about.

    teacher: its id. version: of its weights. tokenizer: the digest of what its token ids mean.
    """

    teacher: str
    version: str
    tokenizer: str
    positions: Sequence[Int64]
    token_ids: Sequence[Int64]
    scores: Sequence[TokenScores]


def question_to_bytes(asked: Question) -> bytes:
    """A sequence is sent up to the last of its positions."""
    ends = [int(where.max()) + 1 if where.size else 0 for where in asked.positions]
    columns = {
        "token_ids": _lists([ids[:end] for ids, end in zip(asked.sequences, ends, strict=True)], pa.int32()),
        "positions": _lists(asked.positions, pa.int32()),
    }
    if asked.ids is not None:
        columns["ids"] = _lists(asked.ids, pa.int32())
    about = {"k": asked.k, "entropy": asked.entropy, "temperature": asked.temperature, "width": asked.width}
    return _sealed(columns, {"is": "question", **about})


def question_from_bytes(data: bytes) -> Question:
    """Raises PayloadError for what is none, or asks for what cannot be: a position at 0 or outside of its sequence."""
    says: Types = {"k": int, "entropy": bool, "temperature": (int, float), "width": int}
    table, about = _opened(data, "question", {**QUESTION, "ids": pa.int32()}, QUESTION, says)
    sequences, positions = _rows(table, "token_ids"), _rows(table, "positions")
    for number, (sequence, where) in enumerate(zip(sequences, positions, strict=True)):
        if where.size and not (where.min() >= 1 and where.max() < len(sequence)):
            found = f"{where.min()} to {where.max()}"
            raise PayloadError(f"sequence {number}: expected positions from 1 to {len(sequence) - 1}, found {found}")
    ids = _wide(table, "ids", positions, about["width"]) if "ids" in table.column_names else None
    if not about["temperature"] > 0 or about["k"] < 0 or (about["k"] and ids is not None):
        raise PayloadError(f"expected a temperature above 0 and either ids or a k of at least 0, found {about}")
    return Question(sequences, positions, ids, about["k"], about["entropy"], about["temperature"])


def answer_to_bytes(told: Answer) -> bytes:
    """Fields of the scores that the first has are sent of all."""
    columns = {
        "positions": _lists(told.positions, pa.int32()),
        "token_ids": _lists(told.token_ids, pa.int32()),
        "logp": _lists([score.logp for score in told.scores], pa.float32()),
    }
    width = 0
    if told.scores:
        for name, field in FIELDS.items():
            if (first := getattr(told.scores[0], field)) is not None:
                columns[name] = _lists([getattr(score, field) for score in told.scores], FURTHER[name])
                width = first.shape[1] if name == "ids" else width
    about = {"teacher": told.teacher, "version": told.version, "tokenizer": told.tokenizer, "width": width}
    return _sealed(columns, {"is": "answer", **about})


def answer_from_bytes(data: bytes) -> Answer:
    """Raises PayloadError for what is none, or has not as many values as positions."""
    says: Types = {"teacher": str, "version": str, "tokenizer": str, "width": int}
    table, about = _opened(data, "answer", {**ANSWER, **FURTHER}, ANSWER, says)
    positions = _rows(table, "positions")
    further = {
        FIELDS[name]: _wide(table, name, positions, about["width"] if name.startswith("ids") else None)
        for name in FURTHER
        if name in table.column_names
    }
    flat = {name: _wide(table, name, positions, None) for name in ("token_ids", "logp")}
    scores = [
        TokenScores(logp, **{name: values[number] for name, values in further.items()})
        for number, logp in enumerate(flat["logp"])
    ]
    return Answer(about["teacher"], about["version"], about["tokenizer"], positions, flat["token_ids"], scores)


def unscored(count: int, *, width: int = 0, entropy: bool = False) -> TokenScores:
    """What stands for `count` tokens of which nobody said anything: NaN, and never 0."""
    nothing = np.full(count, np.nan, np.float32)
    said = nothing.copy() if entropy else None
    if not width:
        return TokenScores(nothing, said)
    return TokenScores(
        nothing, said, np.zeros((count, width), np.int64), np.full((count, width), np.nan, np.float32), nothing.copy()
    )


def aligned(asked: Question, told: Answer) -> list[TokenScores]:
    """The answer in the order of the question; NaN where it has no finite score of that very token.

    Raises:
        PayloadError: it speaks of another number of sequences, or lacks what was asked for.
    """
    if len(told.scores) != len(asked.sequences):
        raise PayloadError(f"expected scores of {len(asked.sequences)} sequences, found {len(told.scores)}")
    return [_held(asked, told, number) for number in range(len(told.scores))]


def _held(asked: Question, told: Answer, number: int) -> TokenScores:
    sequence, where, found = asked.sequences[number], asked.positions[number], told.scores[number]
    result = unscored(len(where), width=asked.width, entropy=asked.entropy)
    names = [name for name in ("logp", *FIELDS.values()) if getattr(result, name) is not None]
    if lacking := [name for name in names if getattr(found, name) is None]:
        raise PayloadError(f"sequence {number}: expected {', '.join(lacking)}, found none")
    if asked.width and found.topk_ids is not None and found.topk_ids.shape[1] != asked.width:
        raise PayloadError(f"sequence {number}: expected {asked.width} ids a token, found {found.topk_ids.shape[1]}")
    place = {int(position): row for row, position in enumerate(told.positions[number])}
    rows = np.array([place.get(int(position), -1) for position in where], np.int64)
    held = np.flatnonzero(rows >= 0)
    held = held[told.token_ids[number][rows[held]] == sequence[where[held]]]
    if asked.ids is not None and found.topk_ids is not None:
        held = held[(found.topk_ids[rows[held]] == asked.ids[number][held]).all(-1)]
    held = held[_sound(found, rows[held])]
    for name in names:
        getattr(result, name)[held] = getattr(found, name)[rows[held]]
    return result


def _sound(found: TokenScores, rows: Int64) -> NDArray[np.bool_]:
    """Which of these rows hold what can be log-probs. No mass may be left beside the alternatives: -inf is a number."""
    logp = found.logp[rows]
    good: NDArray[np.bool_] = np.isfinite(logp) & (logp <= MOST_LOGP)
    if found.entropy is not None:
        good &= np.isfinite(found.entropy[rows])
    if found.topk_logp is not None and found.rest_logp is not None:
        good &= ~np.isnan(found.topk_logp[rows]).any(-1) & ~np.isnan(found.rest_logp[rows])
    return good


def _lists(values: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    ends = np.cumsum([0, *(value.size for value in values)])
    joined = np.concatenate([np.zeros(0), *(value.reshape(-1) for value in values)])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(joined.astype(kind.to_pandas_dtype())))


def _sealed(columns: Mapping[str, pa.Array], about: Mapping[str, Any]) -> bytes:
    table = pa.table(dict(columns)).replace_schema_metadata({KEY: json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return MAGIC + hashlib.sha256(body).digest() + body


def _opened(
    data: bytes, what: str, known: Mapping[str, pa.DataType], needed: Mapping[str, pa.DataType], says: Types
) -> tuple[pa.Table, dict[str, Any]]:
    """The table, and what it says of itself."""
    if not data.startswith(MAGIC):
        raise PayloadError(f"expected a payload that begins with {MAGIC!r}, found {data[: len(MAGIC)]!r}")
    digest, body = data[len(MAGIC) : len(MAGIC) + DIGEST], data[len(MAGIC) + DIGEST :]
    if (found := hashlib.sha256(body).digest()) != digest:
        raise PayloadError(
            f"checksum: expected {digest.hex()[:16]}, found {found.hex()[:16]}: it is not as it was sent"
        )
    try:
        with pa.ipc.open_stream(body) as stream:
            table = stream.read_all()
        table.validate(full=True)
        about = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise PayloadError(f"expected an Arrow stream, found {error}") from error
    if not isinstance(about, dict) or about.get("is") != what:
        raise PayloadError(f"expected the payload of a teacher's {what}, found {about}")
    if wrong := [name for name, kind in says.items() if not isinstance(about.get(name), kind)]:
        raise PayloadError(f"a {what} says of itself {', '.join(says)}: found {about} ({wrong[0]})")
    for name in (*needed, *table.column_names):
        kind = pa.large_list(known[name]) if name in known else None
        if kind is None or name not in table.column_names or table.schema.field(name).type != kind:
            raise PayloadError(f"column {name!r}: expected one of {', '.join(known)}, found {table.schema}")
        if table[name].null_count or any(chunk.values.null_count for chunk in table[name].chunks):
            raise PayloadError(f"column {name!r}: expected values, found null")
    return table, about


def _rows(table: pa.Table, name: str) -> list[NDArray[Any]]:
    """The lists of a column, in the types that are worked with here."""
    kind = {pa.int32(): np.int64}.get(table.schema.field(name).type.value_type, np.float32)
    return [
        row.values.to_numpy(zero_copy_only=False).astype(kind) if row.is_valid else np.zeros(0, kind)
        for row in table[name]
    ]


def _wide(table: pa.Table, name: str, positions: Sequence[Int64], width: int | None) -> list[NDArray[Any]]:
    """The lists of a column, [N] or with a width [N,K], where there are as many values as positions."""
    rows = _rows(table, name)
    for number, (row, where) in enumerate(zip(rows, positions, strict=True)):
        if row.size != len(where) * (1 if width is None else width):
            raise PayloadError(f"sequence {number}: {len(where)} positions have {row.size} values of {name!r}")
    return (
        rows if width is None else [row.reshape(len(where), width) for row, where in zip(rows, positions, strict=True)]
    )
