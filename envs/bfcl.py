"""`retort/BFCL-v0`: the multi-turn categories of the Berkeley Function-Calling Leaderboard, on the package `bfcl-eval`.

The first observation is a user's message. An action with calls, `[func(a=1), other(b="x")]` or JSON tool calls, runs
them on the package's simulated services, and their results are the next observation, a line each. An action without a
call ends the user's turn: the next message follows, or the end. What was meant as a call and cannot be read is told,
and the turn goes on, where the leaderboard would end it.

The reward is 1 where the package's own checker accepts the calls of all turns, else 0. More actions in a turn than the
leaderboard allows: truncated, reward 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.error import ResetNeeded
from retort.envs.base import (
    Feedback,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    checked_split,
    nearest,
    needed,
    step_info,
)
from retort.envs.bfcl_tasks import (
    ENDING,
    FAILS,
    FAMILIES,
    INSTALL,
    Entry,
    answer,
    apart,
    entries,
    fault_of,
    judged,
    message,
    methods_of,
    mistakes,
    plan_of,
    source,
    tools_of,
)
from retort.envs.calls import Call, Unreadable, read_calls, spoken

PROTOCOL = "Call functions with [name(argument=value), ...]; their results follow. When my request is met, say so."
KINDS = {
    "multi_turn:empty_turn_model_response": "calls",
    "multi_turn:instance_state_mismatch": "state",
    "multi_turn:execution_response_mismatch": "response",
}


class BFCLEnv(TextEnv):
    """Conversations with a user whose wishes take several calls of several services.

    split: all tasks are in "test"; they are there to evaluate, and the other splits are empty.
    families: which of `FAMILIES`; None is all. explain: the first observation also says how to act.

    Raises:
        MissingPackage: `bfcl-eval` or mpmath is not installed.
        UsageError: an unknown value, with the nearest valid one; from `reset`, where the split is empty.
    """

    counts = {"train": 0, "validation": 0, "test": 800}  # noqa: RUF012
    packages = dict.fromkeys(("mpmath", "bfcl_eval"), INSTALL)

    def __init__(self, split: Split = "test", families: Sequence[str] | None = None, explain: bool = True) -> None:
        self.split, self.explain = checked_split(split), explain
        if isinstance(families, str) or families == ():
            raise UsageError(f"families: expected a tuple of names, found {families!r}; valid: {', '.join(FAMILIES)}")
        for name in families or ():
            if name not in FAMILIES:
                raise UsageError(f"unknown family {name!r}; {nearest(str(name), FAMILIES)}")
        self.families = tuple(name for name in FAMILIES if families is None or name in families)
        needed("mpmath", INSTALL)
        self._limit = int(needed("bfcl_eval.constants.default_prompts", INSTALL).MAXIMUM_STEP_LIMIT)
        self.observation_space, self.action_space = TextSpace(), TextSpace(20_000)
        self._refs: dict[str, TaskRef] = {}
        self._listed: tuple[TaskRef, ...] = ()
        self._entry: Entry | None = None
        self._methods: dict[str, Any] = {}
        self._made: list[list[list[str]]] = []  # as the checker takes it: `Turns`, up to now
        self._over, self._turn, self._actions = True, 0, 0

    def tasks(self) -> Sequence[TaskRef]:
        if self.split != "test":
            return ()
        if not self._refs:
            self._refs = {key: entry.ref for family in self.families for key, entry in entries(family).items()}
            self._listed = tuple(self._refs.values())
        return self._listed

    def gold(self, observation: str) -> str:
        """The next action of the gold plan; right as long as the episode has followed it so far."""
        turn = self._current().gold[len(self._made) - 1]
        return ENDING if self._actions or not turn else f"[{', '.join(turn)}]"

    def near_misses(self) -> Sequence[Sequence[str]]:
        """The plans of `mistakes` that the checker refuses."""
        entry = self._current()
        return list(dict.fromkeys(plan_of(turns) for turns in mistakes(entry) if not judged(entry, turns)["valid"]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        if self.split != "test":
            raise UsageError(f"retort/BFCL-v0 is evaluation data: split {self.split!r} is empty, use 'test'")
        refs = self.tasks()
        key = (options or {}).get("task")
        # A known key needs no search through hundreds of tasks.
        ref = self._refs[key] if key in self._refs and len(options or {}) == 1 else refs[self.pick(refs, options)]
        self._entry = entry = entries(ref.family)[ref.key]
        self._methods = methods_of(entry)
        self._made, self._over, self._turn, self._actions = [[]], False, 0, 0
        told = f"{PROTOCOL}\n" if self.explain else ""
        return told + message(entry, 0), step_info(entry.ref, tools=tools_of(entry.ref.key, entry.ref.family))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        entry = self._current()
        if self._over:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text, found {type(action).__name__}")
        turn, self._turn = self._turn, self._turn + 1
        if not self.action_space.contains(action):
            calls: list[Call | Unreadable] = [Unreadable("expected an action of at most 20000 characters")]
        else:
            calls = read_calls(spoken(action), self._methods)
        if not calls:
            return self._next_message(entry, turn, invalid=not spoken(action).strip())
        observation = "\n".join(self._run(calls))
        seen = (Feedback(observation, Source.TOOL_RESULT, turn, True),)
        invalid = any(isinstance(call, Unreadable) for call in calls)
        self._actions += 1
        if self._actions > self._limit:
            return self._end(observation, seen, entry, cut=True, invalid=invalid)
        return observation, 0.0, False, False, step_info(entry.ref, feedback=seen, invalid=invalid)

    def close(self) -> None:
        self._entry, self._methods, self._made, self._over = None, {}, [], True

    def _current(self) -> Entry:
        if self._entry is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._entry

    def _run(self, calls: Sequence[Call | Unreadable]) -> list[str]:
        """The results; what the checker is to see of the calls is kept."""
        results, sources = [], []
        for call in calls:
            if isinstance(call, Unreadable):
                results.append(f"Error: {call.reason}")
                continue
            fault = fault_of(call, self._methods)
            said, ended = (
                (f"Error during execution: {fault}", False) if fault else answer(self._methods[call.name], call)
            )
            results.append(said)
            sources.append(source(call) if ended else FAILS)
        if sources:
            self._made[-1].append(sources)
        return results

    def _next_message(self, entry: Entry, turn: int, *, invalid: bool) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if len(self._made) == len(entry.gold):
            return self._end("", (), entry, cut=False, invalid=invalid)
        said = message(entry, len(self._made))
        self._made.append([])
        self._actions = 0
        seen = (Feedback(said, Source.USER_REPLY, turn, True),)
        return said, 0.0, False, False, step_info(entry.ref, feedback=seen, invalid=invalid)

    def _end(
        self, observation: str, seen: tuple[Feedback, ...], entry: Entry, *, cut: bool, invalid: bool = False
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._over = True
        if cut:
            verdict: Mapping[str, Any] = {"valid": False, "error_type": "cut"}
        else:
            verdict = judged(entry, self._made)
        info = step_info(
            entry.ref,
            feedback=(*seen, *lessons(entry, verdict, len(self._made) - 1, self._turn - 1)),
            components={name: float(KINDS.get(verdict.get("error_type", "")) != name) for name in KINDS.values()},
            success=bool(verdict["valid"]),
            invalid=invalid,
        )
        return observation, float(verdict["valid"]), not cut, cut, info


def lessons(entry: Entry, verdict: Mapping[str, Any], last: int, turn: int) -> tuple[Feedback, ...]:
    """What a teacher may see at the end and the student never does. last: the user's turn that the episode came to."""
    if verdict["valid"]:
        texts = [(Source.VERIFIER, "found as expected")]
    else:
        where = fault_turn(verdict, last)
        calls = ", ".join(entry.gold[where])
        texts = [
            (Source.VERIFIER, f"turn {where + 1}: {_difference(verdict, entry.gold[where])}"),
            (Source.HINT, f"in turn {where + 1} call {calls}" if calls else f"in turn {where + 1} call nothing"),
        ]
    texts.append((Source.SOLUTION, "\n".join(entry.plan)))
    return tuple(Feedback(text, kind, turn, visible=False) for kind, text in texts)


def fault_turn(verdict: Mapping[str, Any], last: int) -> int:
    """The user's turn that the checker objects to, from 0."""
    if "execution_result" in verdict:
        return len(verdict["execution_result"]) - 1
    named = re.search(r"turn (\d+)", verdict.get("error_message", ""))
    return int(named[1]) if named else last


def _difference(verdict: Mapping[str, Any], gold: Sequence[str]) -> str:
    """The checker's objection in few words."""
    kind = KINDS.get(verdict["error_type"])
    if kind == "state":
        name, found = next(iter(verdict["details"]["differences"].items()))
        right, left = apart(name, found["ground_truth"], found["model"])
        return f"expected {right}; found {left}"
    if kind == "response":
        return f"expected the result {verdict['details']['missing_items'][0][:80]}; found no call that gives it"
    if kind == "calls":
        return f"expected {gold[0][:80]}; found no call"
    return "expected an end; found too many actions"
