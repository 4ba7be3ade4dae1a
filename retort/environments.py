"""Commands about environments: which there are, whether one keeps the contract, its tasks for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from retort.options import Json, at_least, console, say


def envs(as_json: Json = False) -> None:
    """What can be made, with splits and task counts, and what is missing to use it."""
    from retort.envs.catalogue import catalogue

    if as_json:
        typer.echo(json.dumps(list(catalogue()), indent=2))
        return
    table, hints = Table("environment", "tasks by split", "missing"), list[str]()
    with Console(stderr=True).status("making each") as status:
        for entry in catalogue():
            counts = ", ".join(f"{split} {count}" for split, count in entry.get("tasks", {}).items() if count)
            missing = entry.get("missing", "")
            if "install" in missing:  # a table would break the command
                hints.append(f"{entry['id']}: {missing}")
                missing = "a package: see below"
            table.add_row(entry["id"], counts, missing)
            status.update(f"{entry['id']} is looked at")
    console.print(table)
    for hint in hints:
        say(hint)


def check(
    env_id: Annotated[str, typer.Argument(help="Such as retort/Shell-v0, or MODULE:ID: my_module:me/Name-v0.")],
    settings: Annotated[list[str] | None, typer.Option("--env-arg", help="key=value for the environment.")] = None,
) -> None:
    """Hold a registered environment against the contract."""
    from retort.algos.config import parse
    from retort.envs.catalogue import make
    from retort.envs.check import CheckError, check_env

    env = make(env_id, **dict(parse(setting) for setting in settings or ()))
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
    settings: Annotated[list[str] | None, typer.Option("--env-arg", help="key=value for the environment.")] = None,
) -> None:
    """Write an environment's tasks in Harbor's format, for other harnesses and for retort/Harbor-v0."""
    from retort.agents.evaluate import spread
    from retort.algos.config import parse
    from retort.envs.base import TextEnv
    from retort.envs.catalogue import make
    from retort.envs.harbor_format import export_tasks

    made = make(env_id, split=split, **dict(parse(setting) for setting in settings or ()))
    try:
        env = cast(TextEnv, made.unwrapped)
        written = export_tasks(env, spread(env.tasks(), limit), folder, image)
    finally:
        made.close()
    say(f"{len(written)} tasks in {folder}")
    say(f"next: retort eval --env retort/Harbor-v0 --split {split} --env-arg folder={folder} --model gold")
