"""What a task asks for: defaults, values, and what cannot be honoured, refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from retort.envs.base import UsageError
from retort.envs.harbor_format import HarborTask, script
from retort.envs.harbor_wants import wants
from retort.sandboxes.base import FileState, Preferred


def a_task(**config: Any) -> HarborTask:
    return HarborTask(
        "t", "do it\n", config, {"Dockerfile": FileState("file", 0o644, b"FROM x\n")}, {"test.sh": script("")}
    )


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
