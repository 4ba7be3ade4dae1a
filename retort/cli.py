"""The command line. Exit codes: 0 good, 1 a check or a run failed, 2 wrong use."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Our own bars are enough.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from retort.agents.evaluate import Session

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
console = Console()
say = partial(console.print, markup=False, soft_wrap=True)  # a sentence, as it is
note = partial(typer.echo, err=True)


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


@app.command()
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


@app.command("check-env")
def check_env_command(
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


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="A file of algos/ (grpo, srpo, sdar, ...), or a module.")] = None,
    env: Annotated[str | None, typer.Option(help="Environment id; by default retort/Shell-v0.")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint, a Hugging Face folder or name, or tiny.")] = None,
    seed: Annotated[
        int | None, typer.Option(callback=at_least(0), help="Everything random derives from it; by default 0.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/RECIPE-ENV-seedN.")] = None,
    engine: Engine = None,
    settings: Settings = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run.")] = None,
) -> None:
    """Train a policy on its own episodes (or, with sft, on expert traces)."""
    from retort.algos.config import ConfigError, parse, preset, resolve
    from retort.algos.launch import launch, resume_run
    from retort.progress import Bars, train_table

    if resume is not None:
        if any(given is not None for given in (recipe, env, model, seed, out, engine)) or settings:
            raise ConfigError("--resume goes on with a run as it was configured: expected nothing else beside it")
        with _ends_well(resume), Bars() as bars:
            run = resume_run(resume, bars)
    elif recipe is None:
        raise ConfigError("expected a recipe (retort train grpo) or a run to go on with (--resume runs/NAME)")
    else:
        for key, _ in map(parse, settings or ()):
            if key in ("recipe", "env", "model", "seed"):
                raise ConfigError(f"--set {key}: expected --{key}, which also names the folder and picks the preset")
        base: dict[str, Any] = preset(recipe, model or "tiny")
        base |= {"env": env or "retort/Shell-v0", "seed": seed or 0, "engine": engine or "hf"}
        config = resolve(base, settings or ())
        folder = out or Path("runs") / f"{recipe}-{config.env.rpartition('/')[2]}-seed{config.seed}"
        if config.model == "tiny" and recipe != "sft":
            note(
                "The tiny model is untrained: it imitates scripted traces first, in some minutes, unless that is done. "
                "--model CHECKPOINT begins with another one."
            )
        with _ends_well(folder), Bars() as bars:
            run = launch(config, folder, bars)
    console.print(train_table(run))
    say(f"checkpoint: {run.checkpoints()[-1]}")
    evaluate = f"retort eval --env {run.config.env} --model"
    say(f"next: {evaluate} {run.checkpoints()[-1]}")
    first, *others = [*([] if run.config.model == "tiny" else [run.config.model]), "gold", "null", "random"]
    say(f"beside it: {evaluate} {first} (or {', '.join(others)}); then: retort compare FIRST SECOND")


@contextmanager
def _ends_well(folder: Path) -> Iterator[None]:
    """A run that ends itself says why in one line; one that is interrupted says how to go on."""
    from retort.algos.symptoms import DeadTermError

    try:
        yield
    except KeyboardInterrupt:
        if (folder / "config.toml").exists():
            note(f"Interrupted. What was trained up to the last checkpoint is kept: retort train --resume {folder}")
        else:
            note("Interrupted before the run itself began; the same command goes on with what came before it.")
        raise
    except DeadTermError as error:
        note(f"retort: {error}")
        raise typer.Exit(1) from error


@app.command("eval")
def evaluate_command(
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
    settings: Annotated[list[str] | None, typer.Option("--env-arg", help="key=value for the environment.")] = None,
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
    from retort.agents.evaluate import begin, reopen
    from retort.agents.evaluation import EvalConfig, Evaluation, refuse_played
    from retort.algos.config import ConfigError, parse
    from retort.progress import estimate_table

    if not all(part.isdigit() for part in k.split(",")):
        raise ConfigError(f"--k: expected whole numbers such as 1,4,8, found {k!r}")
    if resume is not None:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        if given - {"resume", "as_json", "concurrency"}:
            raise ConfigError("--resume goes on with an evaluation as it was configured: beside it, only --concurrency")
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
        env_args=dict(parse(setting) for setting in settings or ()),
        model_args=dict(parse(setting) for setting in model_settings or ()) | ({"engine": engine} if engine else {}),
        concurrency=concurrency,
    )
    if dry_run:
        found = estimate(config)
        typer.echo(json.dumps(asdict(found))) if as_json else console.print(estimate_table(found))
        return
    if out is not None:
        refuse_played(out)
    create = partial(Evaluation.create, out) if out is not None else partial(Evaluation.named, Path("runs/eval"))
    _play(begin(config, lambda facts: create(config, facts)), as_json)


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


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A checkpoint, a Hugging Face folder or name.")],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    context_tokens: Annotated[int | None, typer.Option(min=8, help="Of a conversation; by default all.")] = None,
    lora_rank: Annotated[int, typer.Option(min=0, help="Take adapters up to this rank apart; 0 takes none.")] = 0,
    python: Annotated[str, typer.Option(help="The interpreter that has vLLM.")] = sys.executable,
    folder: Annotated[
        Path | None, typer.Option(help="Where a copy goes, if one is needed; by default runs/serve/PORT.")
    ] = None,
    extra: Annotated[list[str] | None, typer.Argument(help="After --: more arguments for vLLM's server.")] = None,
) -> None:
    """Start a vLLM server that can be trained with: --engine vllm:http://127.0.0.1:PORT."""
    from retort.agents.chat import Chat
    from retort.agents.serving import command, servable

    served = servable(model, Chat.load(model), folder or Path("runs/serve", str(port)), dtype)
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    arguments, environment = command(served, port, dtype=dtype, name=name, context=context_tokens, lora_rank=lora_rank)
    os.execvpe(python, [python, "-m", *arguments, *(extra or ())], {**os.environ, **environment})


