"""Commands about evaluating: how well an agent does, and whether another does better."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort.options import Engine, EnvArguments, EnvId, Json, Seed, at_least, console, note, say

if TYPE_CHECKING:
    from retort.agents.evaluate import Session
    from retort.agents.evaluation import EvalConfig


def evaluate(
    context: typer.Context,
    env: EnvId = "retort/Shell-v0",
    model: Annotated[
        str,
        typer.Option(
            help="gold, null, random, a checkpoint, a Hugging Face folder or name, openai:URL#NAME for an endpoint, or "
            "script:MODULE:NAME for an agent of one's own."
        ),
    ] = "gold",
    n: Annotated[
        int, typer.Option("-n", callback=at_least(1), help="How often each task is played: its rollouts.")
    ] = 1,
    k: Annotated[
        str,
        typer.Option(
            metavar="K,...",
            help="Numbers up to -n, such as 1,4,8: for each, the chance that some of k rollouts succeeds (pass@k), and "
            "that all do (pass^k).",
        ),
    ] = "1",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    limit: Annotated[
        int | None, typer.Option(callback=at_least(1), help="At most this many tasks, spread over the families.")
    ] = None,
    temperature: Annotated[float, typer.Option(callback=at_least(0), help="0 is greedy.")] = 1.0,
    turn_tokens: Annotated[int, typer.Option(callback=at_least(1), help="Tokens of one action.")] = 256,
    context_tokens: Annotated[
        int | None,
        typer.Option(callback=at_least(1), help="Tokens of a whole conversation; by default what the model can read."),
    ] = None,
    concurrency: Annotated[int, typer.Option(callback=at_least(1), help="Episodes at once.")] = 32,
    seed: Seed = 0,
    as_json: Json = False,
    settings: EnvArguments = None,
    model_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--model-arg",
            help="key=value: device, dtype; of an endpoint requests_per_minute, retries, timeout_s, body={field=1}.",
        ),
    ] = None,
    engine: Engine = None,
    out: Annotated[Path | None, typer.Option(help="Its folder; by default runs/eval/ENV-MODEL-seedN.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Play what this evaluation lacks.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Play nothing: say how much would be asked.")] = False,
) -> None:
    """Evaluate an agent on an environment's tasks."""
    from retort.agents.estimate import estimate
    from retort.agents.evaluate import begin, look, reopen
    from retort.agents.evaluation import EvalConfig, Evaluation, refuse_played
    from retort.envs.arguments import parsed
    from retort.envs.base import UsageError
    from retort.progress import estimate_table

    if not all(part.isdigit() for part in k.split(",")):
        raise UsageError(f"--k: expected whole numbers such as 1,4,8, found {k!r}")
    if resume is not None:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        if given - {"resume", "as_json", "concurrency"}:
            raise UsageError("--resume goes on with an evaluation as it was configured: beside it, only --concurrency")
        _play(reopen(resume, concurrency if "concurrency" in given else None), as_json)
        return
    config = EvalConfig(
        env=env,
        model=model,
        split=split,
        n=n,
        ks=tuple(int(part) for part in k.split(",")),
        limit=limit,
        temperature=temperature,
        turn_tokens=turn_tokens,
        context_tokens=context_tokens,
        seed=seed,
        env_args=parsed(settings),
        model_args=parsed(model_settings) | ({"engine": engine} if engine else {}),
        concurrency=concurrency,
    )
    if dry_run:
        found = estimate(config)
        typer.echo(json.dumps(asdict(found))) if as_json else console.print(estimate_table(found))
        return
    if out is not None:
        refuse_played(out)
    facts = look(config)
    note(_size(len(facts.tasks), config))
    create = partial(Evaluation.create, out) if out is not None else partial(Evaluation.named, Path("runs/eval"))
    _play(begin(config, facts, lambda: create(config, facts)), as_json)


def _size(tasks: int, config: EvalConfig) -> str:
    """How much is to be played, and how it can be less."""
    counts = {"episode": tasks * config.n, "task": tasks}
    counted = ": ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
    said = f"{counted} of the {config.split} split" + (f", each {config.n} times" if config.n > 1 else "")
    fewer = tasks > 1 and config.limit is None
    return f"{said}; --limit N plays fewer tasks, spread over the families" if fewer else said


def _play(session: Session, as_json: bool) -> None:
    """Plays an evaluation that has a folder, and shows what came of it; where it breaks off, says how to go on."""
    from retort.progress import Bars, report_table

    assert session.evaluation is not None
    folder, config = session.evaluation.folder, session.config
    try:
        with Bars(quiet=as_json) as bars:
            report = session.play(bars)
    except BaseException:
        if (folder / "episodes").exists():
            note(f"What was played is kept; go on with: retort eval --resume {folder}")
        raise
    if as_json:
        typer.echo(json.dumps({**report.to_json(), "folder": str(folder)}))
        return
    console.print(report_table(report, f"{config.model} on {config.env} ({config.split})"))
    say(f"episodes and report: {folder}")
    if report.infrastructure_failures:
        say(f"play the broken ones again: retort eval --resume {folder}")


def compare(first: Path, second: Path, as_json: Json = False) -> None:
    """Compare two evaluations of the same tasks, task by task: how much better the second is, and by chance or not."""
    from retort.agents.compare import compare as compared
    from retort.progress import comparison_table

    found = compared(first, second)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        console.print(comparison_table(found))
