"""Harbor's folders: what is read and written is the same, and what cannot be honoured is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import TaskRef, TextEnv, UsageError
from retort.envs.harbor_format import HarborTask, export_tasks, read_task, read_tasks, ref_of, script, write_task
from retort.sandboxes.base import FileState

import retort  # noqa: F401  (registers the environments)

FILES = {"Dockerfile": FileState("file", 0o644, b"FROM x\n")}


def a_task(name: str = "t", **config: Any) -> HarborTask:
    return HarborTask(name, "do it\n", config, FILES, {"test.sh": script("true\n")})


names = st.text("abc", min_size=1, max_size=6)
states = st.builds(
    lambda mode, data: FileState("file", mode, data), st.sampled_from([0o644, 0o755, 0o600]), st.binary()
)


@given(st.dictionaries(names, states, max_size=4), st.dictionaries(names, states, max_size=4))
def test_what_is_written_is_read(solution: dict[str, FileState], more: dict[str, FileState]) -> None:
    import tempfile

    deep = {f"a b/{name}": state for name, state in more.items()}
    folder = {"a b": FileState("directory", 0o755)} if deep else {}
    link = {"link": FileState("link", 0o777, b"test.sh")}
    config = {"metadata": {"retort_places": ["/home"]}, "environment": {"cpus": 2}}
    tests = {"test.sh": script("x"), **link}
    task = HarborTask("some-task", "é\n", config, {**FILES, **folder, **deep}, tests, solution)
    with tempfile.TemporaryDirectory() as top:
        assert read_task(write_task(task, Path(top))) == task
        assert read_tasks(Path(top)) == {"some-task": task}
        with pytest.raises(UsageError, match="never written over another"):
            write_task(task, Path(top))


def test_a_folder_that_is_one_task_and_folders_within(tmp_path: Path) -> None:
    place = write_task(a_task("one"), tmp_path / "deep")
    write_task(a_task("two"), tmp_path)
    assert list(read_tasks(tmp_path)) == ["deep/one", "two"]
    assert list(read_tasks(place)) == ["one"]


def test_the_digest_is_of_the_content() -> None:
    first = a_task()
    assert ref_of(first) == TaskRef("t", first.digest, "test", "")
    assert a_task("other").digest == first.digest
    for changed in (
        a_task(agent={"timeout_sec": 3}),
        HarborTask("t", "do that\n", {}, FILES, first.tests),
        HarborTask("t", "do it\n", {}, FILES, {"test.sh": script("false\n")}),
        HarborTask("t", "do it\n", {}, FILES, first.tests, {"solve.sh": script("")}),
    ):
        assert changed.digest != first.digest
    assert ref_of(a_task(metadata={"retort_split": "train", "retort_family": "f"})).split == "train"


def test_folders_that_are_no_tasks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder of tasks in Harbor's format"):
        read_tasks(tmp_path / "none")
    with pytest.raises(UsageError, match=r"expected folders with a task\.toml"):
        read_tasks(tmp_path)
    place = write_task(a_task(), tmp_path)
    (place / "environment" / "docker-compose.yaml").write_text("")
    with pytest.raises(UsageError, match="several containers"):
        read_task(place)
    (place / "environment" / "docker-compose.yaml").unlink()
    (place / "environment" / "Dockerfile").unlink()
    with pytest.raises(UsageError, match="expected environment/Dockerfile, or"):
        read_task(place)
    (place / "task.toml").write_text("= 3")
    with pytest.raises(UsageError, match="cannot be read"):
        read_task(place)
    (place / "tests" / "test.sh").unlink()
    with pytest.raises(UsageError, match=r"found no tests/test\.sh"):
        read_tasks(tmp_path)


class NoExport(TextEnv):
    """An environment that says nothing of exporting."""


def test_an_environment_that_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NoExport cannot be exported"):
        export_tasks(NoExport(), [TaskRef("k", "d", "test")], tmp_path)


def test_another_image(tmp_path: Path) -> None:
    with gymnasium.make("retort/Shell-v0", split="test") as made:
        env = made.unwrapped
        assert isinstance(env, TextEnv)
        (place,) = export_tasks(env, env.tasks()[:1], tmp_path, "mine:1")
    assert (place / "environment" / "Dockerfile").read_text().splitlines()[:2] == ["FROM mine:1", "WORKDIR /work"]
    assert (place / "tests" / "test.sh").stat().st_mode & 0o111