@app.command()
def compare(first: Path, second: Path, as_json: Json = False) -> None:
    """Compare two evaluations of the same tasks, task by task: how much better the second is, and by chance or not."""
    from retort.agents.compare import compare as compared
    from retort.progress import comparison_table

    found = compared(first, second)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        console.print(comparison_table(found))


@app.command()
def preview(
    recipe: Annotated[str, typer.Argument(help="A file of algos/ (sdpo, srpo, sdar, ...), or a module.")],
    env: EnvId = "retort/Shell-v0",
    model: Annotated[str | None, typer.Option(help="Who plays, as in eval; by default a scripted apprentice.")] = None,
    seed: Seed = 0,
    episode: Annotated[
        str | None, typer.Option(help="Which of the episodes played: GROUP-MEMBER, such as 0-3.")
    ] = None,
    as_json: Json = False,
    settings: Settings = None,
) -> None:
    """Show what a recipe's student and each of its teachers would read of one rollout, side by side."""
    from retort.algos.config import preset, resolve
    from retort.preview import preview as previewed
    from retort.preview import show

    config = resolve({**preset(recipe, model or "tiny"), "env": env, "seed": seed}, settings or ())
    found = previewed(config, model, episode)
    typer.echo(json.dumps(found.to_json())) if as_json else show(found, console)


@app.command()
def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")],
    step: Annotated[int, typer.Option(min=1, help="A step whose signals were stored (signals_every).")],
    episode: Annotated[str | None, typer.Option(help="Its id, such as 10-0-3, or its place in the step.")] = None,
    as_json: Json = False,
) -> None:
    """Show one rollout of a training step token by token: gap, gate, credit, and where each pulls."""
    from retort.trace import load, show

    found = load(folder, step, episode)
    typer.echo(json.dumps(found.to_json())) if as_json else show(found, console)


@app.command()
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
    from typing import cast

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


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, and how to get the rest."""
    from retort.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("what", "here", "detail", "how to get the rest")
        for finding in findings:
            table.add_row(finding.name, "yes" if finding.present else "no", finding.detail, finding.advice)
        console.print(table)
    if any(finding.needed and not finding.present for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(seed: Seed = 0, out: Path = Path("runs/demo"), settings: Settings = None) -> None:
    """Cold-start the tiny model, train it on its own episodes, and show what it can do before and after."""
    from retort.demo import run_demo

    run_demo(seed, out, settings or (), console)


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
