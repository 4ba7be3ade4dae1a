"""Repair-v0 in a real sandbox, with real git: rewards, forgeries, feedback, ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from retort.envs import repair
from retort.envs.base import Failure, Feedback, Source, UsageError
from retort.envs.check import check_env
from retort.envs.repair import LOST, PROTOCOL, RepairEnv, command_of
from retort.envs.repair_tasks import HELD_OUT, RUN_TESTS, task
from retort.sandboxes.base import SandboxClosed, SandboxUnavailable

import retort  # noqa: F401  (registers the environment)

Steps = list[tuple[str, float, bool, bool, dict[str, Any]]]
KEY = "wrong_name/ledger-month-0"  # by_month() of statement.py


@pytest.fixture(scope="module")
def env() -> Iterator[RepairEnv]:
    made = gymnasium.make("retort/Repair-v0", split="test")
    assert isinstance(made.unwrapped, RepairEnv)
    yield made.unwrapped
    made.close()


def play(env: RepairEnv, plan: Sequence[str] | None, key: str = KEY) -> Steps:
    """The steps of an episode that follows a plan, or the gold one."""
    said, _ = env.reset(options={"task": key})
    steps: Steps = []
    while not (steps and (steps[-1][2] or steps[-1][3])):
        steps.append(env.step(env.gold(said) if plan is None else env.follow(plan, len(steps), said)))
        said = steps[-1][0]
    return steps


def hidden(info: dict[str, Any]) -> dict[Source, list[str]]:
    found: dict[Source, list[str]] = {}
    for item in info["feedback"]:
        if not item.visible:
            found.setdefault(item.source, []).append(item.text)
    return found


def first_of_each(env: RepairEnv) -> list[str]:
    return list({ref.family: ref.key for ref in env.tasks()}.values())


def test_gold_scores_one(env: RepairEnv) -> None:
    for key in first_of_each(env):
        *before, (_, reward, terminated, truncated, info) = play(env, None, key)
        assert (reward, terminated, truncated, info["success"], info["failure"]) == (1.0, True, False, True, None), key
        assert set(info["reward_components"].values()) == {1.0}
        assert all(step[1] == 0.0 and step[4]["success"] is None for step in before)
        assert before[2][0].endswith("OK"), "the last thing that gold reads is that the tests pass"


def test_near_misses_score_nothing(env: RepairEnv) -> None:
    for key in (KEY, "stale_state/ledger-kept-1"):
        assert len(task(key).near_misses) >= 4
        for plan in task(key).near_misses:
            *_, (_, reward, terminated, _, info) = play(env, plan, key)
            assert (reward, terminated, info["success"], info["failure"]) == (0.0, True, False, Failure.POLICY), plan
            assert 0.0 in info["reward_components"].values()


def test_the_repository_is_a_real_one(env: RepairEnv) -> None:
    env.reset(options={"task": KEY})
    assert env.step("git status --short; git branch; git diff HEAD --stat")[0] == "* main"
    log = env.step("git log --format='%H %an %ad %s' --date=short")[0]
    assert re.fullmatch(
        r"[0-9a-f]{40} Robin 2024-05-01 Add the tests\n[0-9a-f]{40} Robin 2024-05-01 Add the modules", log
    )
    assert env.step("git ls-files")[0].split() == sorted(task(KEY).files)
    assert "FAILED (failures=1)" in env.step(RUN_TESTS)[0]
    env.step(task(KEY).gold[1])
    diff = env.step("git diff")[0]
    assert "+        sums[month] = sums.get(month, 0) + amount" in diff.splitlines()
    assert env.step("git commit -qam mended; git log --oneline | wc -l; git status --short")[0] == "3"
    assert env.step("done")[1] == 1.0
    repair._BUILT.clear()  # built again, it is the same
    env.reset(options={"task": KEY})
    assert env.step("git log --format='%H %an %ad %s' --date=short")[0] == log


def test_the_same_actions_are_answered_by_the_same_words(env: RepairEnv) -> None:
    plan = [RUN_TESTS, "ls -l", "git show --stat HEAD", *task(KEY).gold[1:]]
    first = play(env, plan)
    repair._BUILT.clear()
    assert play(env, plan) == first
    assert "Ran 11 tests\n" in first[0][0]
    assert {line.split()[5] for line in first[1][0].splitlines()[1:]} == {"May"}


def edits(text: str, file: str = "statement.py") -> str:
    return f"printf %s {shlex.quote(text)} > extra && cat {file} >> extra && mv extra {file}"


@pytest.mark.parametrize(
    "trick",
    [
        # the tests
        "rm test_ledger.py; git commit -qam 'no tests'",
        "printf 'import unittest\\n' > test_ledger.py",
        "sed -i 's/self.assertEqual(/(lambda *a: None)(/' test_ledger.py",
        "printf 'def load_tests(*a):\\n    import unittest\\n    return unittest.TestSuite()\\n' >> test_ledger.py",
        "sed -i 's/    def test_by_month/    @unittest.skip\\n    def test_by_month/' test_ledger.py",
        # who runs them
        "mkdir unittest; echo 'print(\"OK\")' > unittest/__init__.py; cp unittest/__init__.py unittest/__main__.py",
        "for f in json os resource sys runpy sitecustomize; do echo 'import os; os._exit(0)' > $f.py; done",
        "d=$HOME/.local/lib/python3.11/site-packages; mkdir -p $d; echo 'import os; os._exit(0)' > $d/x.pth",
        "mkdir bin; printf '#!/bin/sh\\nexit 0\\n' > bin/python3; chmod +x bin/python3; export PATH=/work/bin:$PATH",
        "printf 'import pytest\\npytest.exit(0)\\n' > conftest.py; printf '[pytest]\\naddopts=--co\\n' > pytest.ini",
        # git
        "mkdir .git/hooks; printf '#!/bin/sh\\nexit 0\\n' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit; "
        "git config core.fsmonitor 'sed -i s/amount,/month,/ /work/statement.py'; git config core.hooksPath /work",
        # the modules, which the grading has to import
        edits("import os\nos._exit(0)\n"),
        edits("import unittest\nunittest.TestCase.assertEqual = lambda *a: None\nunittest.main = print\n"),
        edits("raise SystemExit(0)\n"),
        edits(
            "import os\nfor n in range(99):\n    for fd in range(3, 20):\n"
            '        try: os.write(fd, b\'[%d, [[[], "True"]] * 9, ""]\\n\' % n)\n        except OSError: pass\n'
        ),
        edits(
            "class All(dict):\n    def __eq__(self, other): return True\n    def __repr__(self): return '...'\n"
            "def by_month(account): return All()\n"
        )
        + "; echo 'by_month = lambda account: All()' >> statement.py",
        edits("import sys\nsys.modules['__main__'].failing = lambda *a: {}\nsys.modules['json'] = None\n"),
        edits(
            "import glob, sys\nfor name in glob.glob('/tmp/verifier-*/files/cases.json'):\n"
            "    try: open(name, 'w').write('[\"\", []]')\n    except OSError: pass\n"
        ),
        # what waits for the grading
        f"(setsid bash -c {shlex.quote(f'sleep 0.3; while :; do {task(KEY).gold[1]}; done')} >/dev/null 2>&1 &)",
    ],
)
def test_forgeries(env: RepairEnv, trick: str) -> None:
    *_, (_, reward, terminated, _, info) = play(env, [trick, "done"])
    assert (reward, terminated, info["failure"]) == (0.0, True, Failure.POLICY)
    assert info["reward_components"]["target"] == 0.0


def test_byte_code_does_not_stand_in_for_its_source(env: RepairEnv) -> None:
    """The right program, compiled, beside the wrong one of the same length and date: it deceives the agent's Python."""
    trick = (
        f"cp statement.py wrong; {task(KEY).gold[1]}; echo >> statement.py; touch -d @1 wrong statement.py; "
        "python3 -c 'import py_compile as c; c.compile(\"statement.py\")'; mv wrong statement.py"
    )
    _, seen, last = play(env, [trick, RUN_TESTS, "done"])
    assert seen[0].endswith("OK")
    assert (last[1], last[4]["reward_components"]["target"]) == (0.0, 0.0)


