"""Dockerfiles as steps: hand-worked ones, and what is refused."""

from __future__ import annotations

import re

import pytest
from retort.envs.base import UsageError
from retort.envs.harbor_dockerfile import Recipe, Run, read_dockerfile
from retort.sandboxes.base import FileState

A, B = FileState("file", 0o644, b"a"), FileState("file", 0o600, b"b")
CONTEXT = {"a.txt": A, "d": FileState("directory", 0o755), "d/b.txt": B, "d/e/c.txt": A}


def read(text: str) -> Recipe:
    return read_dockerfile({**CONTEXT, "Dockerfile": FileState("file", 0o644, text.encode())}, "t")


def test_by_hand() -> None:
    recipe = read(
        '# a comment\nFROM ubuntu:24.04\nLABEL x=y\nENV A=1 B="two words"\nENV C three $A\nWORKDIR /app\n'
        'WORKDIR sub\nRUN echo one && \\\n    # not this\n    echo two\nRUN ["echo", "a b"]\n'
        'ENTRYPOINT ["x", "y"]\nCMD z\n'
    )
    assert recipe.workdir == "/app/sub"
    assert recipe.env == {"A": "1", "B": "two words", "C": "three 1"}
    assert recipe.steps == (Run("echo one && echo two", "/app/sub"), Run("echo 'a b'", "/app/sub"))
    assert recipe.entrypoint == ("x", "y")
    assert read("FROM x\nENTRYPOINT run it").entrypoint == ("sh", "-c", "run it")
    assert read("FROM x\nENV PATH=/app/bin:$PATH\n").env["PATH"].startswith("/app/bin:/usr/local/sbin:")


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("COPY a.txt /app/", {"/app/a.txt": A}),
        ("COPY a.txt .", {"/app/a.txt": A}),
        ("COPY a.txt name", {"/app/name": A}),
        ("ADD ./a.txt sub/", {"/app/sub/a.txt": A}),
        ("COPY d /app", {"/app/b.txt": B, "/app/e/c.txt": A}),
        ("COPY d/ /app/d/", {"/app/d/b.txt": B, "/app/d/e/c.txt": A}),
        ("COPY *.txt /tmp/", {"/tmp/a.txt": A}),
        ('COPY ["a.txt", "d/b.txt", "/x/"]', {"/x/a.txt": A, "/x/b.txt": B}),
        ("COPY --chmod=755 a.txt /x", {"/x": FileState("file", 0o755, b"a")}),
    ],
)
def test_copies(line: str, files: dict[str, FileState]) -> None:
    (step,) = read(f"FROM x\nWORKDIR /app\n{line}\n").steps
    assert not isinstance(step, Run)
    assert {path: state for path, state in step.items() if state.kind == "file"} == files


def test_a_whole_context() -> None:
    (step,) = read("FROM x\nWORKDIR /app\nCOPY . .\n").steps
    assert not isinstance(step, Run)
    assert set(step) == {"/app/a.txt", "/app/d", "/app/d/b.txt", "/app/d/e/c.txt", "/app/Dockerfile"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM x\nUSER me", "USER cannot be followed"),
        ("FROM x AS a\nFROM y", "several stages"),
        ("FROM x\nCOPY --from=a b c", "only --chmod can be followed"),
        ("FROM x\nCOPY none /x", "there is no none in environment/"),
        ("FROM x\nADD https://e.org/x /x", "archives and addresses"),
        ("FROM x\nADD a.tar.gz /x", "archives and addresses"),
        ("FROM x\nRUN --mount=type=cache,target=/x y", "options of RUN"),
        ("FROM x\nRUN <<EOF\nls\nEOF", "RUN cannot be followed"),
        ("FROM x\nRUN [oops", "Dockerfile: 'RUN [oops'"),
    ],
)
def test_what_cannot_be_followed(text: str, message: str) -> None:
    with pytest.raises(UsageError, match="^t: .*" + re.escape(message) + ".*sandbox='docker'"):
        read(text)


def test_dockerignore() -> None:
    files = {".dockerignore": A, "Dockerfile": A}
    with pytest.raises(UsageError, match="dockerignore"):
        read_dockerfile(files, "t")
