"""`check_env`: the environment contract as a program. It plays a registered environment and reports every fault.

Oracle, null, random and near-miss players act on a sample of tasks of each family, once; then each function in CHECKS
looks at one property and yields what is wrong and how to mend it. To add a check, write a function and list it.
"""

from __future__ import annotations

import inspect
import math
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env as check_gymnasium
from retort.envs.base import SPLITS, Failure, Feedback, TaskRef, TextEnv
from retort.envs.probe import MAX_TURNS, Episode, Subject, follow_gold, follow_plan, play

NEAR_ZERO = 0.1  # mean reward that doing nothing, or noise, may earn
CLOSE_S = 5.0  # seconds that a close may take
LEAK_TOKENS = 8  # a run of so many words of invisible feedback in an observation is a leak; a whole shorter text too
WORD = re.compile(r"\w+|[^\w\s]")
INFO_TYPES: dict[str, Any] = {
    "feedback": tuple,
    "reward_components": dict,
    "success": (bool, type(None)),
    "failure": (Failure, type(None)),
    "task": TaskRef,
}


@dataclass(frozen=True)
class Fault:
    """found: what was seen. mend: what to do about it. check: the function that saw it."""

    found: str
    mend: str
    check: str = ""


class CheckError(Exception):
    """The environment breaks its contract; `faults` has everything that was found."""

    def __init__(self, env: str, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        listed = "\n".join(f"  {fault.check}: {fault.found}\n    mend: {fault.mend}" for fault in faults)
        super().__init__(f"{env} has {len(faults)} fault{'s' * (len(faults) != 1)}\n{listed}")


def tasks_are_named(subject: Subject) -> Iterator[Fault]:
    mend = "tasks() gives TaskRef(key, digest, split) with a key that no other task has and a split of " + ", ".join(
        SPLITS
    )
    if not subject.refs:
        yield Fault("tasks() is empty", mend)
    for ref in subject.refs:
        if not isinstance(ref, TaskRef) or not ref.key or not ref.digest or ref.split not in SPLITS:
            yield Fault(f"{ref!r}", mend)
    if len({ref.key for ref in subject.refs}) < len(subject.refs):
        yield Fault("two tasks have one key", mend)


def task_order_is_stable(subject: Subject) -> Iterator[Fault]:
    mend = "give the tasks in a fixed order that hangs on nothing but the arguments"
    if list(subject.env.get_wrapper_attr("tasks")()) != subject.refs:
        yield Fault("tasks() differs from one call to the next", mend)
    other = subject.another()
    if list(other.get_wrapper_attr("tasks")()) != subject.refs:
        yield Fault("tasks() of another instance differs", mend)
    other.close()


def splits_are_disjoint(subject: Subject) -> Iterator[Fault]:
    """Where the environment can be made for each split."""
    if "split" not in inspect.signature(type(subject.env.unwrapped).__init__).parameters:
        return
    owner: dict[str, str] = {}
    for split in SPLITS:
        env = subject.another(split=split)
        for ref in env.get_wrapper_attr("tasks")():
            if ref.split != split:
                yield Fault(f"{ref.key} is listed under {split} and says {ref.split}", "say the split that it is in")
            if owner.setdefault(ref.digest, split) != split:
                yield Fault(
                    f"{ref.key} of {split} has the content of a task of {owner[ref.digest]}",
                    "assign splits by a hash of the content, so that no task is in two",
                )
        env.close()


def task_can_be_chosen(subject: Subject) -> Iterator[Fault]:
    for episode in subject.episodes:
        if episode.info and episode.info.get("task") != episode.ref:
            yield Fault(
                f"reset for {episode.ref.key} says task {episode.info.get('task')}",
                "reset(options={'task': key}) starts that task and info['task'] is its TaskRef; TextEnv.pick helps",
            )
    try:
        subject.env.reset(options={"task": "no such task"})
    except KeyError:
        return
    yield Fault("reset takes a task key that does not exist", "raise KeyError for an unknown task; TextEnv.pick does")


def seeds_decide(subject: Subject) -> Iterator[Fault]:
    mend = "call super().reset(seed=seed) and draw from self.np_random alone"
    first = _start(subject.env, 7)
    if _start(subject.env, 7) != first:
        yield Fault("the same seed starts another task or observation", mend)
    other = subject.another()
    if _start(other, 7) != first:
        yield Fault("another instance with the same seed starts another task or observation", mend)
    other.close()
    if len(subject.refs) > 1 and all(_start(subject.env, seed) == first for seed in range(16)):
        yield Fault("16 seeds start the same task", mend)


def _start(env: gymnasium.Env[str, str], seed: int) -> tuple[str, Any]:
    observation, info = env.reset(seed=seed)
    return observation, info.get("task")


def global_generators_untouched(subject: Subject) -> Iterator[Fault]:
    before = _generators()
    subject.env.reset(seed=3)
    subject.env.step("done")
    play(subject.env, subject.sample[0], follow_gold, "gold")
    for name, state in _generators().items():
        if before.get(name, state) != state:
            yield Fault(f"the global generator of {name} was seeded or drawn from", "draw from self.np_random alone")


def _generators() -> dict[str, bytes]:
    found = {"random": repr(random.getstate()).encode(), "numpy": repr(np.random.get_state(legacy=True)).encode()}
    if torch := sys.modules.get("torch"):
        found["torch"] = torch.get_rng_state().numpy().tobytes()
    return found


def same_actions_same_outcome(subject: Subject) -> Iterator[Fault]:
    for episode in subject.played("gold"):
        again = play(subject.env, episode.ref, follow_plan([step.action for step in episode.steps]), "gold")
        if _told(again) != _told(episode):
            yield Fault(f"{episode}: the same actions gave another outcome", "let step hang on task and actions alone")


def _told(episode: Episode) -> list[Any]:
    """What the contract covers; wrappers add times and the like."""
    steps = [replace(step, info={key: step.info.get(key) for key in INFO_TYPES}) for step in episode.steps]
    return [episode.observation, steps]


def nothing_raises(subject: Subject) -> Iterator[Fault]:
    for episode in subject.episodes:
        if episode.error:
            yield Fault(
                f"{episode}: {episode.error}",
                "raise only where the infrastructure broke; what an agent does wrong is a step with a low reward",
            )


def info_has_its_keys(subject: Subject) -> Iterator[Fault]:
    infos = [(str(episode), episode.info) for episode in subject.episodes if episode.info or not episode.error]
    infos += [(f"{episode}, action {turn}", step.info) for episode, turn, step in subject.steps()]
    for where, info in infos:
        for key, kinds in INFO_TYPES.items():
            mend = f"set info[{key!r}] on every reset and step; retort.envs.base lists the keys"
            if key not in info:
                yield Fault(f"{where}: info has no {key!r}", mend)
            elif not isinstance(info[key], kinds):
                yield Fault(f"{where}: info[{key!r}] is {info[key]!r}", mend)
    for episode in subject.episodes:
        if not episode.error and not isinstance(episode.info.get("tools"), list | tuple):
            yield Fault(f"{episode}: info of reset has no list 'tools'", "set info['tools'] = [] where there are none")


def components_are_numbers(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        for name, value in dict(step.info.get("reward_components") or {}).items():
            if not isinstance(name, str) or not _is_number(value):
                yield Fault(f"{episode}, action {turn}: component {name!r} is {value!r}", "give finite numbers by name")


def rewards_are_finite(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        if not _is_number(step.reward):
            yield Fault(f"{episode}, action {turn}: the reward is {step.reward!r}", "return a finite float")


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int | np.floating | np.integer) and math.isfinite(value)


def never_both_flags(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        if not isinstance(step.terminated, bool) or not isinstance(step.truncated, bool):
            yield Fault(f"{episode}, action {turn}: a flag is no bool", "return terminated and truncated as bool")
        if step.terminated and step.truncated:
            yield Fault(
                f"{episode}, action {turn}: terminated and truncated are both true",
                "terminated is the task's end, truncated a limit's; where both come at once, terminated alone",
            )


def observations_are_in_their_space(subject: Subject) -> Iterator[Fault]:
    space, mend = subject.env.observation_space, "return text that observation_space contains; TextSpace takes any text"
    for episode in subject.episodes:
        if not episode.error and not space.contains(episode.observation):
            yield Fault(f"{episode}: reset observed {episode.observation!r:.80}", mend)
    for episode, turn, step in subject.steps():
        if not space.contains(step.observation):
            yield Fault(f"{episode}, action {turn}: observed {step.observation!r:.80}", mend)


def episodes_end(subject: Subject) -> Iterator[Fault]:
    for episode in subject.episodes:
        if not episode.error and not episode.over:
            yield Fault(f"{episode}: not over after {MAX_TURNS} actions", "truncate after a number of turns")


def outcomes_are_told(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        success, failure, where = step.info.get("success"), step.info.get("failure"), f"{episode}, action {turn}"
        if step.over and success is None:
            yield Fault(f"{where}: the episode is over and success is None", "set info['success'] on the last step")
        if not step.over and success is not None:
            yield Fault(f"{where}: success is {success} before the end", "leave info['success'] None until the end")
        if step.over and success is False and failure is None:
            yield Fault(f"{where}: it failed and failure is None", "set info['failure'] = Failure.POLICY")
        if success and failure is not None:
            yield Fault(f"{where}: success with failure {failure}", "leave info['failure'] None on a success")
        if failure is Failure.INFRASTRUCTURE:
            yield Fault(f"{where}: an infrastructure failure was returned", "raise it, so that it is never scored")


def no_step_after_the_end(subject: Subject) -> Iterator[Fault]:
    for episode in subject.episodes:
        if not episode.stops:
            yield Fault(f"{episode}: step after the end was taken", "raise gymnasium.error.ResetNeeded until reset")


def gold_scores_one(subject: Subject) -> Iterator[Fault]:
    for episode in subject.played("gold"):
        if not math.isclose(episode.total, 1.0) or episode.steps[-1].info.get("success") is not True:
            said = " | ".join(f"{step.action} -> {step.observation}" for step in episode.steps)
            yield Fault(
                f"{episode} ({episode.ref.family or 'no family'}): reward {episode.total:g}, success "
                f"{episode.steps[-1].info.get('success')} after {said!r:.300}",
                "mend the task or its gold solution: no agent could solve it either",
            )


def doing_nothing_scores_nothing(subject: Subject) -> Iterator[Fault]:
    for player in ("null", "done", "random"):
        totals = [episode.total for episode in subject.played(player)]
        if totals and (mean := sum(totals) / len(totals)) > NEAR_ZERO:
            yield Fault(
                f"the {player} player earns {mean:.2f} a task (at most {NEAR_ZERO} is sound)",
                "start tasks away from their goal and let nothing but the goal be rewarded",
            )


def near_misses_fail(subject: Subject) -> Iterator[Fault]:
    for episode in subject.played("near miss"):
        if episode.steps[-1].info.get("success") or episode.total >= 1:
            said = " | ".join(step.action for step in episode.steps)
            yield Fault(f"{episode}: {said!r} scores {episode.total:g}", "grade more strictly, or it is no near miss")


def feedback_names_its_action(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        for item in step.info.get("feedback") or ():
            if not isinstance(item, Feedback) or not isinstance(item.text, str):
                yield Fault(f"{episode}, action {turn}: {item!r}", "give Feedback(text, source, turn, visible)")
            elif item.turn != turn:
                yield Fault(
                    f"{episode}, action {turn}: feedback says turn {item.turn}", "count actions from 0 at reset"
                )


def visible_feedback_was_seen(subject: Subject) -> Iterator[Fault]:
    for episode, turn, step in subject.steps():
        for item in step.info.get("feedback") or ():
            if isinstance(item, Feedback) and item.visible and item.text not in step.observation:
                yield Fault(
                    f"{episode}, action {turn}: visible feedback {item.text!r:.80} is not in the observation",
                    "visible means that the student read this very text; else set visible=False",
                )


def invisible_feedback_stays_hidden(subject: Subject) -> Iterator[Fault]:
    """No run of LEAK_TOKENS words of it (or all of a shorter one, of three at least) is in an observation, unless the
    agent had read or written it before."""
    for episode in subject.episodes:
        hidden = [
            (item.text, run)
            for step in episode.steps
            for item in step.info.get("feedback") or ()
            if isinstance(item, Feedback) and not item.visible
            for run in _runs(item.text)
        ]
        known, observation = "", episode.observation
        for place, step in enumerate([None, *episode.steps]):
            if step is not None:
                seen = [item.text for item in step.info.get("feedback") or () if getattr(item, "visible", False)]
                known += _spaced(observation) + _spaced(step.action) + "".join(map(_spaced, seen))
                observation = step.observation
            for text, run in hidden:
                # What the instruction says from the start is nobody's secret.
                if step is not None and run in _spaced(observation) and run not in known:
                    yield Fault(
                        f"{episode}, action {place - 1}: the observation shows invisible feedback {text!r:.80}",
                        "keep it out of the observation, or make it visible",
                    )
                    break


def _spaced(text: str) -> str:
    """Words and punctuation with one space around each, so that runs can be searched for."""
    return f" {' '.join(WORD.findall(str(text)))} "


def _runs(text: str) -> list[str]:
    words = _spaced(text).split()
    if len(words) < 3:
        return []
    last = max(len(words) - LEAK_TOKENS, 0)
    return [f" {' '.join(words[at : at + LEAK_TOKENS])} " for at in range(last + 1)]


def close_is_idempotent(subject: Subject) -> Iterator[Fault]:
    env = subject.another()
    env.reset(seed=0)
    start = time.monotonic()
    for times in ("once", "twice"):
        try:
            env.unwrapped.close()
        except Exception as error:
            yield Fault(
                f"close called {times} raised {error!r}", "let close do nothing where there is nothing to close"
            )
    if (took := time.monotonic() - start) > CLOSE_S:
        yield Fault(f"close took {took:.1f} s", f"end it within {CLOSE_S:g} s")


def gymnasium_agrees(subject: Subject) -> Iterator[Fault]:
    """Gymnasium's own checker, its warnings included."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_gymnasium(subject.env.unwrapped, skip_render_check=True, skip_close_check=True)
        except Exception as error:
            yield Fault(f"{type(error).__name__}: {error}", "see gymnasium.utils.env_checker.check_env")
    for warning in caught:
        yield Fault(str(warning.message), "see gymnasium.utils.env_checker.check_env")


CHECKS: tuple[Callable[[Subject], Iterator[Fault]], ...] = (
    tasks_are_named,
    task_order_is_stable,
    splits_are_disjoint,
    nothing_raises,
    task_can_be_chosen,
    seeds_decide,
    global_generators_untouched,
    same_actions_same_outcome,
    info_has_its_keys,
    components_are_numbers,
    rewards_are_finite,
    never_both_flags,
    observations_are_in_their_space,
    episodes_end,
    outcomes_are_told,
    no_step_after_the_end,
    gold_scores_one,
    doing_nothing_scores_nothing,
    near_misses_fail,
    feedback_names_its_action,
    visible_feedback_was_seen,
    invisible_feedback_stays_hidden,
    close_is_idempotent,
    gymnasium_agrees,
)


def faults_of(check: Callable[[Subject], Iterator[Fault]], subject: Subject) -> list[Fault]:
    """What one check finds. The same advice is given once, with the number of times that it applies."""
    found: dict[str, list[Fault]] = {}
    try:
        for fault in check(subject):
            found.setdefault(fault.mend, []).append(fault)
    except Exception as error:
        mend = "mend what raised; this check could not go on"
        found.setdefault(mend, []).append(Fault(f"{type(error).__name__}: {error}", mend))
    return [
        replace(
            faults[0],
            found=faults[0].found + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""),
            check=check.__name__,
        )
        for faults in found.values()
    ]


def check_env(env: gymnasium.Env[str, str], *, per_family: int = 2) -> None:
    """Check a registered environment, made with `gymnasium.make`, against the contract in `retort.envs.base`.

    It stays open. per_family: how many tasks of each family are played, by about six players each.

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
        raise CheckError(name, [Fault(f"tasks() raised {error!r}", mend, "tasks_are_named")]) from error
    faults = [fault for check in CHECKS for fault in faults_of(check, subject)]
    if faults:
        raise CheckError(name, faults)
