"""What every backend must do, on each backend."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from retort.sandboxes.base import (
    ExecTimeout,
    Limits,
    OutputLimitExceeded,
    Preferred,
    Sandbox,
    SandboxClosed,
    UnsupportedLimit,
)
from retort.sandboxes.bwrap import BwrapSandbox
from retort.sandboxes.guest import Guest

NAP = f"{1000 + os.getpid()}"  # seconds that nobody else on this machine sleeps


def napping(sandbox: Guest, number: int) -> int:
    """How many processes inside sleep for NAP.number seconds; the pattern does not match itself."""
    count = (
        f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep [{NAP[0]}]{NAP[1:]}[.]{number}' | wc -l"
    )
    return int(sandbox.exec(count).stdout)


def test_is_a_sandbox(sandbox: Guest) -> None:
    assert isinstance(sandbox, Sandbox)


def test_exec(sandbox: Guest) -> None:
    result = sandbox.exec("cat; echo err >&2; echo $A; pwd; exit 3", stdin=b"in \xff\n", env={"A": "b"}, cwd="/tmp")
    assert result.stdout == b"in \xff\nb\n/tmp\n"
    assert result.stderr == b"err\n"
    assert result.exit_code == 3
    assert result.signal is None
    assert result.duration_s > 0
    assert sandbox.exec(["printf", "%s", "a b"]).stdout == b"a b"


def test_exec_starts_in_the_work_folder_and_keeps_no_state(sandbox: Guest) -> None:
    sandbox.exec("cd /; export A=1")
    assert sandbox.exec("echo [$A]").stdout == b"[]\n"
    sandbox.write_file("here", "x")
    assert sandbox.exec("ls").stdout == b"here\n"


def test_exec_large_stdin_that_nobody_reads(sandbox: Guest) -> None:
    assert sandbox.exec("true", stdin=b"x" * 1_000_000).exit_code == 0
    assert sandbox.exec("wc -c", stdin=b"x" * 500_000).stdout.strip() == b"500000"


def test_exec_of_what_is_not_there(sandbox: Guest) -> None:
    assert sandbox.exec(["no-such-program"]).exit_code == 127
    assert sandbox.exec("no-such-program").exit_code == 127
    with pytest.raises(FileNotFoundError):
        sandbox.exec("true", cwd="no/such/folder")


def test_exec_reports_a_signal(sandbox: Guest) -> None:
    result = sandbox.exec("kill -SEGV $$")
    assert (result.exit_code, result.signal) == (None, signal.SIGSEGV)


def test_exec_does_not_wait_for_what_holds_its_pipes(sandbox: Guest) -> None:
    assert sandbox.exec("sleep 30 & echo out", timeout=10).stdout == b"out\n"


def test_exec_timeout_ends_the_whole_tree(sandbox: Guest) -> None:
    with pytest.raises(ExecTimeout) as caught:
        sandbox.exec(f"echo before; (setsid sleep {NAP}.2 &) ; (trap '' TERM; sleep {NAP}.2) ", timeout=0.5)
    assert caught.value.partial.stdout == b"before\n"
    assert caught.value.partial.timed_out
    assert napping(sandbox, 2) == 0


def test_exec_check(sandbox: Guest) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        sandbox.exec("echo no; exit 5", check=True)
    assert (caught.value.returncode, caught.value.output) == (5, b"no\n")


def test_output_is_cut_and_endless_output_ends_the_command(make: Callable[..., Guest]) -> None:
    with make(Limits(output_bytes=1000)) as sandbox:
        result = sandbox.exec("head -c 5000 /dev/zero; echo fine >&2")
        assert (len(result.stdout), result.stdout_truncated) == (1000, True)
        assert (result.stderr, result.stderr_truncated, result.exit_code) == (b"fine\n", False, 0)
        endless = sandbox.exec("yes")
        assert endless.stdout == b"y\n" * 500
        assert endless.stdout_truncated
        assert not endless.timed_out
        with pytest.raises(OutputLimitExceeded):
            sandbox.exec("head -c 1001 /dev/zero", check=True)
        shown = sandbox.open_terminal().run("yes")
        assert shown.stdout == b"y\n" * 500
        assert shown.stdout_truncated


def test_files(sandbox: Guest) -> None:
    sandbox.write_file("a/b/c.txt", "né")
    sandbox.write_files({"x": b"\0\xff", "a/run": "#!/bin/sh\necho ran\n"}, mode=0o755)
    assert sandbox.read_file("a/b/c.txt") == "né".encode()
    assert sandbox.read_file("x") == b"\0\xff"
    assert sandbox.list_dir() == ["a", "x"]
    assert sandbox.exec("./a/run").stdout == b"ran\n"
    sandbox.exec("ln -s b/c.txt a/link; mkdir empty; mkfifo pipe; chmod 000 x empty")
    tree = sandbox.tree()
    assert {name: found.kind for name, found in tree.items()} == {
        "a": "directory",
        "a/b": "directory",
        "a/b/c.txt": "file",
        "a/link": "link",
        "a/run": "file",
        "empty": "directory",
        "pipe": "other",
        "x": "file",
    }
    assert (tree["x"].data, tree["x"].mode, tree["empty"].mode) == (b"\0\xff", 0, 0)
    assert tree["a/link"].data == b"b/c.txt"
    assert sandbox.tree("a/b").keys() == {"c.txt"}


def test_closed_folders_are_read_and_stay_closed(sandbox: Guest) -> None:
    sandbox.exec("mkdir -p a/b/c; echo x > a/b/c/f; chmod 000 a/b/c/f a/b/c a/b a")
    tree = sandbox.tree()
    assert {name: found.mode for name, found in tree.items()} == dict.fromkeys(("a", "a/b", "a/b/c", "a/b/c/f"), 0)
    assert tree["a/b/c/f"].data == b"x\n"
    assert sandbox.tree() == tree
    sandbox.restore(sandbox.snapshot())
    assert sandbox.tree() == tree


def test_a_closed_work_folder_is_an_error_not_an_end(bwrap: BwrapSandbox) -> None:
    bwrap.exec("chmod 000 .")
    with pytest.raises(PermissionError):
        bwrap.tree()
    bwrap.reset()
    assert bwrap.tree() == {}


def test_impossible_names_leave_the_sandbox_alive(sandbox: Guest) -> None:
    with pytest.raises(OSError, match="Invalid"):
        sandbox.read_file("a\0b")
    with pytest.raises(TypeError):
        sandbox.read_file(b"bytes")  # type: ignore[arg-type]
    sandbox.write_file("not-utf8-\udcff", b"x")
    assert sandbox.list_dir() == ["not-utf8-\udcff"]


def test_file_errors(sandbox: Guest) -> None:
    sandbox.exec("mkdir folder; mkfifo pipe; ln -s /dev/zero zero")
    with pytest.raises(FileNotFoundError):
        sandbox.read_file("none")
    with pytest.raises(IsADirectoryError):
        sandbox.read_file("folder")
    with pytest.raises(IsADirectoryError):
        sandbox.write_file("folder", b"")
    for name in ("pipe", "zero", "/proc/self/environ"):
        with pytest.raises(PermissionError):
            sandbox.read_file(name)
    with pytest.raises(NotADirectoryError):
        sandbox.list_dir("pipe")
    with pytest.raises(FileNotFoundError):
        sandbox.tree("none")


def test_writing_replaces_links_and_pipes(sandbox: Guest) -> None:
    sandbox.exec("echo kept > target; ln -s target link; mkfifo pipe; touch closed; chmod 000 closed")
    sandbox.write_files({"link": "new", "pipe": "new", "closed": "new"})
    assert sandbox.read_file("target") == b"kept\n"
    assert [sandbox.read_file(name) for name in ("link", "pipe", "closed")] == [b"new"] * 3


def test_a_sparse_file_is_not_taken_out(make: Callable[..., Guest], backend: str) -> None:
    with make(Limits(disk_mb=1)) if backend != "unsafe" else make() as sandbox:
        sandbox.exec("for i in $(seq 100); do truncate -s 1M big$i; done")
        with pytest.raises(OSError, match="large"):
            sandbox.tree()


def test_upload_and_download(sandbox: Guest, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "empty").mkdir(parents=True)
    (source / "deep" / "run").write_bytes(b"\xff")
    (source / "deep" / "run").chmod(0o755)
    sandbox.upload(source, "in")
    sandbox.upload(source / "deep" / "run", "single")
    sandbox.exec("ln -s deep/run in/link")
    assert sandbox.tree()["in/deep/run"].mode == 0o755
    sandbox.download("in", tmp_path / "out")
    assert (tmp_path / "out/deep/run").read_bytes() == b"\xff"
    assert (tmp_path / "out/deep/empty").is_dir()
    assert os.readlink(tmp_path / "out/link") == "deep/run"
    sandbox.download("single", tmp_path / "single")
    assert (tmp_path / "single").read_bytes() == b"\xff"
    for target in ("/etc", "../../x", "deep/../../x"):
        sandbox.exec(["ln", "-sfn", target, "in/link"])
        with pytest.raises(PermissionError, match="link"):
            sandbox.download("in", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_snapshot_and_restore(sandbox: Guest) -> None:
    sandbox.exec("mkdir -p d/e; echo one > d/f; chmod 400 d/f; ln -s d/f l; chmod 500 d; touch -d @1000 d/f")
    before = sandbox.tree()
    snapshot = sandbox.snapshot()
    sandbox.exec("chmod 700 d; rm -rf d; echo other > more")
    sandbox.restore(snapshot)
    assert sandbox.tree() == before
    assert sandbox.exec("stat -c %Y d/f").stdout == b"1000\n"
    with pytest.raises(ValueError, match="not a snapshot"):
        sandbox.restore(b"what")


def test_freeze_ends_everything(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    terminal.run(f"sleep {NAP}.3 & (setsid sleep {NAP}.3 &); echo kept > file")
    deadline = time.monotonic() + 10
    while napping(sandbox, 3) != 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert napping(sandbox, 3) == 2
    sandbox.freeze()
    assert sandbox.read_file("file") == b"kept\n"
    assert napping(sandbox, 3) == 0
    assert terminal.run("echo fresh").stdout == b"fresh\n"
    assert terminal.restarts == 1


def test_reset_leaves_nothing(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    terminal.run("export A=1; kill() { :; }; exec() { :; }; unset() { :; }; builtin() { :; }; alias ls=rm; cd /")
    terminal.run(f"(setsid sleep {NAP}.4 &); (trap '' TERM HUP INT; sleep {NAP}.4) & ")
    terminal.run("cd $HOME; mkdir -p a/b; touch a/b/c; chmod 000 a/b/c a/b a; chmod 000 .")
    sandbox.reset()
    assert sandbox.tree() == {}
    assert napping(sandbox, 4) == 0
    again = sandbox.open_terminal()
    assert again.run("echo [$A]; type kill | head -1; pwd").stdout.startswith(b"[]\nkill is a shell builtin\n")
    assert sandbox.exec("touch x && stat -c %a .").stdout == b"755\n"
    with pytest.raises(SandboxClosed):
        terminal.run("echo")


def test_reset_of_a_very_deep_folder(sandbox: Guest) -> None:
    script = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nopen('end', 'w')"
    sandbox.exec(["python3", "-c", script], check=True)
    with pytest.raises(OSError, match="long"):
        sandbox.tree()
    sandbox.reset()
    assert sandbox.tree() == {}


def test_close(make: Callable[..., Guest]) -> None:
    sandbox = make()
    terminal = sandbox.open_terminal()
    sandbox.close()
    sandbox.close()
    calls: list[Callable[[], object]] = [
        lambda: sandbox.exec("true"),
        lambda: sandbox.read_file("x"),
        lambda: sandbox.write_file("x", b""),
        sandbox.tree,
        sandbox.reset,
        sandbox.freeze,
        sandbox.snapshot,
        sandbox.open_terminal,
        lambda: terminal.run("true"),
        lambda: terminal.send("x"),
        terminal.screen,
    ]
    for call in calls:
        with pytest.raises(SandboxClosed):
            call()
    terminal.close()


def test_no_descriptor_is_left(make: Callable[..., Guest]) -> None:
    def use() -> None:
        with make() as sandbox:
            sandbox.exec("true")
            sandbox.open_terminal().run("exit")
            sandbox.reset()

    use()
    before = os.listdir("/proc/self/fd")
    use()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("field", ["memory_mb", "pids", "cpus", "disk_mb", "wall_s", "output_bytes", "file_bytes"])
def test_limits_are_above_zero(field: str) -> None:
    with pytest.raises(UnsupportedLimit, match=field):
        Limits(**{field: 0})


def test_network_is_none() -> None:
    with pytest.raises(UnsupportedLimit, match="none"):
        Limits(network="host")  # type: ignore[arg-type]


def test_file_bytes(make: Callable[..., Guest]) -> None:
    with make(Limits(file_bytes=1000)) as sandbox:
        sandbox.exec("head -c 5000 /dev/zero > big")
        assert len(sandbox.read_file("big")) == 1000
        with pytest.raises(OSError, match="large"):
            sandbox.write_file("other", b"x" * 1001)


def test_a_hundred_megabytes(make: Callable[..., Guest]) -> None:
    data = os.urandom(1 << 20) * 100
    with make(Limits(disk_mb=Preferred(128), memory_mb=Preferred(512))) as sandbox:
        sandbox.write_file("big", data)
        assert sandbox.exec("sha256sum < big").text.split()[0] == hashlib.sha256(data).hexdigest()
        assert sandbox.read_file("big") == data


def test_a_folder_of_too_much_is_not_taken_out(fence: Callable[..., Guest], tmp_path: Path) -> None:
    fill = "mkdir many; cd many; for d in $(seq 110); do mkdir $d; (cd $d; seq 1000 | xargs touch); done"
    with fence(Limits(disk_mb=None)) as sandbox:
        sandbox.exec(fill, timeout=60)
        with pytest.raises(OSError, match="too large"):
            sandbox.download("many", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_through_a_link_that_was_downloaded(sandbox: Guest, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    sandbox.exec(["sh", "-c", f"mkdir -p d; ln -s {outside} d/a; mkdir e; echo x > e/a"])
    with pytest.raises(PermissionError):
        sandbox.download("d", tmp_path / "out")
    sandbox.download("e", tmp_path / "out")
    assert list(outside.iterdir()) == []


class Name(StrEnum):
    FILE = "an enum"


def test_names_that_derive_from_text(sandbox: Guest) -> None:
    for name in (Name.FILE, np.str_("numpy's"), "plain"):
        sandbox.write_file(name, b"x")
        assert sandbox.exec(["cat", name]).stdout == b"x"
    assert sandbox.list_dir() == ["an enum", "numpy's", "plain"]
