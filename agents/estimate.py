"""What an evaluation would ask of a model, before it is asked: requests and tokens, from a look at the tasks.

Nothing is played and no endpoint is asked. A sample of tasks is reset, for the length of its first observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from retort.agents.evaluate import look, make_env, spread
from retort.agents.evaluation import EvalConfig

SAMPLE = 16  # tasks that are reset
BYTES = 4  # of English in a token, about


@dataclass(frozen=True)
class Estimate:
    """From the least (every episode ends with its first action) to the most (every episode takes all its turns and all
    tokens of each, and an observation is as long as the first). `most_*` is None where the environment names no
    `max_turns`. Tokens are about right for English at four bytes a token.
    """

    model: str
    tasks: int
    episodes: int
    first_prompt_tokens: float
    least_requests: int
    least_prompt_tokens: int
    most_requests: int | None
    most_prompt_tokens: int | None
    most_completion_tokens: int | None


def estimate(config: EvalConfig) -> Estimate:
    """Raises UsageError as `look` does; nothing of the model is looked at."""
    tasks = look(config).tasks
    episodes = len(tasks) * config.n
    env = make_env(config)
    try:
        lengths = []
        for task in spread(tasks, SAMPLE):
            observation, info = env.reset(seed=config.seed, options={"task": task.key})
            lengths.append(len(observation.encode()) + sum(len(str(tool)) for tool in info["tools"]))
        turns = getattr(env.unwrapped, "max_turns", None)
    finally:
        env.close()
    first = fmean(lengths) / BYTES
    # Turn t reads the first observation, and t actions and observations more.
    again = None if turns is None else turns * first + turns * (turns - 1) / 2 * (config.turn_tokens + first)
    return Estimate(
        model=config.model,
        tasks=len(tasks),
        episodes=episodes,
        first_prompt_tokens=first,
        least_requests=episodes,
        least_prompt_tokens=round(episodes * first),
        most_requests=None if turns is None else episodes * turns,
        most_prompt_tokens=None if again is None else round(episodes * again),
        most_completion_tokens=None if turns is None else episodes * turns * config.turn_tokens,
    )
