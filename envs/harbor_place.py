"""Where a Harbor task is worked on and graded: a sandbox, and what its Dockerfile puts there.

With Docker the image is built from the task's own Dockerfile, once for each content. On bubblewrap, or on an image that
is named instead of the task's, the Dockerfile is followed inside of the sandbox at each reset: COPY, ENV, WORKDIR, RUN
and ENTRYPOINT, as far as they write where one may write. FROM then says nothing.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import string
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from retort.envs.base import UsageError
from retort.envs.harbor_format import Files, HarborTask, Wants
from retort.sandboxes.base import ExecTimeout, FileState, Layout, Limits, Sandbox

HARBORS = ("/logs", "/solution", "/tests")  # folders that Harbor itself uses
REWARDS = ("/logs/verifier/reward.json", "/logs/verifier/reward.txt")
UP = "/logs/.up"
UP_S = 10.0  # seconds that an entrypoint may take until it runs its command
RUN_S = 600.0
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


@dataclass(frozen=True)
class Place:
    """sandbox, limits, layout: what is opened. recipe: what is done inside at each reset. seed: the work folder at the
    start, where an image holds it."""

    sandbox: str
    limits: Limits
    layout: Layout
    recipe: Recipe
    seed: bytes | None = None


def place_of(task: HarborTask, wants: Wants, sandbox: str) -> Place:
    """sandbox: "bwrap", "docker" for an image from the task's own Dockerfile, or "docker:IMAGE" instead of it.

    Raises:
        UsageError: the task cannot be had there; the message says why.
        SandboxUnavailable: its image cannot be built.
    """
    root = wants.root
    if root and not sandbox.startswith("docker"):
        raise UsageError(f"{task.name}: its agent is root, which it can be in a container alone: sandbox='docker'")
    recipe, seed = Recipe(), None
    if sandbox == "docker":
        sandbox, recipe, seed = _built(task, wants)
    elif "Dockerfile" in task.context:
        recipe = read_dockerfile(task.context, task.name)
    work = wants.workdir or recipe.workdir
    if not root and work == "/":
        raise UsageError(f"{task.name}: no WORKDIR: name one, or set retort_root")
    places = (*HARBORS, *wants.places)
    layout = Layout(work, () if root else places, root, {**recipe.env, **wants.env})
    return Place(sandbox, wants.limits, layout, replace(recipe, workdir=work), None if root else seed)


def prepare(place: Place, sandbox: Sandbox, name: str) -> None:
    """Makes a clean sandbox what the task starts from.

    Raises:
        UsageError: a line of the Dockerfile failed, or wrote where one may not write.
    """
    blank = {path: b"" for path in (*REWARDS, "/logs/agent/.keep", "/logs/artifacts/.keep")}
    sandbox.write_files(blank, mode=0o666)
    if place.seed is not None:
        sandbox.restore(place.seed)
    for step in place.recipe.steps:
        if isinstance(step, Run):
            _run(sandbox, step, name)
        else:
            try:
                put(sandbox, step)
            except OSError as error:
                raise UsageError(f"{name}: its Dockerfile copies to {error.filename}: {error.strerror}") from error
    if place.recipe.entrypoint:
        _start(sandbox, place.recipe.entrypoint)


def put(sandbox: Sandbox, files: Files) -> None:
    """Writes files, links and empty folders by absolute path. Raises OSError where one may not."""
    for path, state in files.items():
        if state.kind == "file":
            sandbox.write_file(path, state.data, mode=state.mode)
        else:
            command = ["mkdir", "-p", path] if state.kind == "directory" else ["ln", "-sfn", state.data.decode(), path]
            if sandbox.exec(command).exit_code:
                raise PermissionError(1, "cannot be made", path)


def _run(sandbox: Sandbox, step: Run, name: str) -> None:
    try:
        done = sandbox.exec(["sh", "-c", step.line], cwd=step.cwd, timeout=RUN_S)
    except (ExecTimeout, FileNotFoundError) as error:
        raise UsageError(f"{name}: RUN {step.line!r:.200} cannot be run here: {error}") from error
    if done.exit_code:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-400:]
        raise UsageError(f"{name}: RUN {step.line!r:.200} ended with {done.exit_code}: {said}")


def _start(sandbox: Sandbox, entrypoint: tuple[str, ...]) -> None:
    """Runs it behind, as Harbor does: its command is a sleep without end."""
    behind = '"$@" </dev/null >/dev/null 2>&1 &'
    last = ["bash", "-c", f": > {UP}; exec sleep infinity"]
    sandbox.exec(["bash", "-c", behind, "start", *entrypoint, *last])
    deadline = time.monotonic() + UP_S
    while os.path.basename(UP) not in sandbox.list_dir("/logs") and time.monotonic() < deadline:
        time.sleep(0.01)


def _built(task: HarborTask, wants: Wants) -> tuple[str, Recipe, bytes | None]:
    from retort.sandboxes.docker import described, files_of, image_of

    if wants.image is not None:
        image = wants.image
    else:
        with tempfile.TemporaryDirectory(prefix="retort-harbor-") as top:
            for path, state in task.context.items():
                _lay(Path(top) / path, state)
            image = image_of(Path(top))
    workdir, entrypoint = described(image)
    workdir = wants.workdir or workdir
    seed = files_of(image, workdir) if workdir != "/" and not wants.root else None
    return f"docker:{image}", Recipe(workdir, entrypoint=entrypoint), seed


def _lay(path: Path, state: FileState) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if state.kind == "directory":
        path.mkdir(exist_ok=True)
    elif state.kind == "link":
        path.symlink_to(os.fsdecode(state.data))
    else:
        path.write_bytes(state.data)
        path.chmod(state.mode)


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
    first, _, value = rest.partition(" ")
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
