"""The tasks of Tools-v0: stable, disjoint over the splits, well posed."""

from __future__ import annotations

import pytest
from retort.envs.base import SPLITS
from retort.envs.tools import expected, opened
from retort.envs.tools_scene import LABELS, Scene
from retort.envs.tools_tasks import FAMILIES, HELD_OUT, family_refs, task, task_at, task_refs


def test_counts() -> None:
    assert len(FAMILIES) == 16
    assert all(len(set(family.phrasings)) >= 3 for family in FAMILIES.values())
    for name in FAMILIES:
        shares = {split: len(task_refs([name], split)) for split in SPLITS}
        assert (shares["train"] == 0) == (name in HELD_OUT)
        assert shares["validation"] >= 10
        assert shares["test"] >= 20


def test_a_task_is_a_function_of_its_key() -> None:
    for name in FAMILIES:
        key = next(iter(family_refs(name)))
        assert task(key) == task(key) == task_at(name, int(key.partition("/")[2]))
        assert family_refs(name)[key] == task(key).ref


def test_digests_are_the_tasks_own() -> None:
    digests = [ref.digest for name in FAMILIES for ref in family_refs(name).values()]
    assert len(set(digests)) == len(digests)


def test_pinned() -> None:
    """Changes when a task with the same key changes: then raise `verifier_version` or rename the family."""
    job = task("refund/0003")
    assert job.instruction.endswith("\nRefund the violin that Mia Peters ordered.")
    assert job.gold[-1] == "done"
    assert job.digest == "abb4e9abed29ebc2"


def test_no_question_is_in_two_splits() -> None:
    owner: dict[object, str] = {}
    for name, family in FAMILIES.items():
        for key, ref in family_refs(name).items():
            scene = Scene(f"{name}/{int(key.partition('/')[2])}")
            assert owner.setdefault((name, family.draw(scene).goal), ref.split) == ref.split, key


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tasks_are_well_posed(name: str) -> None:
    for key in list(family_refs(name))[:40]:
        job = task(key)
        world = opened(job)
        results = [world.call(call) for call in job.do]
        assert not any("error" in result for result in results), (key, results)
        assert world.broken == [], key
        world.close()
        changed = expected(job) != {table: list(rows) for table, rows in job.rows.items()}
        assert changed or job.answer is not None, "doing nothing must not be a solution"
        assert len(job.gold) <= 8
        assert len(job.near_misses) >= 4
        assert (job.answer in LABELS) <= ("change nothing and answer with the rule" in job.instruction)


def test_policies_go_both_ways() -> None:
    """A rule that always forbids, or never, could be learned without reading it."""
    for name in ("refund", "outside", "delete", "approve"):
        plans = {tuple(call.name for call in task(key).do) for key in list(family_refs(name))[:40]}
        assert len(plans) == 2, name
    labels = {task(key).answer for key in family_refs("refund")}
    assert labels == {None, *LABELS}


def test_unknown_keys() -> None:
    with pytest.raises(KeyError, match="did you mean 'refund'"):
        task("refnd/0001")
    with pytest.raises(KeyError, match="unknown task 'refund/9999'"):
        task("refund/9999")
