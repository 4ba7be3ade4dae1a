"""Another work folder, further places, and a machine to be root of: what a layout changes, and what it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from retort.sandboxes.base import Layout, Limits, SandboxClosed, SandboxUnavailable, UnsupportedLimit
from retort.sandboxes.bwrap import BwrapSandbox
from retort.sandboxes.docker import DockerSandbox, described, files_of, image_of
from retort.sandboxes.guest import Guest
from retort.sandboxes.named import open_sandbox


@pytest.fixture(scope="session", params=["bwrap", "docker"])
def laid(request: pytest.FixtureRequest) -> Callable[[Layout], Guest]:
    """Starts a sandbox with a layout, of each backend that has any."""
    if request.param == "bwrap":
        return lambda layout: BwrapSandbox(Limits(), layout)
    image = request.getfixturevalue("docker_image")
    return lambda layout: DockerSandbox(image, Limits(), layout)


def test_another_work_folder_and_places(laid: Callable[[Layout], Guest]) -> None:
    layout = Layout("/home/agent", ("/home", "/logs"), env={"COLOR": "red", "PATH": "/home/agent/bin:/usr/bin:/bin:."})
    with laid(layout) as sandbox:
        for _ in range(2):
            assert sandbox.exec("pwd; echo $HOME $COLOR $PATH").text == "/home/agent\n/home/agent red /usr/bin:/bin\n"
            assert sandbox.open_terminal().run("pwd; cd ~; pwd").text == "/home/agent\n/home/agent\n"
            assert sandbox.exec("touch a /home/b /logs/c /tmp/d && mkdir -p /home/user/deep").exit_code == 0
            assert sandbox.exec("touch /work/x || touch /x || touch /etc/x").exit_code == 1
            assert set(sandbox.tree()) == {"a"}
            taken = sandbox.snapshot()
            sandbox.reset()
            assert sandbox.exec("find /home /logs /tmp -mindepth 1").text == "/home/agent\n"
            sandbox.restore(taken)
            assert set(sandbox.tree()) == {"a"}
            sandbox.exec("cd /; rm -r /home/agent; ln -s /etc /home/agent")
            sandbox.reset()
            assert sandbox.list_dir() == []


@pytest.mark.parametrize("path", ["work", "/", "/usr/x", "/a/../b", "/etc", "/proc/1", "/.retort"])
def test_folders_that_cannot_be_writable(path: str) -> None:
    with pytest.raises(UnsupportedLimit, match="expected the absolute path of a folder that may be made writable"):
        Layout(places=(path,))


def test_writable_folders_do_not_lie_in_one_another() -> None:
    assert Layout("/a/b", ("/a", "/a/c", "/ab")).scratch == ("/a", "/ab", "/dev/shm", "/tmp")
    assert Layout().scratch == ("/dev/shm", "/tmp", "/work")


def test_root_of_a_machine(docker_image: Path) -> None:
    with DockerSandbox(docker_image, Limits(), Layout("/root", root=True)) as sandbox:
        assert sandbox.exec("id -u; pwd; echo $HOME $USER").text == "0\n/root\n/root root\n"
        assert sandbox.exec("echo hi > /etc/motd && chmod 600 /etc/motd && chown 7:7 /etc/motd").exit_code == 0
        # Root inside, and yet: not of the kernel, the mounts, the devices, the network, PID 1 or the bundle.
        for attack in (
            "mount -t tmpfs none /mnt", "mknod /tmp/disk b 8 0", "echo 1 > /proc/sys/kernel/panic", "hostname other",
            "cat /proc/1/environ", "cat /proc/1/mem", "readlink /proc/1/exe", "cat < /proc/1/fd/0", "touch /.retort/x",
            "python3 -c 'import os; os.chroot(\"/\")'", "python3 -c 'import socket; socket.socket(17, 3)'",
        ):  # fmt: skip
            assert sandbox.exec(attack).exit_code, attack
        sandbox.exec("kill -9 1; kill -STOP 1; kill -9 -1")
        asked = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status | cut -f2"
        assert sandbox.exec(asked).text.split() == ["00000000000000fb", "1", "2"]
        held = sandbox.capabilities()
        assert held["seccomp"] == held["network"] == held["memory_mb"] == "active"
        assert {name for name, said in held.items() if said.startswith("inactive")} >= {
            "uid",
            "read-only root",
            "disk_mb",
        }
        with pytest.raises(SandboxClosed, match="only a new container is clean"):
            sandbox.reset()
    with DockerSandbox(docker_image, Limits(), Layout("/root", root=True)) as sandbox:
        assert sandbox.exec("cat /etc/motd").exit_code == 1


def test_what_has_no_layout() -> None:
    with pytest.raises(SandboxUnavailable, match="no machine to be root of"):
        BwrapSandbox(Limits(), Layout(root=True))
    with pytest.raises(SandboxUnavailable, match="a layout needs bwrap or docker:IMAGE"):
        open_sandbox("unsafe", Limits(), Layout("/app"))
    with open_sandbox("bwrap", Limits(), Layout("/app")) as sandbox:
        assert sandbox.exec("pwd").text == "/app\n"


def test_a_disk_limit_that_a_machine_cannot_hold(docker_image: Path) -> None:
    with pytest.raises(UnsupportedLimit, match="disk_mb=16 cannot be enforced"):
        DockerSandbox(docker_image, Limits(disk_mb=16), Layout(root=True))


def test_what_an_image_holds(docker_image: Path, tmp_path: Path) -> None:
    base = image_of(docker_image)
    (tmp_path / "run.sh").write_text("echo hi\n")
    os.chmod(tmp_path / "run.sh", 0o755)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base}\nWORKDIR /app\nCOPY run.sh deep/run.sh\n"
        'RUN ln -s deep/run.sh link && mkdir empty\nENTRYPOINT ["sh"]\n'
    )
    image = image_of(tmp_path)
    assert described(image) == ("/app", ("sh",))
    assert described(base) == ("/", ())
    with BwrapSandbox() as sandbox:
        sandbox.restore(files_of(image, "/app"))
        found = sandbox.tree()
        assert {name: state.kind for name, state in found.items()} == {
            "deep": "directory", "deep/run.sh": "file", "empty": "directory", "link": "link",
        }  # fmt: skip
        assert (found["deep/run.sh"].mode, found["deep/run.sh"].data) == (0o755, b"echo hi\n")
        sandbox.restore(files_of(image, "/nowhere"))
        assert sandbox.tree() == {}
    with pytest.raises(SandboxUnavailable, match="is not here and cannot be pulled"):
        described("retort-no-such-image")


def test_a_big_limit_and_little_memory_read_a_small_file() -> None:
    """What may be read is bounded by the disk; what is asked of the memory, by the file."""
    with BwrapSandbox(Limits(memory_mb=64, disk_mb=1024)) as sandbox:
        sandbox.write_file("small", "x")
        assert sandbox.read_file("small") == b"x"
        assert set(sandbox.tree()) == {"small"}
