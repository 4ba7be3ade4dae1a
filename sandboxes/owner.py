"""Names that tell a live supervisor from a dead one, so that a reaper takes nothing of the living."""

from __future__ import annotations

import os
from pathlib import Path


def owner(pid: int | None = None) -> str:
    """PID namespace, pid (default: one's own) and start time: no two of a machine share it. Empty for none."""
    pid = os.getpid() if pid is None else pid
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return f"{namespace}-{pid}-{stat.rpartition(')')[2].split()[19]}"


def is_dead(name: str) -> bool:
    """Whether `name` starts with the `owner` of a process of this PID namespace that is no more.

    False for whatever cannot be told from here: another namespace's, or a name that is not ours.
    """
    namespace, pid, *_ = [*name.split("-"), "", ""]
    if not pid.isdigit() or namespace != owner().split("-")[0]:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's
    try:
        told = owner(int(pid))
    except OSError:
        return False
    return bool(told) and not f"{name}-".startswith(f"{told}-")
