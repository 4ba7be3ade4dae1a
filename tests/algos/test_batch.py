"""Every number lands on the token that it speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retort.agents.base import Finish, Origin, Provenance, Row, Sampling, Trajectory, Turn
from retort.agents.scoring import Scored
from retort.algos.batch import collate, flatten, with_proximal, with_reference, with_teacher
from retort.envs.base import TaskRef
from retort.feedback.base import TeacherView


def episode(
    rows: Sequence[str], *, group: int = 0, rewards: Sequence[float] = (), success: bool | None = None
) -> Trajectory:
    """Rows spelled out: "p" prompt, "o" observation, a digit a token sampled in that turn."""
    made = []
    for number, spelled in enumerate(rows):
        sampled = np.array([letter.isdigit() for letter in spelled], bool)
        place = np.arange(len(spelled))
        made.append(
            Row(
                token_ids=(100 * (number + 1) + place).astype(np.int32),
                origin=np.array(
                    [
                        Origin.SAMPLED if letter.isdigit() else Origin["PROMPT" if letter == "p" else "OBSERVATION"]
                        for letter in spelled
                    ],
                    np.uint8,
                ),
                turn=np.array([int(letter) if letter.isdigit() else -1 for letter in spelled], np.int32),
                behaviour_logp=np.where(sampled, -place / 8 - number, np.nan).astype(np.float32),
                version=np.where(sampled, 0, -1).astype(np.int32),
            )
        )
    turns = 1 + max((int(letter) for spelled in rows for letter in spelled if letter.isdigit()), default=-1)
    given = [*rewards, *[0.0] * turns][:turns]
    return Trajectory(
        episode="e",
        group=group,
        task=TaskRef("toy/1", "0", "train"),
        rows=tuple(made),
        turns=tuple(Turn("o", "a", 0, 1, 2, reward, Finish.STOP) for reward in given),
        messages=(),
        reward=float(sum(given)),
        success=success,
        failure=None,
        terminated=True,
        truncated=False,
        provenance=Provenance("toy", "hand", 0, "", "", Sampling(temperature=0.5 + group), 0, "none", "1"),
    )


def test_collate_by_hand() -> None:
    played = [
        episode(["pp00o1", "pp2"], group=4, rewards=[0.5, 0.0, 1.0], success=False),
        episode(["p"], group=5),
        episode(["p0"], group=5, rewards=[2.0]),
    ]
    rows = flatten(played)
    assert rows.of == ((0, 1), (2,), (3,))
    assert [at.tolist() for at in rows.positions] == [[2, 3, 5], [2], [], [1]]
    assert rows.sequences[1].tolist() == [200, 201, 202]
    assert rows.sequences[1].dtype == np.int64
    batch = collate(played, rows)
    assert batch.tokens.tolist() == [
        [100, 101, 102, 103, 104, 105],
        [200, 201, 202, 0, 0, 0],
        [100, 0, 0, 0, 0, 0],
        [100, 101, 0, 0, 0, 0],
    ]
    assert batch.mask.int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0], [0] * 6, [0, 1, 0, 0, 0, 0]]
    assert batch.turn[0].tolist() == [-1, -1, 0, 0, -1, 1]
    assert batch.turn[1].tolist() == [-1, -1, 2, -1, -1, -1]
    assert batch.turn_reward[0].tolist() == [0, 0, 0.5, 0.5, 0, 0]
    assert batch.turn_reward[1].tolist() == [0, 0, 1, 0, 0, 0]
    assert batch.behaviour_logp[0].tolist() == [0, 0, -0.25, -0.375, 0, -0.625]
    assert batch.proximal_logp is batch.behaviour_logp
    assert batch.episode.tolist() == [0, 0, 1, 2]
    assert batch.group.tolist() == [4, 4, 5, 5]
    assert batch.reward.tolist() == [1.5, 1.5, 0, 2]
    assert batch.success.tolist() == [False, False, False, True]  # the environment's word, or else a positive reward
    assert batch.temperature.tolist() == [4.5, 4.5, 5.5, 5.5]
    assert batch.teacher_mask.shape == (0, 4, 6)
    assert not batch.has_teacher.any()


def test_a_row_that_starts_with_a_sampled_token_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1: expected a prompt before the first sampled token"):
        flatten([episode(["p0"]), episode(["0p"])])


def test_nothing_at_all() -> None:
    batch = collate([], flatten([]))
    assert batch.tokens.shape == (0, 0)


spelled = st.lists(st.sampled_from("po0123"), max_size=10).map(lambda letters: "p" + "".join(letters))
episodes = st.lists(st.tuples(st.lists(spelled, min_size=1, max_size=3), st.integers(0, 3)), min_size=1, max_size=4)


def scores(rows, k: int) -> list[Scored]:
    """Scores that tell the row, the position and the entry."""
    found = []
    for number, at in enumerate(rows.positions):
        place = torch.from_numpy(at).float()
        logp = -(100.0 * number + place) - 1
        entries = torch.arange(k)
        found.append(
            Scored(
                logp=logp,
                entropy=-logp / 2,
                ids=(torch.from_numpy(at)[:, None] * 10 + entries) if k else None,
                ids_logp=(logp[:, None] - entries / 16) if k else None,
                rest_logp=logp - 0.5 if k else None,
            )
        )
    return found


@given(episodes, st.integers(0, 3))
def test_proximal_scores_stand_at_their_tokens(spelled: list[tuple[list[str], int]], k: int) -> None:
    played = [episode(rows, group=group) for rows, group in spelled]
    rows = flatten(played)
    batch = with_proximal(collate(played, rows), rows, scores(rows, k))
    assert batch.support_ids is None if k == 0 else batch.support_ids.shape == (*batch.tokens.shape, k)
    width = batch.tokens.shape[1]
    expected = -(100.0 * torch.arange(len(rows.rows))[:, None] + torch.arange(width)) - 1
    mask = batch.mask
    assert torch.equal(batch.proximal_logp, torch.where(mask, expected, 0))
    assert torch.equal(batch.proximal_entropy, torch.where(mask, -expected / 2, 0))
    assert (torch.isfinite(batch.behaviour_logp) & ((batch.behaviour_logp == 0) | mask)).all()
    assert mask.sum() == sum(item.sampled_tokens for item in played)
    assert (batch.tokens[mask] % 100 == mask.nonzero()[:, 1]).all()
    if k:
        assert torch.equal(batch.support_ids[mask], mask.nonzero()[:, 1:] * 10 + torch.arange(k))
        assert torch.equal(batch.proximal_support_logp[mask], expected[mask][:, None] - torch.arange(k) / 16)
        assert torch.equal(batch.proximal_rest_logp, torch.where(mask, expected - 0.5, 0))
        assert (batch.support_ids[~mask] == 0).all()
    told = with_reference(batch, rows, [Scored(score.logp - 7) for score in scores(rows, 0)])
    assert torch.equal(told.reference_logp, torch.where(mask, expected - 7, 0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_sampled_token_without_a_finite_score_is_refused_by_row(bad: float) -> None:
    played = [episode(["p0"]), episode(["p00"])]
    rows = flatten(played)
    told = scores(rows, 0)
    told[1].logp[0] = bad
    with pytest.raises(ValueError, match=r"no finite log-prob to tokens that were sampled, in rows \[1\]"):
        with_proximal(collate(played, rows), rows, told)


def view(row: int, covers: Sequence[int], channel: int = 0) -> TeacherView:
    where = np.array(covers, np.int64)
    return TeacherView(row=row, channel=channel, token_ids=np.arange(50), at=where + 20, covers=where)


@given(episodes, st.integers(1, 3), st.data())
def test_teacher_scores_stand_at_what_each_view_covers(
    spelled: list[tuple[list[str], int]], channels: int, data: st.DataObject
) -> None:
    played = [episode(rows) for rows, _ in spelled]
    rows = flatten(played)
    batch = collate(played, rows)
    views, told = [], []
    expected = torch.zeros((channels, *batch.tokens.shape))
    mask = torch.zeros((channels, *batch.tokens.shape), dtype=torch.bool)
    for channel in range(channels):
        for row, at in enumerate(rows.positions):
            chosen = sorted(data.draw(st.sets(st.sampled_from(at.tolist())))) if at.size else []
            if not chosen:
                continue
            views.append(view(row, chosen, channel))
            logp = -torch.rand(len(chosen)) - 0.01
            if data.draw(st.booleans()):
                logp[0] = data.draw(st.sampled_from([float("nan"), float("-inf"), float("inf")]))
            told.append(Scored(logp, entropy=torch.full((len(chosen),), 3.0)))
            expected[channel, row, chosen] = torch.where(torch.isfinite(logp), logp, 0)
            mask[channel, row, chosen] = torch.isfinite(logp)
    order = data.draw(st.permutations(range(len(views))))
    found = with_teacher(batch, [views[i] for i in order], [told[i] for i in order], channels)
    assert torch.equal(found.teacher_mask, mask)
    assert torch.equal(found.teacher_logp, expected)
    assert torch.equal(found.has_teacher, mask[0].any(-1))
    assert not (found.teacher_mask & ~batch.mask).any()
    if views:
        assert (found.teacher_entropy[mask] == 3).all()
    else:
        assert found.teacher_entropy is None
    assert found.teacher_support_logp is None


def test_teacher_support_by_hand() -> None:
    played = [episode(["p00"]), episode(["pp0"])]
    batch = collate(played, flatten(played))
    told = [
        Scored(torch.tensor([-1.0]), ids_logp=torch.tensor([[-2.0, -3.0]]), rest_logp=torch.tensor([-4.0])),
        Scored(torch.tensor([-5.0]), ids_logp=torch.tensor([[-6.0, -7.0]]), rest_logp=torch.tensor([-8.0])),
    ]
    found = with_teacher(batch, [view(1, [2]), view(0, [1])], told, 1)
    assert found.teacher_logp.tolist() == [[[0, -5, 0], [0, 0, -1]]]
    assert found.teacher_support_logp[0, 1, 2].tolist() == [-2, -3]
    assert found.teacher_support_logp[0, 0, 1].tolist() == [-6, -7]
    assert found.teacher_rest_logp.tolist() == [[[0, -8, 0], [0, 0, -4]]]
    assert found.has_teacher.tolist() == [True, True]


@pytest.mark.parametrize("field", ["entropy", "ids_logp", "rest_logp"])
def test_a_score_of_which_a_part_is_missing_teaches_nothing(field: str) -> None:
    """And leaves no NaN that a masked loss could carry into the gradient. No mass beside the support is no fault."""
    played = [episode(["p000"])]
    batch = collate(played, flatten(played))
    told = Scored(
        torch.tensor([-1.0, -2.0, -3.0]),
        entropy=torch.ones(3),
        ids_logp=-torch.ones(3, 2),
        rest_logp=torch.tensor([-torch.inf, -4.0, -4.0]),
    )
    getattr(told, field)[1] = torch.nan
    found = with_teacher(batch, [view(0, [1, 2, 3])], [told], 1)
    assert found.teacher_mask.tolist() == [[[False, True, False, True]]]
    assert found.teacher_logp.tolist() == [[[0, -1, 0, -3]]]
    for values in (found.teacher_entropy, found.teacher_support_logp, found.teacher_rest_logp):
        assert not torch.isnan(values).any()
        assert (values[0, 0, 2] == 0).all()
    assert found.teacher_rest_logp[0, 0, 1] == -torch.inf


def test_overlapping_views_of_a_channel_are_refused() -> None:
    played = [episode(["p000"])]
    batch = collate(played, flatten(played))
    told = [Scored(torch.tensor([-1.0, -1.0]))] * 2
    with pytest.raises(ValueError, match="two teacher views of one channel cover the same token"):
        with_teacher(batch, [view(0, [1, 2]), view(0, [2, 3])], told, 1)
    both = with_teacher(batch, [view(0, [1, 2]), view(0, [2, 3], channel=1)], told, 2)
    assert both.teacher_mask.int().tolist() == [[[0, 1, 1, 0]], [[0, 0, 1, 1]]]


def test_views_on_other_channels_do_not_collide_with_other_rows() -> None:
    played = [episode(["p00"]), episode(["p00"])]
    batch = collate(played, flatten(played))
    found = with_teacher(
        batch, [view(1, [1]), view(0, [1], 1)], [Scored(torch.tensor([-1.0])), Scored(torch.tensor([-2.0]))], 2
    )
    assert found.teacher_logp[:, :, 1].tolist() == [[0, -1], [-2, 0]]


def test_no_views_is_no_teacher() -> None:
    played = [episode(["p00"])]
    batch = collate(played, flatten(played))
    found = with_teacher(replace(batch, teacher_entropy=torch.ones(1)), [], [], 2)
    assert found.teacher_mask.shape == (2, 1, 3)
    assert not found.teacher_mask.any()
    assert found.teacher_entropy is None
