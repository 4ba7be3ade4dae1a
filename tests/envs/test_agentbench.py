"""AgentBench's OS tasks: gold on each that can be had, what is left out, and answers that cannot be made easy."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from retort.envs.agentbench import HOME, LEFT_OUT, OWN_FILES, AgentBenchEnv, load, records
from retort.envs.base import MissingPackage, Source, UsageError
from retort.envs.catalogue import catalogue
from retort.envs.check import check_env

import retort  # noqa: F401  (registers the environment)

IN_CLONE = {("test", index) for index in (0, 1, 2, 3, 4, 5, 6, 9, 10, 11)} | {("dev", 25)}


def made(**options: Any) -> AgentBenchEnv:
    env = gymnasium.make("retort/AgentBenchOS-v0", **options).unwrapped
    assert isinstance(env, AgentBenchEnv)
    return env


@pytest.fixture(scope="module")
def env() -> Iterator[AgentBenchEnv]:
    with made() as opened:
        yield opened


def play(env: AgentBenchEnv, key: str, plan: list[str] | None = None) -> tuple[float, str]:
    """The reward of an episode, and what the tests said."""
    said, _ = env.reset(options={"task": key})
    for turn in range(10):
        said, reward, terminated, truncated, info = env.step(env.gold(said) if plan is None else [*plan, "done"][turn])
        if terminated or truncated:
            verdict = next(item.text for item in info["feedback"] if item.source is Source.VERIFIER)
            return float(reward), verdict
    raise AssertionError("the episode did not end")


def failing(env: AgentBenchEnv) -> dict[str, tuple[float, str]]:
    found = {ref.key: play(env, ref.key) for ref in env.tasks()}
    return {key: outcome for key, outcome in found.items() if outcome[0] != 1.0}


def scripts(folder: Path) -> Path:
    """Scripts of our own in the place of those that a clone of AgentBench has: a log of trades, and nested folders."""
    (folder / "7" / "init").mkdir(parents=True)
    trade = 'echo "$name | $what | $((i % 7)) | $((i * 3))"'
    log = f"for i in 1 2 3 4 5; do for name in Alice Bob; do for what in Purchase Sell; do {trade}; done; done; done"
    (folder / "7" / "init" / "stock-log.sh").write_text(
        f"#!/bin/bash\n({log}; echo 'Bob | Sell | 9 | 1') > /usr/stock.log\n"
    )
    nested = (
        "mkdir -p a/b/c; echo 'echo \"I love myself.\"' > a/b/c/echo-love; touch a/echo-love; chmod +x a/b/c/echo-love"
    )
    (folder / "7" / "init" / "nested_folders.sh").write_text(f"#!/bin/bash\n{nested}\n")
    return folder


def test_every_task_is_here_or_left_out_for_a_reason(tmp_path: Path) -> None:
    keys = {(name.split("-")[0], int(name.split("-")[1])) for name in load(scripts(tmp_path))}
    tests = {("test", index) for index in range(125) if index not in (36, 39, 43, 51, 55, 121)}  # as the data has them
    assert keys | LEFT_OUT.keys() == tests | {("dev", index) for index in range(26)}
    assert len(keys | LEFT_OUT.keys()) == 145
    assert not keys & LEFT_OUT.keys()
    without = load()
    assert {(name.split("-")[0], int(name.split("-")[1])) for name in without} == keys - IN_CLONE
    for options, count in (
        ({}, 95),
        ({"sandbox": "docker"}, 106),
        ({"split": "validation"}, 8),
        ({"split": "train"}, 0),
    ):
        assert len(made(**options).tasks()) == count, options


@pytest.mark.slow
def test_gold_on_bubblewrap(env: AgentBenchEnv) -> None:
    assert failing(env) == {}
    with made(split="validation") as dev:
        assert failing(dev) == {}


def test_the_scripts_of_a_clone(tmp_path: Path) -> None:
    names = [f"test-{index:04d}" for part, index in sorted(IN_CLONE) if part == "test"]
    with made(scripts=scripts(tmp_path), only=names) as more:
        assert len(more.tasks()) == len(names) == 10
        assert failing(more) == {}
        assert play(more, "test-0003", ["submit 6"]) == (1.0, "the tests passed")  # five stocks of Bob's, and one more
        assert play(more, "test-0003", ["submit 5"]) == (0.0, "expected 6; found 5")
    with pytest.raises(UsageError, match=r"expected data/os_interaction/scripts of a.*: --env-arg scripts=\.\.\."):
        made(scripts=tmp_path / "elsewhere")


@pytest.mark.slow
def test_gold_on_docker(docker_host: str) -> None:
    """All that bubblewrap cannot have, and one that it can."""
    here = load()
    root = [name for name, task in here.items() if task.config["metadata"]["retort_sandbox"] == "docker"]
    assert len(root) == 14
    for split in ("test", "validation"):
        some = [name for name in ("test-0023",) if name.startswith(split[:3])]
        names = [name for name in [*root, *some] if here[name].config["metadata"]["retort_split"] == split]
        with made(split=split, sandbox="docker", only=names) as docker:
            assert len(docker.tasks()) == len(names)
            assert failing(docker) == {}
            if split == "test":
                assert play(docker, "test-0035", ["mkdir -p /data"])[0] == 0.0
                assert (
                    play(docker, "test-0020", ["printf '#!/bin/sh\\necho 2023-05' > /usr/local/bin/date-format"])[0]
                    == 0.0
                )
                assert play(docker, "test-0041", ["submit 4"]) == (0.0, "expected 5; found 4")


def test_the_answer_is_found_where_the_agent_never_was(env: AgentBenchEnv) -> None:
    assert play(env, "test-0040", ["rm *.log; touch a.log", "submit 0"]) == (0.0, "expected 6; found 0")
    assert play(env, "test-0040", ["submit 6"])[0] == 1.0
    assert play(env, "test-0040", ["echo 6 > /tmp/answer.txt"])[0] == 1.0
    assert play(env, "test-0040", ["submit about 6"])[0] == 0.0
    assert play(env, "test-0040", [])[1] == "expected an answer; found none"
    assert ("test", 85) in OWN_FILES  # here the agent is told to make the files itself
    assert (
        play(env, "test-0085", ["rm -r experiment; mkdir experiment; echo Linux > experiment/a.txt", "submit 1"])[0]
        == 1.0
    )


def test_a_change_is_checked_without_what_the_agent_wrote_for_its_shell(env: AgentBenchEnv) -> None:
    for name in (".bash_profile", ".profile", ".bashrc"):
        assert play(env, "test-0032", [f"echo 'exit 0' > {HOME}/{name}"])[0] == 0.0
    fix = "find ~/videos -type f -exec chmod 660 {} +; find ~/videos -type d -exec chmod 750 {} +"
    assert play(env, "test-0032", [fix])[0] == 1.0


def test_programs_that_start_with_the_task() -> None:
    with made(split="validation") as dev:
        dev.reset(options={"task": "dev-0000"})
        assert (
            dev.step("pgrep -fc 'succeed'; until [ -s ~/log ]; do sleep 0.05; done; head -n 1 ~/log")[0] == "1\nsucceed"
        )
        observation, _ = dev.reset(options={"task": "dev-0000"})
        assert "/home/agent/log" in observation
        assert dev.step("submit 1")[1] == 1.0


DRAWS = re.compile(rb"drawn = |noise|shuf|mktemp|uuidgen|\\brand", re.ASCII)  # or would, were it written otherwise


def test_random_content_is_the_same_each_time(env: AgentBenchEnv) -> None:
    """Of each task that draws; the other scripts have nothing to draw from but the date."""
    here = load()
    for key, task in here.items():
        texts = b"\n".join(state.data for name, state in task.context.items() if name != "noise")
        assert not re.search(rb"RANDOM|/dev/u?random", texts), key
    drawing = [
        ref.key
        for ref in env.tasks()
        if any(DRAWS.search(state.data) for name, state in here[ref.key].context.items() if name.endswith(".sh"))
    ]
    assert {"test-0057", "test-0062", "test-0071", "test-0113", "test-0122", "test-0124"} <= set(drawing)
    for key in drawing:
        said = set()
        for _ in range(2):
            env.reset(options={"task": key})
            said.add(env.step("ls /tmp; find . | sort; find . -type f | sort | xargs cat | sha256sum")[0])
        assert len(said) == 1, key


@pytest.mark.slow
def test_the_contract() -> None:
    with gymnasium.make("retort/AgentBenchOS-v0", split="validation") as made_here:
        check_env(made_here, per_family=1)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_evals", None)
    command = "pip install --no-deps inspect-evals==0.26.0"
    with pytest.raises(MissingPackage, match=re.escape(command)):
        made()
    (entry,) = catalogue(["retort/AgentBenchOS-v0"])
    assert command in entry["missing"]
    assert command.split()[-1] in (Path(__file__).parents[2] / "packages.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test-0019", "wants more than bubblewrap has: --env-arg sandbox=docker"),
        ("test-0033", "is left out: it installs sudo from the network"),
        ("test-001x", "unknown task 'test-001x'; did you mean 'test-0"),
        ("test-0900", "unknown task 'test-0900'; did you mean 'test-0"),
    ],
)
def test_a_task_that_is_not_there_says_what_it_takes(name: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        made(only=[name])
    assert said in str(error.value)


def test_every_task_that_needs_the_repositorys_scripts_says_so() -> None:
    every = {f"{part}-{index:04d}" for part, index in records()}
    left = {f"{part}-{index:04d}" for part, index in LEFT_OUT}
    absent = every - left - set(load())
    assert len(absent) == len(IN_CLONE) == 11
    for name in absent:
        with pytest.raises(UsageError, match=r"begins with a script of data/os_.*: --env-arg scripts=\.\.\. \(--set"):
            made(only=[name], sandbox="docker")
