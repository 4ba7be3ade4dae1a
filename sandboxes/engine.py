"""A Docker engine of one's own, for machines that have the programs and no service that starts them: containers, CI."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retort.sandboxes.base import SandboxStartupError, SandboxUnavailable
from retort.sandboxes.docker import engine

START_S = 60.0
GROUP = "retort-engine"


@contextmanager
def private_engine(folder: Path) -> Iterator[str]:
    """Runs a dockerd, as root, that keeps all it has in `folder`, which goes with it; yields its DOCKER_HOST.

    It has no network: containers get none, and images cannot be pulled.

    Raises:
        SandboxUnavailable: there is no dockerd, or this is not root.
        SandboxStartupError: it does not come up; the message has the end of its log.
    """
    if os.geteuid() != 0:
        raise SandboxUnavailable("a Docker engine of one's own needs root; set DOCKER_HOST to one that runs")
    if shutil.which("dockerd") is None:
        raise SandboxUnavailable("dockerd is missing: `apt-get install docker.io`")
    folder.mkdir(parents=True)
    host, log = f"unix://{folder}/docker.sock", folder / "log"
    where = {"pidfile": "pid", "data-root": "data", "exec-root": "exec"}
    command = ["dockerd", "--host", host, *(f"--{name}={folder}/{place}" for name, place in where.items())]
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    command += ["--userland-proxy=false", "--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{GROUP}"]
    with open(log, "wb") as said:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    try:
        _wait(host, daemon, log)
        yield host
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(START_S)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for group in (*Path("/sys/fs/cgroup").glob(f"*/{GROUP}"), Path("/sys/fs/cgroup") / GROUP):
            with suppress(OSError):
                group.rmdir()


def _wait(host: str, daemon: subprocess.Popen[bytes], log: Path) -> None:
    why, deadline = SandboxUnavailable("it ended at once"), time.monotonic() + START_S
    while daemon.poll() is None and time.monotonic() < deadline:
        try:
            with engine(host):
                return
        except SandboxUnavailable as error:
            why = error
            time.sleep(0.1)
    raise SandboxStartupError(f"dockerd did not come up ({why}): {log.read_text(errors='replace')[-2000:]}")
