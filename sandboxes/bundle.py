"""A Python of ours that runs in any image, so that the same init serves images that have none.

This machine's own /usr/bin/python3, the modules that the init imports, a bash, and the libraries that these need, with
their dynamic loader: about 15 MB in the user's cache, made once. Started through that loader, it uses nothing of the
image's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from retort.sandboxes import init
from retort.sandboxes.base import SandboxUnavailable
from retort.sandboxes.guest import PYTHON

BASH = "/bin/bash"
LIST = """
import json, runpy, sys
runpy.run_path(sys.argv[1])
import encodings.utf_8, encodings.idna, encodings.ascii, encodings.latin_1
files = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
print(json.dumps([sys.executable, sys.prefix, files]))
"""


@dataclass(frozen=True)
class Bundle:
    """folder: what to mount, read-only. loader: the file in its `lib` that starts its programs."""

    folder: Path
    loader: str

    def command(self, mounted: str, program: str) -> list[str]:
        """How to start `bin/<program>` of the bundle."""
        return [f"{mounted}/lib/{self.loader}", "--library-path", f"{mounted}/lib", f"{mounted}/bin/{program}"]


def bundle(cache: Path | None = None) -> Bundle:
    """The bundle for this machine and this init, made where it is not there yet.

    Raises:
        SandboxUnavailable: this machine has no Python or bash to make it of.
    """
    for program in (PYTHON, BASH):
        if not os.access(program, os.X_OK):
            raise SandboxUnavailable(f"{program}, which runs inside, is missing: `apt-get install python3 bash`")
    source = Path(init.__file__).read_bytes()
    stamps = [os.stat(program) for program in (PYTHON, BASH)]
    told = repr([(stamp.st_size, stamp.st_mtime_ns) for stamp in stamps]).encode()
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retort"
    folder = cache / f"guest-{hashlib.sha256(source + told + LIST.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix="making-"))
        try:
            _make(made)
            made.chmod(0o755)
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else somebody else was faster
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return Bundle(folder, (folder / "loader").read_text())


def _make(folder: Path) -> None:
    """Raises SandboxUnavailable when the system's Python does not do what is asked of it."""
    asked = [PYTHON, "-I", "-S", "-c", LIST, init.__file__]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SandboxUnavailable(f"{PYTHON} cannot run the init of a sandbox: {done.stderr.strip()}")
    executable, prefix, files = json.loads(done.stdout)
    for name in ("bin", "lib"):
        (folder / name).mkdir()
    shutil.copy(executable, folder / "bin" / "python3")
    shutil.copy(BASH, folder / "bin" / "bash")
    shutil.copy(init.__file__, folder / "init.py")
    for file in files:
        if Path(file).is_relative_to(prefix):
            target = folder / Path(file).relative_to(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    loader = ""
    for binary in (executable, BASH, *(file for file in files if file.endswith(".so"))):
        for library in libraries(binary):
            shutil.copy(library, folder / "lib" / Path(library).name)
            if Path(library).name.startswith("ld-"):
                loader = Path(library).name
    (folder / "loader").write_text(loader)
    for path in folder.rglob("*"):  # whoever the container's user is
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def libraries(binary: str) -> list[str]:
    """What the dynamic loader would map for it, itself included; nothing for scripts and static programs."""
    said = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    lines = [[word for word in line.split() if word.startswith("/")] for line in said.splitlines()]
    return [words[0] for words in lines if words]
