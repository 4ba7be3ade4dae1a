"""Where a Harbor task is worked on and graded: a sandbox, and what its Dockerfile puts there.

With Docker the image is built from the task's own Dockerfile, once for each content. On bubblewrap, or on an image that
is named instead of the task's, the Dockerfile is followed inside of the sandbox at each reset: COPY, ENV, WORKDIR, RUN
and ENTRYPOINT, as far as they write where one may write. FROM then says nothing.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from retort.envs.base import UsageError
from retort.envs.harbor_dockerfile import Recipe, Run, read_dockerfile
from retort.envs.harbor_format import Files, HarborTask
from retort.envs.harbor_wants import Wants
from retort.sandboxes.base import ExecTimeout, FileState, Layout, Limits, Sandbox

HARBORS = ("/logs", "/solution", "/tests")  # folders that Harbor itself uses
REWARDS = ("/logs/verifier/reward.json", "/logs/verifier/reward.txt")
UP = "/logs/.up"
UP_S = 10.0  # seconds that an entrypoint may take until it runs its command
RUN_S = 600.0


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
    blank = dict.fromkeys((*REWARDS, "/logs/agent/.keep", "/logs/artifacts/.keep"), b"")
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


def typed(files: Files) -> str:
    """Shell lines that write the files of a solution, as somebody at the terminal could."""
    lines = ["mkdir -p /solution"]
    for name, state in files.items():
        path = shlex.quote(f"/solution/{name}")
        if state.kind == "directory":
            lines.append(f"mkdir -p {path}")
            continue
        if "/" in name:
            lines.append(f"mkdir -p {shlex.quote('/solution/' + name.rpartition('/')[0])}")
        lines.append(
            _writes(state.data, path) if state.kind == "file" else f"ln -s {shlex.quote(state.data.decode())} {path}"
        )
        if state.kind == "file" and state.mode & 0o100:
            lines.append(f"chmod +x {path}")
    return "\n".join(lines)


def _writes(data: bytes, path: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not data.endswith(b"\n") or any(ord(character) < 32 and character not in "\n\t" for character in text):
        escaped = "".join(f"\\0{byte:03o}" for byte in data)
        return f"printf '%b' '{escaped}' > {path}"
    word = "EOF"
    while f"\n{word}\n" in f"\n{text}":
        word += "F"
    return f"cat > {path} <<'{word}'\n{text}{word}"


def is_there(sandbox: Sandbox, path: str) -> bool:
    """Whether anything is at a path."""
    try:
        sandbox.list_dir(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True
