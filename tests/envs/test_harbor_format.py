"""Harbor's folders: what is read and written is the same, and what cannot be honoured is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.base import TaskRef, TextEnv, UsageError
from retort.envs.harbor_format import HarborTask, export_tasks, read_task, read_tasks, ref_of, script, wants, write_task
from retort.sandboxes.base import FileState, Preferred

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


def test_defaults_and_values() -> None:
    asked = wants(a_task())
    assert (asked.scope, asked.root, asked.sandbox, asked.agent_s, asked.verifier_s) == (
        "work",
        False,
        "docker",
        600,
        600,
    )
    assert isinstance(asked.limits.memory_mb, Preferred)
    assert asked.limits.cpus is None
    asked = wants(a_task(environment={"memory": "2G", "storage": "512M", "cpus": 1.5}, agent={"timeout_sec": 9}))
    assert (asked.limits.memory_mb, asked.limits.disk_mb, asked.limits.cpus) == (2048, 512, 1.5)
    assert not isinstance(asked.limits.memory_mb, Preferred)
    assert asked.agent_s == 9
    assert wants(a_task(metadata={"retort_scope": "machine"})).root
    assert wants(a_task(environment={"allow_internet": True}), offline=True).scope == "work"
    assert wants(a_task(environment={"network_mode": "no-network", "os": "linux", "gpus": 0, "mcp_servers": []}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metadata": {"retort_scop": "work"}}, "unknown key metadata.retort_scop; did you mean 'retort_scope'"),
        ({"metadata": {"retort_scope": "wrok"}}, "metadata.retort_scope: found 'wrok'; did you mean 'work'"),
        ({"metadata": {"retort_sandbox": "bwarp"}}, "did you mean 'bwrap'"),
        ({"metadata": {"retort_scope": "answer"}}, "needs retort_answer"),
        ({"metadata": {"retort_scope": "machine", "retort_root": False}}, "true for a machine, found False"),
        ({"metadata": {"retort_answer": "a.txt"}}, "expected an absolute path, found 'a.txt'"),
        ({"metadata": {"retort_places": "/home"}}, "expected a list of folders, found '/home'"),
        ({"metadata": 3}, "expected a table [metadata], found 3"),
        ({"agent": {"timeout_sec": "1"}}, "agent.timeout_sec: expected a number of seconds above 0, found '1'"),
        ({"verifier": {"timeout_sec": 0}}, "verifier.timeout_sec: expected"),
        ({"environment": {"memory_mb": -1}}, "environment.memory_mb: expected a number above 0, found -1"),
        ({"environment": {"storage": "lots"}}, "environment.storage: expected a size such as '2G', found 'lots'"),
        ({"environment": {"gpus": 1}}, "environment.gpus = 1 cannot be honoured: no sandbox has a GPU"),
        ({"environment": {"os": "windows"}}, "environment.os = 'windows' cannot be honoured: expected 'linux'"),
        ({"environment": {"env": {"K": "${NO_SUCH_VARIABLE}"}}}, "the variable NO_SUCH_VARIABLE is not set"),
        ({"environment": {"network_mode": "public"}}, "it asks for the network, and sandboxes have none; offline=True"),
        ({"environment": {"allow_internet": True}}, "it asks for the network"),
        ({"environment": {"healthcheck": {"command": "x"}}}, "environment.healthcheck"),
        ({"verifier": {"environment_mode": "separate"}}, "verifier.environment_mode = 'separate'"),
        ({"verifier": {"user": "root"}}, "verifier.user"),
        ({"steps": [{"name": "a"}]}, "tasks of several steps are not supported"),
    ],
)
def test_what_cannot_be_honoured(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="^t: .*" + re.escape(message)):
        wants(a_task(**config))


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
