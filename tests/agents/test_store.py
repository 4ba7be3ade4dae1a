"""Parquet keeps trajectories to the bit, and a file that is not as it was written is refused by name."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retort.agents import scripted, store
from retort.agents.base import Finish, Message, Provenance, Row, Sampling, Trajectory, Turn, Usage
from retort.agents.episode import EpisodeRequest
from retort.agents.rollout import Runner
from retort.agents.store import StoreError
from retort.envs.base import Failure, Feedback, Source, TaskRef

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
maybe = st.none() | text
real = st.floats(allow_nan=False)
small = st.integers(-1, 2**31 - 1)


def arrays(kind: Any, elements: Any) -> Any:
    return st.lists(elements, max_size=9).map(lambda values: np.array(values, kind))


rows = st.builds(
    Row,
    token_ids=arrays(np.int32, small),
    origin=arrays(np.uint8, st.integers(0, 3)),
    turn=arrays(np.int32, small),
    behaviour_logp=arrays(np.float32, st.floats(width=32)),
    version=arrays(np.int32, small),
)
lessons = st.builds(Feedback, text, st.sampled_from(list(Source)), st.integers(0, 99), st.booleans())
turns = st.builds(
    Turn,
    observation=text,
    action=text,
    row=st.integers(0, 9),
    start=st.integers(0, 999),
    stop=st.integers(0, 999),
    reward=real,
    finish_reason=st.sampled_from(list(Finish)),
    feedback=st.lists(lessons, max_size=3).map(tuple),
    invalid=st.booleans(),
    usage=st.none() | st.builds(Usage, st.integers(0, 2**40), st.integers(0, 2**40)),
)
samplings = st.builds(Sampling, real, real, st.integers(0, 99), st.integers(1, 9999))
provenances = st.builds(
    Provenance,
    env_id=text,
    policy=text,
    policy_version=st.integers(0, 2**40),
    tokenizer_digest=text,
    template_digest=text,
    sampling=samplings,
    seed=st.integers(0, 2**64 - 1),
    backend=text,
    verifier_version=text,
)
trajectories = st.builds(
    Trajectory,
    episode=text,
    group=st.integers(0, 2**40),
    task=st.builds(TaskRef, text, text, st.sampled_from(["train", "validation", "test"]), text),
    rows=st.lists(rows, max_size=3).map(tuple),
    turns=st.lists(turns, max_size=3).map(tuple),
    messages=st.lists(st.builds(Message, role=text, content=text), max_size=3).map(tuple),
    reward=real,
    success=st.none() | st.booleans(),
    failure=st.none() | st.sampled_from(list(Failure)),
    terminated=st.booleans(),
    truncated=st.booleans(),
    provenance=provenances,
    truncated_by=maybe,
    error=maybe,
    reward_components=st.dictionaries(text, real, max_size=3),
    final_observation=text,
    policy_s=real,
    env_s=real,
)


def same(one: Trajectory, other: Trajectory) -> bool:
    """Equal in every field, arrays to the bit."""
    arrays_equal = len(one.rows) == len(other.rows) and all(
        getattr(a, name).dtype == getattr(b, name).dtype
        and getattr(a, name).shape == getattr(b, name).shape
        and (getattr(a, name).tobytes() == getattr(b, name).tobytes() or _nan_alike(getattr(a, name), getattr(b, name)))
        for a, b in zip(one.rows, other.rows, strict=True)
        for name in ("token_ids", "origin", "turn", "behaviour_logp", "version")
    )
    fields = [name for name in one.__dataclass_fields__ if name != "rows"]
    return arrays_equal and all(getattr(one, name) == getattr(other, name) for name in fields)


def _nan_alike(one: Any, other: Any) -> bool:
    """NaN is NaN whatever its payload; the sign of zero counts."""
    held = ~np.isnan(one)
    return bool((np.isnan(one) == np.isnan(other)).all()) and one[held].tobytes() == other[held].tobytes()


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(trajectories, max_size=4))
def test_nothing_is_lost(tmp_path: Path, items: list[Trajectory]) -> None:
    store.write(tmp_path / "x.parquet", items)
    found = store.read(tmp_path / "x.parquet")
    assert len(found) == len(items)
    for one, other in zip(items, found, strict=True):
        assert same(one, other)


@pytest.fixture
def played(echo: Any) -> list[Trajectory]:
    chat = scripted.byte_chat()
    asked = [EpisodeRequest(f"echo-{n % 8}", n, n // 8, f"{n:03d}") for n in range(16)]
    make = lambda: echo(breaks=[("echo-3", 1)])  # noqa: E731
    with closing(Runner(make, scripted.apprentice(chat, 0.5), chat, env_id="echo", concurrency=4)) as runner:
        return runner.run(asked)


def test_real_episodes_come_back(played: list[Trajectory], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "step-1.parquet"
    store.write(path, played)
    assert all(same(one, other) for one, other in zip(played, store.read(path), strict=True))
    assert [file.name for file in path.parent.iterdir()] == ["step-1.parquet"]
    assert any(not item.usable for item in played)


def test_a_flipped_byte_never_passes_for_the_truth(played: list[Trajectory], tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    store.write(path, played)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    # Headers and the footer are dense in what no page checksum covers; some of it once slipped through.
    known = [(place, 1 << bit) for place in (891, 1556, 1778, 2027, 2237) for bit in (0, 7)]
    for place, bits in [*known, *zip(rng.integers(len(whole), size=200), 1 << rng.integers(8, size=200), strict=True)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ int(bits)]) + whole[place + 1 :])
        try:
            found = store.read(path)
        except StoreError:
            continue
        # A byte that says nothing, such as the name of the writer.
        assert len(found) == len(played), place
        assert all(same(one, other) for one, other in zip(played, found, strict=True)), place


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_a_cut_file_is_refused(played: list[Trajectory], tmp_path: Path, keep: float) -> None:
    path = tmp_path / "x.parquet"
    store.write(path, played)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(StoreError, match=r"x\.parquet"):
        store.read(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(StoreError, match=r"x\.parquet.*found no trajectories"):
        store.read(path)
    future = store.SCHEMA.with_metadata({store.KEY: b"99"})
    pq.write_table(pa.Table.from_pylist([], schema=future), path)
    with pytest.raises(StoreError, match="found version 99"):
        store.read(path)
    path.write_text("not parquet at all")
    with pytest.raises(StoreError, match="corrupted"):
        store.read(path)
    with pytest.raises(FileNotFoundError):
        store.read(tmp_path / "missing.parquet")


def test_a_failed_write_leaves_the_old_file(played: list[Trajectory], tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    store.write(path, played)
    with pytest.raises((TypeError, ValueError, pa.ArrowException)):
        store.write(path, [*played, replace(played[0], reward="many")])  # type: ignore[arg-type]
    assert len(store.read(path)) == len(played)
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]
