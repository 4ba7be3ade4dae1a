"""ReasoningGym-v0 on every generator of the real package: gold, splits, hostile answers, threads, processes."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import example, given
from hypothesis import strategies as st
from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS
from retort.envs import reasoning_gym_tasks
from retort.envs.base import SPLITS, Failure, MissingPackage, Source, UsageError
from retort.envs.check import Subject, check_env, faults_of
from retort.envs.checks_secrets import stands_in, the_answer_is_not_in_the_prompt
from retort.envs.reasoning_gym import PROTOCOL, ReasoningGymEnv
from retort.envs.reasoning_gym_judge import SECONDS, Judge
from retort.envs.reasoning_gym_tasks import (
    CHUNK,
    GUARDS,
    HASHED,
    PLAIN,
    REFUSED,
    WORDS,
    is_plain,
    may_be_evaluated,
    owner,
    questions,
    score,
    untouched_generators,
)

import retort  # noqa: F401  (registers the environment)

# Their verifiers give a little for a letter or a length that is right by chance; the others a consolation at most.
LENIENT = [*WORDS, "figlet_font", "palindrome_generation", "sentence_reordering", "spell_backward"]

OFFERED = sorted(set(DATASETS) - set(REFUSED))


def answered(env: ReasoningGymEnv, key: str, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    env.reset(options={"task": key})
    return env.step(action)


def generators() -> list[Any]:
    """The state of the global generators; numpy's is its numbers and the place among them."""
    _, numbers, *place = np.random.get_state(legacy=True)
    return [random.getstate(), numbers.tobytes(), place]


def hidden(info: dict[str, Any]) -> dict[Source, str]:
    assert not any(item.visible for item in info["feedback"])
    return {item.source: item.text for item in info["feedback"]}


def test_the_package_has_what_the_docs_say() -> None:
    assert (len(DATASETS), len(OFFERED)) == (106, 102)


@pytest.mark.slow
@pytest.mark.parametrize("generator", OFFERED)
def test_gold_scores_one_and_nothing_is_drawn_elsewhere(generator: str) -> None:
    before = generators()
    env = ReasoningGymEnv(generator, size=2)
    first = [(env.reset(options={"task": ref.key}), env.step(env.gold(""))) for ref in env.tasks()]
    for (observation, _), (_, reward, terminated, truncated, info) in first:
        assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True), observation
    reasoning_gym_tasks._drawn.cache_clear()
    again = ReasoningGymEnv(generator, size=2)
    assert [(again.reset(options={"task": ref.key}), again.step(again.gold(""))) for ref in again.tasks()] == first
    for question in questions(generator, "{}", "train", 2):
        _, reward, _, _, info = answered(env, question.ref.key, "")
        assert (reward, info["invalid"]) == ((0.0, True) if question.answer else (1.0, False))
        if generator not in LENIENT:
            assert answered(env, question.ref.key, "done")[1] <= 0.05
    env.close()
    again.close()
    assert generators() == before


@pytest.mark.parametrize("generator", sorted(REFUSED))
def test_a_generator_without_a_sound_verifier_is_refused_by_name(generator: str) -> None:
    with pytest.raises(UsageError, match=f"{generator}' is not offered: "):
        ReasoningGymEnv(generator)


def test_why_they_are_refused() -> None:
    for generator in ("boxnet", "rush_hour"):
        assert create_dataset(generator, seed=1, size=1)[0]["answer"] is None
    halting = create_dataset("game_of_life_halting", seed=1, size=4)
    assert [halting.score_answer("no idea", halting[place]) for place in range(4)] == [1.0] * 4


@pytest.mark.parametrize(
    ("generator", "split"),
    [("chain_sum", "validation"), ("countdown", "train"), ("simple_integration", "test")],  # architecture has another
)
def test_the_contract(generator: str, split: str) -> None:
    with gymnasium.make("retort/ReasoningGym-v0", generator=generator, split=split, size=4) as env:
        check_env(env)


