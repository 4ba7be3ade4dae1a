"""A step of `retort/ReasoningGym-v0` beside a plain call of the package's verifier, and beside GEM's wrapper.

Usage: python benchmarks/single_turn.py [--repeats N] [--venv FOLDER]

Each way scores the right answers to the same number of questions of each generator, which are drawn before. CPU
microseconds an answer, the least of several repeats; an own verifier process is counted in. `verifier` calls
`score_answer` and nothing else. `step` is `env.step` of an environment made with `gymnasium.make`; `whole` also draws
the question, by each way's own means, and resets. GEM lives in a virtual environment of its own, which this script
makes; it asks for another version of the package, so its ratio is to the verifier there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import measure
from reasoning_gym import create_dataset
from retort.envs import reasoning_gym_tasks
from retort.envs.reasoning_gym_judge import TIMED

import retort  # noqa: F401  (registers the environment)

GEM = "0.1.0"
HERE = Path(__file__).parent
QUESTIONS = 50
GENERATORS = (
    "chain_sum", "leg_counting", "prime_factorization", "countdown", "sudoku", "tower_of_hanoi", "knights_knaves",
    "word_ladder", "graph_color", "rubiks_cube", "polynomial_multiplication", "simple_integration",
)  # fmt: skip


def least(action: Callable[[], float], repeats: int) -> float:
    """Microseconds a question: the least of what `action` says, in seconds for all of them."""
    return min(action() for _ in range(repeats)) / QUESTIONS * 1e6


def ours(generator: str, repeats: int) -> dict[str, float]:
    """What each way takes on our side."""
    env = gymnasium.make("retort/ReasoningGym-v0", generator=generator, size=QUESTIONS)
    questions = reasoning_gym_tasks.questions(generator, "{}", "train", QUESTIONS)
    verifier = create_dataset(generator, seed=0, size=QUESTIONS)

    def verified() -> float:
        start = time.process_time()
        for question in questions:
            verifier.score_answer(answer=question.answer, entry=question.entry)
        return time.process_time() - start

    def stepped() -> float:
        total = 0.0
        with measure.spending() as spent:
            for question in questions:
                env.reset(options={"task": question.ref.key})
                start = time.process_time()
                env.step(question.answer)
                total += time.process_time() - start
        return spent().cpu if generator in TIMED else total  # a reset is nothing beside a process

    def whole() -> float:
        reasoning_gym_tasks._drawn.cache_clear()
        start = time.process_time()
        fresh = gymnasium.make("retort/ReasoningGym-v0", generator=generator, size=QUESTIONS)
        for ref in fresh.get_wrapper_attr("tasks")():
            said, _ = fresh.reset(options={"task": ref.key})
            fresh.step(fresh.get_wrapper_attr("gold")(said))
        fresh.close()
        return time.process_time() - start

    try:
        return {
            "verifier": least(verified, repeats),
            "step": least(stepped, repeats),
            "whole": least(whole, repeats),
        }
    finally:
        env.close()


def python_with_gem(folder: Path) -> str:
    """The interpreter of a virtual environment with GEM, made where it is not there yet."""
    python = folder / "bin" / "python"
    ask = [str(python), "-c", "from importlib.metadata import version; print(version('gem-llm'))"]
    if not python.exists() or subprocess.run(ask, capture_output=True, text=True).stdout.strip() != GEM:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [str(python), "-m", "pip", "install", "--quiet", f"gem-llm=={GEM}"]
        subprocess.run(wanted, check=True, stdout=sys.stderr)
    return str(python)


def theirs(python: str, repeats: int) -> dict[str, dict[str, float]]:
    """By generator, what GEM takes."""
    asked = json.dumps({"generators": GENERATORS, "questions": QUESTIONS, "repeats": repeats})
    worker = [python, str(HERE / "single_turn_gem.py")]
    done = subprocess.run(worker, input=asked, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return {name: {way: taken / QUESTIONS * 1e6 for way, taken in ways.items()} for name, ways in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--venv", type=Path, default=Path("runs/benchmarks/gem"), help="where GEM is, or will be")
    args = parser.parse_args()
    gem = theirs(python_with_gem(args.venv), args.repeats)
    found = {name: ours(name, args.repeats) for name in GENERATORS}
    header = ("generator", "verifier", "step", "step / verifier", "GEM's step / verifier", "whole", "GEM's whole")
    rows = [
        (
            name,
            own["verifier"],
            own["step"],
            own["step"] / own["verifier"],
            gem[name]["step"] / gem[name]["verifier"],
            own["whole"],
            gem[name]["whole"],
        )
        for name, own in found.items()
    ]
    measure.table(header, rows)

    def total(taken: dict[str, dict[str, float]], way: str) -> float:
        return sum(ways[way] for ways in taken.values())

    extra = measure.median([own["step"] - own["verifier"] for own in found.values()])
    print(f"A step beyond its verifier: {extra:.0f} microseconds, the median of the generators. Over all of them a")
    print(f"step takes {total(found, 'step') / total(found, 'verifier'):.2f} of its verifier, GEM's ", end="")
    print(f"{total(gem, 'step') / total(gem, 'verifier'):.2f}; ", end="")
    print(f"the whole takes {total(found, 'whole') / total(gem, 'whole'):.2f} of GEM's.")


if __name__ == "__main__":
    main()
