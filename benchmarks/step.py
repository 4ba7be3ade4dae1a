"""One whole GRPO step and one whole SDPO step on the same episodes, stage by stage.

Usage: python benchmarks/step.py [--model FOLDER] [--repeats N] [--threads N]

The learning rate is so small that the weights stay as they are: every step of both recipes then plays the same tasks
with the same seeds and the same words, 32 tasks by 8 episodes of `retort/Shell-v0`. The two take turns. Each is a step
that probes and stores signals, which by default only every tenth does: what measuring costs is the sum of the three
last stages, of which the last two count a tenth.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import measure
from retort.algos.base import Recipe
from retort.algos.config import load_recipe, preset, resolve
from retort.algos.runs import Run
from retort.algos.setup import Parts, assemble
from retort.algos.train import silent, train_step

RECIPES = ("grpo", "sdpo")
STAGES = ("rollout", "student", "teacher", "update", "measure", "probe", "signals")
SELDOM = 10  # steps between two that probe and store signals, by default


def opened(stack: ExitStack, name: str, model: str, folder: Path, threads: int) -> tuple[Run, Recipe, Parts]:
    """A run of one recipe, closed with the stack."""
    still = {"optimiser": "adamw", "lr": 1e-12}
    config = resolve({**preset(name, model), "env": measure.ENV, "threads": threads, "learner": still})
    run, recipe = Run.create(folder / name, config), load_recipe(name)
    return run, recipe, stack.enter_context(assemble(run, recipe, silent))


def middle_of(seconds: list[dict[str, float]]) -> list[float]:
    return [measure.median([item.get(stage, 0.0) for item in seconds]) for stage in STAGES]


def main() -> None:
    args = measure.arguments(__doc__).parse_args()
    model = measure.cold_model(args.model)
    cpu: dict[str, list[float]] = {name: [] for name in RECIPES}
    wall: dict[str, list[float]] = {name: [] for name in RECIPES}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in RECIPES}
    tokens: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        made = {name: opened(stack, name, model, Path(folder), args.threads) for name in RECIPES}
        for repeat in range(args.repeats + 1):
            for name, (run, recipe, parts) in made.items():
                with measure.spending() as spent:
                    metrics = train_step(run, recipe, parts, 0, silent)
                used = spent()
                if repeat:  # the first is a warm-up
                    cpu[name].append(used.cpu)
                    wall[name].append(used.wall)
                    stages[name].append(metrics["seconds"])
                    tokens[name] = metrics["tokens"]
    middle = {name: (measure.median(cpu[name]), measure.median(wall[name])) for name in RECIPES}
    base = middle["grpo"]
    measure.table(
        ("recipe", "CPU s a step", "ratio", "s on the clock", "ratio", "sampled tokens", *(f"{s} s" for s in STAGES)),
        [
            (name, c, c / base[0], w, w / base[1], tokens[name], *middle_of(stages[name]))
            for name, (c, w) in middle.items()
        ],
    )
    print(
        f"SDPO over GRPO: {middle['sdpo'][0] / base[0]:.2f} in CPU seconds, {middle['sdpo'][1] / base[1]:.2f} in all."
    )
    for name in RECIPES:
        *work, measured, probed, stored = middle_of(stages[name])
        all_, rare = measured + (probed + stored) / SELDOM, stored / SELDOM
        print(
            f"Measuring adds {all_ / sum(work):.2%} to a {name.upper()} step, of that signals {rare / sum(work):.2%}."
        )


if __name__ == "__main__":
    main()
