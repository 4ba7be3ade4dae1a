"""Trajectories in Parquet, one line an episode, without loss.

The schema carries a version and a SHA-256 of the content, which is verified when read: the page checksums of Parquet
do not cover its headers and its footer. Token ids are int32, sampled log-probs float32 (NaN where nothing was sampled).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from retort.agents.base import Finish, Message, Provenance, Row, Sampling, Trajectory, Turn, Usage
from retort.envs.base import Failure, Feedback, Source, TaskRef, UsageError

VERSION = b"2"
KEY = b"retort.trajectories"
CHECKSUM = b"retort.sha256"

_TEXT, _FEEDBACK = (
    pa.string(),
    pa.struct([("text", pa.string()), ("source", pa.string()), ("turn", pa.int32()), ("visible", pa.bool_())]),
)
_SAMPLING = pa.struct(
    [("temperature", pa.float64()), ("top_p", pa.float64()), ("top_k", pa.int64()), ("max_new_tokens", pa.int64())]
)
_USAGE = pa.struct([("prompt", pa.int64()), ("completion", pa.int64())])
_ARRAYS = {
    "token_ids": (np.int32, pa.int32()),
    "origin": (np.uint8, pa.uint8()),
    "turn": (np.int32, pa.int32()),
    "behaviour_logp": (np.float32, pa.float32()),
    "version": (np.int32, pa.int32()),
}
SCHEMA = pa.schema(
    [
        ("episode", _TEXT),
        ("group", pa.int64()),
        ("task", pa.struct([(name, _TEXT) for name in ("key", "digest", "split", "family")])),
        ("rows", pa.list_(pa.struct([(name, pa.list_(kind)) for name, (_, kind) in _ARRAYS.items()]))),
        (
            "turns",
            pa.list_(
                pa.struct(
                    [
                        ("observation", _TEXT),
                        ("action", _TEXT),
                        ("row", pa.int32()),
                        ("start", pa.int32()),
                        ("stop", pa.int32()),
                        ("reward", pa.float64()),
                        ("finish_reason", _TEXT),
                        ("feedback", pa.list_(_FEEDBACK)),
                        ("invalid", pa.bool_()),
                        ("usage", _USAGE),
                    ]
                )
            ),
        ),
        ("messages", pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))),
        ("reward", pa.float64()),
        ("success", pa.bool_()),
        ("failure", _TEXT),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
        (
            "provenance",
            pa.struct(
                [
                    ("env_id", _TEXT),
                    ("policy", _TEXT),
                    ("policy_version", pa.int64()),
                    ("tokenizer_digest", _TEXT),
                    ("template_digest", _TEXT),
                    ("sampling", _SAMPLING),
                    ("seed", pa.uint64()),
                    ("backend", _TEXT),
                    ("verifier_version", _TEXT),
                ]
            ),
        ),
        ("truncated_by", _TEXT),
        ("error", _TEXT),
        ("reward_components", pa.map_(_TEXT, pa.float64())),
        ("final_observation", _TEXT),
        ("policy_s", pa.float64()),
        ("env_s", pa.float64()),
    ],
    metadata={KEY: VERSION},
)


class StoreError(UsageError):
    """A file that does not hold trajectories as they were written; the message names it and says what is wrong."""


def write(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Writes the file whole or not at all; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([_line(item) for item in trajectories], schema=SCHEMA)
    table = table.replace_schema_metadata({KEY: VERSION, CHECKSUM: _checksum(_lines(table))})
    fresh = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table, fresh, write_page_checksum=True)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read(path: Path) -> list[Trajectory]:
    """The trajectories of a file.

    Raises:
        FileNotFoundError: there is none.
        StoreError: the file is corrupted, or its schema is foreign or of another version.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _refusal(path, error) from error
    held = schema.metadata or {}
    if held.get(KEY) != VERSION or not schema.equals(SCHEMA):
        found = f"version {held[KEY].decode(errors='replace')}" if KEY in held else "no trajectories"
        raise StoreError(f"{path}: expected trajectories of version {VERSION.decode()}, found {found}")
    try:
        lines = _lines(pq.read_table(path, page_checksum_verification=True))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _refusal(path, error) from error
    if _checksum(lines) != held.get(CHECKSUM):
        raise StoreError(f"{path} is corrupted: its content is not what its checksum says")
    return [_trajectory(line) for line in lines]


def _refusal(path: Path, error: Exception) -> Exception:
    return error if isinstance(error, FileNotFoundError) else StoreError(f"{path} is corrupted: {error}")


def _lines(table: pa.Table) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = table.to_pylist(maps_as_pydicts="strict")
    return lines


def _checksum(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest().encode()


def _line(item: Trajectory) -> dict[str, Any]:
    rows = [{name: getattr(row, name) for name in _ARRAYS} for row in item.rows]
    flat = {name: getattr(item, name) for name in SCHEMA.names if name not in ("rows", "task", "turns", "provenance")}
    return {
        **flat,
        "messages": [dict(message) for message in item.messages],
        "reward_components": list(item.reward_components.items()),
        "task": asdict(item.task),
        "rows": rows,
        "turns": [asdict(turn) for turn in item.turns],
        "provenance": asdict(item.provenance),
    }


def _trajectory(line: Mapping[str, Any]) -> Trajectory:
    told = line["provenance"]
    own = {
        "task": TaskRef(**line["task"]),
        "rows": tuple(
            Row(**{name: np.array(row[name], kind) for name, (kind, _) in _ARRAYS.items()}) for row in line["rows"]
        ),
        "turns": tuple(_turn(turn) for turn in line["turns"]),
        "messages": tuple(Message(role=item["role"], content=item["content"]) for item in line["messages"]),
        "failure": None if line["failure"] is None else Failure(line["failure"]),
        "provenance": Provenance(**{**told, "sampling": Sampling(**told["sampling"])}),
    }
    return Trajectory(**{**line, **own})


def _turn(line: Mapping[str, Any]) -> Turn:
    feedback = tuple(Feedback(**{**item, "source": Source(item["source"])}) for item in line["feedback"])
    usage = None if line["usage"] is None else Usage(**line["usage"])
    return Turn(**{**line, "finish_reason": Finish(line["finish_reason"]), "feedback": feedback, "usage": usage})
