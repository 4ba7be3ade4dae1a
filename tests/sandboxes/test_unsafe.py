from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from retort.sandboxes.base import Limits, SandboxError, UnsupportedLimit
from retort.sandboxes.unsafe import UnsafeSandbox


def test_it_asks_for_an_acknowledgement() -> None:
    with pytest.raises(SandboxError, match="i_understand=True"):
        UnsafeSandbox()


@pytest.mark.parametrize("limits", [Limits(memory_mb=512), Limits(pids=64), Limits(disk_mb=64), Limits(cpus=1)])
def test_it_refuses_what_it_cannot_hold(limits: Limits) -> None:
    with pytest.raises(UnsupportedLimit, match="cannot be enforced"):
        UnsafeSandbox(limits, i_understand=True)


def test_it_claims_nothing() -> None:
    with UnsafeSandbox(i_understand=True) as sandbox:
        assert all(state.startswith("inactive") for state in sandbox.capabilities().values())


def test_its_folder_goes() -> None:
    with UnsafeSandbox(i_understand=True) as sandbox:
        sandbox.exec("mkdir -p a/b; touch a/b/c; chmod 000 a/b a")
        assert sandbox.exec("pwd").text.strip() == sandbox.work
    assert not os.path.exists(sandbox.work)


def test_a_killed_supervisor_leaves_nothing() -> None:
    script = (
        "import time\n"
        "from retort.sandboxes.unsafe import UnsafeSandbox\n"
        "sandbox = UnsafeSandbox(i_understand=True)\n"
        "sandbox.exec('(setsid sleep 600 > /dev/null 2>&1 & echo $! > daemon)')\n"
        "print(sandbox.work, sandbox.read_file('daemon').decode(), flush=True)\n"
        "time.sleep(60)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout
    with supervisor.stdout as out:
        work, daemon = out.readline().split()
        supervisor.kill()
        supervisor.wait()
    deadline = time.monotonic() + 10
    while (Path(work).exists() or Path(f"/proc/{daemon}").exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(work).exists()
    assert not Path(f"/proc/{daemon}").exists()
