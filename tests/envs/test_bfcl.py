"""BFCL-v0: the package's own scores, nothing of an agent's evaluated, nothing shared between episodes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
from gymnasium.error import ResetNeeded
from retort.envs.base import SPLITS, Failure, Feedback, MissingPackage, Source, UsageError
from retort.envs.bfcl import PROTOCOL, BFCLEnv
from retort.envs.bfcl_tasks import ENDING, FAMILIES, Entry, Turns, entries, functions, methods_of, mistakes, plan_of

import retort  # noqa: F401  (registers the environment)

Steps = list[tuple[str, float, bool, bool, dict[str, Any]]]
NAMES = itertools.count()


@pytest.fixture(scope="module")
def env() -> Iterator[BFCLEnv]:
    made = gymnasium.make("retort/BFCL-v0")
    assert isinstance(made.unwrapped, BFCLEnv)
    yield made.unwrapped
    made.close()


def play(env: BFCLEnv, key: str, plan: Sequence[str] | None) -> Steps:
    """The steps of an episode that follows a plan, or the gold one."""
    said, _ = env.reset(options={"task": key})
    steps: Steps = []
    while not (steps and (steps[-1][2] or steps[-1][3])):
        action = env.gold(said) if plan is None else plan[len(steps)] if len(steps) < len(plan) else ENDING
        steps.append(env.step(action))
        said = steps[-1][0]
    return steps


def by_the_package(entry: Entry, turns: Turns) -> bool:
    """Its checker on the plain text of the calls, apart from ours."""
    name = f"test{next(NAMES)}"
    category = entry.data["id"].rpartition("_")[0]
    return bool(multi_turn_checker(turns, entry.gold, entry.data, category, name)["valid"])


def hidden(info: dict[str, Any]) -> dict[Source, str]:
    return {item.source: item.text for item in info["feedback"] if not item.visible}


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_scores_one_on_every_entry(env: BFCLEnv, family: str) -> None:
    assert len(entries(family)) == 200
    for key in entries(family):
        *before, (_, reward, terminated, truncated, info) = play(env, key, None)
        assert (reward, terminated, truncated, info["success"], info["failure"]) == (1.0, True, False, True, None), key
        assert all(step[1] == 0.0 and step[4]["success"] is None for step in before)
        assert info["reward_components"] == {"calls": 1.0, "state": 1.0, "response": 1.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_traces_score_as_the_package_scores_them(env: BFCLEnv, family: str) -> None:
    """Three a conversation; most are refused, some are not, such as one whose last call changed and told nothing."""
    scores = []
    for key, entry in list(entries(family).items())[::4]:
        for turns in mistakes(entry):
            reward = play(env, key, plan_of(turns))[-1][1]
            assert reward == float(by_the_package(entry, turns)), (key, turns)
            scores.append(reward)
    assert len(scores) == 150
    assert sum(scores) < 30


@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_the_packages_own(env: BFCLEnv, family: str) -> None:
    for key, entry in list(entries(family).items())[::4]:
        said = [step[0] for step in play(env, key, entry.plan)]
        name, place = f"test{next(NAMES)}", 0
        for calls in entry.gold:
            if calls:
                results, _ = multi_turn_utils.execute_multi_turn_func_call(
                    list(calls), entry.data["initial_config"], entry.data["involved_classes"], name,
                    entry.data["id"], long_context=entry.long,
                )  # fmt: skip
                assert said[place] == "\n".join(results), key
                place += 1
            place += 1


def test_near_misses_fail_and_nothing_scores_nothing(env: BFCLEnv) -> None:
    for family in FAMILIES:
        for key in list(entries(family))[::40]:
            env.reset(options={"task": key})
            plans = env.near_misses()
            assert plans
            for plan in (*plans, (), ("[no_such_function()]",) * 3):
                *_, (_, reward, _, _, info) = play(env, key, plan)
                assert (reward, info["success"], info["failure"]) == (0.0, False, Failure.POLICY), (key, plan)
                assert list(info["reward_components"].values()).count(0.0) == 1


def test_tasks_and_splits() -> None:
    for split in SPLITS:
        with gymnasium.make("retort/BFCL-v0", split=split) as made:
            assert len(made.get_wrapper_attr("tasks")()) == (800 if split == "test" else 0)
            if split != "test":
                with pytest.raises(UsageError, match=f"evaluation data: split '{split}' is empty, use 'test'"):
                    made.reset(seed=0)
    digests = [entry.ref.digest for family in FAMILIES for entry in entries(family).values()]
    assert len(set(digests)) == 800
    with gymnasium.make("retort/BFCL-v0", families=("miss_func",)) as made:
        assert {ref.family for ref in made.get_wrapper_attr("tasks")()} == {"miss_func"}


def test_a_conversation(env: BFCLEnv) -> None:
    """The user's turns come one after another, results between them, and the tools are told at the start."""
    entry = entries("base")["base/000"]
    questions = [turn[0]["content"] for turn in entry.data["question"]]
    observation, info = env.reset(options={"task": "base/000"})
    assert observation == f"{PROTOCOL}\n{questions[0]}"
    offered = {tool["function"]["name"]: tool["function"] for tool in info["tools"]}
    assert {"cd", "mkdir", "post_tweet"} <= set(offered) <= set(methods_of(entry))
    assert offered["cd"]["parameters"]["type"] == "object"
    assert offered["cd"]["parameters"]["properties"]["folder"]["type"] == "string"
    said = env.step("[cd(folder='document'), mkdir('temp')]")
    assert said[0] == '{"current_working_directory": "document"}\nNone'
    assert said[4]["feedback"] == (Feedback(said[0], Source.TOOL_RESULT, 0, True),)
    call = {"name": "mv", "arguments": {"source": "final_report.pdf", "destination": "temp"}}
    assert "moved to" in env.step(f"<tool_call>\n{json.dumps(call)}\n</tool_call>")[0]
    said = env.step("I moved it.")
    assert said[0] == questions[1]
    assert said[4]["feedback"] == (Feedback(questions[1], Source.USER_REPLY, 2, True),)


