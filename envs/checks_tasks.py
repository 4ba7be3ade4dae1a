"""Checks of tasks: named for ever, the same whoever asks and whenever, and never in two splits."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from retort.envs.base import SPLITS, TaskRef
from retort.envs.checks_steps import INFO_TYPES
from retort.envs.probe import Episode, Fault, Player, Subject, follow_gold, follow_plan, play, shown


def tasks_are_named(subject: Subject) -> Iterator[Fault]:
    mend = "tasks() gives TaskRef(key, digest, split) with a key that no other task has and a split of " + ", ".join(
        SPLITS
    )
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
    if not subject.no_gold:
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
    for episode in subject.played(subject.model):
        again = play(subject.env, episode.ref, follow_plan([step.action for step in episode.steps]), subject.model)
        if _told(again) != _told(episode):
            yield Fault(f"{episode}: the same actions gave another outcome", "let step hang on task and actions alone")


def _told(episode: Episode) -> list[Any]:
    """What the contract covers; wrappers add times and the like."""
    steps = [replace(step, info={key: step.info.get(key) for key in INFO_TYPES}) for step in episode.steps]
    return [episode.observation, steps]


def tasks_stay_what_they_are(subject: Subject) -> Iterator[Fault]:
    """After they were played, in another instance and with another seed; and a digest tells contents apart."""
    mend = "build a task from its key alone, afresh at each reset, and change nothing that the next episode reads"
    first = {episode.ref.key: episode.observation for episode in reversed(subject.episodes) if not episode.error}
    if list(subject.env.get_wrapper_attr("tasks")()) != subject.refs:
        yield Fault("tasks() changed while they were played", mend)
    other = subject.another()
    for ref in subject.sample:
        for env, whose in ((subject.env, "once it was played"), (other, "in another instance")):
            observation, _ = env.reset(seed=5, options={"task": ref.key})
            if observation != first.get(ref.key, observation):
                found = f"{ref.key} starts with {shown(observation)} {whose}, before with {shown(first[ref.key])}"
                yield Fault(found, mend)
    other.close()
    by_digest: dict[str, TaskRef] = {}
    for ref in subject.sample:
        twin = by_digest.setdefault(ref.digest, ref)
        if first.get(ref.key) != first.get(twin.key):
            yield Fault(
                f"{twin.key} and {ref.key} have one digest and start differently",
                "let the digest be content_digest of all that a task is made of",
            )


def instances_are_apart(subject: Subject) -> Iterator[Fault]:
    """Many run at once: an episode must not notice that another instance is reset and acts between its steps."""
    other, busy = subject.another(), subject.sample[-1]

    def beside(player: Player) -> Player:
        def act(env: gymnasium.Env[str, str], observation: str, turn: int) -> str:
            action = player(env, observation, turn)
            other.reset(options={"task": busy.key})
            other.step("")
            return action

        return act

    for episode in subject.played(subject.model):
        if episode.ref.key != busy.key:
            player = follow_plan([step.action for step in episode.steps]) if subject.no_gold else follow_gold
            if _told(play(subject.env, episode.ref, beside(player), subject.model)) != _told(episode):
                yield Fault(
                    f"{episode}: another outcome while another instance played",
                    "keep an episode's state on self, never on the class or the module",
                )
            break
    other.close()


CHECKS = (
    tasks_are_named,
    task_order_is_stable,
    splits_are_disjoint,
    task_can_be_chosen,
    seeds_decide,
    global_generators_untouched,
    same_actions_same_outcome,
    tasks_stay_what_they_are,
    instances_are_apart,
)
