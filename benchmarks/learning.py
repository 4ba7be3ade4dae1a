"""Every recipe from one cold start, several seeds, the same number of episodes: who learns how fast, and who does not.

Usage: python benchmarks/learning.py [--model FOLDER] [--seeds 5] [--arms NAME ...] [--jobs 2] [--report]

An arm is a recipe and settings, by name in ARMS. Each arm and seed is one run, a process of its own with one thread;
what it did is a line of docs/learning.jsonl, and arms and seeds that have a line are not run again, so that a sweep
that was stopped goes on. Then docs/learning.md and docs/learning.svg are written from all lines (--report does only
that).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure
from retort.feedback.reprompt import Reprompt

if TYPE_CHECKING:
    from retort.algos.config import TrainConfig

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
LINES = DOCS / "learning.jsonl"
STEPS, PROMPTS, GROUP, TASKS = 40, 16, 8, 320


@dataclass(frozen=True)
class World:
    """Where arms learn: the environment's arguments, for the cold start and then, and how much of it a run sees.

    rollouts: of each unseen task in the end. Where a right answer need not be a liked one, `liked` names the parts of
    the reward that tell: (right, liked).
    """

    env: str
    says: str
    start: Mapping[str, Any]
    then: Mapping[str, Any]
    prompts: int
    group: int
    rollouts: int = 1
    liked: tuple[str, str] | None = None


WORLDS: Mapping[str, World] = {
    "shell": World(measure.ENV, "Jobs on files, in groups of 8 episodes a task.", {}, {}, PROMPTS, GROUP),
    "reply": World(
        "retort/Reply-v0",
        "One user, and one answer a request: no groups, as a deployed agent has none. The student is never told what "
        "the user prefers, but the hint on an answer that missed it says it outright. The cold start knows the ways of "
        "all users.",
        {"max_turns": 1},
        {"max_turns": 1, "user": 9},
        16,
        1,
        rollouts=8,
        liked=("content", "preferences"),
    ),
}


@dataclass(frozen=True)
class Arm:
    """recipe ("" trains nothing) and settings; says: what the arm is there to show."""

    recipe: str
    says: str
    settings: Sequence[str] = ()
    world: str = "shell"


# In the words that the cold start taught the model to read feedback in.
HINDSIGHT = (f"hindsight.template={Reprompt().feedback_template!r}", "teacher.kind=fixed")
SOLVED = ('hint.sources=["solution"]',)
ARMS: Mapping[str, Arm] = {
    "cold start": Arm("", "what all arms of this world begin from"),
    "grpo": Arm("grpo", "reward alone"),
    "dr_grpo": Arm("dr_grpo", "reward alone, without the two divisions", ("options.length=64",)),
    "dapo": Arm("dapo", "reward alone, groups that teach"),
    "sdpo": Arm("sdpo", "a sibling's solution, else feedback; a teacher that moves"),
    "sdpo feedback alone": Arm("sdpo", "feedback on failed attempts, no solutions", ("reprompt.solutions=false",)),
    "sdpo solutions alone": Arm("sdpo", "siblings' solutions, no feedback", ("reprompt.feedback=false",)),
    "sdpo shuffled": Arm("sdpo", "the same with another task's solutions and feedback", ("feedback=shuffled",)),
    "sdpo fixed": Arm("sdpo", "a teacher that stays", ("teacher.kind=fixed",)),
    "sdpo current": Arm("sdpo", "a teacher that is the student", ("teacher.kind=current",)),
    "sdpo trust region": Arm("sdpo", "between both", ("teacher.kind=trust_region", "teacher.rate=0.5")),
    "srpo": Arm("srpo", "reward for successes, feedback for failures"),
    "srpo shuffled": Arm("srpo", "the same with another task's feedback", ("feedback=shuffled",)),
    "opsd": Arm("opsd", "the solution as the teacher, no reward", SOLVED),
    "opsd unclipped": Arm("opsd", "the same without the clip of single entries", (*SOLVED, "options.clip=1e9")),
    "opsd reverse": Arm(
        "opsd", "the same with KL(S||T), without the clip", (*SOLVED, "options.clip=1e9", "options.beta=1.0")
    ),
    "sdar": Arm("sdar", "reward and a gated pull", (f"skills.folder={HERE.parent / 'examples' / 'skills'}",)),
    "sdar beta 0": Arm(
        "sdar", "the gate always half open", ("beta=0", f"skills.folder={HERE.parent / 'examples' / 'skills'}")
    ),
    "rlsd": Arm("rlsd", "reward, its size by a teacher that knows", ("decay=20", *SOLVED)),
    "rlcsd": Arm("rlcsd", "reward, moved by right and wrong hints"),
    "cold start of Reply": Arm("", "what all arms of this world begin from", (), "reply"),
    "reward and hindsight": Arm("openclaw", "OpenClaw: the verdict on each answer, and its hint", HINDSIGHT, "reply"),
    "hindsight alone": Arm("openclaw", "the hint alone", (*HINDSIGHT, "w_rl=0.0"), "reply"),
    "binary reward alone": Arm("openclaw", "the verdict alone", (*HINDSIGHT, "w_opd=0.0"), "reply"),
    "hindsight shuffled": Arm(
        "openclaw", "hints on other answers", (*HINDSIGHT, "w_rl=0.0", "feedback=shuffled"), "reply"
    ),
    "next message alone": Arm(
        "openclaw",
        "what the user says next, thanks included, no judge's hint",
        (*HINDSIGHT, "w_rl=0.0", "hindsight.context=next"),
        "reply",
    ),
    "grpo in groups of 8": Arm(
        "grpo", "reward against a group of the same size as all", ("group_size=8", "prompts=2"), "reply"
    ),
}


def play(name: str, seed: int, model: str, folder: Path) -> dict[str, Any]:
    """Trains one arm with one seed, evaluates it on unseen tasks, and says what happened."""
    from retort.agents.evaluate import evaluate

    arm, world = ARMS[name], WORLDS[ARMS[name].world]
    trained, told = trained_by(arm, seed, model, folder) if arm.recipe else (model, {"config": None, "curves": {}})
    report = evaluate(
        world.env,
        trained,
        n=world.rollouts,
        limit=TASKS,
        turn_tokens=32,
        seed=seed,
        env_args=world.then,
        out=folder / "unseen",
    )
    return {
        "arm": name,
        "seed": seed,
        "cold_start": digest(Path(model, "model.safetensors").read_bytes()),
        "success": report.overall.success,
        "held_out": None if report.held_out is None else report.held_out.success,
        "liked": liked(folder / "unseen", world.liked),
        **told,
    }


def trained_by(arm: Arm, seed: int, model: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The model that the arm ends with, and what its line tells of the way there."""
    from retort.algos.config import preset, resolve
    from retort.algos.runs import Run
    from retort.algos.train import train

    world = WORLDS[arm.world]
    small = {"env": world.env, "env_args": dict(world.then), "seed": seed, "steps": STEPS, "threads": 1}
    small |= {"prompts": world.prompts, "group_size": world.group, "store_rollouts": False}
    config = resolve({**preset(arm.recipe, model), **small, "sampling": {"turn_tokens": 32}}, arm.settings)
    run = Run.create_or_open(folder, config)
    trained = train(run)
    lines = run.metrics()
    keys = sorted({key for line in lines for key, value in line.items() if isinstance(value, float | int)})
    keys += [key for key in ("gap_by_turn",) if any(key in line for line in lines)]  # a list a step
    return str(trained), {
        "config": digest(settings_of(config).encode()),
        "seconds": sum(sum(line["seconds"].values()) for line in lines),
        "curves": {key: [line.get(key) for line in lines] for key in keys if key != "step"},
    }


