"""The same tests of bubblewrap once more, as a user who is not root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from shlex import quote

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65_534


def closed_to_others(path: Path) -> Path | None:
    """The topmost folder on the way to `path` that others may not enter."""
    return next((folder for folder in reversed((path, *path.parents)) if not folder.stat().st_mode & 0o001), None)


def opened(needed: list[Path]) -> str:
    """A script for a mount namespace of its own: folders that others may not enter are covered by empty ones, in which
    nothing but what is needed is mounted again."""
    tops = {path: top for path in needed if (top := closed_to_others(path))}
    lines = ["set -e", "mount -t tmpfs none /mnt"]
    for number, path in enumerate(tops):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {quote(str(path))} /mnt/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {quote(str(top))}" for top in dict.fromkeys(tops.values())]
    for number, path in enumerate(tops):
        lines += [f"mkdir -p {quote(str(path))}", f"mount --bind /mnt/{number} {quote(str(path))}"]
    return "\n".join([*lines, f'exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --no-new-privs "$@"'])


def as_nobody(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this virtual environment as a user who is not root."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)}
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
        script = opened([home, ROOT, Path(sys.prefix), Path(sys.base_prefix)])
        command = ("unshare", "--mount", "sh", "-c", script, "sh", *command)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)


def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    done = as_nobody(tmp_path, sys.executable, "-m", "retort", "doctor", "--json")
    assert not done.returncode, done.stderr
    (isolation,) = (found for found in json.loads(done.stdout) if found["name"] == "isolation")
    assert not isolation["present"]
    assert "without root the sandbox runs as your own user" in isolation["advice"]


@pytest.mark.slow
def test_bubblewrap_passes_its_tests(tmp_path: Path) -> None:
    # Nothing counts the memory of all processes together there, nor what files without content take.
    names = ("conformance", "terminal", "attacks", "fences", "bwrap", "pool", "verifier")
    chosen = " and ".join(
        ["not docker and not unsafe", *(f"not ({word})" for word in ("many", "inodes", "unconfined"))]
    )
    files = [f"tests/sandboxes/test_{name}.py" for name in names]
    done = as_nobody(tmp_path, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert all(
        "holds with root alone" in line or "no cgroups may be made here" in line
        for line in done.stdout.splitlines()
        if line.startswith("SKIPPED")
    ), done.stdout[-3000:]
