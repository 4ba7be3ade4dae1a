"""`check_env`: the environment contract as a program. It plays a registered environment and reports every fault.

Oracle, null, random, near-miss and forging players (`probe.py`) act on a sample of tasks of each family, once; then
each function in CHECKS looks at one property and yields what is wrong and how to mend it. To add a check, write a
function into the `checks_` file that it belongs to and list it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import gymnasium
from retort.envs import checks_feedback, checks_rewards, checks_steps, checks_tasks
from retort.envs.base import TextEnv
from retort.envs.checks_steps import nothing_raises
from retort.envs.probe import Fault, Subject
from retort.envs.raised import told

Check = Callable[[Subject], Iterator[Fault]]
CHECKS: tuple[Check, ...] = (
    *checks_tasks.CHECKS,
    *checks_steps.CHECKS,
    *checks_rewards.CHECKS,
    *checks_feedback.CHECKS,
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


def check_env(env: gymnasium.Env[str, str], *, per_family: int = 2) -> str:
    """Check a registered environment, made with `gymnasium.make`, against the contract in `retort.envs.base`.

    It stays open. Returns what could not be checked: nothing, or why there is no gold solution to play. per_family: how
    many tasks of each family are played, by about ten players each.

    Raises:
        CheckError: with every fault found and how to mend it.
    """
    name = env.spec.id if env.spec is not None else str(env)
    if not isinstance(env.unwrapped, TextEnv):
        mend = "derive it from retort.envs.base.TextEnv, and do not wrap it in something that changes the texts' types"
        raise CheckError(name, [Fault(f"{type(env.unwrapped).__name__} is no TextEnv", mend, "is_a_text_env")])
    try:
        subject = Subject(env, per_family)
    except Exception as error:
        mend = "let tasks() give TaskRefs without a reset"
        raise CheckError(name, [Fault(f"tasks() raised {told(error)}", mend, "tasks_are_named")]) from error
    # Where an episode breaks, other checks would only meet the same exception.
    faults = faults_of(nothing_raises, subject) or [fault for check in CHECKS for fault in faults_of(check, subject)]
    if faults:
        raise CheckError(name, faults)
    return subject.no_gold