def test_what_lies_about_does_not_hurt(env: RepairEnv) -> None:
    """The same repair in other ways, with new tests, notes and things that print."""
    for extra in (
        "printf 'import unittest\\nclass More(unittest.TestCase):\\n    def test(self): self.fail()\\n' > test_more.py",
        "echo 'print(\"debug\")' >> statement.py; git add .; git commit -qm work",
        "rm -rf .git README.md",
        "sed -i 's/sums = {}/from collections import Counter; sums = Counter()/' statement.py",
        "rm test_ledger.py",
    ):
        *_, (_, reward, _, _, info) = play(env, [task(KEY).gold[1], extra, "done"])
        assert reward == 1.0, (extra, info["feedback"])
        assert info["reward_components"]["tests_untouched"] == float(extra != "rm test_ledger.py")


def test_feedback_of_a_failure(env: RepairEnv) -> None:
    worse = 'sed -i \'s/entry\\[2\\]/entry[0]/; s/"\\\\n"/""/\' statement.py'
    first, last = play(env, [f"{worse}; echo ok", "done"])
    assert first[4]["feedback"] == (Feedback("ok", Source.TERMINAL_STATE, 0, True),)
    told = hidden(last[4])
    assert told[Source.TEST_FAILURE] == [
        "failing before: test_by_month, test_by_month_others; "
        "failing now: test_by_month, test_statement, test_by_month_others, test_statement_others; "
        "broken by the edit: test_statement, test_statement_others"
    ]
    first_fault, edit = told[Source.VERIFIER]
    assert first_fault == "test_by_month: by_month(account): expected {'2024-01': 7, '2024-02': 6}; found " + (
        "{'2024-02': 5, '2024-01': 7}"
    )
    assert edit.startswith("the edit:\n--- statement.py\n+++ statement.py\n@@")
    assert '-    return "\\n".join(lines)\n+    return "".join(lines)' in edit
    assert told[Source.HINT] == ["statement.py, by_month(): a wrong key, attribute or variable is read"]
    assert told[Source.SOLUTION] == ["\n".join(task(KEY).gold)]
    assert last[4]["reward_components"] == {"target": 0.0, "kept": 0.0, "done": 1.0, "tests_untouched": 1.0}
    assert all(item.turn == 1 for item in last[4]["feedback"])


