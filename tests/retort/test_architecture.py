"""What the layout promises: imports that only go down, one file an idea, and a README that shows the real tree."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from retort.algos.config import recipes
from retort.envs.check import check_env
from retort.envs.harbor_format import export_tasks
from retort.envs.shell import ShellEnv

import retort

ROOT = Path(__file__).parents[2]
ROOMS = ("sandboxes", "envs", "agents", "feedback", "algos", "retort")  # each may import from those before it
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """Every room that a module imports from, and the line, wherever in the module that is."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno} imports relatively"
            names = [node.module or ""] if node.module != "retort" else [f"retort.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "retort":
                room = rest.partition(".")[0]
                yield room if room in ROOMS else "retort", node.lineno


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_only_go_down(path: Path) -> None:
    own = ROOMS.index(path.parent.name)
    for room, line in imported_rooms(path):
        assert ROOMS.index(room) <= own, f"{named(path)}:{line} imports from {room}"


def test_every_package_in_the_distribution_is_a_room() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}
    if path.name == "__init__.py" and path.parent.name != "retort":
        assert [type(node) for node in tree.body] == [ast.Expr], "a package's __init__ is its docstring alone"


def test_the_front_door_exports_nothing_of_the_rooms() -> None:
    tree = ast.parse((ROOT / "retort" / "__init__.py").read_text())
    assert list(imported_rooms(ROOT / "retort" / "__init__.py")) == []
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and "__all__" in ast.dump(node)]


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_names_its_source_and_its_formula(name: str) -> None:
    said = ast.get_docstring(ast.parse((ROOT / "algos" / f"{name}.py").read_text())) or ""
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", said)
    assert re.search(r"^ {4}\w.* = ", said, re.MULTILINE), "expected an indented formula"


def exported_tasks(folder: Path) -> dict[str, Any]:
    env = ShellEnv(split="test")
    export_tasks(env, env.tasks()[::600], folder)
    return {"folder": folder}


# What an environment cannot be made without; and some families of one that has many, all graded alike: gold and near
# misses of each stand in test_code.py.
ARGUMENTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "retort/Harbor-v0": exported_tasks,
    "retort/Code-v0": lambda _: {"families": ("total", "nested", "merged", "robot", "stack")},
}


@pytest.mark.slow
@pytest.mark.parametrize("env_id", sorted(retort.BUILT_IN))
def test_every_built_in_environment_keeps_the_contract(env_id: str, tmp_path: Path) -> None:
    env = gymnasium.make(env_id, **ARGUMENTS.get(env_id, lambda _: {})(tmp_path))
    try:
        check_env(env, per_family=1)  # more, and each split, in the environment's own tests
    finally:
        env.close()


def shown_tree() -> set[str]:
    """The files that the README's section "The house" shows: one a line, below its folder, with a comment."""
    _, heading, section = (ROOT / "README.md").read_text().partition("\n## The house\n")
    assert heading, "README.md has no section '## The house'"
    section = section.partition("\n## ")[0]
    fenced = re.search(r"^```\w*\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    tree = fenced[1] if fenced else "\n".join(line for line in section.splitlines() if line.startswith("    "))
    found: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in tree.splitlines():
        bare = re.sub(r"[│├└─]", " ", line).rstrip()
        if not bare.strip():
            continue
        indent = len(bare) - len(bare.lstrip())
        name = bare.split()[0]
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))
        else:
            assert path not in found, f"README shows {path} twice"
            found.add(path)
    return found


def test_the_readme_shows_the_real_tree() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("no git checkout")
    python = {line for line in tracked.stdout.splitlines() if line.endswith(".py")}
    rooms = {line for line in python if line.split("/")[0] in ROOMS and not line.endswith("__init__.py")}
    shown = shown_tree()
    assert not (missing := rooms - shown), f"README.md does not show {sorted(missing)}"
    assert not (gone := {path for path in shown if not (ROOT / path).exists()}), f"README.md shows {sorted(gone)}"
