"""Images without a registry: a folder with a Dockerfile, made of this machine's own programs.

For machines that cannot pull, and for tests and benchmarks, which must not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from retort.sandboxes.base import SandboxUnavailable
from retort.sandboxes.bundle import libraries

PROGRAMS = """
    basename cat chmod chown cp cut date dd df dirname echo env false head hostname id install ln ls mkdir mkfifo mknod
    mktemp mv nice nohup od pwd readlink realpath rm rmdir seq sha256sum sleep sort stat sync tail tee test timeout
    touch tr true truncate tty uname uniq wc yes [ printf
    awk bash cmp diff egrep find grep gzip kill less mount ps python3 prlimit renice sed setsid sh stty tar taskset tput
    unshare vi xargs
"""


def folder_of_this_machine(folder: Path, programs: Sequence[str] = tuple(PROGRAMS.split())) -> Path:
    """Fills `folder` with a Dockerfile and what it adds: these programs as far as they are here, and their libraries.

    python3 comes with its standard library. About 60 MB. Returns `folder`, which `DockerSandbox` takes as an image.

    Raises:
        SandboxUnavailable: this machine has no bash.
    """
    root = folder / "root"
    for name in ("bin", "etc", "tmp", "work"):
        (root / name).mkdir(parents=True, exist_ok=True)
    found = {name: path for name in programs if (path := shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin"))}
    if "bash" not in found:
        raise SandboxUnavailable("bash is missing: `apt-get install bash`")
    needed: set[str] = set()
    for name, path in found.items():
        shutil.copy(path, root / "bin" / name)  # what a link leads to
        needed |= set(libraries(path))
    if "python3" in found:
        asked = [found["python3"], "-I", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]
        where = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        left_out = shutil.ignore_patterns("test", "tests", "__pycache__", "idlelib", "tkinter", "ensurepip", "config-*")
        shutil.copytree(where, root / where.lstrip("/"), ignore=left_out, dirs_exist_ok=True, symlinks=False)
        # Python looks for its library beside its own place.
        (root / "usr" / "bin").mkdir(exist_ok=True)
        (root / "bin" / "python3").replace(root / "usr" / "bin" / "python3")
        for module in Path(where, "lib-dynload").glob("*.so"):
            needed |= set(libraries(str(module)))
    for path in needed:
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for data in ("/lib/terminfo", "/usr/share/terminfo", "/usr/lib/locale/C.utf8"):
        if os.path.isdir(data):
            shutil.copytree(data, root / data.lstrip("/"), dirs_exist_ok=True, symlinks=True)
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/bash\nagent:x:199000:199000::/work:/bin/bash\n")
    (root / "etc" / "group").write_text("root:x:0:\nagent:x:199000:\n")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY root /\n")
    return folder


def add_logins(folder: Path) -> None:
    """Adds to a folder made by `folder_of_this_machine` what programs such as useradd and runuser need to know users.

    Raises:
        SandboxUnavailable: this machine has no PAM.
    """
    root = folder / "root"
    modules = sorted(path for path in Path("/").glob("lib/*/security/pam_*.so"))
    if not modules or not Path("/etc/pam.d").is_dir():
        raise SandboxUnavailable("PAM is missing: `apt-get install libpam-modules passwd`")
    shutil.copytree("/etc/pam.d", root / "etc" / "pam.d", dirs_exist_ok=True)
    for path in {*map(str, modules), *(library for module in modules for library in libraries(str(module)))}:
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for path in ("/etc/login.defs", "/etc/nsswitch.conf", "/etc/security"):
        if os.path.isdir(path):
            shutil.copytree(path, root / path.lstrip("/"), dirs_exist_ok=True)
        elif os.path.exists(path):
            shutil.copy(path, root / path.lstrip("/"))
    for name in ("shadow", "gshadow"):
        (root / "etc" / name).write_text("root:*::::::\n" if name == "shadow" else "root:*::\n")
    for name in ("home", "root", "usr/local/bin", "var"):
        (root / name).mkdir(parents=True, exist_ok=True)