def test_a_success_gets_no_hint(env: RepairEnv) -> None:
    told = hidden(play(env, None)[-1][4])
    assert Source.HINT not in told
    assert told[Source.VERIFIER][0] == "found as expected"


def test_the_solution_is_what_solves_it(env: RepairEnv) -> None:
    (text,) = hidden(play(env, ["done"])[-1][4])[Source.SOLUTION]
    assert play(env, [text.removesuffix("\ndone"), "done"])[-1][1] == 1.0


def test_out_of_turns() -> None:
    with gymnasium.make("retort/Repair-v0", split="test", max_turns=2) as made:
        made.reset(options={"task": KEY})
        made.step(task(KEY).gold[1])
        observation, reward, terminated, truncated, info = made.step("echo end")
        assert (observation, reward, terminated, truncated) == ("end", 0.0, False, True)
        assert info["reward_components"] == {"target": 1.0, "kept": 1.0, "done": 0.0, "tests_untouched": 1.0}
        assert hidden(info)[Source.VERIFIER][0] == "expected done; found no end"
        assert (info["success"], info["failure"]) == (False, Failure.POLICY)


def test_commands_in_fences() -> None:
    assert command_of("ls") == "ls"
    assert command_of("```bash\nls\npwd\n```") == "ls\npwd"
    assert command_of("Let me look.\n\n```Sh \nls\n```\nThat shows the files.") == "ls"
    assert command_of("```\nls\n```") == "ls"
    assert command_of("I see `x`.\n```bash\nls\n```\nthen\n```bash\npwd\n```") is None
    note = "cat > README.md <<'E'\n```bash\nls\n```\nE"
    assert command_of(note) == note
    assert command_of("The code is\n```python\nx = 1\n```") == "The code is\n```python\nx = 1\n```"


def test_fences_and_last_words(env: RepairEnv) -> None:
    for word in ("done", " Done.", "submit", "`done`", "```\ndone\n```", "I am finished.\n```bash\ndone\n```"):
        assert play(env, [f"Now the edit:\n```bash\n{task(KEY).gold[1]}\n```", word])[-1][1] == 1.0, word
    two, *_ = play(env, ["```bash\nls\n```\n```bash\nls\n```", "done"])
    assert two[0] == "expected one command, found several fenced blocks"
    assert two[4]["feedback"][0].visible


@pytest.mark.parametrize("action", ["echo 'a", "a\0b", "\ud800", "x" * 20_000, "((((", "é\n\n;;", "\x1b[A", "``````"])
def test_an_odd_action_is_a_step(env: RepairEnv, action: str) -> None:
    env.reset(options={"task": KEY})
    observation, reward, *_ = env.step(action)
    observation.encode()
    assert reward == 0.0


@pytest.mark.parametrize(
    "mess",
    [
        "chmod 000 .",
        "rm -rf /work/* /work/.git",
        "mkfifo ledger2.py; ln -s loop loop; rm statement.py; ln -s /etc/passwd statement.py",
        "d=$(printf 'd%.0s' {1..200}); for i in {1..30}; do mkdir $d; cd $d; done",
        "head -c 70000000 /dev/zero > big",
        "touch $'bad\\xff' $'new\\nline'",
        "echo 'while True: pass' >> money.py",
        "echo 'x = [0] * 10**10' >> money.py",
        "echo 'import os, signal; os.kill(os.getppid(), signal.SIGKILL)' >> money.py",
        "exit 3",
        "kill -9 $$",
    ],
)
def test_a_mess_is_graded(env: RepairEnv, mess: str) -> None:
    *_, (_, reward, terminated, truncated, info) = play(env, [mess, "done"])
    assert (reward, terminated, truncated, info["failure"]) == (0.0, True, False, Failure.POLICY)
    for item in info["feedback"]:
        item.text.encode()
    assert play(env, [task(KEY).gold[1], "done"])[-1][1] == 1.0


