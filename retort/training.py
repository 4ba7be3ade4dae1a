"""Commands about training: a run, what its model would read, what it did to every token, who samples for it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retort.options import Engine, EnvId, Json, Seed, Settings, at_least, console, loading, note, say

if TYPE_CHECKING:
    from retort.algos.runs import Run

LOOK = 200  # tasks of an evaluation that gives a first idea


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
    from retort.agents.lookup import look_up
    from retort.envs.arguments import parsed
    from retort.envs.base import UsageError

    beside = any(given is not None for given in (recipe, env, model, seed, out, engine)) or bool(settings)
    if resume is not None and beside:
        raise UsageError("--resume goes on with a run as it was configured: expected nothing else beside it")
    if resume is None and recipe is None:
        raise UsageError("expected a recipe (retort train grpo) or a run to go on with (--resume runs/NAME)")
    for key in parsed(settings):
        if key in ("recipe", "env", "model", "seed"):
            raise UsageError(f"--set {key}: expected --{key}, which also names the folder and picks the preset")
    if model is not None and model != "tiny":
        look_up(model, trains=True)
    loading("torch")
    from retort.algos.config import preset, resolve
    from retort.algos.launch import launch, resume_run
    from retort.progress import Bars, train_table

    if resume is not None:
        with _ends_well(resume), Bars() as bars:
            run = resume_run(resume, bars)
    else:
        assert recipe is not None
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
    for line in _next(run):
        say(line)


def _next(run: Run) -> Iterator[str]:
    """What can be done with a finished run, each as it is typed."""
    from retort.envs.arguments import typed

    config, checkpoint = run.config, run.checkpoints()[-1]
    args = typed("--env-arg", config.env_args)
    evaluate = f"retort eval --env {config.env}{args} --limit {LOOK} --model"
    yield f"checkpoint: {checkpoint}"
    yield f"next: {evaluate} {checkpoint}"
    first, *others = [*([] if config.model == "tiny" else [config.model]), "gold", "null", "random"]
    yield f"beside it: {evaluate} {first} (or {', '.join(others)}); then: retort compare FIRST SECOND"
    if stored := run.signal_steps():
        yield f"what a step did, token by token: retort trace {run.folder} --step {stored[-1]}"
    given = typed("--set", {f"env_args.{name}": value for name, value in config.env_args.items()})
    read = f"retort preview {config.recipe} --env {config.env}{given} --model {checkpoint}"
    yield f"what the model and its teachers read: {read}"


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


def teach(
    model: Annotated[str, typer.Argument(help="A checkpoint, a Hugging Face folder or name.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8003,
    host: Annotated[str, typer.Option(help="Where to listen. Nobody is asked who they are.")] = "127.0.0.1",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    engine: Annotated[str, typer.Option(help="hf gives all that recipes want, vllm sampled tokens alone.")] = "hf",
    device: Annotated[str, typer.Option(help="Such as cuda:1, for hf; auto takes an accelerator.")] = "auto",
) -> None:
    """Serve a teacher to train with: --set teachers.NAME.model=http://127.0.0.1:PORT."""
    loading("torch")
    from retort.teach import teach as serve_teacher

    serve_teacher(model, host=host, port=port, engine=engine, dtype=dtype, device=device, say=note)


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
    loading("torch")
    from retort.algos.config import preset, resolve
    from retort.preview import preview as previewed
    from retort.preview import show

    config = resolve({**preset(recipe, model or "tiny"), "env": env, "seed": seed}, settings or ())
    found = previewed(config, model, episode)
    typer.echo(json.dumps(found.to_json())) if as_json else show(found, console)


def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")],
    step: Annotated[int, typer.Option(min=1, help="A step whose signals were stored (signals_every).")],
    episode: Annotated[str | None, typer.Option(help="Its id, such as 10-0-3, or its place in the step.")] = None,
    as_json: Json = False,
) -> None:
    """Show one rollout of a training step token by token: gap, gate, credit, and where each pulls."""
    loading("torch")
    from retort.trace import load, show

    found = load(folder, step, episode)
    typer.echo(json.dumps(found.to_json())) if as_json else show(found, console)


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
    loading("torch and transformers")
    from retort.agents.chat import Chat
    from retort.agents.serving import command, servable

    served = servable(model, Chat.load(model), folder or Path("runs/serve", str(port)), dtype)
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    arguments, environment = command(served, port, dtype=dtype, name=name, context=context_tokens, lora_rank=lora_rank)
    os.execvpe(python, [python, "-m", *arguments, *(extra or ())], {**os.environ, **environment})


def demo(seed: Seed = 0, out: Path = Path("runs/demo"), settings: Settings = None) -> None:
    """Cold-start the tiny model, train it on its own episodes, and show what it can do before and after."""
    loading("torch and transformers")
    from retort.demo import run_demo

    run_demo(seed, out, settings or (), console)
