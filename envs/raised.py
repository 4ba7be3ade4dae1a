"""Where somebody's own code raised, in half a line: what they want to read instead of a traceback through ours."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}


def told(error: BaseException) -> str:
    """ "Type: message (file:line)", or "Type: message" where no code but ours and the installed one was running."""
    said = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    place = own_place(error)
    return f"{said} ({place})" if place is not None else said


def own_place(error: BaseException) -> str | None:
    """The innermost "file:line" that is neither Retort's nor installed, in the error or in what caused it; or None.

    The file is relative where it lies below the working folder.
    """
    places: list[tuple[str | None, int | None]] = (
        [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else []
    )
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__")).partition(".")[0] != "retort":
            places.append((frame.f_code.co_filename, line))
    for file, number in places:
        path = Path(file or "<")
        if not str(path).startswith(("<", *LIBRARY)) and INSTALLED.isdisjoint(path.parts):
            return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{number}"
    return own_place(error.__cause__) if error.__cause__ is not None else None


def is_missing(module: str, error: ModuleNotFoundError) -> bool:
    """Whether the module itself, or a package that it lies in, is not there, and not something that it imports."""
    return error.name is not None and f"{module}.".startswith(f"{error.name}.")
