"""Sandboxes by Docker, for images and for teams that already run an engine.

A container runs our own init, as the bubblewrap sandbox does, from a bundle mounted into it, and the supervisor talks
to it over a socket that is mounted beside it: a warm command costs a message instead of a `docker exec`. The engine
must share this machine's file system. The root file system is read-only; /work, /tmp and /dev/shm are sized tmpfs. A
layout may ask for other folders, or for a machine that its user is root of.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retort.sandboxes import init, seccomp
from retort.sandboxes.base import Layout, Limits, SandboxClosed, SandboxError, SandboxStartupError, SandboxUnavailable
from retort.sandboxes.bundle import bundle
from retort.sandboxes.guest import Guest, MiB, archive, configuration, demand
from retort.sandboxes.owner import is_dead, owner

if TYPE_CHECKING:
    import docker

START_S = 60.0
UID = 199_000  # nobody's on the host; the same in every container, so that all look alike
OURS = "/.retort"
# What root of a container may do to its own files and users; nothing that reaches the kernel, the host or PID 1.
ROOT = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
LABEL = "retort.owner"
PREFIX = "retort-docker-"
NUMBERS = itertools.count()
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ADVICE = (
    "`apt-get install docker.io` and start the engine, or set DOCKER_HOST. BwrapSandbox works without one where no "
    "image is needed"
)


class DockerSandbox(Guest):
    """A container with a warm init in it.

    image: the name of an image (pulled where it is not here), or a folder with a Dockerfile, which is built.

    Raises:
        SandboxUnavailable: no engine answers, or the image cannot be had; the message has the engine's words.
        UnsupportedLimit: this engine cannot enforce a limit.
        SandboxStartupError: the container did not start.
    """

    def __init__(
        self,
        image: str | Path,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        layout: Layout = Layout(),  # noqa: B008 (frozen)
    ) -> None:
        with engine() as client, _listener() as (listener, place):
            self._root = layout.root
            self._layers = layers(limits, client.info(), root=layout.root)
            sweep(client)
            image = build(client, image) if isinstance(image, Path) else image
            container = _create(client, image, limits, layout, place)
            self._id: str = container.id
            said = container.attach(stream=True)  # before it starts: once it has ended there is nothing left to ask
            try:
                container.start()
                ours = _accept(listener, container)
                ours.settimeout(START_S)
                init.receive(ours, MiB, json.loads)
            except BaseException as error:
                self._kill()
                if not isinstance(error, _failures()):
                    raise
                words = b"".join(said).decode(errors="replace").strip()[-2000:]
                raise SandboxStartupError(f"the container of {image} did not start: {words or error}") from error
            finally:
                said.close()
        super().__init__(limits, ours)

    def _kill(self) -> None:
        from docker.errors import APIError, NotFound

        with engine() as client:
            try:
                client.api.remove_container(self._id, force=True, v=True)
            except NotFound:
                pass  # it has gone by itself, as it does when its socket closes
            except APIError as error:
                if error.status_code != 409:  # its removal is on the way
                    raise SandboxError(f"the engine did not remove a container: {error}") from error
                with contextlib.suppress(NotFound):
                    client.api.wait(self._id, condition="removed", timeout=START_S)

    def reset(self) -> None:
        if self._root:
            self.close()
            raise SandboxClosed("whoever was inside was root of the whole machine: only a new container is clean")
        super().reset()

    def _oom_kills(self) -> int:
        count: int = self._ask("oom_kills")[0]
        return count

    def capabilities(self) -> Mapping[str, str]:
        return dict(self._layers)


@contextlib.contextmanager
def engine(host: str | None = None) -> Iterator[docker.DockerClient]:
    """The engine at `host`, or that which the environment names (DOCKER_HOST, or the usual socket), while needed.

    Raises:
        SandboxUnavailable: the package is missing, or nothing answers.
    """
    try:
        import docker
    except ImportError as error:
        raise SandboxUnavailable("the docker package is missing: `pip install 'retort-rl[docker]'`") from error
    try:
        client = docker.DockerClient(base_url=host) if host else docker.from_env()  # which asks for its version
    except (docker.errors.DockerException, OSError) as error:
        raise SandboxUnavailable(f"no Docker engine answers ({error}): {ADVICE}") from error
    with contextlib.closing(client):
        yield client


def build(client: docker.DockerClient, folder: Path) -> str:
    """The name of the image that a folder with a Dockerfile describes; built once for each content.

    Raises:
        SandboxUnavailable: there is no Dockerfile, or it cannot be built; the message has the end of what was said.
    """
    from docker.errors import APIError, BuildError, ImageNotFound

    if not (folder / "Dockerfile").is_file():
        raise SandboxUnavailable(f"{folder}: expected a folder with a Dockerfile")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()):
        data = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        digest.update(repr((str(path.relative_to(folder)), path.lstat().st_mode, len(data))).encode() + data)
    name = f"retort-built:{digest.hexdigest()[:16]}"
    try:
        client.images.get(name)
    except ImageNotFound:
        try:
            client.images.build(path=str(folder), tag=name, rm=True, forcerm=True)
        except BuildError as error:
            said = "".join(str(line.get("stream", "")) for line in error.build_log)
            raise SandboxUnavailable(f"{folder} cannot be built: {error}\n{said[-2000:]}") from error
        except APIError as error:
            raise SandboxUnavailable(f"{folder} cannot be built: {error}") from error
    return name


def image_of(folder: Path) -> str:
    """As `build`, with the engine of the environment."""
    with engine() as client:
        return build(client, folder)


def described(image: str) -> tuple[str, tuple[str, ...]]:
    """An image's working folder ("/" where it names none) and its entrypoint.

    Raises:
        SandboxUnavailable: it is not here and cannot be pulled.
    """
    with engine() as client:
        config = _found(client, image).attrs["Config"]
        return config.get("WorkingDir") or "/", tuple(config.get("Entrypoint") or ())


def files_of(image: str, path: str) -> bytes:
    """What an image holds in a folder, as an archive that `Sandbox.restore` takes; nothing where there is no such one.

    Raises:
        SandboxUnavailable: the image is not here and cannot be pulled.
    """
    from docker.errors import NotFound

    with engine() as client:
        container = client.containers.create(_found(client, image).id, ["none"], network_mode="none")
        try:
            data = b"".join(container.get_archive(path)[0])
        except NotFound:
            return archive([])
        finally:
            container.remove(v=True)
    entries: list[tuple[str, str, int, int, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            name = info.name.partition("/")[2]
            kind = "directory" if info.isdir() else "link" if info.issym() else "file"
            if not name or not (info.isdir() or info.issym() or info.isfile() or info.islnk()):
                continue
            file = tar.extractfile(info) if kind == "file" else None
            entries.append(
                (name, kind, info.mode, int(info.mtime) * 10**9, file.read() if file else info.linkname.encode())
            )
    return archive(entries)


def sweep(client: docker.DockerClient) -> None:
    """Remove what dead supervisors of this machine left behind: containers, and folders of sockets."""
    from docker.errors import APIError

    for found in client.api.containers(all=True, filters={"label": LABEL}):
        if is_dead(found["Labels"][LABEL]):
            with contextlib.suppress(APIError):  # another supervisor sweeps too
                client.api.remove_container(found["Id"], force=True, v=True)
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if is_dead(folder.name.removeprefix(PREFIX)):
            shutil.rmtree(folder, ignore_errors=True)


def _found(client: docker.DockerClient, image: str) -> Any:
    from docker.errors import DockerException, ImageNotFound

    try:
        return client.images.get(image)
    except ImageNotFound:
        try:
            return client.images.pull(image)
        except DockerException as error:
            raise SandboxUnavailable(f"the image {image!r} is not here and cannot be pulled: {error}") from error


def _create(client: docker.DockerClient, image: str, limits: Limits, layout: Layout, place: Path) -> Any:
    from docker.errors import APIError
    from docker.types import Mount

    found = _found(client, image)
    made = bundle()
    own = dict(line.partition("=")[::2] for line in found.attrs["Config"].get("Env") or [])
    scratch = () if layout.root else layout.scratch
    volumes = [path for path in found.attrs["Config"].get("Volumes") or {} if path not in scratch and not layout.root]
    user = 0 if layout.root else UID
    size = f",size={limits.disk_mb}m" if limits.disk_mb is not None else ""
    inodes = f",nr_inodes={max(1024, limits.disk_mb * 256)}" if limits.disk_mb is not None else ""
    told = configuration(
        limits,
        {"socket": f"{OURS}-socket/s"},
        layout.work,
        scratch,
        alone=True,
        env=layout.environment({"PATH": PATH}, own),
        bash=made.command(OURS, "bash"),
    )
    try:
        return client.containers.create(
            found.id,
            entrypoint=[*made.command(OURS, "python3"), "-I", "-S", f"{OURS}/init.py", told],
            command=[],
            user=f"{user}:{user}",
            working_dir="/",
            hostname="sandbox",
            network_mode="none",
            read_only=not layout.root,
            cap_drop=["ALL"],
            cap_add=list(ROOT) if layout.root else [],
            security_opt=["no-new-privileges", f"seccomp={seccomp.profile()}"],
            tmpfs=dict.fromkeys(scratch, f"rw,exec,nosuid,nodev,mode=0755,uid={UID},gid={UID}{size}{inodes}"),
            mounts=[
                Mount(OURS, str(made.folder), type="bind", read_only=True),
                Mount(f"{OURS}-socket", str(place), type="bind", read_only=True),
                # What an image declares as a volume would be writable, without a limit, and outlive a reset.
                *(Mount(path, None, type="tmpfs", read_only=True) for path in volumes),
            ],
            environment={"LD_PRELOAD": "", "GLIBC_TUNABLES": ""},  # of our init; commands get the image's
            mem_limit=f"{limits.memory_mb}m" if limits.memory_mb is not None else None,
            memswap_limit=f"{limits.memory_mb}m" if limits.memory_mb is not None else None,
            pids_limit=limits.pids + 1 if limits.pids is not None else None,
            nano_cpus=round(limits.cpus * 1e9) if limits.cpus is not None else None,
            healthcheck={"test": ["NONE"]},
            labels={LABEL: owner()},
            log_config={"type": "none"},  # what it says before its init answers is read as it comes
            auto_remove=True,
        )
    except APIError as error:
        raise SandboxStartupError(f"the engine refused a container of {image}: {error}") from error


@contextlib.contextmanager
def _listener() -> Iterator[tuple[socket.socket, Path]]:
    """A socket to wait at, and the folder that holds it; nobody but the engine can reach through the one above."""
    top = Path(tempfile.gettempdir()) / f"{PREFIX}{owner()}-{next(NUMBERS)}"
    top.mkdir(mode=0o700)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            (place := top / "in").mkdir()
            listener.bind(str(place / "s"))
            place.chmod(0o755)
            (place / "s").chmod(0o666)
            listener.listen(1)
            yield listener, place
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _accept(listener: socket.socket, container: Any) -> socket.socket:
    """The init's connection. Raises SandboxStartupError when the container ends first, or at `START_S`."""
    listener.settimeout(0.25)
    for _ in range(round(START_S / 0.25)):
        try:
            return listener.accept()[0]
        except TimeoutError:
            try:
                container.reload()
            except _failures():
                break  # it has ended, and is removed already
            if container.status not in ("created", "running"):
                break
    raise SandboxStartupError("its init did not answer; does the engine share this machine's file system?")