@pytest.mark.parametrize("generator", ["rotate_matrix", "pool_matrix", "ab"])
def test_an_answer_that_the_question_shows_is_no_secret(generator: str) -> None:
    """A turn by 360 degrees, pools of one: such tasks are the package's own, and to see it is their point."""
    drawn = questions(generator, "{}", "train", 40)
    shown = [question for question in drawn if stands_in(question.text, question.answer)]
    assert 0 < len(shown) < len(drawn) / 2
    with gymnasium.make("retort/ReasoningGym-v0", generator=generator, size=40) as env:
        assert faults_of(the_answer_is_not_in_the_prompt, Subject(env, 40)) == []
        for question in (shown[0], next(question for question in drawn if question not in shown)):
            for action in (question.answer, "none"):
                env.reset(options={"task": question.ref.key})
                told = hidden(env.step(action)[4])
                assert told.get(Source.ANSWER) == (None if question in shown else question.answer)
            assert told[Source.VERIFIER].startswith(f"expected {question.answer[:50]}")


def test_splits_share_no_question_however_few_there_are() -> None:
    few = json.dumps({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    texts = {split: {question.text for question in questions("chain_sum", few, split, 500)} for split in SPLITS}
    assert all(20 < len(own) < 250 for own in texts.values())
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))
    assert all(owner(text) == split for split, own in texts.items() for text in own)


def test_a_split_that_nothing_falls_to() -> None:
    one = {"min_n": 3, "max_n": 3, "p_zero": 1.0}  # nothing but zeros, whatever the seed
    own = [split for split in SPLITS if owner(create_dataset("binary_matrix", **one, size=1)[0]["question"]) == split]
    assert len(own) == 1
    for split in set(SPLITS) - set(own):
        with pytest.raises(UsageError, match="no question for the split"):
            ReasoningGymEnv("binary_matrix", split, config=one).tasks()


def test_a_task_hangs_on_its_key_alone() -> None:
    short, long = (questions("leg_counting", "{}", "test", size) for size in (3, 90))
    assert long[:3] == short
    last = long[-1]
    number = int(last.ref.key.rpartition("/")[2])
    seed = 2 * reasoning_gym_tasks.SEEDS + number
    made = create_dataset("leg_counting", seed=seed - number % CHUNK, size=CHUNK)[number % CHUNK]
    assert (made["question"], made["answer"]) == (last.text, last.answer)
    assert len({question.ref.digest for question in long}) == 90


DIGESTS = """
import json, sys
from retort.envs.reasoning_gym_tasks import questions
print(json.dumps([[question.ref.digest for question in questions(name, "{}", "test", 3)] for name in sys.argv[1:]]))
"""


def test_questions_are_the_same_in_every_process() -> None:
    """Whatever hashes its texts have."""
    names = ["isomorphic_strings", "polynomial_multiplication", "chain_sum"]
    assert set(names[:2]) < set(HASHED)
    told = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", DIGESTS, *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        told.append(json.loads(done.stdout))
    assert told[0] == told[1]
    assert [len(digests) for digests in told[0]] == [3, 3, 3]


def test_the_reward_is_the_packages_own() -> None:
    env = ReasoningGymEnv("leg_counting", "test")
    for ref in env.tasks()[:10]:
        env.reset(options={"task": ref.key})
        entry, answer = env._current().entry, env.gold("")
        for said in (answer, f"{answer} legs", f"I count {answer}", "12", f"{answer}{answer}", "\n"):
            expected = env._verifier.score_answer(said.strip(), entry)
            assert answered(env, ref.key, said)[1] == expected, said
            assert answered(env, ref.key, f"so <answer> {said} </answer>, I think")[1] == expected, said


def test_the_last_answer_in_tags_counts() -> None:
    env = ReasoningGymEnv("chain_sum")
    key = env.tasks()[0].key
    env.reset(options={"task": key})
    gold = env.gold("")
    assert answered(env, key, f"<think><answer>0</answer></think> so <answer>{gold}</answer>")[1] == 1.0
    assert answered(env, key, f"<answer>{gold}</answer> no: <answer>x</answer>")[1] == 0.0
    assert answered(env, key, f"<answer>{gold}")[1] < 1.0


def test_feedback_and_flags() -> None:
    env = ReasoningGymEnv("chain_sum", "test")
    ref = env.tasks()[0]
    observation, info = env.reset(options={"task": ref.key})
    assert observation.endswith(PROTOCOL)
    assert (info["task"], info["success"], info["feedback"]) == (ref, None, ())
    gold = env.gold(observation)
    wrong = env.step("none")
    assert wrong[:4] == ("", 0.0, True, False)
    assert (wrong[4]["success"], wrong[4]["failure"], wrong[4]["reward_components"]) == (
        False, Failure.POLICY, {"score": 0.0},
    )  # fmt: skip
    assert hidden(wrong[4]) == {Source.VERIFIER: f"expected {gold}; found none", Source.ANSWER: gold}
    partly = answered(env, ref.key, f"it is {gold}")
    assert 0 < partly[1] < 1
    assert partly[4]["success"] is False
    assert f"worth {partly[1]:.2g}" in hidden(partly[4])[Source.VERIFIER]
    assert hidden(answered(env, ref.key, gold)[4])[Source.VERIFIER] == "found as expected"
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step(gold)
    with gymnasium.make("retort/ReasoningGym-v0", explain=False) as made:
        assert PROTOCOL not in made.reset(seed=0)[0]


