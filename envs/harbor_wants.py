"""What a task in Harbor's format asks for: scope, limits, times and variables, or why it cannot be had here.

What Harbor has no word for stands in `[metadata]`, which it leaves to everybody; `Wants` says what our keys there mean.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from retort.envs.base import Split, UsageError, checked_split, nearest
from retort.envs.harbor_format import HarborTask, table_of
from retort.sandboxes.base import Limits, Preferred

SCOPES = ("work", "answer", "machine")
SANDBOXES = ("docker", "bwrap")
KEYS = ("scope", "root", "sandbox", "split", "family", "answer", "places", "hint")


@dataclass(frozen=True)
class Wants:
    """What a task.toml asks for. Keys of ours are `retort_...` in `[metadata]`.

    scope (retort_scope): what is graded. "work": the work folder alone, copied into a sandbox that the agent never was
        in. "answer": nothing but the answer, in such a sandbox. "machine": all of the agent's container, in which the
        tests run once all its processes have been ended; what it made of bash and the like they run too.
    root (retort_root): whether the agent is root of its container; a "machine" has such a one, the others need it not.
    sandbox (retort_sandbox): "docker", or "bwrap" where the Dockerfile can be followed on this machine's own programs.
    answer (retort_answer): the file in which the agent may write an answer; `submit` writes it too.
    places (retort_places): folders beside the work folder in which files may be written.
    agent_s, verifier_s: seconds for all commands of the agent, and for the tests.
    """

    scope: str
    root: bool
    sandbox: str
    split: Split
    family: str
    answer: str | None
    places: tuple[str, ...]
    hint: str
    agent_s: float
    verifier_s: float
    workdir: str | None
    image: str | None
    env: Mapping[str, str]
    verifier_env: Mapping[str, str]
    solution_env: Mapping[str, str]
    limits: Limits


def wants(task: HarborTask, *, offline: bool = False) -> Wants:
    """Reads a task's configuration. offline: a task that asks for the network by name is run without one.

    Raises:
        UsageError: a key that cannot be honoured here, or a value that is none; the message names task and key.
    """
    name = task.name
    metadata, environment, agent, verifier, solution = (
        table_of(task.config, key, name) for key in ("metadata", "environment", "agent", "verifier", "solution")
    )
    for key in (key for key in metadata if str(key).startswith("retort_")):
        if key.removeprefix("retort_") not in KEYS:
            raise UsageError(f"{name}: unknown key metadata.{key}; {nearest(key, [f'retort_{own}' for own in KEYS])}")
    for path, refused in REFUSED.items():
        where, _, last = path.rpartition(".")
        value = (table_of(task.config, where, name) if where else task.config).get(last)
        if value and (why := refused(value)):
            raise UsageError(f"{name}: {path} = {value!r} cannot be honoured: {why}")
    network = environment.get("network_mode") or ("public" if environment.get("allow_internet") else None)
    if network in ("public", "allowlist") and not offline:
        raise UsageError(f"{name}: it asks for the network, and sandboxes have none; offline=True runs it all the same")
    scope = _one_of(metadata.get("retort_scope", "work"), SCOPES, f"{name}: metadata.retort_scope")
    root = metadata.get("retort_root", scope == "machine")
    if root is not True and (root is not False or scope == "machine"):
        raise UsageError(f"{name}: metadata.retort_root: expected a boolean, true for a machine, found {root!r}")
    answer = metadata.get("retort_answer")
    if scope == "answer" and answer is None:
        raise UsageError(f"{name}: retort_scope = 'answer' needs retort_answer, the file of the answer")
    if answer is not None and not str(answer).startswith("/"):
        raise UsageError(f"{name}: metadata.retort_answer: expected an absolute path, found {answer!r}")
    places = metadata.get("retort_places", [])
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise UsageError(f"{name}: metadata.retort_places: expected a list of folders, found {places!r}")
    return Wants(
        scope=scope,
        root=root,
        sandbox=_one_of(metadata.get("retort_sandbox", "docker"), SANDBOXES, f"{name}: metadata.retort_sandbox"),
        split=checked_split(metadata.get("retort_split", "test")),
        family=str(metadata.get("retort_family", "")),
        answer=answer,
        places=tuple(places),
        hint=str(metadata.get("retort_hint", "")),
        agent_s=_seconds(agent, f"{name}: agent"),
        verifier_s=_seconds(verifier, f"{name}: verifier"),
        workdir=environment.get("workdir"),
        image=environment.get("docker_image"),
        env=_variables(environment, f"{name}: environment"),
        verifier_env=_variables(verifier, f"{name}: verifier"),
        solution_env=_variables(solution, f"{name}: solution"),
        limits=_limits(environment, name),
    )


def _unless(*allowed: object) -> Callable[[object], str]:
    return lambda value: "" if value in allowed else f"expected {' or '.join(repr(one) for one in allowed)}"


def _because(why: str) -> Callable[[object], str]:
    return lambda _: why


# What a value of a key means that nothing here can do: (value) -> why, or "" where it can.
REFUSED: Mapping[str, Callable[[object], str]] = {
    "steps": _because("tasks of several steps are not supported"),
    "agent.user": _because("who the agent is hangs on retort_root"),
    "verifier.user": _because("the tests run as whoever the agent is"),
    "verifier.environment": _because("the tests run in the task's own environment, fresh unless it is a 'machine'"),
    "verifier.environment_mode": _unless("shared"),
    "environment.os": _unless("linux"),
    "environment.gpus": _because("no sandbox has a GPU"),
    "environment.tpu": _because("no sandbox has a TPU"),
    "environment.mcp_servers": _because("an agent has a shell and no MCP client"),
    "environment.skills_dir": _because("an agent has a shell and no skills"),
    "environment.healthcheck": _because("there is none here; an ENTRYPOINT is waited for until it runs its command"),
}


def _one_of(value: object, valid: tuple[str, ...], what: str) -> str:
    if value not in valid:
        raise UsageError(f"{what}: found {value!r}; {nearest(str(value), valid)}")
    return str(value)


def _seconds(table: Mapping[str, Any], what: str) -> float:
    value = table.get("timeout_sec", 600.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UsageError(f"{what}.timeout_sec: expected a number of seconds above 0, found {value!r}")
    return float(value)


def _variables(table: Mapping[str, Any], what: str) -> dict[str, str]:
    """`env`, with ${NAME} and ${NAME:-default} as this process has them."""
    found = {}
    for name, value in table_of(table, "env", what).items():
        text = str(value)
        if text.startswith("${") and text.endswith("}"):
            asked, given, default = text[2:-1].partition(":-")
            if asked not in os.environ and not given:
                raise UsageError(f"{what}.env.{name}: the variable {asked} is not set")
            text = os.environ.get(asked, default)
        found[name] = text
    return found


def _limits(environment: Mapping[str, Any], name: str) -> Limits:
    """Numbers of the task are demands: a sandbox that cannot hold one refuses it."""
    asked: dict[str, Any] = {"memory_mb": Preferred(2048), "disk_mb": Preferred(512), "pids": Preferred(256)}
    for key, limit, old in (
        ("cpus", "cpus", ""),
        ("memory_mb", "memory_mb", "memory"),
        ("storage_mb", "disk_mb", "storage"),
    ):
        value = environment.get(key, _old_size(environment.get(old), f"{name}: environment.{old}"))
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise UsageError(f"{name}: environment.{key}: expected a number above 0, found {value!r}")
        asked[limit] = value if key == "cpus" else int(value)
    return Limits(**asked)


def _old_size(value: object, what: str) -> int | None:
    """MiB from the older way to say it: "2G", "512M"."""
    if value is None:
        return None
    units = {"G": 1024.0, "M": 1.0, "K": 1 / 1024}
    text = str(value).strip().upper()
    try:
        return int(float(text[:-1]) * units[text[-1:]])
    except (KeyError, ValueError):
        raise UsageError(f"{what}: expected a size such as '2G', found {value!r}") from None
