"""A GRPO step of 128 single-turn completions, ours and that of TRL's GRPOTrainer, in turns in one run.

Usage: python benchmarks/peer.py [--model FOLDER] [--repeats N] [--threads N] [--venv FOLDER]

Both train the same tiny model in float32 with AdamW on the same 16 instructions of `retort/Shell-v0`, 8 completions of
at most 16 tokens each, sampled at temperature 1, with the same reward, no KL, and the same number of torch threads.
The learning rate is so small that the weights, and so the lengths, stay as they are. A step is everything from sampling
to the optimiser. TRL lives in a virtual environment of its own, which this script makes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import measure
import torch
from retort.algos.config import load_recipe, preset, resolve
from retort.algos.runs import Run
from retort.algos.setup import assemble
from retort.algos.train import silent, train_step
from retort.envs.base import TaskRef, TextEnv, TextSpace
from retort.envs.catalogue import make

TRL, TORCH = "1.16.0", "2.13.0"
PROMPTS, GROUP, MAX_NEW_TOKENS, RATE = 16, 8, 16, 1e-12
HERE = Path(__file__).parent


class Once(TextEnv):
    """One instruction, one answer, and a reward that its length decides, so that groups differ."""

    blocking = False

    def __init__(self, instructions: Sequence[str]) -> None:
        self.instructions = list(instructions)
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        self._refs = [TaskRef(f"{number:02d}", "", "train") for number in range(len(instructions))]
        self._ref = self._refs[0]

    def tasks(self) -> Sequence[TaskRef]:
        return self._refs

    def gold(self, observation: str) -> str:
        return "done"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        place = self.pick(self._refs, options)
        self._ref = self._refs[place]
        return self.instructions[place], {"task": self._ref}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", len(action) % 5 / 5, True, False, {"success": True, "task": self._ref}


def instructions() -> list[str]:
    """The first observations of tasks that lie evenly in the training split."""
    env = make(measure.ENV, split="train")
    try:
        refs = env.get_wrapper_attr("tasks")()
        picked = refs[:: len(refs) // PROMPTS][:PROMPTS]
        return [env.reset(seed=0, options={"task": ref.key})[0] for ref in picked]
    finally:
        env.close()


@contextmanager
def ours(model: str, prompts: Sequence[str], threads: int) -> Iterator[Any]:
    """A function that makes step number N and says what it took."""
    gymnasium.register("benchmark/Once-v0", entry_point=Once, disable_env_checker=True)
    config = resolve(
        {
            **preset("grpo", model),
            "env": "benchmark/Once-v0",
            "env_args": {"instructions": list(prompts)},
            "prompts": PROMPTS,
            "group_size": GROUP,
            "concurrency": PROMPTS * GROUP,
            "threads": threads,
            "store_rollouts": False,
            "probe_every": 0,
            "sampling": {"turn_tokens": MAX_NEW_TOKENS},
            "learner": {"optimiser": "adamw", "lr": RATE},
        }
    )
    recipe = load_recipe("grpo")
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        with assemble(run, recipe, silent) as parts:

            def step(number: int) -> dict[str, float]:
                with measure.spending() as spent:
                    metrics = train_step(run, recipe, parts, number, silent)
                used = spent()
                return {"wall": used.wall, "cpu": used.cpu, "tokens": metrics["tokens"]}

            yield step


def python_with_trl(folder: Path) -> str:
    """The interpreter of a virtual environment with TRL, made where it is not there yet."""
    python = folder / "bin" / "python"
    ask = [str(python), "-c", "from importlib.metadata import version; print(version('trl'))"]
    if not python.exists() or subprocess.run(ask, capture_output=True, text=True).stdout.strip() != TRL:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [f"trl=={TRL}", f"torch=={TORCH}", "--constraint", str(HERE.parent / "constraints.txt")]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
    return str(python)


@contextmanager
def theirs(python: str, asked: dict[str, Any]) -> Iterator[Any]:
    """As `ours`, by TRL in a process of its own."""
    worker = subprocess.Popen(
        [python, str(HERE / "peer_trl.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    asks, answers = worker.stdin, worker.stdout

    def say(line: str) -> None:
        asks.write(line + "\n")
        asks.flush()

    def step(number: int) -> dict[str, float]:
        say("step")
        if not (line := answers.readline()):
            raise RuntimeError(f"TRL ended before step {number}; its standard error says why")
        found: dict[str, float] = json.loads(line)
        return found

    try:
        say(json.dumps(asked))
        yield step
    finally:
        asks.close()
        answers.close()
        worker.kill()
        worker.wait()


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--venv", type=Path, default=Path("runs/benchmarks/trl"), help="where TRL is, or will be")
    args = parser.parse_args()
    threads = args.threads or torch.get_num_threads()
    model, python, prompts = measure.cold_model(args.model), python_with_trl(args.venv), instructions()
    asked = {"model": str(Path(model).resolve()), "prompts": prompts, "group": GROUP, "lr": RATE, "threads": threads}
    asked |= {"max_new_tokens": MAX_NEW_TOKENS, "steps": args.repeats + 2}
    taken: dict[str, list[dict[str, float]]] = {"Retort": [], f"TRL {TRL}": []}
    with ours(model, prompts, threads) as our_step, theirs(python, asked) as their_step:
        for number in range(args.repeats + 1):
            for name, step in zip(taken, (our_step, their_step), strict=True):
                measured = step(number)
                if number:  # the first is a warm-up
                    taken[name].append(measured)
    rates = {
        name: [measure.median([step["tokens"] / step[unit] for step in steps]) for unit in ("wall", "cpu")]
        for name, steps in taken.items()
    }
    base = rates[f"TRL {TRL}"]
    print(f"{PROMPTS * GROUP} completions of at most {MAX_NEW_TOKENS} tokens a step, torch threads: {threads}")
    measure.table(
        ("trainer", "tokens a step", "s a step", "tokens/s", "ratio", "CPU s a step", "tokens per CPU s", "ratio"),
        [
            (
                name,
                measure.median([step["tokens"] for step in steps]),
                measure.median([step["wall"] for step in steps]),
                rates[name][0],
                rates[name][0] / base[0],
                measure.median([step["cpu"] for step in steps]),
                rates[name][1],
                rates[name][1] / base[1],
            )
            for name, steps in taken.items()
        ],
    )
    print(f"Model tokens a second over TRL's: {rates['Retort'][0] / base[0]:.2f}; ", end="")
    print(f"per CPU second {rates['Retort'][1] / base[1]:.2f}.")


if __name__ == "__main__":
    main()
