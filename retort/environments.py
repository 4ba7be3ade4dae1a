"""Commands about environments: which there are, whether one keeps the contract, its tasks for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from retort.options import EnvArguments, Json, at_least, console, note, say


def envs(as_json: Json = False) -> None:
    """What can be made, with splits and task counts, and what is missing to use it."""
    from retort.envs.catalogue import catalogue

    if as_json:
        typer.echo(json.dumps(list(catalogue()), indent=2))
        return
    table, hints = Table("environment", "tasks by split", "missing"), dict[str, list[str]]()
    with Console(stderr=True).status("looking at each"):  # somebody else's are made
        entries = list(catalogue())
    for entry in entries:
        counts = ", ".join(f"{split} {count}" for split, count in entry.get("tasks", {}).items() if count)
        missing = entry.get("missing", "")
        if "install" in missing:  # a table would break the command
            hints.setdefault(missing, []).append(entry["id"])
            missing = "see below"
        table.add_row(entry["id"], counts, missing)
    console.print(table)
    for hint, ids in hints.items():
        say(f"{', '.join(ids)}: {hint}")


def check(
    env_id: Annotated[str, typer.Argument(help="Such as retort/Shell-v0, or MODULE:ID: my_module:me/Name-v0.")],
    settings: EnvArguments = None,
) -> None:
    """Hold a registered environment against the contract."""
    from retort.envs.arguments import parsed
    from retort.envs.catalogue import make
    from retort.envs.check import CheckError, check_env

    env = make(env_id, **parsed(settings))
    note(f"playing a sample of the tasks of {env_id} ...")
    try:
        checked = check_env(env, name=env_id)
    except CheckError as error:
        say(str(error))
        raise typer.Exit(1) from None
    finally:
        env.close()
    limits = f", as far as it can be checked ({checked.unchecked})" if checked.unchecked else ""
    played = f"{checked.tasks} task{'s' * (checked.tasks != 1)} played by {', '.join(checked.players)}"
    say(f"{env_id} keeps the contract{limits}: {played}{checked.remark and f'; {checked.remark}'}")


def export(
    env_id: Annotated[str, typer.Argument(metavar="ENV", help="Environment id, such as retort/Shell-v0.")],
    folder: Annotated[Path, typer.Argument(help="Where the tasks go, a folder each.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    limit: Annotated[
        int | None, typer.Option(callback=at_least(1), help="At most this many tasks, spread over the families.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="The image that their Dockerfiles start from.")] = None,
    settings: EnvArguments = None,
) -> None:
    """Write an environment's tasks in Harbor's format, for other harnesses and for retort/Harbor-v0."""
    from retort.agents.evaluate import spread
    from retort.envs.arguments import parsed
    from retort.envs.base import TextEnv
    from retort.envs.catalogue import make
    from retort.envs.harbor_format import export_tasks

    made = make(env_id, split=split, **parsed(settings))
    try:
        env = cast(TextEnv, made.unwrapped)
        written = export_tasks(env, spread(env.tasks(), limit), folder, image)
    finally:
        made.close()
    say(f"{len(written)} tasks in {folder}")
    say(f"next: retort eval --env retort/Harbor-v0 --split {split} --env-arg folder={folder} --model gold")
