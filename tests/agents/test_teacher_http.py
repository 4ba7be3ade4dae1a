"""`retort teach` in a process of its own against our scorer, and what a client makes of one that fails."""

from __future__ import annotations

import asyncio
import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from retort.agents import tiny
from retort.agents.base import EngineError, TokenScores
from retort.agents.card import WORDS, Card, card_of, fingerprint
from retort.agents.chat import Chat
from retort.agents.payload import PayloadError, Question, question_to_bytes
from retort.agents.scoring import score_tokens
from retort.agents.teacher_http import TeacherDown, TeacherServer
from retort.envs.base import UsageError

from retort.teach import TeachServer, check, load_vllm, teach

RANDOM = np.random.default_rng(0)
SEQUENCES = [RANDOM.integers(0, 300, length) for length in (40, 7, 23, 90)]
POSITIONS = [np.arange(len(ids) // 2, len(ids)) for ids in SEQUENCES]


@pytest.fixture(scope="module")
def teacher(teaching: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One process for all of this file."""
    with teaching(folder, tmp_path_factory.mktemp("teach") / "log.txt") as started:
        assert started.url
        yield started


def asked(server: TeacherServer, *which: int, **options: Any) -> list[TokenScores]:
    rows = which or range(len(SEQUENCES))
    return asyncio.run(server.score([SEQUENCES[n] for n in rows], [POSITIONS[n] for n in rows], **options))


def refused(server: str, body: bytes) -> str:
    response = httpx.post(f"{server}/score", content=body)
    assert response.status_code == 400
    return response.text


def test_it_introduces_itself(teacher: Any, folder: Path, chat: Chat, model: Any) -> None:
    assert httpx.get(f"{teacher.url}/health").text == "ok"
    card = TeacherServer(teacher.url).card
    assert card == card_of(model, chat, str(folder))
    assert (card.vocabulary, card.context) == (len(chat.tokenizer), tiny.CONTEXT)
    assert card.gives == tuple(WORDS)
    card.hold(chat, "the teacher")
    assert httpx.get(f"{teacher.url}/cart").text == "/cart: expected GET /health, GET /card, POST /score"
    assert httpx.get(f"{teacher.url}/score").status_code == 404
    assert httpx.post(f"{teacher.url}/card").status_code == 404


def test_other_weights_have_another_version(model: Any) -> None:
    other = copy.deepcopy(model)
    assert fingerprint(other) == fingerprint(model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(other) != fingerprint(model)


@pytest.mark.parametrize("wanted", ["sampled", "support", "top", "entropy", "temperature"])
def test_its_scores_are_our_own(teacher: Any, model: Any, wanted: str) -> None:
    ids = [np.stack([RANDOM.permutation(300)[:5] for _ in where]) for where in POSITIONS]
    options: dict[str, dict[str, Any]] = {
        "sampled": {},
        "support": {"ids": ids},
        "top": {"k": 3},
        "entropy": {"entropy": True},
        "temperature": {"temperature": 0.7, "ids": ids, "entropy": True},
    }
    told = asked(TeacherServer(teacher.url), **options[wanted])
    with torch.no_grad():
        own = score_tokens(model, SEQUENCES, POSITIONS, **options[wanted])
    for mine, theirs in zip(own, told, strict=True):
        np.testing.assert_allclose(theirs.logp, mine.logp, atol=1e-5)
        assert (theirs.entropy is None) == (mine.entropy is None)
        if mine.entropy is not None:
            np.testing.assert_allclose(theirs.entropy, mine.entropy, atol=1e-5)
        assert (theirs.topk_logp is None) == (mine.ids is None)
        if mine.ids is not None:
            np.testing.assert_array_equal(theirs.topk_ids, mine.ids)
            np.testing.assert_allclose(theirs.topk_logp, mine.ids_logp, rtol=2**-10)  # float16
            np.testing.assert_allclose(theirs.rest_logp, mine.rest_logp, atol=1e-5)


def test_questions_that_come_at_once_are_answered_one_after_the_other(teacher: Any, model: Any) -> None:
    async def all_at_once() -> list[Any]:
        server = TeacherServer(teacher.url)
        return await asyncio.gather(*(server.score([ids], [at]) for ids, at in zip(SEQUENCES, POSITIONS, strict=True)))

    with torch.no_grad():
        own = score_tokens(model, SEQUENCES, POSITIONS)
    for mine, (theirs,) in zip(own, asyncio.run(all_at_once()), strict=True):
        np.testing.assert_allclose(theirs.logp, mine.logp, atol=1e-5)


def test_what_cannot_be_answered_is_said(teacher: Any) -> None:
    where = np.array([2])
    assert "expected a payload that begins with" in refused(teacher.url, b"{}")
    sound = question_to_bytes(Question([np.arange(4)], [where]))
    assert "checksum" in refused(teacher.url, sound[:-1] + bytes([sound[-1] ^ 1]))
    over = Question([np.array([1, 2, 5000])], [where])
    assert "token ids: expected 0 to " in refused(teacher.url, question_to_bytes(over))
    long = Question([np.zeros(tiny.CONTEXT + 1, np.int64)], [np.array([tiny.CONTEXT])])
    assert f"at most {tiny.CONTEXT} tokens" in refused(teacher.url, question_to_bytes(long))
    twice = Question([np.arange(4)], [where], [np.array([[3, 3]])])
    assert "found one twice" in refused(teacher.url, question_to_bytes(twice))
    most = Question([np.arange(4)], [where], k=5000)
    assert "k: expected at most" in refused(teacher.url, question_to_bytes(most))
    assert asked(TeacherServer(teacher.url), 1)[0].logp.size  # and the next is served


def test_what_it_does_not_give_is_refused_on_both_sides(teacher: Any, chat: Chat) -> None:
    bare = Card("m", "v", chat.tokenizer_digest, chat.template_digest, len(chat.tokenizer), None, ())
    for question, said in (
        (Question([np.arange(4)], [np.array([2])], entropy=True), "cannot give the teacher's entropy"),
        (Question([np.arange(4)], [np.array([2])], temperature=0.5), "another temperature"),
    ):
        with pytest.raises(PayloadError, match=said):
            check(question, bare)
    server = TeacherServer(teacher.url)
    server.card = bare
    with pytest.raises(NotImplementedError, match=r"cannot give .*support.*nearest"):
        asked(server, ids=[np.zeros((len(where), 1), np.int64) for where in POSITIONS])


def test_what_is_too_long_for_it_has_no_score(teacher: Any) -> None:
    long = np.zeros(tiny.CONTEXT + 5, np.int64)
    told = asyncio.run(
        TeacherServer(teacher.url).score([long, SEQUENCES[0], long], [[tiny.CONTEXT + 2], POSITIONS[0], [3]])
    )
    assert np.isnan(told[0].logp).all()
    assert np.isfinite(told[1].logp).all()
    assert np.isfinite(told[2].logp).all(), "what stands after the last position is not sent"


def test_another_tokenizer_or_vocabulary_is_an_error(teacher: Any, chat: Chat, tmp_path: Path) -> None:
    other = Chat.load(tiny.build(tmp_path / "other", ["quite other words, and none of these\n"] * 30, seed=4))
    card = TeacherServer(teacher.url).card
    expected = rf"teacher at X has another tokenizer .* {other.tokenizer_digest}, found {chat.tokenizer_digest}"
    with pytest.raises(EngineError, match=expected):
        card.hold(other, "the teacher at X")
    small = Card(**{**card.to_json(), "vocabulary": 12})
    with pytest.raises(EngineError, match=rf"at least the {len(chat.tokenizer)} tokens .*found 12"):
        small.hold(chat, "the teacher at X")


def test_another_template_is_told(teacher: Any, chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    Card(**{**TeacherServer(teacher.url).card.to_json(), "template": "other"}).hold(chat, "the teacher at X")
    assert "the teacher at X was made for another chat template (digest other)" in caplog.text


def test_a_damaged_answer_is_asked_for_again(teacher: Any, link: Any) -> None:
    with link(teacher.url) as (near, state):
        server = TeacherServer(near, retries=2)
        state.flip = 2
        assert np.isfinite(asked(server, 0)[0].logp).all()
        assert state.asked == 3
        state.flip = 9
        with pytest.raises(TeacherDown, match=r"PayloadError: checksum: expected .*, found "):
            asked(server, 0)
        assert state.asked == 6


def test_what_passes_is_asked_again_and_what_does_not_is_said(teacher: Any, link: Any) -> None:
    with link(teacher.url) as (near, state):
        server = TeacherServer(near, retries=2)
        state.fail = [503, 429]
        assert np.isfinite(asked(server, 0)[0].logp).all()
        assert state.asked == 3
        state.fail = [400]
        with pytest.raises(TeacherDown, match="status 400: told to fail"):
            asked(server, 0)
        assert state.asked == 4


def test_weights_that_change_are_told_and_a_tokenizer_that_does_ends_it(
    teacher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = TeacherServer(teacher.url, retries=0)
    version, server.version = server.version, "older"
    asked(server, 0)
    assert server.version == version
    assert f"has other weights now: {version}, and had older" in caplog.text
    server._tokenizer = "older"
    with pytest.raises(TeacherDown, match="another tokenizer answers now: expected older"):
        asked(server, 0)


def test_a_teacher_that_stands_still_is_given_up_and_found_again(teacher: Any) -> None:
    server = TeacherServer(teacher.url, timeout_s=0.5, retries=1)
    teacher.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(TeacherDown, match=r"no answer in 0\.5 s"):
            asked(server, 0)
        assert not asyncio.run(server.wake())
    finally:
        teacher.process.send_signal(signal.SIGCONT)
    server.timeout_s = 60
    assert asyncio.run(server.wake())
    assert np.isfinite(asked(server, 0)[0].logp).all()


def test_where_nobody_teaches_the_advice_is_how_to_begin(teacher: Any) -> None:
    with pytest.raises(EngineError, match=r"no teacher at http://127\.0\.0\.1:9 .*retort teach MODEL"):
        TeacherServer("http://127.0.0.1:9", retries=0)
    with pytest.raises(EngineError, match=r"no teacher at .*status 404"):
        TeacherServer(f"{teacher.url}/further", retries=0)


def test_an_address_that_is_taken(teacher: Any) -> None:
    port = int(teacher.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}.*--port 0"):
        TeachServer("127.0.0.1", port)


def test_wrong_use_is_said_before_anything_is_loaded(folder: Path) -> None:
    serve: Callable[..., None] = teach
    with pytest.raises(UsageError, match=r"engine 'hv': did you mean 'hf'"):
        serve("m", host="127.0.0.1", port=0, engine="hv", dtype="float32", device="auto", say=print)
    with pytest.raises(UsageError, match="device 'cuda:1' is for the engine hf"):
        load_vllm(str(folder), "float32", "cuda:1")


# The last test: it ends the process.
def test_it_ends_when_it_is_told_to(teacher: Any) -> None:
    assert teacher.end(signal.SIGTERM) == 0
    said = teacher.log.read_text()
    assert said.splitlines()[-1] == "ended"
    assert "Traceback" not in said, said
