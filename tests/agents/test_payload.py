"""What travels between a learner and its teacher: whole or refused, and never a score of another token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retort.agents import payload
from retort.agents.base import TokenScores
from retort.agents.payload import (
    Answer,
    PayloadError,
    Question,
    aligned,
    answer_from_bytes,
    answer_to_bytes,
    question_from_bytes,
    question_to_bytes,
    unscored,
)

FIELDS = ("logp", "entropy", "topk_ids", "topk_logp", "rest_logp")


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Of up to four sequences, with or without a support; positions may be none."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = draw(st.sampled_from([0, 1, 5]))
    sequences, positions = [], []
    for length in draw(st.lists(st.integers(2, 12), max_size=4)):
        sequences.append(random.integers(0, 2**31, length))
        positions.append(np.flatnonzero(random.random(length - 1) < 0.6) + 1)
    ids = [random.integers(0, 2**31, (len(where), width)) for where in positions] if width else None
    return Question(sequences, positions, ids, entropy=draw(st.booleans()), temperature=draw(st.floats(0.1, 3)))


def answer(asked: Question, seed: int = 0) -> Answer:
    """What a teacher would say, with any numbers."""
    random = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return -random.exponential(2, shape).astype(np.float32)

    scores = [
        TokenScores(
            numbers(len(where)),
            -numbers(len(where)) if asked.entropy else None,
            asked.ids[number] if asked.ids is not None else None,
            numbers(len(where), asked.width) if asked.width else None,
            numbers(len(where)) if asked.width else None,
        )
        for number, where in enumerate(asked.positions)
    ]
    token_ids = [ids[where] for ids, where in zip(asked.sequences, asked.positions, strict=True)]
    return Answer("big", "1a2b", "digest", asked.positions, token_ids, scores)


def same(first: TokenScores, second: TokenScores) -> None:
    for name in FIELDS:
        one, two = getattr(first, name), getattr(second, name)
        assert (one is None) == (two is None), name
        if one is None:
            continue
        # Alternatives are float16: eleven bits.
        tolerance = {"rtol": 2**-11, "atol": 1e-7} if name == "topk_logp" else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(one, two, err_msg=name, **tolerance)


@given(questions())
def test_a_question_comes_back_up_to_its_last_position(asked: Question) -> None:
    found = question_from_bytes(question_to_bytes(asked))
    assert (found.entropy, found.temperature, found.k, found.width) == (
        asked.entropy,
        asked.temperature,
        asked.k,
        asked.width,
    )
    for number, where in enumerate(asked.positions):
        np.testing.assert_array_equal(found.positions[number], where)
        stop = int(where.max()) + 1 if where.size else 0
        np.testing.assert_array_equal(found.sequences[number], asked.sequences[number][:stop])
        if asked.ids is not None:
            assert found.ids is not None
            np.testing.assert_array_equal(found.ids[number], asked.ids[number])


@given(questions(), st.integers(0, 99))
def test_an_answer_comes_back_and_lines_up(asked: Question, seed: int) -> None:
    told = answer(asked, seed)
    found = answer_from_bytes(answer_to_bytes(told))
    assert (found.teacher, found.version, found.tokenizer) == ("big", "1a2b", "digest")
    for mine, theirs, held in zip(told.scores, found.scores, aligned(asked, found), strict=True):
        same(mine, theirs)
        same(mine, held)


def test_what_is_not_asked_for_does_not_travel() -> None:
    """Scores of the response alone, whatever the context is long."""
    sequence = np.arange(5000)
    asked = Question([sequence], [np.arange(4990, 5000)])
    assert len(answer_to_bytes(answer(asked))) < 2000


@settings(max_examples=300)
@given(questions(), st.data())
def test_any_byte_that_changes_is_found(asked: Question, data: st.DataObject) -> None:
    for sent, read in (
        (question_to_bytes(asked), question_from_bytes),
        (answer_to_bytes(answer(asked)), answer_from_bytes),
    ):
        place = data.draw(st.integers(0, len(sent) - 1))
        changed = bytearray(sent)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(PayloadError, match="expected"):
            read(bytes(changed))
        with pytest.raises(PayloadError, match="expected"):
            read(sent[:place])


def test_what_is_foreign_is_named() -> None:
    asked = Question([np.arange(4)], [np.array([2])])
    with pytest.raises(PayloadError, match=r"begins with b'retort payload 1\\n', found b'{\"text\": 1}'"):
        answer_from_bytes(b'{"text": 1}')
    with pytest.raises(PayloadError, match=r"checksum: expected .*, found "):
        answer_from_bytes(answer_to_bytes(answer(asked))[:-1])
    with pytest.raises(PayloadError, match="payload of a teacher's answer"):
        answer_from_bytes(question_to_bytes(asked))
    newer = answer_to_bytes(answer(asked)).replace(b"payload 1", b"payload 2", 1)
    with pytest.raises(PayloadError, match=r"payload 1.*found.*payload 2"):
        answer_from_bytes(newer)


def test_what_cannot_be_meant_is_named() -> None:
    where = np.array([2])
    for asked, said in (
        (Question([np.arange(4)], [np.array([0])]), "positions from 1 to 0, found 0 to 0"),
        (Question([np.arange(4)], [where], temperature=0.0), "temperature above 0"),
        (Question([np.arange(4)], [where], temperature=float("nan")), "temperature above 0"),
        (Question([np.arange(4)], [where], ids=[np.zeros((1, 2), np.int64)], k=3), "either ids or a k"),
    ):
        with pytest.raises(PayloadError, match=said):
            question_from_bytes(question_to_bytes(asked))
    short = Question([np.arange(4)], [where], ids=[np.zeros((2, 3), np.int64)])
    with pytest.raises(PayloadError, match="1 positions have 6 values of 'ids'"):
        question_from_bytes(question_to_bytes(short))


def test_a_sound_checksum_of_a_table_of_others_is_no_payload() -> None:
    about = {"is": "answer", "teacher": "", "version": "", "tokenizer": "", "width": 0}
    good = {name: payload._lists([np.array([1])], kind) for name, kind in payload.ANSWER.items()}
    assert answer_from_bytes(payload._sealed(good, about)).scores[0].logp.tolist() == [1]
    lacking = {name: column for name, column in good.items() if name != "logp"}
    for columns, told, said in (
        (lacking, about, "column 'logp'"),
        ({**good, "text": pa.array(["x"])}, about, "column 'text'"),
        ({**good, "logp": payload._lists([np.array([1])], pa.float16())}, about, "column 'logp'"),
        ({**good, "logp": pa.array([None], pa.large_list(pa.float32()))}, about, "found null"),
        (good, {**about, "width": "wide"}, "says of itself"),
        ({**good, "logp": payload._lists([np.array([1, 2])], pa.float32())}, about, "1 positions have 2 values"),
    ):
        with pytest.raises(PayloadError, match=said):
            answer_from_bytes(payload._sealed(columns, told))


FAULTS = {
    "nan": lambda told, row: told.scores[0].logp.__setitem__(row, np.nan),
    "infinite": lambda told, row: told.scores[0].logp.__setitem__(row, -np.inf),
    "likelier than 1": lambda told, row: told.scores[0].logp.__setitem__(row, 0.5),
    "another token": lambda told, row: told.token_ids[0].__setitem__(row, told.token_ids[0][row] + 1),
    "another position": lambda told, row: told.positions[0].__setitem__(row, 10_000),
    "another support": lambda told, row: told.scores[0].topk_ids.__setitem__((row, 1), -1),
    "nan in the support": lambda told, row: told.scores[0].topk_logp.__setitem__((row, 1), np.nan),
    "no entropy": lambda told, row: told.scores[0].entropy.__setitem__(row, np.nan),
    "no rest": lambda told, row: told.scores[0].rest_logp.__setitem__(row, np.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
@given(st.sets(st.integers(0, 7)), st.integers(0, 99))
def test_a_faulty_row_has_no_score_and_the_others_keep_theirs(fault: str, rows: set[int], seed: int) -> None:
    asked = Question([np.arange(20) * 7], [np.arange(3, 11)], [np.arange(24).reshape(8, 3)], entropy=True)
    sound = answer(asked, seed)
    told = replace(
        sound,
        positions=[asked.positions[0].copy()],
        token_ids=[sound.token_ids[0].copy()],
        scores=[TokenScores(*(getattr(sound.scores[0], name).copy() for name in FIELDS))],
    )
    for row in rows:
        FAULTS[fault](told, row)
    (found,) = aligned(asked, answer_from_bytes(answer_to_bytes(told)))
    gone = np.isin(np.arange(8), list(rows))
    np.testing.assert_array_equal(np.isnan(found.logp), gone)
    np.testing.assert_array_equal(found.logp[~gone], sound.scores[0].logp[~gone])
    for name in ("entropy", "topk_logp", "rest_logp"):
        assert not np.isnan(getattr(found, name)[~gone]).any()


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_rows_in_another_order_or_missing(order: list[int], lost: set[int]) -> None:
    asked = Question([np.arange(9)], [np.arange(2, 8)])
    sound = answer(asked)
    kept = [row for row in order if row not in lost]
    told = Answer("", "", "", [sound.positions[0][kept]], [sound.token_ids[0][kept]], [
        TokenScores(sound.scores[0].logp[kept])
    ])  # fmt: skip
    (found,) = aligned(asked, answer_from_bytes(answer_to_bytes(told)))
    expected = sound.scores[0].logp.copy()
    expected[list(lost)] = np.nan
    np.testing.assert_array_equal(found.logp, expected)


def test_an_answer_that_lacks_what_was_asked_for_is_refused() -> None:
    asked = Question([np.arange(9)], [np.arange(2, 8)])
    told = answer(asked)
    with pytest.raises(PayloadError, match="expected entropy, found none"):
        aligned(replace(asked, entropy=True), told)
    with pytest.raises(PayloadError, match="expected topk_ids, topk_logp, rest_logp, found none"):
        aligned(replace(asked, k=2), told)
    with pytest.raises(PayloadError, match="scores of 2 sequences, found 1"):
        aligned(Question([np.arange(9)] * 2, [np.arange(2)] * 2), told)
    wide = Question([np.arange(9)], [np.arange(2, 8)], [np.zeros((6, 3), np.int64)])
    with pytest.raises(PayloadError, match="expected 2 ids a token, found 3"):
        aligned(replace(asked, k=2), answer(wide))


def test_all_of_the_mass_in_the_support_is_a_score() -> None:
    asked = Question([np.arange(4)], [np.array([2])], [np.array([[1, 2]])])
    told = answer(asked)
    told.scores[0].rest_logp[:] = -np.inf  # type: ignore[index]
    (found,) = aligned(asked, answer_from_bytes(answer_to_bytes(told)))
    assert np.isfinite(found.logp).all()
    assert np.isneginf(found.rest_logp).all()


def test_nobody_said_anything_is_nan() -> None:
    nothing = unscored(3, width=2, entropy=True)
    for name in ("logp", "entropy", "topk_logp", "rest_logp"):
        assert np.isnan(getattr(nothing, name)).all()
    assert unscored(3).entropy is None
    assert unscored(3).topk_ids is None
