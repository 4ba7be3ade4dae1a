"""Plain subprocesses in a temporary folder, for machines where nothing better exists. This isolates nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from retort.sandboxes import init
from retort.sandboxes.base import Limits, SandboxError, SandboxStartupError
from retort.sandboxes.guest import Guest, MiB, configuration, demand

NOTHING = "plain subprocesses: nothing holds it for all of them together"


class UnsafeSandbox(Guest):
    """Commands run as you, on your files, with your network; only leftovers are cleaned up.

    Paths are real ones: the work folder is a temporary one, and `/work` does not exist.

    Raises:
        SandboxError: without `i_understand=True`.
    """

    def __init__(self, limits: Limits = Limits(), *, i_understand: bool = False) -> None:  # noqa: B008 (frozen)
        if not i_understand:
            raise SandboxError(
                "UnsafeSandbox isolates nothing: commands can read and delete your files and use your network. "
                "Use BwrapSandbox, or pass i_understand=True"
            )
        self._layers = dict.fromkeys(("namespaces", "network", "seccomp", "uid"), "inactive: plain subprocesses")
        self._layers |= {name: demand(limits, name, NOTHING) for name in ("memory_mb", "pids", "cpus", "disk_mb")}
        self.work = os.path.realpath(tempfile.mkdtemp(prefix="retort-unsafe-"))
        ours, theirs = socket.socketpair()
        env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": self.work, "LANG": "C.UTF-8", "PWD": self.work}
        config = configuration(limits, {"fd": theirs.fileno()}, self.work, [self.work], alone=False, env=env)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", init.__file__, config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=env,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            cwd="/",
        )
        theirs.close()
        try:
            ours.settimeout(30)
            init.receive(ours, MiB, json.loads)
        except (EOFError, OSError) as error:
            ours.close()
            self._process.kill()
            self._process.wait()
            os.rmdir(self.work)
            raise SandboxStartupError(f"the init did not start: {error!r}") from error
        super().__init__(limits, ours)

    def _kill(self) -> None:
        """Init cleans up by itself once its socket has closed."""
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.work, ignore_errors=True)  # already gone, unless init was killed

    def capabilities(self) -> Mapping[str, str]:
        return dict(self._layers)