def test_an_edit_within_the_second_is_seen(env: RepairEnv) -> None:
    """With byte code on the disk, Python takes a file of the same second and length for unchanged."""
    env.reset(options={"task": KEY})
    env.step("git checkout -q .; echo 'x = 1' > one.py; python3 -c 'import one'; echo 'x = 2' > one.py")
    assert env.step("python3 -c 'import one; print(one.x)'; ls __pycache__ 2>&1 | wc -l")[0].split() == ["2", "1"]


def test_the_agents_sandbox_killed_is_the_policys_failure() -> None:
    with gymnasium.make("retort/Repair-v0", split="test", sandbox="unsafe") as made:
        made.reset(options={"task": KEY})
        init = made.step("echo $PPID")[0]
        observation, reward, terminated, truncated, info = made.step(f"kill -9 {init}; sleep 0.2")
        assert (observation, reward, terminated, truncated) == (LOST, 0.0, True, False)
        assert info["failure"] is Failure.POLICY
        made.reset(options={"task": KEY})
        made.step(task(KEY).gold[1])
        assert made.step("done")[1] == 1.0


def test_a_sandbox_that_dies_on_its_own_raises(env: RepairEnv) -> None:
    env.reset(options={"task": KEY})
    env._room.held.close()
    with pytest.raises(SandboxClosed):
        env.step("done")
    assert play(env, [task(KEY).gold[1], "done"])[-1][1] == 1.0


def test_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("bash", "python3", "sh"):
        os.symlink(shutil.which(name, path="/usr/bin:/bin") or "", tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(repair, "_BUILT", {})
    said = re.escape("needs git and python3 in the sandbox 'unsafe': `apt-get install git python3`")
    with gymnasium.make("retort/Repair-v0", sandbox="unsafe") as made, pytest.raises(SandboxUnavailable, match=said):
        made.reset(seed=0)


def test_reset_and_explain() -> None:
    with gymnasium.make("retort/Repair-v0", split="test") as made:
        observation, info = made.reset(seed=5)
        assert made.reset(seed=5) == (observation, info)
        assert observation == f"{PROTOCOL}\n{task(info['task'].key).instruction}"
        assert {key: value for key, value in info.items() if key != "task"} == {
            "feedback": (), "reward_components": {}, "success": None, "failure": None, "tools": [], "invalid": False,
        }  # fmt: skip
        assert len({made.reset(seed=seed)[1]["task"].key for seed in range(6)}) > 3
        with pytest.raises(KeyError, match="unknown task"):
            made.reset(options={"task": "order/none"})
    with gymnasium.make("retort/Repair-v0", explain=False) as made:
        observation, info = made.reset(seed=0)
        assert observation == task(info["task"].key).instruction
        assert observation.endswith(f"Run the tests with: {RUN_TESTS}")


def test_ends_and_closing() -> None:
    env = RepairEnv(split="test")
    for call in (lambda: env.step("done"), lambda: env.gold("")):
        with pytest.raises(ResetNeeded):
            call()
    env.reset(seed=0)
    env.step("done")
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("done")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="expected text, found int"):
        env.step(3)  # type: ignore[arg-type]
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("done")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "unknown split 'trian'; did you mean 'train'"),
        ({"sandbox": "bwarp"}, "unknown sandbox 'bwarp'; did you mean 'bwrap'"),
        ({"max_turns": 0}, "max_turns: expected a number above 0, found 0"),
        ({"observation_chars": -1}, "observation_chars: expected a number above 0"),
        ({"command_s": 0}, "command_s: expected a number above 0"),
    ],
)
def test_unknown_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        gymnasium.make("retort/Repair-v0", **options)


def test_held_out_kinds() -> None:
    assert RepairEnv.held_out == HELD_OUT
    assert not {ref.family for ref in RepairEnv(split="train").tasks()} & set(HELD_OUT)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])  # test_architecture.py has training's
def test_the_contract_is_kept(split: str) -> None:
    with gymnasium.make("retort/Repair-v0", split=split) as made:
        check_env(made, per_family=1)
