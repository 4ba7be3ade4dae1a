"""The tasks: closed vocabulary, splits disjoint by goal, digests that stay what they are."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import SPLITS, Split
from retort.envs.shell_tasks import (
    DRAWS,
    FAMILIES,
    HELD_OUT,
    NAMES,
    SUBMIT_OUTPUT,
    WORDS,
    Names,
    Task,
    task,
    task_at,
    task_refs,
)

PINNED = [
    ("write/0000", "write only blue in poem.txt", "f3a1105a23b06d05", "test"),
    ("find/0017", "name the file that has red", "5409447b91a30251", "train"),
    ("mode/0123", "make task.txt executable", "6c4145b3b9cf1050", "train"),
    ("unique/0500", "say the number of unique lines in mail.csv", "6b2a157937109b35", "test"),
    (
        "copy_append/0799",
        "make a copy of code.txt named plan.csv and append wood to plan.csv",
        "a2c54e69ea8be542",
        "validation",
    ),
    ("delete/0042", "delete bill.txt", "ea2ac353e6a2b0a9", "train"),
]

families = st.sampled_from(sorted(FAMILIES))
indices = st.integers(0, DRAWS - 1)


def tokens(text: str) -> int:
    """As the tiny tokenizer pre-splits, the space before a word included."""
    return len(re.findall(r" ?[^\s\d]+|\d|\s", text))


def everything(split: Split) -> list[Task]:
    return [task(key) for key in task_refs(list(FAMILIES), split)]


def test_counts() -> None:
    found = Counter((ref.family, ref.split) for split in SPLITS for ref in task_refs(list(FAMILIES), split).values())
    assert len(FAMILIES) - len(HELD_OUT) >= 12
    assert len(HELD_OUT) == 2
    assert sum(count for (_, split), count in found.items() if split == "train") >= 5000
    assert sum(count for (_, split), count in found.items() if split == "test") >= 500
    for family in FAMILIES:
        assert found[family, "test"] >= 40, family
        assert found[family, "validation"] >= 20, family
        assert (found[family, "train"] == 0) == (family in HELD_OUT), family


def test_no_goal_is_in_two_splits() -> None:
    goals = {split: {(job.family, job.gold) for job in everything(split)} for split in SPLITS}
    digests = {split: {job.digest for job in everything(split)} for split in SPLITS}
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        # An answer that is read off a file shares its command with others; what is asked and answered is not shared.
        assert not goals[one] & goals[two]
        assert not digests[one] & digests[two]


def test_keys_and_digests_are_their_own() -> None:
    refs = [ref for split in SPLITS for ref in task_refs(list(FAMILIES), split).values()]
    assert len({ref.key for ref in refs}) == len({ref.digest for ref in refs}) == len(refs)


@pytest.mark.parametrize(("key", "instruction", "digest", "split"), PINNED)
def test_digests_stay(key: str, instruction: str, digest: str, split: str) -> None:
    found = task(key)
    assert (found.instruction, found.digest, found.split) == (instruction, digest, split)


def test_vocabulary_has_no_word_within_another() -> None:
    assert len(NAMES) == 60
    assert len(WORDS) == 30
    said = {*NAMES, *WORDS}
    assert not [(one, two) for one in WORDS for two in said if one != two and one in two]


@given(families, indices)
def test_a_task_is_short(family: str, index: int) -> None:
    job = task_at(family, index)
    assert tokens(job.instruction) <= 14
    assert tokens(job.hint) <= 16
    assert len(job.near_misses) >= 3
    assert len(set(job.near_misses)) == len(job.near_misses)
    assert all(tokens(action) <= 9 for plan in (job.gold, *job.near_misses) for action in plan)
    assert 2 <= len(job.gold) <= 3
    assert job.answer is None or re.fullmatch(r"\d|[a-z.]+", job.answer)
    for state in job.files.values():
        assert len(state.data.split()) <= 10
        assert len(state.data) <= job.budget


@given(families, indices)
def test_a_plan_ends_and_a_near_miss_is_not_gold(family: str, index: int) -> None:
    job = task_at(family, index)
    assert job.gold[-1] == ("done" if job.answer is None else f"submit {job.answer}")
    for plan in job.near_misses:
        assert plan[-1] == ("done" if job.answer is None else SUBMIT_OUTPUT)
        assert plan[:-1] != job.gold[:-1]


@given(families, indices)
def test_a_task_asks_for_a_change_or_an_answer(family: str, index: int) -> None:
    job = task_at(family, index)
    assert (job.files == job.expected) == (job.answer is not None)
    assert job == task_at(family, index)


@given(st.text(), st.integers(0, 5), st.integers(0, 5))
def test_draws_are_in_range_and_repeat(text: str, low: int, span: int) -> None:
    assert low <= Names(text).number(low, low + span) <= low + span
    words = Names(text).words(7)
    assert len(set(words)) == 7
    assert words == Names(text).words(7)
    assert not set(Names(text).words(7, but=words)) & set(words)


def test_every_phrasing_is_used() -> None:
    for family, parts in FAMILIES.items():
        assert len(set(parts.phrasings)) >= 3
        assert len({task_at(family, index).instruction for index in range(3)}) == 3


def test_unknown_keys() -> None:
    with pytest.raises(KeyError, match="did you mean 'move'"):
        task("mvoe/0001")
    with pytest.raises(KeyError, match="unknown task 'move/9999'"):
        task("move/9999")
