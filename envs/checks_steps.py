"""Checks of the form: what reset, step and close give, whoever plays."""

from __future__ import annotations

import json
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env as check_gymnasium
from retort.envs.base import Failure, TaskRef
from retort.envs.probe import MAX_TURNS, Fault, Subject, shown

COLOUR = re.compile(r"\x1b\[[\d;]*m")  # Gymnasium's warnings have it
CLOSE_S = 5.0  # seconds that a close may take
INFO_TYPES: dict[str, Any] = {
    "feedback": tuple,
    "reward_components": dict,
    "success": (bool, type(None)),
    "failure": (Failure, type(None)),
    "task": TaskRef,
}


WANTED = {
    "feedback": "a tuple of Feedback, () where there is none",
    "reward_components": "a dict of finite numbers by name, {} where there are none",
    "success": "None until the end, and then True or False",
    "failure": "Failure.POLICY where the episode failed, else None",
    "task": "the TaskRef of the current task",
}


def nothing_raises(subject: Subject) -> Iterator[Fault]:
    for episode in subject.episodes:
        if episode.error:
            yield Fault(
                f"{episode}: {episode.error}",
                episode.mend
                or "raise only where the infrastructure broke; what an agent does wrong is a step with a low reward",
            )


def info_has_its_keys(subject: Subject) -> Iterator[Fault]:
    infos = [(str(episode), episode.info) for episode in subject.episodes if episode.info or not episode.error]
    infos += [(f"{episode}, action {turn}", step.info) for episode, turn, step in subject.steps()]
    for where, info in infos:
        for key, kinds in INFO_TYPES.items():
            mend = f"set info[{key!r}] on every reset and step: {WANTED[key]}; retort.envs.base.step_info makes an info"
            if key not in info:
                yield Fault(f"{where}: info has no {key!r}", mend)
            elif not isinstance(info[key], kinds):
                yield Fault(f"{where}: info[{key!r}] is {shown(info[key])}", mend)
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
            yield Fault(f"{episode}: reset observed {shown(episode.observation)}", mend)
    for episode, turn, step in subject.steps():
        if not space.contains(step.observation):
            yield Fault(f"{episode}, action {turn}: observed {shown(step.observation)}", mend)


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
        yield Fault(COLOUR.sub("", str(warning.message)), "see gymnasium.utils.env_checker.check_env")


def tools_are_schemas(subject: Subject) -> Iterator[Fault]:
    mend = "give each tool as JSON data with a name, a description and parameters, or with these under 'function'"
    for episode in subject.episodes:
        tools = episode.info.get("tools")
        for tool in tools if isinstance(tools, list | tuple) else ():
            inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
                yield Fault(f"{episode}: the tool {shown(tool)} has no name", mend)
                continue
            try:
                json.dumps(tool)
            except (TypeError, ValueError) as error:
                yield Fault(f"{episode}: the tool {inner['name']} is no JSON: {error}", mend)


CHECKS = (
    nothing_raises,
    info_has_its_keys,
    components_are_numbers,
    rewards_are_finite,
    never_both_flags,
    observations_are_in_their_space,
    episodes_end,
    outcomes_are_told,
    no_step_after_the_end,
    close_is_idempotent,
    gymnasium_agrees,
    tools_are_schemas,
)