def test_a_function_that_comes_later(env: BFCLEnv) -> None:
    entry = entries("miss_func")["miss_func/000"]
    ((turn, (name,)),) = entry.data["missed_function"].items()
    _, info = env.reset(options={"task": "miss_func/000"})
    assert name not in [tool["function"]["name"] for tool in info["tools"]]
    for _ in range(int(turn)):
        observation = env.step(ENDING)[0]
    assert observation.endswith("\nI have updated some more functions you can choose from. What about now?")
    assert json.loads(observation.splitlines()[0])["function"]["name"] == name
    assert [document["name"] for document in functions(entry)[1][int(turn)]] == [name]


def test_feedback_at_the_end(env: BFCLEnv) -> None:
    entry = entries("base")["base/000"]
    first = ", ".join(entry.gold[0])
    hint = f"in turn 1 call {first}"
    told = hidden(play(env, "base/000", ())[-1][4])
    assert told[Source.VERIFIER] == "turn 1: expected cd(folder='document'); found no call"
    assert (told[Source.HINT], told[Source.SOLUTION]) == (hint, "\n".join(entry.plan))
    told = hidden(play(env, "base/000", ["[cd(folder='document'), mkdir(dir_name='tmp')]"])[-1][4])
    report = "'Year2024 This is the final report content including budget "
    assert told[Source.VERIFIER] == f"turn 1: expected root/document/temp/final_report.pdf {report}; found nothing"
    silent = [*entry.plan[:2], "[cd(folder='temp')]", ENDING]
    told = hidden(play(env, "base/000", silent)[-1][4])
    assert told[Source.VERIFIER].startswith("turn 2: expected the result {")
    assert told[Source.VERIFIER].endswith("; found no call that gives it")
    assert told[Source.HINT] == f"in turn 2 call {', '.join(entry.gold[1])}"
    told = hidden(play(env, "base/000", None)[-1][4])
    assert told == {Source.VERIFIER: "found as expected", Source.SOLUTION: "\n".join(entry.plan)}


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("[cdd(folder='document')]", "name 'cdd' is not defined; did you mean 'cd'?"),
        ("[cd(foldr='document')]", "cd has no argument 'foldr'; did you mean 'folder'?"),
        ("[cd()]", "missing 1 required positional argument: 'folder'"),
        ("[cd(1, 2, 3)]", "takes 2 positional arguments but 4 were given"),
        ("[cd(folder=[])]", "Error during execution: "),
        ("[cd(folder=pwd())]", "expected literal arguments; found pwd()"),
        ('{"name": "cd", "arguments": {"folder": "document"', "not JSON"),
        ("[_load_scenario({})]", "name '_load_scenario' is not defined"),
        ("[" + "x" * 30_000 + "()]", "at most 20000 characters"),
    ],
)
def test_bad_calls_are_told_and_the_turn_goes_on(env: BFCLEnv, action: str, error: str) -> None:
    env.reset(options={"task": "base/000"})
    observation, reward, terminated, truncated, info = env.step(action)
    assert error in observation
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, None)
    for action in entries("base")["base/000"].plan:
        last = env.step(action)
    assert last[1] == 1.0


def test_a_call_that_cannot_be_read_is_no_action(env: BFCLEnv) -> None:
    env.reset(options={"task": "base/000"})
    assert [env.step(action)[4]["invalid"] for action in ("[cd()]", '{"name": "cd", "arguments": {')] == [False, True]


