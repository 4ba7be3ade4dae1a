"""Sandboxes by name, as environments and the command line take them."""

from __future__ import annotations

from pathlib import Path

from retort.sandboxes.base import Limits, Sandbox

NAMES = ("bwrap", "docker:IMAGE", "unsafe")


def is_name(name: str) -> bool:
    """Whether `open_sandbox` knows it: one of `NAMES`, IMAGE being an image's name or the path of a folder."""
    kind, _, image = name.partition(":")
    return name in ("bwrap", "unsafe") or (kind == "docker" and bool(image))


def open_sandbox(name: str, limits: Limits) -> Sandbox:
    """Starts one. An image that begins with `.` or `/` is a folder with a Dockerfile.

    Raises:
        ValueError: the name is none of `NAMES`.
        SandboxError: it cannot be started.
    """
    kind, _, image = name.partition(":")
    if name == "bwrap":
        from retort.sandboxes.bwrap import BwrapSandbox

        return BwrapSandbox(limits)
    if name == "unsafe":
        from retort.sandboxes.unsafe import UnsafeSandbox

        return UnsafeSandbox(limits, i_understand=True)  # naming it is the acknowledgement
    if kind == "docker" and image:
        from retort.sandboxes.docker import DockerSandbox

        return DockerSandbox(Path(image) if image[0] in "./" else image, limits)
    raise ValueError(f"unknown sandbox {name!r}; expected one of {', '.join(NAMES)}")
