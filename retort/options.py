"""Options that several commands take, and how they speak: results to standard output, the rest to standard error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

console = Console()
say = partial(console.print, markup=False, soft_wrap=True)  # a sentence, as it is
note = partial(typer.echo, err=True)


def loading(what: str) -> None:
    """Said at once by a command that else would be silent for seconds: its libraries take so long to import."""
    note(f"loading {what} ...")


def at_least(least: int) -> Callable[[float | None], float | None]:
    """Refuses a smaller number, and says which it was."""

    def check(value: float | None) -> float | None:
        if value is not None and value < least:
            raise typer.BadParameter(f"expected at least {least}, found {value:g}")
        return value

    return check


EnvId = Annotated[str, typer.Option("--env", help="Environment id, such as retort/Shell-v0 or my_module:me/Name-v0.")]
Seed = Annotated[int, typer.Option(callback=at_least(0), help="Everything random derives from it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Engine = Annotated[
    str | None, typer.Option("--engine", help="What samples: hf (this process), vllm (here), or vllm:URL (a server).")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value; may be given again.")]
EnvArguments = Annotated[list[str] | None, typer.Option("--env-arg", help="key=value for the environment.")]