@pytest.mark.parametrize(
    "attack",
    [
        "[__import__('os').system('touch {0}')]",
        "[pwd(__import__('os').system('touch {0}'))]",
        "[eval(\"__import__('os').system('touch {0}')\")]",
        "[importlib.import_module('os').system('touch {0}')]",
        '{{"name": "ls", "arguments": {{"a=__import__(\'os\').system(\'touch {0}\'), b": 1}}}}',
        '{{"name": "__import__(\'os\').system(\'touch {0}\') or ls", "arguments": {{}}}}',
        '{{"name": "echo", "arguments": {{"content": "\') or __import__(\'os\').system(\'touch {0}\') or str(\'"}}}}',
        "[echo(content='''\\'); __import__(\"os\").system(\"touch {0}\")#''')]",
    ],
)
def test_nothing_of_an_agents_is_evaluated(env: BFCLEnv, attack: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    assert play(env, "base/000", [attack.format(target)])[-1][1] == 0.0
    assert not target.exists()


@pytest.mark.parametrize(
    "call",
    [
        "power(base=10, exponent=1000000000)",
        "logarithm(10, 2, 100000000)",
        "square_root(number=2, precision=100000000)",
        "round_number(number=7, decimal_places=-100000000)",
    ],
)
def test_mathematics_without_end(env: BFCLEnv, call: str) -> None:
    key = next(entry.ref.key for entry in entries("base").values() if "MathAPI" in entry.data["involved_classes"])
    env.reset(options={"task": key})
    assert "expected at most 1000" in env.step(f"[{call}]")[0]
    assert play(env, key, [f"[{call}]"])[-1][1] == 0.0


def test_folders_copied_into_each_other(env: BFCLEnv) -> None:
    """Thirty copies make a billion folders to walk through."""
    calls = ["mkdir(dir_name='d0')"]
    for number in range(30):
        this, copy, above = f"d{number}", f"e{number}", f"d{number + 1}"
        calls += [f"cp(source='{this}', destination='{copy}')", f"mkdir(dir_name='{above}')"]
        calls += [f"mv(source='{each}', destination='{above}')" for each in (this, copy)]
    steps = play(env, "base/000", [f"[{', '.join(calls)}]", "[du(), find(path='.', name='x'), pwd()]"])
    assert steps[1][0] == '{0}\n{0}\n{{"current_working_directory": "/workspace"}}'.format(
        "Error during execution: too much work"
    )
    assert steps[-1][1] == 0.0
    knot = ["[mkdir(dir_name='a'), cp(source='a', destination='a')]", "[du()]"]
    assert play(env, "base/000", knot)[-1][1] == 0.0


def test_too_many_actions_in_a_turn(env: BFCLEnv) -> None:
    steps = play(env, "base/000", ["[pwd()]"] * 100)
    assert len(steps) == 21
    observation, reward, terminated, truncated, info = steps[-1]
    assert (observation, reward, terminated, truncated) == (steps[0][0], 0.0, False, True)
    assert (info["success"], info["failure"]) == (False, Failure.POLICY)
    assert hidden(info)[Source.VERIFIER] == "turn 1: expected an end; found too many actions"


def test_episodes_share_nothing(env: BFCLEnv) -> None:
    """Two on one task, step by step, then many in threads, are as each alone; and no trace of them stays."""
    keys = [key for family in FAMILIES for key in list(entries(family))[::40]]
    alone = {key: [step[:2] for step in play(env, key, None)] for key in keys}
    first, second = BFCLEnv(), BFCLEnv()
    first.reset(options={"task": keys[0]})
    second.reset(options={"task": keys[0]})
    first.step("[rm('document'), mkdir('mess'), cd('archive')]")
    assert [second.step(action)[:2] for action in entries("base")[keys[0]].plan] == alone[keys[0]]

    def episodes(number: int) -> dict[str, list[tuple[str, float]]]:
        own = BFCLEnv()
        order = keys[number:] + keys[:number]
        return {key: [step[:2] for step in play(own, key, None)] for key in order}

    with ThreadPoolExecutor(8) as pool:
        assert all(found == alone for found in pool.map(episodes, range(8)))
    assert not [name for name in vars(multi_turn_utils) if name.startswith("retort")]


def test_nothing_heavy_is_loaded_and_no_folder_is_made() -> None:
    """The package's other modules make folders where they are installed and want servers' clients."""
    code = (
        "import sys, gymnasium, retort; env = gymnasium.make('retort/BFCL-v0'); said, _ = env.reset(seed=0)\n"
        "while not env.step(env.unwrapped.gold(said))[2]: pass\n"
        "print(sorted({'bfcl_eval.utils', 'bfcl_eval.constants.eval_config', 'requests', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["mpmath", "bfcl_eval.constants.default_prompts"])
def test_a_missing_package(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=re.escape("pip install --no-deps bfcl-eval==2026.3.23")):
        gymnasium.make("retort/BFCL-v0")


def test_ends_and_closing() -> None:
    env = BFCLEnv()
    with pytest.raises(ResetNeeded):
        env.step("done")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected text"):
        env.step(3)  # type: ignore[arg-type]
    while not env.step("done")[2]:
        pass
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("done")
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("done")
    first = env.reset(seed=5)
    assert env.reset(seed=5) == first
    with pytest.raises(KeyError, match="unknown task"):
        env.reset(options={"task": "base/200"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"families": ("bse",)}, "unknown family 'bse'; did you mean 'base'"),
        ({"families": "base"}, "expected a tuple of names"),
        ({"families": ()}, "expected a tuple of names"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        gymnasium.make("retort/BFCL-v0", **options)
