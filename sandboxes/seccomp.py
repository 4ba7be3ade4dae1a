"""The system calls that no sandboxed process may make: as a compiled seccomp filter, and as Docker's profile.

Everything else is allowed: namespaces, limits and the lack of capabilities hold the rest. Refused calls fail with
EPERM, or with ENOSYS or EAFNOSUPPORT where programs know to fall back. Calls of another architecture (32-bit, x32) kill
the caller.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from retort.sandboxes.base import SandboxUnavailable

# Tracing and reaching into other processes, kernel keys, mounts and namespaces, loading code into the kernel.
FORBIDDEN = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "pidfd_getfd",
    "kcmp",
    "add_key",
    "request_key",
    "keyctl",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "unshare",
    "setns",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "open_by_handle_at",
    "name_to_handle_at",
    "quotactl",
    "swapon",
    "swapoff",
    "reboot",
    "acct",
    "syslog",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
]

# IPC that would outlive its processes, and calls with a usual fallback.
ABSENT = [
    "shmget",
    "shmat",
    "shmctl",
    "semget",
    "semop",
    "semtimedop",
    "semctl",
    "msgget",
    "msgsnd",
    "msgrcv",
    "msgctl",
    "mq_open",
    "mq_unlink",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "clone3",
]

# Calls that may name another process first: allowed on oneself (0) alone, so that PID 1 is left in peace.
ON_ONESELF = ["prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"]

NEW_NAMESPACES = (0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
AF_INET6 = 10


@dataclass(frozen=True)
class Rule:
    """`call` fails with `error` where its argument number `place` is as told; `place` None: always.

    test: NE or EQ or GT `value`, or MASKED_EQ: the bits of `mask` are those of `value`.
    """

    call: str
    error: int = errno.EPERM
    place: int | None = None
    test: Literal["NE", "EQ", "GT", "MASKED_EQ"] = "EQ"
    value: int = 0
    mask: int = 0


def rules() -> Iterator[Rule]:
    """All that is refused."""
    for name in FORBIDDEN:
        yield Rule(name)
    for name in ABSENT:
        yield Rule(name, errno.ENOSYS)
    for name in ON_ONESELF:
        yield Rule(name, place=0, test="NE")
    yield Rule("setpriority", place=1, test="NE")
    yield Rule("setpriority", place=0, test="NE")
    yield Rule("ioprio_set", place=1, test="NE")
    yield Rule("ioprio_set", place=0, test="NE", value=1)
    for flag in NEW_NAMESPACES:
        yield Rule("clone", place=0, test="MASKED_EQ", value=flag, mask=flag)
    for request in (TIOCSTI, TIOCLINUX):  # the kernel reads 32 bits, so must we
        yield Rule("ioctl", place=1, test="MASKED_EQ", value=request, mask=0xFFFFFFFF)
    # Of the families only AF_UNIX (1), AF_INET (2) and AF_INET6: an empty network namespace does not hold AF_VSOCK.
    # They look like families that the kernel does not have, which useradd and others know how to do without.
    for call in ("socket", "socketpair"):
        for family in range(3, AF_INET6):
            yield Rule(call, errno.EAFNOSUPPORT, place=0, value=family)
        yield Rule(call, errno.EAFNOSUPPORT, place=0, test="GT", value=AF_INET6)


@cache
def program() -> bytes:
    """The filter for this machine, as `bwrap --seccomp` takes it.

    Raises:
        SandboxUnavailable: libseccomp is missing, or too old to know a call that must be refused.
    """
    try:
        import pyseccomp as sc
    except (ImportError, RuntimeError) as error:
        raise SandboxUnavailable(
            f"seccomp cannot be used ({error}): `apt-get install libseccomp2` and `pip install pyseccomp`"
        ) from error
    made = sc.SyscallFilter(sc.ALLOW)
    try:
        for rule in rules():
            values = (rule.mask, rule.value) if rule.test == "MASKED_EQ" else (rule.value,)
            tests = [] if rule.place is None else [sc.Arg(rule.place, getattr(sc, rule.test), *values)]
            made.add_rule(sc.ERRNO(rule.error), rule.call, *tests)
    except OSError as error:
        raise SandboxUnavailable(f"libseccomp does not know a call that must be refused: {error}") from error
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with open(fd, "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


@cache
def profile() -> str:
    """The same filter as JSON, as Docker's `--security-opt seccomp=` takes it."""
    machine = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}.get(os.uname().machine)
    listed = []
    for rule in rules():
        entry: dict[str, object] = {"names": [rule.call], "action": "SCMP_ACT_ERRNO", "errnoRet": rule.error}
        if rule.place is not None:
            values = (rule.mask, rule.value) if rule.test == "MASKED_EQ" else (rule.value, 0)
            test = {"index": rule.place, "op": f"SCMP_CMP_{rule.test}", "value": values[0], "valueTwo": values[1]}
            entry["args"] = [test]
        listed.append(entry)
    architectures = {"architectures": [machine]} if machine else {}
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", **architectures, "syscalls": listed})
