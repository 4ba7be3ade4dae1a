"""The system calls that no sandboxed process may make, as a compiled seccomp filter.

Everything else is allowed: namespaces, limits and the lack of capabilities hold the rest. Refused calls fail with
EPERM, or with ENOSYS where programs know to fall back. Calls of another architecture (32-bit, x32) kill the caller.
"""

from __future__ import annotations

import errno
import os
from functools import cache

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
    rules = sc.SyscallFilter(sc.ALLOW)
    forbid, absent = sc.ERRNO(errno.EPERM), sc.ERRNO(errno.ENOSYS)
    try:
        for name in FORBIDDEN:
            rules.add_rule(forbid, name)
        for name in ABSENT:
            rules.add_rule(absent, name)
        for name in ON_ONESELF:
            rules.add_rule(forbid, name, sc.Arg(0, sc.NE, 0))
        rules.add_rule(forbid, "setpriority", sc.Arg(1, sc.NE, 0))
        rules.add_rule(forbid, "setpriority", sc.Arg(0, sc.NE, 0))
        rules.add_rule(forbid, "ioprio_set", sc.Arg(1, sc.NE, 0))
        rules.add_rule(forbid, "ioprio_set", sc.Arg(0, sc.NE, 1))
        for flag in NEW_NAMESPACES:
            rules.add_rule(forbid, "clone", sc.Arg(0, sc.MASKED_EQ, flag, flag))
        for request in (TIOCSTI, TIOCLINUX):  # the kernel reads 32 bits, so must we
            rules.add_rule(forbid, "ioctl", sc.Arg(1, sc.MASKED_EQ, 0xFFFFFFFF, request))
        # Of the families only AF_UNIX (1), AF_INET (2) and AF_INET6: an empty network namespace does not hold AF_VSOCK.
        for call in ("socket", "socketpair"):
            for family in range(3, AF_INET6):
                rules.add_rule(forbid, call, sc.Arg(0, sc.EQ, family))
            rules.add_rule(forbid, call, sc.Arg(0, sc.GT, AF_INET6))
    except OSError as error:
        raise SandboxUnavailable(f"libseccomp does not know a call that must be refused: {error}") from error
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with open(fd, "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
