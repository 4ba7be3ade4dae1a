"""The command line: its commands, and how each ends. Exit codes: 0 good, 1 a check or a run failed, 2 wrong use."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Our own bars are enough.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from retort import doctor, environments, evaluating, training

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "envs": environments.envs,
    "check-env": environments.check,
    "train": training.train,
    "eval": evaluating.evaluate,
    "serve": training.serve,
    "teach": training.teach,
    "compare": evaluating.compare,
    "preview": training.preview,
    "trace": training.trace,
    "export": environments.export,
    "doctor": doctor.doctor,
    "demo": training.demo,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"retort {version('retort-rl')}")
        raise typer.Exit


@app.callback()
def _retort(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """A gym that answers back. RETORT_DEBUG=1 shows the traceback of an error."""


def main() -> None:
    """Runs a command; what the user can mend is one clear line and exit code 2. RETORT_DEBUG=1 shows the traceback."""
    import gymnasium

    from retort.envs.base import UsageError
    from retort.envs.raised import own_place, told
    from retort.sandboxes.base import SandboxError

    # So that an environment of one's own, `my_env:me/Name-v0`, is found here; last, so that it hides nothing installed.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        app()
    except Exception as error:
        known, place = isinstance(error, UsageError | SandboxError | OSError | gymnasium.error.Error), own_place(error)
        if os.environ.get("RETORT_DEBUG") or not (known or place):
            raise
        said = told(error) if not known else f"{error} ({place})" if place else str(error)
        typer.echo(f"retort: {said}" + ("; RETORT_DEBUG=1 shows the traceback" if place else ""), err=True)
        raise SystemExit(2) from error
