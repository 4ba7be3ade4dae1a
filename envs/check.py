"""`check_env`: the environment contract as a program. It plays a registered environment and reports every fault.

Oracle, null, random, near-miss and forging players (`probe.py`) act on a sample of tasks of each family, once; then
each function in CHECKS looks at one property and yields what is wrong and how to mend it. To add a check, write a
function into the `checks_` file that it belongs to and list it there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import gymnasium
from retort.envs import checks_feedback, checks_rewards, checks_secrets, checks_steps, checks_tasks
from retort.envs.base import TextEnv
from retort.envs.catalogue import takes_split, tasks_elsewhere
from retort.envs.checks_steps import nothing_raises
from retort.envs.probe import Fault, Subject
from retort.envs.raised import told

Check = Callable[[Subject], Iterator[Fault]]
CHECKS: tuple[Check, ...] = (
    *checks_tasks.CHECKS,
    *checks_steps.CHECKS,
    *checks_rewards.CHECKS,
    *checks_feedback.CHECKS,
    *checks_secrets.CHECKS,
)


class CheckError(Exception):
    """The environment breaks its contract; `faults` has everything that was found."""

    def __init__(self, env: str, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        listed = "\n".join(f"  {fault.check}: {fault.found}\n    mend: {fault.mend}" for fault in faults)
        super().__init__(f"{env} breaks the contract: {len(faults)} fault{'s' * (len(faults) != 1)}\n{listed}")


def faults_of(check: Check, subject: Subject) -> list[Fault]:
    """What one check finds. The same advice is given once, with the number of times that it applies."""
    found: dict[str, list[Fault]] = {}
    try:
        for fault in check(subject):
            found.setdefault(fault.mend, []).append(fault)
    except Exception as error:
        mend = "mend what raised; this check could not go on"
        found.setdefault(mend, []).append(Fault(told(error), mend))
    return [
        replace(
            faults[0],
            found=faults[0].found + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""),
            check=check.__name__,
        )
        for faults in found.values()
    ]


@dataclass(frozen=True)
class Checked:
    """What was looked at, where no fault was found.

    tasks: how many were played. players: those who played them. unchecked: what could not be checked; empty, or why
    there is no gold solution to play. remark: what is sound in some environments alone; empty where there is nothing.
    """

    tasks: int
    players: tuple[str, ...]
    unchecked: str
    remark: str


def check_env(env: gymnasium.Env[str, str], *, per_family: int = 2, name: str = "") -> Checked:
    """Check a registered environment, made with `gymnasium.make`, against the contract in `retort.envs.base`.

    It stays open. per_family: how many tasks of each family are played, by about ten players each. name: what to call
    it in messages; by default its id.

    Raises:
        CheckError: with every fault found and how to mend it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"gymnasium\.")  # the check of the same name holds them against it
        return _checked(env, per_family, name or (env.spec.id if env.spec is not None else str(env)))


def _checked(env: gymnasium.Env[str, str], per_family: int, name: str) -> Checked:
    if not isinstance(env.unwrapped, TextEnv):
        mend = "derive it from retort.envs.base.TextEnv, and do not wrap it in something that changes the texts' types"
        raise CheckError(name, [Fault(f"{type(env.unwrapped).__name__} is no TextEnv", mend, "is_a_text_env")])
    try:
        subject = Subject(env, per_family)
    except Exception as error:
        mend = "let tasks() give TaskRefs without a reset"
        raise CheckError(name, [Fault(f"tasks() raised {told(error)}", mend, "tasks_are_named")]) from error
    if not subject.refs:
        raise CheckError(name, [_no_tasks(subject)])
    # Where an episode breaks, other checks would only meet the same exception.
    faults = faults_of(nothing_raises, subject) or [fault for check in CHECKS for fault in faults_of(check, subject)]
    if faults:
        raise CheckError(name, faults)
    players = tuple(dict.fromkeys(episode.player for episode in subject.episodes))
    return Checked(len(subject.sample), players, subject.no_gold, checks_secrets.answer_in_every_prompt(subject))


def _no_tasks(subject: Subject) -> Fault:
    """The only fault where there is nothing to play: every check would meet it."""
    mend, split = "let tasks() give a TaskRef for each task", getattr(subject.env.unwrapped, "split", None)
    if subject.env.spec is None or not takes_split(subject.env.spec):
        return Fault("tasks() is empty", mend, "tasks_are_named")
    elsewhere = tasks_elsewhere(lambda other: subject.another(split=other))
    found = f"tasks() is empty{f' in the {split} split' if split else ''}; {elsewhere}"
    return Fault(found, f"{mend}, or check a split that has some: --env-arg split=...", "tasks_are_named")
