"""Code-v0 in a real sandbox: rewards, what is read after an answer, what a teacher gets, ends and bad input."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from retort.envs.base import Failure, Feedback, Source, TaskRef, UsageError
from retort.envs.code import ALMOST, CodeEnv
from retort.envs.code_tasks import FAMILIES, HELD_OUT, VISIBLE, Task, task
from retort.sandboxes.base import SandboxClosed

import retort  # noqa: F401  (registers the environment)

Step = tuple[str, float, bool, bool, dict[str, Any]]


@pytest.fixture(scope="module")
def env() -> Iterator[CodeEnv]:
    made = gymnasium.make("retort/Code-v0", split="test")
    assert isinstance(made.unwrapped, CodeEnv)
    yield made.unwrapped
    made.close()


def keys(env: CodeEnv, family: str, count: int = 1) -> list[str]:
    return [ref.key for ref in env.tasks() if ref.family == family][:count]


def play(env: CodeEnv, key: str, plan: Sequence[str]) -> list[Step]:
    """The steps of an episode that answers with a plan, as far as it lasts."""
    env.reset(options={"task": key})
    steps: list[Step] = []
    for action in plan:
        steps.append(env.step(action))
        if steps[-1][2]:
            break
    return steps


def hidden(info: dict[str, Any]) -> dict[Source, str]:
    return {item.source: item.text for item in info["feedback"] if not item.visible}


def cheat(job: Task, tests: int) -> str:
    """A function that knows the first tests' answers by heart, and no other."""
    known = {repr(test.given): test.expected for test in job.tests[:tests]}
    return f"def {job.name}(*given): return {known!r}.get(repr(list(given)), 'no idea')"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gold_scores_one_and_near_misses_nothing(env: CodeEnv, family: str) -> None:
    for key in keys(env, family, 2):
        job = task(key)
        observation, _ = env.reset(options={"task": key})
        said, reward, terminated, truncated, info = env.step(env.gold(observation))
        assert (said, reward, terminated, truncated, info["success"], info["failure"]) == (
            "all tests pass", 1.0, True, False, True, None,
        )  # fmt: skip
        assert info["reward_components"] == {"compiles": 1.0, "visible": 1.0, "hidden": 1.0}
        assert hidden(info) == {Source.SOLUTION: job.solution}
        for plan in env.near_misses():
            ((_, reward, terminated, truncated, info),) = play(env, key, plan)
            assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, None), (key, plan)
            assert min(info["reward_components"].values()) < 1.0


def test_an_answer_may_be_mended(env: CodeEnv) -> None:
    key = keys(env, "total")[0]
    job = task(key)
    first, second, third = play(env, key, ["I would write\n```python\ndef total(values)\n```", "", job.solution])
    assert first[0] == "SyntaxError: expected ':'\n  line 1: def total(values)"
    assert first[4]["feedback"] == (Feedback(first[0], Source.RUNTIME_ERROR, 0, True),)
    assert first[4]["reward_components"] == {"compiles": 0.0, "visible": 0.0, "hidden": 0.0}
    assert (second[0], second[4]["feedback"][0].turn) == ("no code in the answer", 1)
    assert (third[1], third[2], third[3], third[4]["success"]) == (1.0, True, False, True)


def test_only_shown_tests_are_told(env: CodeEnv) -> None:
    """Nothing that was read names a hidden test; the teacher gets the first one at the end, and no sooner."""
    key = keys(env, "total")[0]
    job = task(key)
    right_there = cheat(job, VISIBLE)
    first, second, third = play(env, key, [right_there, cheat(job, 1), cheat(job, len(job.tests) - 1)])
    assert first[0] == third[0] == ALMOST
    assert first[4]["feedback"] == (Feedback(ALMOST, Source.TEST_FAILURE, 0, True),)
    assert first[4]["reward_components"]["visible"] == 1.0
    assert second[0] == f"{job.where(job.visible[1])}: expected {job.visible[1].expected}, found no idea"
    assert second[4]["feedback"] == (Feedback(second[0], Source.TEST_FAILURE, 1, True),)
    last = job.hidden[-1]
    assert hidden(third[4]) == {
        Source.VERIFIER: f"{job.where(last)}: expected {last.expected}, found no idea",
        Source.HINT: job.hint,
        Source.SOLUTION: job.solution,
    }
    share = (len(job.hidden) - 1) / len(job.hidden)
    assert third[4]["reward_components"] == {"compiles": 1.0, "visible": 1.0, "hidden": share}
    assert (third[1:4], third[4]["success"], third[4]["failure"]) == ((0.0, True, False), False, Failure.POLICY)


