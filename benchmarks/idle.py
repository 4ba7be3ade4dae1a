"""How long the learner waits for its episodes, in step and played ahead, where environments take heavy-tailed times.

Usage: OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/idle.py --threads 1 [--model FOLDER] [--steps N] [--ahead N]

An episode reads a page and writes one action of at most 8 tokens, after which its environment sleeps for a log-normal
time (median 30 ms, sigma 1.2: the slowest of 64 takes about half a second) and costs nothing. GRPO, 8 tasks by 8
episodes a step, vLLM in this process. Idle is the share of a step in which the learner waits for its episodes, after
the first steps. A page has about 156 tokens, since agents read far more than they write; with `--short` it has 13, so
that the engine has as much to do as the learner.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
from gymnasium import register
from retort.algos.config import preset, resolve
from retort.algos.runs import Run
from retort.algos.train import train
from retort.envs.single import single_turn

MEDIAN_S, SIGMA = 0.03, 1.2
SHORT = [f"file {number}" for number in range(64)]
LINES = range(20)
PAGES = ["\n".join(f"{(page + line) % 64} file {page * line % 97}.txt" for line in LINES) for page in range(64)]


def graded(prompt: str, answer: str) -> tuple[float, str]:
    """A reward that differs within a group, late."""
    draw = np.random.default_rng([len(answer), *answer.encode()[:32], *prompt.encode()])
    time.sleep(MEDIAN_S * math.exp(SIGMA * draw.standard_normal()))
    return float(len(answer) % 2), "done"


register("bench/Page-v0", single_turn(PAGES, graded, answers=PAGES))
register("bench/Short-v0", single_turn(SHORT, graded, answers=SHORT))


def waited(
    model: str, folder: Path, *, steps: int, ahead: int, threads: int, engine: str, env: str
) -> tuple[float, float, float, float]:
    """Of a run: idle share, seconds a step, mean and largest staleness."""
    small = {"steps": steps, "prompts": 8, "group_size": 8, "concurrency": 64, "checkpoint_every": steps}
    how = {"engine": engine, "max_staleness": ahead, "threads": threads}
    base = {**preset("grpo", model), **small, **how, "env": f"idle:{env}"}
    run = Run.create(folder, resolve(base, ["turn_tokens=8", "probe_every=0", "lr=1e-4", "store_rollouts=false"]))
    train(run)
    lines: list[dict[str, Any]] = run.metrics()[ahead + 2 :]
    whole = [sum(line["seconds"].values()) for line in lines]
    idle = sum(line["seconds"]["rollout"] for line in lines) / sum(whole)
    stale = [line["staleness"] for line in lines]
    return idle, measure.median(whole), sum(stale) / len(stale), max(line["staleness_max"] for line in lines)


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--ahead", type=int, default=4)
    parser.add_argument("--engine", default="vllm", help="vllm, or vllm:URL for one in another process")
    parser.add_argument("--short", action="store_true", help="prompts of 13 tokens")
    args = parser.parse_args()
    model = measure.cold_model(args.model)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as place:
        for ahead in (0, args.ahead):
            how = {"steps": args.steps, "threads": args.threads, "engine": args.engine}
            env = "bench/Short-v0" if args.short else "bench/Page-v0"
            idle, seconds, mean, most = waited(model, Path(place) / str(ahead), ahead=ahead, env=env, **how)
            rows.append([ahead, f"{100 * idle:.0f}%", seconds, mean, most])
    measure.table(("max_staleness", "learner idle", "s a step", "mean staleness", "largest"), rows)


if __name__ == "__main__":
    main()
