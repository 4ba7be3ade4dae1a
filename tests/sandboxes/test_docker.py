"""What is Docker's alone; the rest is in the suites that all backends share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from retort.sandboxes import docker as module
from retort.sandboxes.base import Limits, SandboxClosed, SandboxStartupError, SandboxUnavailable, UnsupportedLimit
from retort.sandboxes.bundle import bundle
from retort.sandboxes.docker import LABEL, DockerSandbox, engine, layers, sweep
from retort.sandboxes.guest import Guest
from retort.sandboxes.images import folder_of_this_machine
from retort.sandboxes.owner import owner

INFO = {"MemoryLimit": True, "PidsLimit": True, "CpuCfsQuota": True, "SecurityOptions": ["name=seccomp"]}


def containers() -> list[str]:
    with engine() as client:
        found = client.containers.list(all=True, filters={"label": LABEL})
        return [container.id for container in found if container.labels[LABEL] == owner()]


def test_every_layer_is_active(docker: Callable[..., Guest]) -> None:
    with docker(Limits(cpus=1)) as sandbox:
        assert set(sandbox.capabilities().values()) == {"active"}
        status = sandbox.exec("grep -E '^(Uid|NoNewPrivs|Seccomp|CapBnd|CapEff):' /proc/self/status").text.split()
        assert status == [
            *("Uid:", "199000", "199000", "199000", "199000"),
            *("CapEff:", "0000000000000000", "CapBnd:", "0000000000000000"),
            *("NoNewPrivs:", "1", "Seccomp:", "2"),
        ]


def test_an_image_without_python_and_bash(docker_host: str, tmp_path: Path) -> None:
    folder = folder_of_this_machine(tmp_path, ["bash", "cat", "sleep"])
    (folder / "root/bin/bash").unlink()
    with DockerSandbox(folder) as sandbox:
        assert sandbox.exec("echo $((6 * 7)); cat", stdin=b"in").stdout == b"42\nin"
        assert sandbox.open_terminal().run("x=1; echo $x; pwd").stdout == b"1\n/work\n"
        assert sandbox.exec(["python3"]).exit_code == 127


def test_an_image_has_its_environment(docker_host: str, docker_image: Path, tmp_path: Path) -> None:
    with engine() as client:
        name = module.build(client, docker_image)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {name}\nENV KEY=value HOME=/elsewhere PATH=/work/bin::/bin:.\nVOLUME /mnt\n"
    )
    with DockerSandbox(tmp_path) as sandbox:
        assert sandbox.exec("echo $KEY $HOME").stdout == b"value /work\n"
        assert sandbox.exec("touch /mnt/x").exit_code == 1
        assert sandbox.exec("echo $PATH").stdout == b"/bin\n"
    (tmp_path / "Dockerfile").write_text(f"FROM {name}\nENV PATH=/work/bin:.\n")
    with DockerSandbox(tmp_path) as sandbox:
        assert sandbox.exec("echo $PATH").stdout.startswith(b"/usr/local/sbin:")
    with engine() as client:
        assert client.volumes.list() == []


def test_a_closed_container_is_gone(docker: Callable[..., Guest]) -> None:
    before = containers()
    with docker() as sandbox:
        assert len(containers()) == len(before) + 1
    assert containers() == before
    sandbox.close()


def test_a_container_that_somebody_removes_is_a_closed_sandbox(docker: Callable[..., Guest]) -> None:
    before = set(containers())
    sandbox = docker()
    with engine() as client:
        client.api.remove_container((set(containers()) - before).pop(), force=True)
    with pytest.raises(SandboxClosed):
        sandbox.exec("true")
    sandbox.close()


def test_sweeping_takes_the_dead_ones_alone(docker: Callable[..., Guest], docker_image: Path) -> None:
    namespace, pid, start = owner().split("-")
    labels = {"dead": f"{namespace}-{pid}-{int(start) - 1}", "elsewhere": f"1{namespace}-{pid}-{start}", "other": "x"}
    with docker() as sandbox, engine() as client:
        image = module.build(client, docker_image)
        made = {
            name: client.containers.create(image, ["true"], labels={LABEL: label}) for name, label in labels.items()
        }
        try:
            sweep(client)
            left = {container.id for container in client.containers.list(all=True)}
            assert {name for name, container in made.items() if container.id in left} == {"elsewhere", "other"}
            assert sandbox.exec("echo alive").stdout == b"alive\n"
        finally:
            for name in ("elsewhere", "other"):
                made[name].remove(force=True)


def test_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(SandboxUnavailable, match=r"apt-get install docker.io.*BwrapSandbox"):
        DockerSandbox("image")


def test_no_such_image(docker_host: str) -> None:
    with pytest.raises(SandboxUnavailable, match=r"'retort-no-such-image' is not here and cannot be pulled"):
        DockerSandbox("retort-no-such-image")


def test_folders_that_cannot_be_built(docker_host: str, tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="expected a folder with a Dockerfile"):
        DockerSandbox(tmp_path)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY nothing /\n")
    with pytest.raises(SandboxUnavailable, match=r"cannot be built.*nothing"):
        DockerSandbox(tmp_path)


def test_an_init_that_fails_says_why_and_its_container_is_removed(
    docker: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = containers()
    monkeypatch.setattr(module, "configuration", lambda *_, **__: "not hexadecimal")
    with pytest.raises(SandboxStartupError, match=r"did not start: Traceback(.|\n)*ValueError"):
        docker()
    assert containers() == before


def test_a_container_that_cannot_start_is_removed(
    docker: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, made = containers(), replace(bundle(), loader="nothing")
    monkeypatch.setattr(module, "bundle", lambda: made)
    with pytest.raises(SandboxStartupError, match=r"did not start(.|\n)*nothing"):
        docker()
    assert containers() == before


@pytest.mark.parametrize(
    ("feature", "limits"), [("MemoryLimit", Limits(memory_mb=64)), ("CpuCfsQuota", Limits(cpus=1))]
)
def test_a_limit_that_the_engine_lacks_is_refused(feature: str, limits: Limits) -> None:
    with pytest.raises(UnsupportedLimit, match=feature):
        layers(limits, {**INFO, feature: False})
    assert layers(Limits(), {**INFO, feature: False}).keys() == layers(limits, INFO).keys()


def test_the_bundle_is_made_once_and_runs(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    assert bundle(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == [made.folder.name]
    asked = [*made.command(str(made.folder), "python3"), "-I", "-S", "-c", "import ctypes, sys; print(sys.prefix)"]
    done = subprocess.run(asked, capture_output=True, text=True, env={}, check=True)
    assert done.stdout.strip() == str(made.folder)
    assert done.stderr == ""
