"""Sampling draws from the distribution it reports, and a row does not depend on its neighbours."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retort.agents.base import Completion, Finish, Sampling
from retort.agents.decoding import Call, Context, draw, generate, uniforms, warp
from retort.agents.scoring import score_tokens

STOPS = frozenset({1, 2})


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 300, size=int(rng.integers(1, longest))).tolist() for _ in range(count)]


def calls(asked: list[list[int]], sampling: Sampling, contexts: list[Context] | None = None) -> list[Call]:
    contexts = contexts or [Context() for _ in asked]
    return [Call(c, p, sampling, 100 + n) for n, (c, p) in enumerate(zip(contexts, asked, strict=True))]


def rescored(model: Any, prompt: list[int], done: Completion, temperature: float = 1.0) -> np.ndarray:
    sequence = [*prompt, *done.token_ids]
    (scored,) = score_tokens(
        model, [np.array(sequence)], [np.arange(len(prompt), len(sequence))], temperature=temperature
    )
    return scored.logp.detach().numpy()


def test_hand_worked_draws() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(4, 3)
    ids, logp = draw(logits, torch.tensor([0.0, 0.49, 0.51, 0.999], dtype=torch.float64), Sampling())
    assert ids.tolist() == [0, 0, 1, 2]
    assert logp.exp().tolist() == pytest.approx([0.5, 0.5, 0.3, 0.2])
    greedy, certain = draw(logits[:1], torch.zeros(1, dtype=torch.float64), Sampling(temperature=0))
    assert (greedy.tolist(), certain.tolist()) == ([0], [0.0])


def test_hand_worked_warping() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert warp(logits, Sampling(top_p=0.8))[0].exp().tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert warp(logits, Sampling(top_p=0.81))[0].exp().tolist() == pytest.approx(
        [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]
    )
    assert warp(logits, Sampling(top_p=1e-9))[0].exp().tolist() == [1, 0, 0, 0]
    assert warp(logits, Sampling(top_k=1))[0].exp().tolist() == [1, 0, 0, 0]
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert warp(logits, Sampling(temperature=0.5))[0].exp().tolist() == pytest.approx(
        (squared / squared.sum()).tolist()
    )


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    st.floats(0.1, 3),
    st.floats(0.05, 1),
    st.integers(0, 12),
    st.floats(0, 1, exclude_max=True),
)
def test_what_is_drawn_was_possible(logits: list[float], heat: float, top_p: float, top_k: int, u: float) -> None:
    sampling = Sampling(temperature=heat, top_p=top_p, top_k=top_k)
    row = torch.tensor([logits])
    logp = warp(row, sampling)
    assert float(logp.exp().sum()) == pytest.approx(1, abs=1e-5)
    ids, found = draw(row, torch.tensor([u], dtype=torch.float64), sampling)
    assert torch.isfinite(found).all()
    assert float(found) == float(logp[0, int(ids)])


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    numbers = torch.from_numpy(uniforms(7, 20000))
    ids, _ = draw(logits.expand(20000, 4), numbers, Sampling())
    share = torch.bincount(ids, minlength=4) / 20000
    assert share.tolist() == pytest.approx(logits.softmax(-1)[0].tolist(), abs=0.012)  # about 3.4 standard errors


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=12), Sampling(0.7, max_new_tokens=12)])
def test_log_probs_are_those_of_a_full_forward_pass(model: Any, sampling: Sampling) -> None:
    asked = prompts(9)
    for prompt, done in zip(asked, generate(model, calls(asked, sampling), STOPS, 5), strict=True):
        assert rescored(model, prompt, done, sampling.temperature) == pytest.approx(np.array(done.logp), abs=1e-4)
        assert set(done.versions) == {5}


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_caches_across_turns_with_holes(model: Any, data: st.DataObject) -> None:
    """Any episodes meet in any batch, with suffixes of any length; nothing of it shows in the numbers."""
    asked = prompts(4, seed=data.draw(st.integers(0, 1000)))
    contexts = [Context() for _ in asked]
    for turn in range(3):
        going = data.draw(st.lists(st.sampled_from(range(4)), min_size=1, unique=True))
        batch = [
            Call(contexts[i], asked[i], Sampling(max_new_tokens=data.draw(st.integers(1, 9))), 10 * i + turn)
            for i in going
        ]
        for i, done in zip(going, generate(model, batch, STOPS, 0), strict=True):
            assert rescored(model, asked[i], done) == pytest.approx(np.array(done.logp), abs=1e-4)
            assert contexts[i].ids == [*asked[i], *done.token_ids[:-1]]
            asked[i] = [*asked[i], *done.token_ids, *data.draw(st.lists(st.integers(3, 300), max_size=20))]


def test_a_row_does_not_depend_on_its_batch(model: Any) -> None:
    asked, sampling = prompts(12, seed=4), Sampling(max_new_tokens=10)
    together = generate(model, calls(asked, sampling), STOPS, 0)
    alone = [generate(model, [call], STOPS, 0)[0] for call in calls(asked, sampling)]
    assert [done.token_ids for done in together] == [done.token_ids for done in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logp == pytest.approx(other.logp, abs=1e-4)


def test_equal_prompts_are_read_once(model: Any) -> None:
    read: Counter[int] = Counter()
    hook = model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.update([given[0].numel()]))
    try:
        done = generate(model, calls([[5, 6, 7, 8]] * 6, Sampling(max_new_tokens=1)), STOPS, 0)
    finally:
        hook.remove()
    assert read == {4: 1}
    assert len({item.token_ids for item in done}) > 1


def test_a_turn_reads_only_what_is_new(model: Any) -> None:
    context = Context()
    (done,) = generate(model, [Call(context, list(range(10, 50)), Sampling(max_new_tokens=5), 3)], STOPS, 0)
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(given[0].numel()))
    try:
        prompt = [*range(10, 50), *done.token_ids, 7, 8, 9]
        generate(model, [Call(context, prompt, Sampling(max_new_tokens=1), 3)], STOPS, 0)
    finally:
        hook.remove()
    assert read == [4]  # the last token that was sampled, and three new ones


def test_a_cohort_keeps_its_block_until_holes_outnumber_tokens(model: Any) -> None:
    """One row of four hears much each turn, so that the others get holes; in the end holes are left out."""
    contexts, asked = [Context() for _ in range(4)], [[5, 6, 7 + i] for i in range(4)]
    blocks = []
    for turn in range(12):
        batch = [Call(contexts[i], asked[i], Sampling(max_new_tokens=2), 20 * i + turn) for i in range(4)]
        for i, done in enumerate(generate(model, batch, frozenset({-1}), 0)):
            assert rescored(model, asked[i], done) == pytest.approx(np.array(done.logp), abs=1e-4)
            asked[i] = [*asked[i], *done.token_ids, *([9] * (40 if turn % 4 == i else 1))]
        assert len({id(context.block) for context in contexts}) == 1
        blocks.append(contexts[0].block)
    kept = sum(one is other for one, other in pairwise(blocks))
    assert 5 <= kept < 11


def test_a_changed_history_is_read_anew(model: Any) -> None:
    context = Context()
    generate(model, [Call(context, [5, 6, 7, 8], Sampling(max_new_tokens=4), 3)], STOPS, 0)
    prompt = [5, 6, 9, 9, 9]
    (done,) = generate(model, [Call(context, prompt, Sampling(max_new_tokens=4), 3)], STOPS, 0)
    assert rescored(model, prompt, done) == pytest.approx(np.array(done.logp), abs=1e-4)


def test_every_stop_token_stops(model: Any) -> None:
    asked = prompts(16, seed=9)
    free = generate(model, calls(asked, Sampling(max_new_tokens=8)), frozenset({-1}), 0)
    assert all(done.finish_reason is Finish.LENGTH and len(done.token_ids) == 8 for done in free)
    stops = frozenset({free[0].token_ids[3], free[1].token_ids[5]})
    for whole, done in zip(free, generate(model, calls(asked, Sampling(max_new_tokens=8)), stops, 0), strict=True):
        places = [place for place, token in enumerate(whole.token_ids) if token in stops]
        kept = whole.token_ids[: places[0] + 1] if places else whole.token_ids
        assert done.token_ids == kept
        assert done.finish_reason is (Finish.STOP if places else Finish.LENGTH)


def test_each_call_has_its_own_limit(model: Any) -> None:
    batch = [Call(Context(), [5, 6], Sampling(max_new_tokens=limit), limit) for limit in (1, 70, 3)]
    assert [len(done.token_ids) for done in generate(model, batch, frozenset({-1}), 0)] == [1, 70, 3]


def test_training_mode_is_left_as_it_was(model: Any) -> None:
    model.train()
    try:
        generate(model, calls([[5]], Sampling(max_new_tokens=1)), STOPS, 0)
        assert model.training
    finally:
        model.eval()


def test_bad_calls_and_diverged_weights_are_named(model: Any) -> None:
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        generate(model, calls([[5]], Sampling(max_new_tokens=0)), STOPS, 0)
    weight = model.get_output_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        for temperature in (0.0, 1.0):
            with pytest.raises(FloatingPointError, match="not finite"):
                generate(model, calls([[5]], Sampling(temperature, max_new_tokens=2)), STOPS, 0)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
