"""docs/custom_environments.md runs as it stands: its files, its commands, its distribution."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGE = BLOCK.findall((DOCS / "custom_environments.md").read_text())
COMMANDS = [line for kind, text in PAGE if kind == "sh" for line in text.splitlines()]
TYPE = """
import json, sys
from retort.cli import main
for command in json.loads(sys.argv[1]):
    print("\\f", end="", flush=True)
    sys.argv = command.split()
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
"""
FRESH = """
import multiprocessing, sys
import gymnasium, retort

def reward(env_id):
    env = gymnasium.make(env_id, split="test")
    env.reset(seed=0)
    return env.step(env.unwrapped.gold(""))[1]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(reward("acme/Echo-v0"), pool.apply(reward, ["acme/Echo-v0"]))
"""


def ran(folder: Path, *command: str | Path, path: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, each named by its first line."""
    place = tmp_path_factory.mktemp("docs")
    for kind, text in PAGE:
        if kind != "sh":
            name = re.match(r"# ([\w.]+)\n", text)
            assert name, f"a block of {kind} does not begin with its file's name: {text[:80]}"
            (place / name[1]).write_text(text)
    return place


@pytest.fixture(scope="module")
def installed(folder: Path) -> Path:
    """Where pip put the page's distribution."""
    source, target = folder / "acme", folder / "site"
    source.mkdir()
    for name in ("pyproject.toml", "acme_envs.py"):
        (folder / name).rename(source / name)
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    ran(source, "-m", "pip", "install", *offline, "--target", target, ".")
    return target


def test_every_block_is_run() -> None:
    assert {kind for kind, _ in PAGE} == {"python", "sh", "toml"}
    assert all(command.startswith("retort ") for command in COMMANDS)
    assert [command.split()[1] for command in COMMANDS].count("check-env") == 3


def typed(folder: Path, commands: list[str]) -> list[str]:
    """What each command says, all in one process, which loads torch once."""
    (folder / "type.py").write_text(TYPE)
    return ran(folder, folder / "type.py", json.dumps(commands)).split("\f")[1:]


def test_commands(folder: Path) -> None:
    commands = [command for command in COMMANDS if command.split()[1] != "train"]
    for command, said in zip(commands, typed(folder, commands), strict=True):
        if "check-env" in command:
            assert "keeps the contract" in said, command
        else:
            assert ("1.000" if "gold" in command else "0.000") in said, command


@pytest.mark.slow
def test_training(folder: Path) -> None:
    commands = [f"{command} --set threads=1" for command in COMMANDS if command.split()[1] == "train"]
    assert [said.count("checkpoint: ") for said in typed(folder, commands)] == [1, 1]


def test_an_installed_environment_is_listed_checked_and_played(installed: Path, tmp_path: Path) -> None:
    entries = json.loads(ran(tmp_path, "-m", "retort", "envs", "--json", path=installed))
    (entry,) = (entry for entry in entries if entry["id"] == "acme/Echo-v0")
    assert sum(entry["tasks"].values()) == 30
    assert all(entry["tasks"].values())
    assert "missing" not in entry
    assert "keeps the contract" in ran(tmp_path, "-m", "retort", "check-env", "acme/Echo-v0", path=installed)
    evaluated = ["eval", "--env", "acme/Echo-v0", "--model", "gold", "--json"]
    report = json.loads(ran(tmp_path, "-m", "retort", *evaluated, path=installed))
    assert (report["success"], report["n"]) == (1, entry["tasks"]["test"])


def test_an_installed_environment_in_other_processes(installed: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh.py").write_text(FRESH)
    assert ran(tmp_path, tmp_path / "fresh.py", path=installed).split() == ["1.0", "1.0"]
    assert ran(tmp_path, folder / "vector.py", path=installed).strip() == "[1. 1.]"


def test_a_broken_offer_is_listed_beside_the_sound_ones(installed: Path, tmp_path: Path) -> None:
    broken = {
        "acme/Lost-v0 = acme_envs:Lost": "which cannot be imported: module 'acme_envs' has no attribute 'Lost'",
        "acme/Gone-v0 = no_such_module:Env": "No module named 'no_such_module'",
        "acme/Number-v0 = math:sqrt": "cannot be made with",
        "acme/Other-v0 = threading:Lock": "ValueError: no signature found",
    }
    offered(tmp_path, *broken)
    path = Path(f"{installed}{os.pathsep}{tmp_path}")
    entries = {entry["id"]: entry for entry in json.loads(ran(tmp_path, "-m", "retort", "envs", "--json", path=path))}
    for offer, said in broken.items():
        assert said in entries[offer.split()[0]]["missing"]
    assert "missing" not in entries["acme/Echo-v0"]


def test_a_name_that_is_none_is_left_out_with_a_warning(tmp_path: Path) -> None:
    offered(tmp_path, "acme/a/b = acme_envs:Echo")
    code = "import warnings\nwith warnings.catch_warnings(record=True) as w:\n  import retort\nprint(w[0].message)"
    said = ran(tmp_path, "-c", code, path=tmp_path)
    assert said.startswith(
        "the entry point acme/a/b = acme_envs:Echo of retort.envs is left out: Malformed environment ID"
    )


def offered(folder: Path, *offers: str) -> None:
    """A distribution that holds these entry points, as pip would have left it."""
    info = folder / "offer-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offer\nVersion: 1\n")
    (info / "entry_points.txt").write_text("\n".join(["[retort.envs]", *offers]))
