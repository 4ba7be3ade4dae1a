"""`retort preview`: real episodes of a scripted player, and what each teacher would read of them."""

from __future__ import annotations

import io
import json

import pytest
from retort.algos.config import preset, resolve
from retort.envs.base import UsageError
from rich.console import Console
from typer.testing import CliRunner

from retort.cli import app
from retort.preview import Context, Preview, preview, show


def previewed(recipe: str, *settings: str, env: str = "retort/Shell-v0", **asked: str) -> Preview:
    return preview(resolve({**preset(recipe, "tiny"), "env": env}, settings), **asked)


def kinds(context: Context, kind: str) -> list[str]:
    return [span.text for span in context.spans if span.kind == kind]


def test_the_teacher_reads_one_thing_more_and_scores_what_was_written() -> None:
    found = previewed("srpo")
    student, teacher = found.contexts
    assert (student.reader, teacher.reader) == ("student", "teacher 0")
    assert (found.success, found.note) == (False, "")
    assert kinds(student, "told") == []
    (told,) = kinds(teacher, "told")
    assert told.endswith("\nNow solve it.")
    assert kinds(teacher, "wrote") == kinds(student, "wrote")
    assert "".join(span.text for span in teacher.spans).replace(told, "") == "".join(s.text for s in student.spans)


def test_each_channel_has_a_column() -> None:
    student, right, *wrong = previewed("rlcsd").contexts
    assert [context.reader for context in wrong] == [f"teacher {number}" for number in range(1, len(wrong) + 1)]
    told = [kinds(context, "told")[0] for context in (right, *wrong)]
    assert len(set(told)) == len(told) >= 2
    assert kinds(right, "wrote") == kinds(student, "wrote")


def test_hindsight_has_a_column_a_turn() -> None:
    found = previewed("openclaw", "hindsight.context=next", env="retort/Reply-v0")
    student, *teachers = found.contexts
    assert teachers
    for number, context in enumerate(teachers):
        assert context.reader == f"teacher 0, turn {number}"
        assert kinds(context, "wrote") == [kinds(student, "wrote")[number]]
        assert "[user's hint]" in "".join(kinds(context, "told"))


def test_skills_of_the_run_itself_come_in_the_second_step() -> None:
    found = previewed("sdar")
    assert found.note.startswith("As in the second step")
    assert len(found.contexts) == 2


@pytest.mark.parametrize(
    ("recipe", "settings", "note"),
    [
        ("grpo", (), "grpo has no teacher."),
        ("sdpo", ("feedback=none",), "No teacher speaks of this episode; of 0 of 32 episodes one does."),
    ],
)
def test_a_student_alone(recipe: str, settings: tuple[str, ...], note: str) -> None:
    found = previewed(recipe, *settings)
    assert [context.reader for context in found.contexts] == ["student"]
    assert found.note == note


def test_the_shuffled_control_shows_another_task() -> None:
    own, other = (previewed("opsd", f"feedback={feedback}", episode="0-0") for feedback in ("own", "shuffled"))
    assert own.contexts[0] == other.contexts[0]
    assert kinds(own.contexts[1], "told") != kinds(other.contexts[1], "told")


def test_what_was_cut_is_counted() -> None:
    found = previewed("opsd", "hint.max_tokens=5", episode="0-0")
    assert found.contexts[1].cut > 0
    held = io.StringIO()
    show(found, Console(file=held, width=120))
    assert f"({found.contexts[1].cut} tokens of it were cut)" in held.getvalue()


def test_the_command_and_its_json() -> None:
    done = CliRunner().invoke(app, ["preview", "srpo", "--episode", "1-2"], env={"COLUMNS": "150"})
    assert done.exit_code == 0
    assert "episode 1-2" in done.stdout
    assert "«" in done.stdout
    assert (
        json.loads(CliRunner().invoke(app, ["preview", "srpo", "--episode", "1-2", "--json"]).stdout)["episode"]
        == "1-2"
    )


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match=r"unknown episode '9-9'; .*valid: 0-0, 0-1"):
        previewed("srpo", episode="9-9")
    with pytest.raises(UsageError, match="give --model"):
        previewed("openclaw", "judge=self")
