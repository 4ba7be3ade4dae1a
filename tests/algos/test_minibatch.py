"""Several optimiser steps an update: who is dealt where, what the clips then do, and what is reported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.algos import cispo, dapo, grpo, gspo, sft
from retort.algos.learner import Learner, LearnerOptions
from retort.algos.minibatch import UpdateStats, dealt, merged


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_each_epoch_deals_every_row_once_and_keeps_episodes_whole(
    episodes: list[int], parts: int, epochs: int, seed: int
) -> None:
    episode = torch.tensor(episodes)
    every = torch.arange(len(episodes))
    told = [every if rows is None else rows for rows in dealt(episode, mini_batches=parts, epochs=epochs, seed=seed)]
    count = min(parts, len(set(episodes)))
    assert len(told) == count * epochs
    for epoch in range(epochs):
        own = told[epoch * count : (epoch + 1) * count]
        assert torch.equal(torch.cat(own).sort().values, every)
        sizes = [len(set(episode[rows].tolist())) for rows in own]
        assert sum(sizes) == len(set(episodes))  # none is in two
        assert max(sizes) - min(sizes) <= 1


def test_the_deal_is_that_of_the_seed_and_another_each_epoch() -> None:
    def deal(seed: int) -> list[list[int]]:
        return [
            rows.tolist() for rows in dealt(torch.arange(32), mini_batches=2, epochs=2, seed=seed) if rows is not None
        ]

    assert deal(1) == deal(1) != deal(2)
    assert deal(1)[:2] != deal(1)[2:]


def updated(make_model, batch, recipe, *, lr=0.02, seed=0, **more):
    """The weights and the statistics of one update."""
    learner = Learner(make_model(), LearnerOptions(device="cpu", lr=lr, grad_clip=1e9, **more))
    options = recipe.RECIPE.options()
    stats = learner.update(batch, recipe.RECIPE.credit(batch, options), recipe.RECIPE.loss, options, seed=seed)
    return torch.cat([p.detach().flatten() for p in learner.parameters]), stats, learner


SEVERAL = [{"mini_batches": 2}, {"epochs": 2}, {"mini_batches": 2, "epochs": 2}]


@pytest.mark.parametrize("recipe", [grpo, gspo, dapo])
def test_with_one_optimiser_step_no_clip_acts(make_model, make_batch, recipe):
    """The ratio is 1, so that the bounds are nothing and GRPO's surrogate is all there is."""
    batch = make_batch(make_model())
    _, stats, _ = updated(make_model, batch, recipe)
    assert stats.clips == {"policy": 0}
    assert stats.optimiser_steps == 1
    if recipe is dapo:
        assert torch.equal(updated(make_model, batch, grpo)[0], updated(make_model, batch, dapo)[0])


@pytest.mark.parametrize("more", SEVERAL)
def test_clips_act_from_the_second_step_on_and_tell_the_kin_of_grpo_apart(make_model, make_batch, more):
    """METHODS 14.25: the proximal log-probs are those from before the first."""
    batch = make_batch(make_model(), rows=64)
    found = {recipe: updated(make_model, batch, recipe, lr=0.005, **more) for recipe in (grpo, gspo, cispo, dapo)}
    for recipe, (weights, stats, learner) in found.items():
        assert stats.optimiser_steps == more.get("mini_batches", 1) * more.get("epochs", 1)
        assert learner.steps == 1
        if recipe is not cispo:  # of which 5 is the bound
            assert 0 < stats.clips["policy"] < 1
        assert stats.gap < 1e-4  # before the first step, whatever the later ones do
        for other, (theirs, _, _) in found.items():
            assert (other is recipe) == torch.equal(weights, theirs)
    assert torch.equal(updated(make_model, batch, gspo, lr=0.005, **more)[0], found[gspo][0])


def test_two_epochs_are_two_updates_with_the_proximal_policy_of_the_first(make_model, make_batch):
    batch, options = make_batch(make_model()), grpo.GRPOOptions()
    learner = Learner(make_model(), LearnerOptions(device="cpu", lr=0.02, grad_clip=1e9))
    for _ in range(2):
        learner.update(batch, grpo.credit(batch, options), grpo.loss, options)
    twice = torch.cat([p.detach().flatten() for p in learner.parameters])
    assert torch.equal(twice, updated(make_model, batch, grpo, epochs=2)[0])


def test_mini_batches_are_their_rows_alone_each_with_its_own_denominator(make_model, make_batch):
    batch, options, seed = make_batch(make_model()), grpo.GRPOOptions(), 7
    credit = grpo.credit(batch, options)
    learner = Learner(make_model(), LearnerOptions(device="cpu", lr=0.02, grad_clip=1e9))
    losses = []
    for rows in dealt(batch.episode, mini_batches=2, epochs=1, seed=seed):
        outside = torch.ones(8, dtype=torch.bool)
        outside[rows] = False
        mask = batch.mask & ~outside[:, None]
        part = replace(batch, mask=mask)
        told = learner.update(part, replace(credit, advantage=credit.advantage * mask), grpo.loss, options)
        losses.append(told.loss)
    apart = torch.cat([p.detach().flatten() for p in learner.parameters])
    weights, stats, _ = updated(make_model, batch, grpo, mini_batches=2, seed=seed)
    torch.testing.assert_close(weights, apart, atol=2e-5, rtol=1e-4)
    assert stats.loss == pytest.approx(sum(losses) / 2, abs=1e-6)
    assert stats.scored == int(batch.mask.sum())
    assert not torch.equal(weights, updated(make_model, batch, grpo, mini_batches=2, seed=seed + 1)[0])


def test_all_mini_batches_of_a_step_have_its_learning_rate(make_model, make_batch):
    batch, options = make_batch(make_model()), sft.SFTOptions()
    settings = LearnerOptions(device="cpu", lr=1e-3, mini_batches=4, schedule="linear", decay_steps=4)
    learner = Learner(make_model(), settings)
    told = [learner.update(batch, sft.credit(batch, options), sft.loss, options) for _ in range(4)]
    assert [stats.lr for stats in told] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert [stats.optimiser_steps for stats in told] == [4] * 4


def test_statistics_of_parts_by_hand():
    """Counts add up, and what a part that made no step measured is in no mean."""
    base = UpdateStats(
        loss=1.0, terms={"policy": 1.0}, slopes={"policy": 2.0}, weights={"policy": 1.0}, reached={"policy": 4},
        held={"policy": 1.0}, grad_norm=3.0, lr=0.1, model_tokens=8, tokens=20, scored=4, micro_batches=1, gap=0.25,
    )  # fmt: skip
    more = replace(base, loss=3.0, terms={"policy": 3.0}, reached={"policy": 2}, held={"policy": 2.0}, gap=9.0)
    empty = replace(base, loss=0.0, reached={"policy": 0}, held={"policy": 0.0}, skipped="nothing", optimiser_steps=0)
    told = merged([base, empty, more])
    assert (told.loss, told.terms["policy"], told.gap, told.skipped, told.optimiser_steps) == (2, 2, 0.25, "", 2)
    assert told.clips == {"policy": 3 / 6}
    assert told.shares == {"policy": 6 / 24}
    assert (told.tokens, told.scored, told.micro_batches) == (60, 12, 3)
    assert merged([empty, empty]).skipped == "nothing"
    assert merged([base]) == base
