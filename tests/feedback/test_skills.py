"""Skills are read, picked, shown, counted and distilled."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.agents.chat import Chat
from retort.envs.base import TaskRef, UsageError
from retort.feedback.skills import Shelf, Skill, SkillOptions, distil, parse, read, write

APPEND = Skill("Append a line", ("append", "add"), "Use >> and never >.")
COUNT = Skill("Count lines", ("count", "lines"), "wc -l < file gives a bare number.")
FIND = Skill("Find a file", ("find", "where"), "find . -name it")
texts = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1).map(str.strip).filter(bool)


@pytest.fixture
def library(tmp_path):
    write(tmp_path / "skills", [APPEND, COUNT, FIND])
    return str(tmp_path / "skills")


def test_a_library_comes_back_as_it_was_written(library) -> None:
    assert read(library) == [APPEND, COUNT, FIND]


@given(texts, st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, unique=True), texts)
def test_markdown_there_and_back(name, keywords, text) -> None:
    skill = Skill(name, tuple(keywords), text)
    assert parse(skill.to_markdown(), "here") == skill


@pytest.mark.parametrize("text", ["", "no title\ntext", "# title alone", "# title\n\n"])
def test_what_is_no_skill(text) -> None:
    with pytest.raises(UsageError, match=r"bad\.md: expected '# TITLE'"):
        parse(text, "bad.md")


def test_no_library_and_two_of_one_name(tmp_path, library) -> None:
    with pytest.raises(UsageError, match="expected a folder with Markdown files"):
        Shelf(SkillOptions(folder=str(tmp_path / "nowhere")))
    (tmp_path / "skills" / "again.md").write_text(APPEND.to_markdown())
    with pytest.raises(UsageError, match="two skills have one name"):
        read(library)


def test_picks(library) -> None:
    def picked(task, **options):
        return [skill.name for skill in Shelf(SkillOptions(folder=library, **options)).pick(task)]

    assert picked("append a line to notes", count=1) == ["Append a line"]
    assert picked("count the lines in a file", count=2) == ["Count lines", "Find a file"]
    assert picked("sing") == []
    assert picked("sing", pick="full") == ["Append a line", "Count lines", "Find a file"]
    once, again = (picked("sing", pick="random", count=2) for _ in range(2))
    assert once == again
    assert len(set(once)) == 2
    assert len({tuple(picked(f"task {number}", pick="random", count=2)) for number in range(20)}) > 1


def test_ucb_tries_all_and_then_takes_what_helps(library, made, chat: Chat) -> None:
    shelf = Shelf(SkillOptions(folder=library, pick="ucb", count=1, explore=0.1, own=False))
    seen = []
    for _ in range(12):
        shown = shelf.pick("task")[0].name
        seen.append(shown)
        episode = made(["task"], ["x"], success=shown == "Count lines")
        assert len(shelf.views([episode], [episode], [[0]], chat, SimpleNamespace())) == 1
        shelf.learn([episode])
    assert set(seen[:3]) == {"Append a line", "Count lines", "Find a file"}
    assert set(seen[3:]) == {"Count lines"}
    assert shelf.used["Count lines"] == [10.0, 10.0]


def test_own_successes_become_skills_and_the_shortest_stays(made, chat: Chat) -> None:
    def episode(action, success):
        task = TaskRef("toy/1", "0", "train", "greet")
        return replace(made(["say hello to ann"], [action], success=success), task=task)

    shelf = Shelf(SkillOptions())
    first = episode("echo hello dear ann", True)
    assert shelf.views([first], [first], [[0]], chat, SimpleNamespace()) == []
    shelf.learn([first, episode("x", False)])
    assert [skill.text for skill in shelf.skills] == ["say hello to ann\necho hello dear ann"]
    shelf.learn([episode("echo hello ann", True), episode("echo hello, my dear ann", True)])
    assert [skill.text for skill in shelf.skills] == ["say hello to ann\necho hello ann"]
    (view,) = shelf.views([first], [first], [[4]], chat, SimpleNamespace())
    assert "Skills that may help:\nsay hello to ann\necho hello ann\nNow" in chat.tokenizer.decode(
        view.token_ids.tolist()
    )
    other = Shelf(SkillOptions())
    other.load_state_dict(json.loads(json.dumps(shelf.state_dict())))
    assert (other.skills, other.used, other.updates) == (shelf.skills, shelf.used, shelf.updates)


def test_distil_leaves_what_is_better(made) -> None:
    known = {"own: toy/1": Skill("own: toy/1", (), "a")}
    assert distil([made(["task"], ["x"], success=True)], known) == known