@pytest.mark.parametrize("action", ["", "\0", "\ud800", "x" * 30_000, "[" * 9_000, "9" * 9_000, "<answer></answer>"])
@pytest.mark.parametrize("generator", ["prime_factorization", "countdown", "n_queens", "pool_matrix", "jugs"])
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_an_odd_action_is_a_step(generator: str, action: str) -> None:
    env = ReasoningGymEnv(generator, size=1)
    _, reward, terminated, _, info = answered(env, env.tasks()[0].key, action)
    assert terminated
    assert reward <= 0.05
    for item in info["feedback"]:
        item.text.encode()


@pytest.mark.parametrize("generator", sorted(GUARDS))
@pytest.mark.parametrize(
    "wrapped",
    ["{}", "[{}]", "-{}", "x*{}", "sin({})", "[{} for _ in '1']", "(lambda: {})()", "{}.real", "f'{{{}}}'", "x or {}"],
)
def test_no_answer_runs_code(generator: str, wrapped: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    answer = wrapped.format(f"__import__('pathlib').Path('{mark}').touch()")
    made = create_dataset(generator, seed=1, size=1)
    assert score(generator, made, made[0], answer).worth <= 0.01
    assert not mark.exists()


def test_what_the_guards_are_for(tmp_path: Path) -> None:
    """Without them the package runs what it is given."""
    mark = tmp_path / "mark"
    for place, generator in enumerate(sorted(GUARDS)):
        made = create_dataset(generator, seed=1, size=1)
        made.score_answer(f"[__import__('pathlib').Path('{mark}{place}').touch()]", made[0])
    assert len(list(tmp_path.iterdir())) >= 8


@pytest.mark.parametrize(
    ("generator", "answer", "passes"),
    [
        ("countdown", "3*(4+5)/2-1", True),
        ("countdown", "9**9**9", False),
        ("countdown", "exp(9)", False),
        ("n_queens", "[['Q', '_'], ['_', 'Q']]", True),
        ("n_queens", "[0]*10**9", False),
        ("n_queens", "Q _\n_ Q", True),
        ("n_queens", "[" * 150 + "print(1)" + "]" * 150, False),
        ("simple_integration", "3*X**(3/2)/2 + log(X) + C", True),
        ("simple_integration", "9**9**9", False),
        ("simple_integration", "((9**99)**99)**99", False),
        ("simple_integration", "9**(0.001*X)**2", False),
        ("simple_integration", "2**(1/0.00001)", False),
        ("simple_integration", "Integral(X, X)", False),
        ("simple_integration", "sin(x, evaluate=False)", False),
        ("chain_sum", "__import__('os')", True),
    ],
)
def test_guards(generator: str, answer: str, passes: bool) -> None:
    assert may_be_evaluated(generator, answer) is passes


@given(st.sampled_from(sorted(PLAIN)), st.text("xyzCS e0123456789**//+-()[],.", max_size=40))
@example("simple_integration", "x**9**9").via("a tower")
@example("simple_integration", "(x**99)**99").via("a product of powers")
@example("simple_integration", "x(9)").via("a call")
@example("countdown", "9**9").via("a power")
@example("n_queens", "[x for x in y]").via("a loop")
def test_what_is_plain_would_pass_or_is_no_expression(generator: str, answer: str) -> None:
    if is_plain(generator, answer):
        try:
            assert GUARDS[generator](ast.parse(answer.strip(), mode="eval").body)
        except SyntaxError:
            pass


@pytest.mark.parametrize("generator", LENIENT)
def test_what_is_said_without_a_look_at_the_question_is_worth_nothing(generator: str) -> None:
    """By those verifiers that give a little for what is near to an answer by chance; the others give nothing."""
    with untouched_generators():
        made = create_dataset(generator, seed=1, size=24)
    for answer in ("done", "I do not know."):
        worth = [score(generator, made, entry, answer).worth for entry in made]
        assert math.fsum(worth) / len(worth) <= 0.0501, answer


def test_what_can_be_read_is_told_from_what_cannot() -> None:
    unread = {
        "acre": "done",
        "propositional_logic": "done",
        "countdown": "exp(9)",
        "n_queens": "[0]*9",
        "chain_sum": " ",
    }
    read = {"acre": "on", "propositional_logic": "(P ∨ Q)", "countdown": "1", "n_queens": "[[]]", "chain_sum": "-1"}
    for expected, answers in ((True, unread), (False, read)):
        for generator, answer in answers.items():
            env = ReasoningGymEnv(generator, size=1)
            assert answered(env, env.tasks()[0].key, answer)[4]["invalid"] is expected, generator
            assert answered(env, env.tasks()[0].key, f"so <answer>{answer}</answer>")[4]["invalid"] is expected, (
                generator
            )


@given(st.text(max_size=60))
def test_a_guard_takes_any_text(text: str) -> None:
    for generator in GUARDS:
        assert may_be_evaluated(generator, text) in (True, False)


@pytest.mark.slow
def test_an_answer_that_takes_minutes_to_check_is_wrong_and_leaves_nothing_behind() -> None:
    env = ReasoningGymEnv("intermediate_integration", size=2)
    key = env.tasks()[0].key
    before = time.process_time()
    endless = answered(env, key, "exp(sin(cos(tan(x))))*sinh(x)**7*asin(x**3)/(1+exp(x**2))**5")
    assert time.process_time() - before < SECONDS  # it was another process that thought
    assert endless[1] == 0.0
    assert "takes too long to check" in hidden(endless[4])[Source.VERIFIER]
    env.reset(options={"task": key})
    assert env.step(env.gold(""))[1] == 1.0
    judge = env._judge
    assert judge is not None
    assert judge._process is not None
    child = psutil.Process(judge._process.pid)
    env.close()
    env.close()
    assert not child.is_running()


def test_a_judge_that_dies_on_its_own_raises() -> None:
    judge = Judge("simple_integration", "{}")
    judge._running().kill()
    with pytest.raises(RuntimeError, match="ended with -9"):
        judge.score({"metadata": {}}, "x")
    judge.close()


@pytest.mark.slow
def test_threads_draw_and_score_alike() -> None:
    names = ["pool_matrix", "chain_sum", "countdown", "rubiks_cube", "pool_matrix", "figlet_font", "acre", "sudoku"]
    alone = {name: ReasoningGymEnv(name, "validation", size=4).tasks() for name in names}
    reasoning_gym_tasks._drawn.cache_clear()

    def played(name: str) -> tuple[Any, list[float]]:
        env = ReasoningGymEnv(name, "validation", size=4)
        return env.tasks(), [answered(env, ref.key, env._questions[ref.key].answer)[1] for ref in env.tasks() * 10]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            for name, (refs, rewards) in zip(names, pool.map(played, names), strict=True):
                assert refs == alone[name]
                assert set(rewards) == {1.0}
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "chain_sums"}, "unknown generator 'chain_sums'; did you mean 'chain_sum'"),
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"size": 0}, "size: expected at least 1 question, found 0"),
        ({"config": {"max_term": 3}}, "chain_sum takes no 'max_term' here; did you mean 'max_terms'"),
        ({"config": {"seed": 3}}, "chain_sum takes no 'seed' here"),
        ({"config": {"min_terms": -3}}, "chain_sum refuses"),
        ({"config": {"min_terms": "two"}}, "chain_sum refuses"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        gymnasium.make("retort/ReasoningGym-v0", **options)
    assert message in str(caught.value)


def test_config_is_passed_on() -> None:
    env = ReasoningGymEnv(config={"min_terms": 7, "max_terms": 7}, size=3, explain=False)
    for ref in env.tasks():
        assert len(env.reset(options={"task": ref.key})[0].partition(": ")[2].split(" = ")[0].split()) == 14


def test_ends_and_closing() -> None:
    env = ReasoningGymEnv()
    with pytest.raises(ResetNeeded):
        env.step("3")
    with pytest.raises(ResetNeeded):
        env.gold("")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected text"):
        env.step(3)  # type: ignore[arg-type]
    env.close()
    env.close()
    with pytest.raises(KeyError, match="unknown task"):
        env.reset(options={"task": "chain_sum/train/x"})


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(MissingPackage, match="pip install reasoning-gym"):
        ReasoningGymEnv()
