"""Sandboxes by name, as environments and the command line take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from retort.sandboxes.base import Layout, Limits, Sandbox, SandboxUnavailable


def _bwrap(_: str, limits: Limits, layout: Layout) -> Sandbox:
    from retort.sandboxes.bwrap import BwrapSandbox

    return BwrapSandbox(limits, layout)


def _docker(image: str, limits: Limits, layout: Layout) -> Sandbox:
    from retort.sandboxes.docker import DockerSandbox

    return DockerSandbox(Path(image) if image[0] in "./" else image, limits, layout)


def _unsafe(_: str, limits: Limits, layout: Layout) -> Sandbox:
    from retort.sandboxes.unsafe import UnsafeSandbox

    if layout != Layout():
        raise SandboxUnavailable("unsafe has no folders of its own: a layout needs bwrap or docker:IMAGE")

    return UnsafeSandbox(limits, i_understand=True)  # naming it is the acknowledgement


STARTERS: Mapping[str, Callable[[str, Limits, Layout], Sandbox]] = {
    "bwrap": _bwrap,
    "docker:IMAGE": _docker,
    "unsafe": _unsafe,
}


def is_name(name: str) -> bool:
    """Whether `open_sandbox` knows it: a key of `STARTERS`, IMAGE being an image's name or the path of a folder."""
    return _key(name) in STARTERS


def open_sandbox(name: str, limits: Limits, layout: Layout = Layout()) -> Sandbox:  # noqa: B008 (frozen)
    """Starts one. An image that begins with `.` or `/` is a folder with a Dockerfile.

    Raises:
        ValueError: the name is none of `STARTERS`.
        SandboxError: it cannot be started.
    """
    if not is_name(name):
        raise ValueError(f"unknown sandbox {name!r}; expected one of {', '.join(STARTERS)}")
    return STARTERS[_key(name)](name.partition(":")[2], limits, layout)


def _key(name: str) -> str:
    kind, _, image = name.partition(":")
    return f"{kind}:IMAGE" if image else name
