"""A Dockerfile read as steps that can be followed inside of a sandbox, where there is no image to build.

FROM says nothing there; what is Docker's alone (stages, USER, VOLUME, archives) is refused.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from retort.envs.base import UsageError
from retort.envs.harbor_format import Files
from retort.sandboxes.base import FileState

IDLE = ("LABEL", "EXPOSE", "CMD", "MAINTAINER", "STOPSIGNAL", "HEALTHCHECK")  # of no consequence here


@dataclass(frozen=True)
class Run:
    """A shell line, and where it is run."""

    line: str
    cwd: str


@dataclass(frozen=True)
class Recipe:
    """What following a Dockerfile comes to. Steps are files by absolute path, or lines to run."""

    workdir: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Run | Files, ...] = ()
    entrypoint: tuple[str, ...] = ()


def read_dockerfile(context: Files, name: str) -> Recipe:
    """Raises UsageError for what cannot be followed inside of a sandbox."""
    if ".dockerignore" in context:
        raise UsageError(f"{name}: .dockerignore is read by Docker alone: sandbox='docker'")
    text = context["Dockerfile"].data.decode(errors="replace")
    text = re.sub(r"^[ \t]*#.*\n?", "", text, flags=re.MULTILINE)
    recipe, stages = Recipe(), 0
    for line in re.sub(r"[ \t]*\\\n[ \t]*", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        word, rest = word.upper(), rest.strip()
        if not word or word in IDLE:
            continue
        if word == "FROM":
            stages += 1
        elif word in FOLLOWED and "<<" not in rest.split("'")[0].split('"')[0]:
            try:
                recipe = FOLLOWED[word](recipe, rest, context)
            except ValueError as error:
                raise UsageError(f"{name}: Dockerfile: {line.strip()!r:.120}: {error}: sandbox='docker'") from error
        else:
            raise UsageError(f"{name}: Dockerfile: {word} cannot be followed in a sandbox: sandbox='docker'")
        if stages > 1:
            raise UsageError(f"{name}: Dockerfile: several stages cannot be followed in a sandbox: sandbox='docker'")
    return recipe


def _workdir(recipe: Recipe, rest: str, _: Files) -> Recipe:
    return replace(recipe, workdir=os.path.normpath(os.path.join(recipe.workdir, _filled(recipe, rest))))


def _env(recipe: Recipe, rest: str, _: Files) -> Recipe:
    first, value = [*rest.split(" ", 1), ""][:2]
    pairs = [first + "=" + value] if "=" not in first else shlex.split(rest)
    found = dict(pair.partition("=")[::2] for pair in pairs)
    return replace(recipe, env={**recipe.env, **{key: _filled(recipe, value) for key, value in found.items()}})


def _filled(recipe: Recipe, text: str) -> str:
    default = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": recipe.workdir}
    return string.Template(text).safe_substitute({**default, **recipe.env})


def _run_line(recipe: Recipe, rest: str, _: Files) -> Recipe:
    if rest.startswith("--"):
        raise ValueError("options of RUN are Docker's")
    line = shlex.join(json.loads(rest)) if rest.startswith("[") else rest
    return replace(recipe, steps=(*recipe.steps, Run(line, recipe.workdir)))


def _entrypoint(recipe: Recipe, rest: str, _: Files) -> Recipe:
    return replace(recipe, entrypoint=tuple(json.loads(rest)) if rest.startswith("[") else ("sh", "-c", rest))


def _copy(recipe: Recipe, rest: str, context: Files) -> Recipe:
    words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
    options = [word for word in words if word.startswith("--")]
    if any(not option.startswith("--chmod=") for option in options):
        raise ValueError("of the options only --chmod can be followed")
    mode = int(options[-1].removeprefix("--chmod="), 8) if options else None
    *sources, target = [_filled(recipe, word) for word in words if not word.startswith("--")]
    place = os.path.normpath(os.path.join(recipe.workdir, target))
    into = target.endswith("/") or len(sources) > 1 or place == recipe.workdir or "*" in "".join(sources)
    files: dict[str, FileState] = {}
    for source in sources:
        if source.endswith((".tar", ".gz", ".xz", ".bz2", ".tgz")) or "://" in source:
            raise ValueError("archives and addresses cannot be followed")
        files |= _copied(context, os.path.normpath(source.lstrip("/")), place, into)
    changed = {path: replace(state, mode=mode or state.mode) for path, state in files.items()}
    return replace(recipe, steps=(*recipe.steps, changed))


def _copied(context: Files, source: str, place: str, into: bool) -> dict[str, FileState]:
    """A folder's contents go to `place`; a file goes into it, or becomes it."""
    found: dict[str, FileState] = {}
    for path, state in context.items():
        if source == "." or path.startswith(f"{source}/"):
            found[os.path.join(place, os.path.relpath(path, source))] = state
        elif fnmatch.fnmatch(path, source) and path.count("/") == source.count("/") and state.kind != "directory":
            found[os.path.join(place, os.path.basename(path)) if into else place] = state
    if not found and source not in context and source != ".":
        raise ValueError(f"there is no {source} in environment/")
    return found


FOLLOWED: Mapping[str, Callable[[Recipe, str, Files], Recipe]] = {
    "WORKDIR": _workdir,
    "ENV": _env,
    "RUN": _run_line,
    "COPY": _copy,
    "ADD": _copy,
    "ENTRYPOINT": _entrypoint,
}