@pytest.mark.parametrize(
    ("answer", "said", "source"),
    [
        ("def sum_it(values): return 0", "no function total in the answer; found sum_it", Source.RUNTIME_ERROR),
        ("def total(values):\n    return values[99]", "IndexError: list index out of range", Source.RUNTIME_ERROR),
        ("def total(values):\n    while True: pass", "no answer in time (2 s for all tests)", Source.RUNTIME_ERROR),
        ("def total(values): return 'a' * 10**6", "output too long (more than 65536 bytes)", Source.RUNTIME_ERROR),
        ("import os\nos._exit(0)", "the process ended without an answer (exit status 0)", Source.RUNTIME_ERROR),
        ("def total(values): return 0.5", ", found 0.5", Source.TEST_FAILURE),
        ("done", "NameError: name 'done' is not defined", Source.RUNTIME_ERROR),
        ("x" * 20_001, "answer too long", Source.RUNTIME_ERROR),
        ("def total(values): return '\ud800\0'", "null byte", Source.RUNTIME_ERROR),
    ],
)
def test_kinds_of_failure(answer: str, said: str, source: Source) -> None:
    with gymnasium.make("retort/Code-v0", split="test", families=("total",), answer_s=2.0, max_turns=1) as made:
        made.reset(seed=0)
        observation, reward, terminated, _, info = made.step(answer)
        assert said in observation
        assert (reward, terminated, info["failure"]) == (0.0, True, Failure.POLICY)
        assert info["feedback"][0] == Feedback(observation, source, 0, True)


def test_a_programs_failure_shows_input_expected_and_found(env: CodeEnv) -> None:
    key = keys(env, "report")[0]
    test = task(key).visible[0]
    ((said, *_),) = play(env, key, ["print('no idea')"])
    assert said == f"for the input\n{test.given.rstrip()}\nexpected\n{test.expected.rstrip() or ''}\nfound\nno idea"


def test_ways_to_answer(env: CodeEnv) -> None:
    job = task(keys(env, "total")[0])
    inside = job.solution.replace("\n", "\n    ")
    for answer in (
        f"```python\n{job.solution}```",
        f"Here:\n```\n{job.solution}",
        f"    {inside}",
        f"{job.solution}total([])",
    ):
        assert play(env, job.ref.key, [answer])[0][1] == 1.0, answer


def test_types_count(env: CodeEnv) -> None:
    """What Python calls equal is not always what was asked for."""
    job = task(keys(env, "total")[0])
    for loose in ("float({})", "type('N', (), {{'__eq__': lambda *_: True}})()", "str({})"):
        body = job.solution.partition("return ")[2].strip()
        source = f"def total(values):\n    return {loose.format(body)}\n"
        assert play(env, job.ref.key, [source])[0][1] == 0.0, source


def test_every_turn_may_be_the_last(env: CodeEnv) -> None:
    with gymnasium.make("retort/Code-v0", max_turns=1) as made:
        observation, info = made.reset(seed=0)
        assert observation == f"Answer with Python code alone.\n{task(info['task'].key).instruction}"
        assert made.step("")[2:4] == (True, False)
    key = keys(env, "total")[0]
    assert [step[2] for step in play(env, key, ["", "", "", ""])] == [False, False, True]
    assert play(env, key, ["", "", task(key).solution])[-1][1] == 1.0


def test_without_explanation_there_is_the_instruction_alone() -> None:
    with gymnasium.make("retort/Code-v0", explain=False) as made:
        observation, info = made.reset(seed=0)
        assert observation == task(info["task"].key).instruction


def test_reset_says_what_the_contract_says(env: CodeEnv) -> None:
    observation, info = env.reset(seed=5)
    assert env.reset(seed=5) == (observation, info)
    assert observation.startswith("Answer with Python code alone. You have 3 attempts, each a whole answer.\nWrite a ")
    assert isinstance(info["task"], TaskRef)
    assert {key: value for key, value in info.items() if key != "task"} == {
        "feedback": (), "reward_components": {}, "success": None, "failure": None, "tools": [], "invalid": False,
    }  # fmt: skip
    with pytest.raises(KeyError, match="unknown task"):
        env.reset(options={"task": "total/none"})
    assert len({env.reset(seed=seed)[1]["task"].key for seed in range(10)}) > 5


def test_a_sandbox_that_dies_on_its_own_raises() -> None:
    with gymnasium.make("retort/Code-v0") as made:
        made.reset(seed=0)
        assert isinstance(made.unwrapped, CodeEnv)
        made.unwrapped._room.held.close()
        with pytest.raises(SandboxClosed):
            made.step("done")
        observation, _ = made.reset(seed=0)
        assert made.step(made.unwrapped.gold(observation))[1] == 1.0


def test_ends_and_closing() -> None:
    env = CodeEnv(split="test")
    for act in (env.step, env.gold):
        with pytest.raises(ResetNeeded):
            act("")
    observation, _ = env.reset(seed=0)
    env.step(env.gold(observation))
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected text with code"):
        env.step(3)  # type: ignore[arg-type]
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "unknown split 'trian'; did you mean 'train'"),
        ({"sandbox": "bwarp"}, "unknown sandbox 'bwarp'; did you mean 'bwrap'"),
        ({"families": ("totl",)}, "unknown family 'totl'; did you mean 'total'"),
        ({"families": (HELD_OUT[0],)}, "held out of training"),
        ({"families": "total"}, "expected a tuple of names"),
        ({"max_turns": 0}, "max_turns: expected a number above 0, found 0"),
        ({"answer_s": -1}, "answer_s: expected a number above 0"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        gymnasium.make("retort/Code-v0", **options)


def test_families_and_splits() -> None:
    with gymnasium.make("retort/Code-v0", split="test", families=("total", HELD_OUT[0])) as made:
        assert {ref.family for ref in made.get_wrapper_attr("tasks")()} == {"total", HELD_OUT[0]}
    with gymnasium.make("retort/Code-v0") as made:
        assert {ref.family for ref in made.get_wrapper_attr("tasks")()} == set(FAMILIES) - set(HELD_OUT)
