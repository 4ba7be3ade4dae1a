"""Where somebody's own code raised, in half a line: what they want to read instead of a traceback through ours."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def told(error: BaseException) -> str:
    """ "Type: message (file:line)", or "Type: message" where no code but ours and the installed one was running."""
    said = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    place = own_place(error)
    return f"{said} ({place})" if place is not None else said


def own_place(error: BaseException) -> str | None:
    """The innermost "file:line" that is neither Retort's nor installed, or None. Relative where it can be."""
    places: list[tuple[str | None, int | None]] = (
        [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else []
    )
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__")).partition(".")[0] != "retort":
            places.append((frame.f_code.co_filename, line))
    for file, number in places:
        if file and not file.startswith(("<", *INSTALLED)):
            path = Path(file)
            return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{number}"
    return None
