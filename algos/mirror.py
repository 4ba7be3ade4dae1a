"""The metrics of a run in Weights & Biases too, for who asks for it with `wandb=PROJECT`.

What is sent is what metrics.jsonl has, under the same names. `WANDB_MODE=offline` needs no account and no network: the
run's folder then holds what `wandb sync` sends later.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from retort.algos.config import ConfigError, dump
from retort.algos.diagnostics import flat
from retort.algos.runs import Run
from retort.envs.base import needed

INSTALL = "pip install 'wandb>=0.19'"


@contextmanager
def mirrored(run: Run) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives what takes a line of metrics. A run that goes on goes on there: its id stands in `wandb.txt`.

    Raises:
        MissingPackage: wandb is not installed; the message has the command.
        ConfigError: wandb will not start, such as without a login.
    """
    if not run.config.wandb:
        yield lambda line: None
        return
    wandb = needed("wandb", INSTALL)
    kept = run.folder / "wandb.txt"
    if not kept.exists():
        kept.write_text(secrets.token_hex(8))
    try:
        started = wandb.init(
            project=run.config.wandb,
            name=run.folder.name,
            id=kept.read_text(),
            resume="allow",
            dir=run.folder,
            config=dump(run.config),
            settings=wandb.Settings(console="off"),
        )
    except wandb.errors.Error as error:
        raise ConfigError(f"wandb={run.config.wandb}: {error} Or keep it here: WANDB_MODE=offline") from error

    def send(line: Mapping[str, Any]) -> None:
        # Of a step that is done again after a kill it keeps the first line.
        started.log(flat(line), step=line["step"])
        if line.get("warnings"):
            started.summary["warnings"] = run.warnings()

    code = 1
    try:
        yield send
        code = 0
    finally:
        started.finish(exit_code=code)