def settings_of(config: TrainConfig) -> str:
    """A run's configuration in JSON, without what differs between seeds and machines."""
    from retort.algos.config import dump

    kept = {key: value for key, value in dump(config).items() if key not in ("seed", "model", "threads")}
    return json.dumps(kept, sort_keys=True).replace(str(HERE.parent), "")


def digest(data: bytes) -> str:
    """The first twelve hexadecimal digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:12]


def liked(folder: Path, parts: tuple[str, str] | None) -> float | None:
    """Of the answers that were right, the share that was as the user likes it; 0 where none was right."""
    from retort.agents import store

    if parts is None:
        return None
    played = [item.reward_components for file in folder.glob("*.parquet") for item in store.read(file)]
    right = [components for components in played if components.get(parts[0])]  # none where a turn ran out of tokens
    return sum(components[parts[1]] for components in right) / max(1, len(right))


def known() -> list[dict[str, Any]]:
    """What has been run so far."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def cold(world: str, given: str | None) -> str:
    """The model that a world's arms start from; given: one for the first world."""
    if world == "shell":
        return measure.cold_model(given)
    from retort.algos.config import preset, resolve
    from retort.algos.launch import cold_start

    from retort.progress import Bars

    here = WORLDS[world]
    base = {**preset("sft", "tiny"), "env": here.env, "env_args": dict(here.start), "steps": 1500, "seed": 0}
    traces = {"tasks": 3800, "per_task": 2, "skill": 0.5}
    with Bars() as bars:
        return str(cold_start(resolve({**base, "traces": traces}), Path(f"runs/learning/cold-{world}"), bars))


def sweep(model: str | None, names: Sequence[str], seeds: int, jobs: int, work: Path) -> None:
    """Runs what has no line yet, seed by seed, `jobs` at a time."""
    done = {(line["arm"], line["seed"]) for line in known()}
    todo = [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in done]
    models = {world: cold(world, model) for world in sorted({ARMS[name].world for name, _ in todo})}
    going: list[tuple[subprocess.Popen[str], str, int]] = []
    try:
        while todo or going:
            while todo and len(going) < jobs:
                name, seed = todo.pop(0)
                command = [
                    sys.executable,
                    __file__,
                    "--model",
                    models[ARMS[name].world],
                    "--one",
                    name,
                    "--seed",
                    str(seed),
                ]
                process = subprocess.Popen(
                    [*command, "--work", str(work)], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
                )
                going.append((process, name, seed))
            process, name, seed = going.pop(0)
            said, _ = process.communicate()
            if process.returncode:
                print(f"{name}, seed {seed}: failed; run it with --one to see why", flush=True)
                continue
            with LINES.open("a") as file:
                file.write(said.splitlines()[-1] + "\n")
            print(f"{name}, seed {seed}: {json.loads(said.splitlines()[-1])['success']:.3f}", flush=True)
    finally:
        for process, *_ in going:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a trained tiny model's folder; without it one is cold-started into runs/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0))))
    parser.add_argument("--work", type=Path, default=Path("runs/learning"))
    parser.add_argument("--report", action="store_true", help="only write the page from what is there")
    parser.add_argument("--one", choices=list(ARMS), help="run this arm alone and print its line")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.one:
        folder = args.work / f"{args.one.replace(' ', '-')}-s{args.seed}"
        print(json.dumps(play(args.one, args.seed, args.model or cold(ARMS[args.one].world, None), folder)))
        return
    if not args.report:
        sweep(args.model, args.arms, args.seeds, args.jobs, args.work)
    import learning_page

    learning_page.write(DOCS, known(), ARMS, WORLDS)


if __name__ == "__main__":
    main()
