"""Shell-v0 in a real sandbox: rewards, feedback, ends, and what must not break it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from retort.algos.diagnostics import MARKERS, markers
from retort.envs.base import Failure, Feedback, Source, TaskRef, UsageError
from retort.envs.shell import DOUBTS, PROTOCOL, ShellEnv, graded, hedged
from retort.envs.shell_tasks import FAMILIES, HELD_OUT, SUBMIT_OUTPUT, Task, task
from retort.sandboxes.base import FileState, SandboxClosed

import retort  # noqa: F401  (registers the environment)

PER_FAMILY = 5


@pytest.fixture(scope="module")
def env() -> Iterator[ShellEnv]:
    made = gymnasium.make("retort/Shell-v0", split="test")
    assert isinstance(made.unwrapped, ShellEnv)
    yield made.unwrapped
    made.close()


def keys(env: ShellEnv, family: str, count: int = PER_FAMILY) -> list[str]:
    return [ref.key for ref in env.tasks() if ref.family == family][:count]


def play(env: ShellEnv, key: str, plan: Sequence[str] | None) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
    """The steps of an episode that follows a plan, or the gold one."""
    said, _ = env.reset(options={"task": key})
    steps: list[tuple[str, float, bool, bool, dict[str, Any]]] = []
    while not (steps and (steps[-1][2] or steps[-1][3])):
        steps.append(env.step(env.gold(said) if plan is None else env.follow(plan, len(steps), said)))
        said = steps[-1][0]
    return steps


def hidden(info: dict[str, Any]) -> dict[Source, str]:
    return {item.source: item.text for item in info["feedback"] if not item.visible}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gold_scores_one_and_near_misses_nothing(env: ShellEnv, family: str) -> None:
    for key in keys(env, family):
        *before, (_, reward, terminated, truncated, info) = play(env, key, None)
        assert (reward, terminated, truncated, info["success"], info["failure"]) == (1.0, True, False, True, None), key
        assert all(step[1] == 0.0 and step[4]["success"] is None for step in before)
        assert set(info["reward_components"].values()) == {1.0}
        for plan in task(key).near_misses:
            *_, (_, reward, terminated, _, info) = play(env, key, plan)
            assert (reward, info["success"], info["failure"]) == (0.0, False, Failure.POLICY), (key, plan)
            assert terminated
            assert set(info["reward_components"]) == {"goal", "untouched", "answer"}
            assert 0.0 in info["reward_components"].values()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_nothing_scores_nothing(env: ShellEnv, family: str) -> None:
    for key in keys(env, family):
        for plan in (["done"], ["", "", "", ""], ["submit"], ["submit 1 2"]):
            *_, (_, reward, _, _, info) = play(env, key, plan)
            assert (reward, info["success"]) == (0.0, False), (key, plan)


def test_noise_scores_nothing(env: ShellEnv) -> None:
    env.action_space.seed(0)
    total = 0.0
    for family in FAMILIES:
        for key in keys(env, family, 2):
            total += play(env, key, [env.action_space.sample() for _ in range(4)])[-1][1]
    assert total == 0.0


def test_the_hint_is_what_solves_it(env: ShellEnv) -> None:
    for family in FAMILIES:
        key = keys(env, family, 1)[0]
        told = hidden(play(env, key, ["done"])[-1][4])
        commands = told[Source.HINT].removeprefix("try ").split(" then ")
        ending = f"submit {told[Source.ANSWER]}" if Source.ANSWER in told else "done"
        assert play(env, key, [*commands, ending])[-1][1] == 1.0
        assert told[Source.SOLUTION].split("\n") == [*commands, ending]


def test_feedback_of_an_episode(env: ShellEnv) -> None:
    key = keys(env, "move", 1)[0]
    job = task(key)
    target = next(iter(job.expected.keys() - job.files.keys()))
    source = next(iter(job.files.keys() - job.expected.keys()))
    first, second, last = play(env, key, [f"mv {target} {source}", f"cat {source}", "done"])
    said = f"mv: cannot stat '{target}': No such file or directory\nexit 1"
    assert first[0] == said
    assert first[4]["feedback"] == (Feedback(said, Source.TERMINAL_STATE, 0, True),)
    assert second[4]["feedback"] == (Feedback(second[0], Source.TERMINAL_STATE, 1, True),)
    assert second[0].split() == job.files[source].data.decode().split()
    assert last[4]["feedback"] == (
        Feedback(f"expected no {source}; found {source}", Source.VERIFIER, 2, False),
        Feedback(f"try mv {source} {target}", Source.HINT, 2, False),
        Feedback(f"mv {source} {target}\ndone", Source.SOLUTION, 2, False),
    )


def test_a_success_gets_no_hint_and_silence_no_feedback(env: ShellEnv) -> None:
    command, end = play(env, keys(env, "copy", 1)[0], None)
    assert command[4]["feedback"] == ()
    assert Source.HINT not in hidden(end[4])
    assert hidden(end[4])[Source.VERIFIER] == "found as expected"


def test_hidden_feedback_is_short(env: ShellEnv) -> None:
    for family in FAMILIES:
        key = keys(env, family, 1)[0]
        for plan in task(key).near_misses:
            told = hidden(play(env, key, plan)[-1][4])
            assert len(re.findall(r" ?[^\s\d]+|\d|\s", told[Source.VERIFIER])) <= 20, told
            assert len(told[Source.HINT].split()) <= 12


def test_anything_else_that_changed_costs_the_reward(env: ShellEnv) -> None:
    for extra in ("touch extra", "mkdir .hidden", "ln -s / link", "chmod 600 *"):
        key = keys(env, "lines", 1)[0]
        *_, (_, reward, _, _, info) = play(env, key, [extra, task(key).gold[-1]])
        assert reward == 0.0
        assert info["reward_components"] == {"goal": 1.0, "untouched": 0.0, "answer": 1.0}


def test_what_runs_behind_cannot_change_the_grade(env: ShellEnv) -> None:
    key = keys(env, "write", 1)[0]
    cheat = f"(while :; do {task(key).gold[0]}; sleep 0.01; rm -f *; done) >/dev/null 2>&1 & disown"
    play(env, key, [cheat, "done"])
    assert play(env, key, None)[-1][1] == 1.0


def test_out_of_turns(env: ShellEnv) -> None:
    key = keys(env, "write", 1)[0]
    steps = play(env, key, [task(key).gold[0], "pwd", "pwd", "pwd"])
    assert len(steps) == env.max_turns
    observation, reward, terminated, truncated, info = steps[-1]
    assert (observation, reward, terminated, truncated) == ("/work", 0.0, False, True)
    assert (info["success"], info["failure"]) == (False, Failure.POLICY)
    assert info["reward_components"] == {"goal": 1.0, "untouched": 1.0, "answer": 0.0}
    assert hidden(info)[Source.VERIFIER] == "expected done; found no end"
    assert info["feedback"][0] == Feedback("/work", Source.TERMINAL_STATE, 3, True)


def test_the_last_word_on_the_last_turn_counts(env: ShellEnv) -> None:
    key = keys(env, "write", 1)[0]
    steps = play(env, key, ["pwd", "pwd", task(key).gold[0], "done"])
    assert (steps[-1][1:4], len(steps)) == ((1.0, True, False), 4)


def test_the_terminal_lasts_an_episode_and_no_longer(env: ShellEnv) -> None:
    key = keys(env, "lines", 1)[0]
    first, second, *_ = play(env, key, ["mkdir x; cd x; y=moon; touch /tmp/left", "pwd; echo $y"])
    assert (first[0], second[0]) == ("", "/work/x\nmoon")
    first, second, *_ = play(env, key, ["pwd; echo $y; ls /tmp", "ls"])
    assert first[0] == "/work"
    assert second[0].split() == sorted(task(key).files)


def test_output_that_is_no_utf8(env: ShellEnv) -> None:
    key = keys(env, "lines", 1)[0]
    first, _second, *_ = play(env, key, [r"printf 'a\xff\xfeb\0\n'", "touch $'bad\\xff'"])
    assert first[0].startswith("a\ufffd\ufffdb")
    assert env.observation_space.contains(first[0])
    *_, last = play(env, key, ["touch $'bad\\xff'", task(key).gold[-1]])
    assert last[4]["reward_components"]["untouched"] == 0.0
    for item in last[4]["feedback"]:
        item.text.encode()  # raises for half a character


@pytest.mark.parametrize("action", ["echo 'a", "a\0b", "\ud800", "x" * 20_000, "((((", "é\n\n;;", "\x1b[A", "submit"])
def test_an_odd_action_is_a_step(env: ShellEnv, action: str) -> None:
    env.reset(options={"task": keys(env, "lines", 1)[0]})
    observation, reward, *_ = env.step(action)
    observation.encode()
    assert reward == 0.0


def test_what_bash_does_not_know_is_no_action(env: ShellEnv) -> None:
    env.reset(options={"task": keys(env, "lines", 1)[0]})
    infos = [env.step(action)[4] for action in ("wc -l *", "I would run wc -l", "false", "x" * 20_000)]
    assert [info["invalid"] for info in infos] == [False, True, False, True]


def test_agents_that_kill_their_shell(env: ShellEnv) -> None:
    for suicide in ("exit 3", "kill -9 $$", "kill -9 -1", "exec true", "unset PROMPT_COMMAND", "exec >&- 2>&-"):
        key = keys(env, "lines", 1)[0]
        *_, (_, reward, terminated, truncated, info) = play(env, key, [suicide, "done"])
        assert reward == 0.0
        assert terminated != truncated
        assert info["failure"] is Failure.POLICY, suicide
        assert play(env, key, None)[-1][1] == 1.0


@pytest.mark.parametrize(
    "mess",
    [
        "chmod 000 .",
        "chmod 000 *",
        "rm -rf /work",
        "mkdir -p a/b/c; chmod 000 a",
        "mkfifo pipe; ln -s pipe link; ln -s link link2; ln -s loop loop",
        "ln -s /etc/passwd secret; ln -s .. up",
        "touch $'new\\nline' -- -rf ' '",
        "d=$(printf 'd%.0s' {1..200}); for i in {1..30}; do mkdir $d; cd $d; done",
        "head -c 70000000 /dev/zero > big",
    ],
)
def test_a_mess_is_graded(env: ShellEnv, mess: str) -> None:
    key = keys(env, "lines", 1)[0]
    *_, (_, reward, terminated, _, info) = play(env, key, [mess, task(key).gold[-1]])
    assert (reward, terminated, info["failure"]) == (0.0, True, Failure.POLICY)
    assert play(env, key, None)[-1][1] == 1.0


def test_a_command_that_does_not_end() -> None:
    with gymnasium.make("retort/Shell-v0", split="test", command_s=0.3) as made:
        made.reset(seed=0)
        assert made.step("sleep 60")[0].endswith("timed out")
        assert made.step("echo on")[0] == "on"


def test_a_sandbox_killed_by_the_agent_is_the_policys_failure() -> None:
    """Nothing inside bubblewrap can do it; without isolation the agent can."""
    with gymnasium.make("retort/Shell-v0", split="test", sandbox="unsafe") as made:
        made.reset(seed=0)
        init = made.step("echo $PPID")[0]
        observation, reward, terminated, truncated, info = made.step(f"kill -9 {init}; sleep 0.2")
        assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, False)
        assert info["failure"] is Failure.POLICY
        assert (observation, info["feedback"][0].text) == ("the shell is gone",) * 2
        made.reset(seed=0)
        assert made.step("echo on")[0] == "on"


def test_a_sandbox_that_dies_on_its_own_raises() -> None:
    with gymnasium.make("retort/Shell-v0", split="test", sandbox="unsafe") as made:
        made.reset(seed=0)
        assert isinstance(made.unwrapped, ShellEnv)
        made.unwrapped._room.held.close()
        with pytest.raises(SandboxClosed):
            made.step("done")
        observation, _ = made.reset(seed=0)
        assert observation
        assert made.step("echo on")[0] == "on"


def test_no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with gymnasium.make("retort/Shell-v0") as made, pytest.raises(Exception, match="apt-get install bubblewrap"):
        made.reset(seed=0)


def test_seeds(env: ShellEnv) -> None:
    first = env.reset(seed=5)
    assert env.reset(seed=5) == first
    assert len({env.reset(seed=seed)[1]["task"].key for seed in range(10)}) > 5


def test_reset_says_what_the_contract_says(env: ShellEnv) -> None:
    observation, info = env.reset(seed=5)
    assert observation == task(info["task"].key).instruction
    assert isinstance(info["task"], TaskRef)
    assert {key: value for key, value in info.items() if key != "task"} == {
        "feedback": (), "reward_components": {}, "success": None, "failure": None, "tools": [], "invalid": False,
    }  # fmt: skip
    with pytest.raises(KeyError, match="unknown task"):
        env.reset(options={"task": "move/none"})
    with pytest.raises(ValueError, match="expected only 'task'"):
        env.reset(options={"tsk": "move/0001"})


def test_explain() -> None:
    with gymnasium.make("retort/Shell-v0", explain=True) as made:
        observation, info = made.reset(seed=0)
        assert observation == f"{PROTOCOL}\n{task(info['task'].key).instruction}"


def test_ends_and_closing() -> None:
    env = ShellEnv(split="test")
    with pytest.raises(ResetNeeded):
        env.step("done")
    with pytest.raises(ResetNeeded):
        env.gold("")
    env.reset(seed=0)
    env.step("done")
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("done")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected a line of text"):
        env.step(3)  # type: ignore[arg-type]
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("done")
    env.reset(seed=0)
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "unknown split 'trian'; did you mean 'train'"),
        ({"sandbox": "bwarp"}, "unknown sandbox 'bwarp'; did you mean 'bwrap'"),
        ({"families": ("mvoe",)}, "unknown family 'mvoe'; did you mean 'move'"),
        ({"families": (HELD_OUT[0],)}, "held out of training"),
        ({"families": "move"}, "expected a tuple of names"),
        ({"families": ()}, "at least one name"),
        ({"max_turns": 0}, "max_turns: expected a number above 0, found 0"),
        ({"observation_chars": -1}, "observation_chars: expected a number above 0"),
        ({"command_s": 0}, "command_s: expected a number above 0"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        gymnasium.make("retort/Shell-v0", **options)


def test_families_and_splits() -> None:
    with gymnasium.make("retort/Shell-v0", split="test", families=("move", HELD_OUT[0])) as made:
        assert {ref.family for ref in made.get_wrapper_attr("tasks")()} == {"move", HELD_OUT[0]}
    with gymnasium.make("retort/Shell-v0") as made:
        assert {ref.family for ref in made.get_wrapper_attr("tasks")()} == set(FAMILIES) - set(HELD_OUT)


def test_plans_are_followed(env: ShellEnv) -> None:
    assert env.follow(("ls", SUBMIT_OUTPUT), 0, "x") == "ls"
    assert env.follow(("ls", SUBMIT_OUTPUT), 1, "3 card.csv\n") == "submit 3"
    assert env.follow(("ls", SUBMIT_OUTPUT), 1, "") == "done"
    assert env.follow(("ls", SUBMIT_OUTPUT), 2, "3") == "done"


def test_the_budget_of_the_environment() -> None:
    with gymnasium.make("retort/Shell-v0", observation_chars=10) as made:
        made.reset(seed=0)
        assert made.step("seq 1 100 | tr -d '\\n'")[0] == "12345 ... 99100"


def job(**changed: Any) -> Task:
    file = FileState("file", 0o644, b"red\n")
    fields: dict[str, Any] = {
        "files": {"a": file}, "expected": {"b": file}, "answer": None,
        "key": "k", "digest": "d", "split": "test", "family": "f", "instruction": "i",
        "gold": ("mv a b", "done"), "near_misses": (), "hint": "try mv a b",
    }  # fmt: skip
    return Task(**{**fields, **changed})


def test_graded_by_hand() -> None:
    red, blue = FileState("file", 0o644, b"red\n"), FileState("file", 0o644, b"blue\n")

    def verdict(found: dict[str, FileState], say: str | None = None, said: bool = True, **changed: Any) -> list[Any]:
        grade = graded(job(**changed), found, say, said=said)
        return [grade.goal, grade.untouched, grade.answer, grade.verdict]

    asks: dict[str, Any] = {"expected": {"a": red}, "answer": "3"}
    assert verdict({"b": red}) == [True, True, True, "found as expected"]
    assert verdict({"a": red}) == [False, True, True, "expected no a; found a"]
    assert verdict({}) == [False, True, True, "expected b; found b missing"]
    assert verdict({"b": blue}) == [False, True, True, "expected b with red; found blue"]
    assert verdict({"b": red, "c": red}) == [True, False, True, "expected no c; found c"]
    mine = FileState("file", 0o600, b"red\n")
    assert verdict({"b": mine}) == [False, True, True, "expected b mode 644; found mode 600"]
    assert verdict({"b": FileState("directory", 0o755)}) == [False, True, True, "expected b as file; found directory"]
    assert verdict({"b": FileState("file", 0o644)}) == [False, True, True, "expected b with red; found nothing"]
    assert verdict({"b": red}, "red") == [True, True, False, "expected done; found submit red"]
    assert verdict({"b": red}, said=False) == [True, True, False, "expected done; found no end"]
    assert verdict({"a": red}, "3", **asks) == [True, True, True, "found as expected"]
    assert verdict({"a": red}, "4", **asks) == [True, True, False, "expected submit 3; found submit 4"]
    assert verdict({"a": red}, **asks) == [True, True, False, "expected submit 3; found done"]
    assert verdict({"a": blue}, "3", **asks) == [True, False, True, "expected a with red; found blue"]
    long = FileState("file", 0o644, b"one two three four five\n")
    assert verdict({"b": long})[3] == "expected b with red; found one two three four ..."


def test_a_script_may_doubt_and_still_be_right() -> None:
    """About the asked share of commands, never the last word, always the same for the same place."""
    env = ShellEnv(hedge=0.5)
    try:
        wrote: list[str] = []
        for key in [ref.key for ref in env.tasks()][::300]:
            steps = play(env, key, None)
            assert steps[-1][1] == 1.0, key
            again, _ = env.reset(options={"task": key})
            assert env.gold(again) == env.gold(again)
            wrote += [env.follow(task(key).gold, turn, "word") for turn in range(len(task(key).gold))]
        assert not [action for action in wrote if action.startswith("#") and "\ndone" in action]
        commands = [action for action in wrote if action.split()[0] not in ("done", "submit")]
        doubts = [action for action in commands if action.startswith("#")]
        assert 0.3 < len(doubts) / len(commands) < 0.7
        for action in doubts:
            first, _, rest = action.partition("\n")
            assert first.removeprefix("# ") in DOUBTS
            assert env.follow([action], 0, "") == action
            assert rest
        assert markers(doubts) > 0
        assert hidden(steps[-1][4])[Source.SOLUTION].count("#") == 0
    finally:
        env.close()


def test_no_doubt_by_default_and_all_of_it_at_one(env: ShellEnv) -> None:
    assert hedged("ls", "somewhere", 0.0) == "ls"
    assert hedged("ls", "somewhere", 1.0).endswith("\nls")
    assert hedged("submit ls", "somewhere", 1.0) == "submit ls"
    assert set(DOUBTS) <= MARKERS
    with pytest.raises(UsageError, match="hedge: expected a share from 0 to 1, found 2"):
        ShellEnv(hedge=2)