def _failures() -> tuple[type[Exception], ...]:
    from docker.errors import DockerException

    return (DockerException, SandboxError, OSError, EOFError, ValueError)


def layers(limits: Limits, info: Mapping[str, Any], *, root: bool = False) -> dict[str, str]:
    """What holds here, by an engine's own `info`.

    Raises:
        UnsupportedLimit: a demand that this engine cannot meet.
        SandboxUnavailable: it is rootless or has user namespaces of its own.
    """
    found = dict.fromkeys(("namespaces", "network", "capabilities dropped", "uid", "read-only root"), "active")
    if any(word in option for option in info.get("SecurityOptions") or [] for word in ("rootless", "userns")):
        raise SandboxUnavailable(
            "rootless engines and user namespaces of the engine are not supported: uid 199000 is none"
        )
    filtered = any("seccomp" in option for option in info.get("SecurityOptions") or [])
    found["seccomp"] = "active" if filtered else "inactive: this engine was built without it"
    found["disk_mb"] = "active" if limits.disk_mb is not None else "inactive: not asked for"
    if root:
        found["disk_mb"] = demand(limits, "disk_mb", "nothing limits the files of a container that one is root of")
        found |= dict.fromkeys(("uid", "read-only root"), "inactive: the layout asks for root of the container")
        found["capabilities dropped"] = f"inactive: {', '.join(ROOT)} are kept, all others are dropped"
    for name, feature in (("memory_mb", "MemoryLimit"), ("pids", "PidsLimit"), ("cpus", "CpuCfsQuota")):
        held = bool(info.get(feature)) and getattr(limits, name) is not None
        found[name] = "active" if held else demand(limits, name, f"the engine reports no {feature}")
    return found
