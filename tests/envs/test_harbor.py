"""Harbor-v0 in real sandboxes: rewards, what cannot be forged, timeouts, and tasks exported and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from retort.envs.base import Failure, Feedback, Source, UsageError
from retort.envs.harbor import NO_ANSWER, HarborEnv, unfenced
from retort.envs.harbor_format import HarborTask, export_tasks, script, write_task
from retort.envs.shell import ShellEnv
from retort.sandboxes.base import FileState, UnsupportedLimit
from retort.sandboxes.docker import engine, image_of

import retort  # noqa: F401  (registers the environment)

DOCKERFILE = "FROM debian:bookworm-slim\nWORKDIR /app\nCOPY data/ /app/data/\n"
TEST = """#!/bin/bash
cd /app
if [ "$(cat out.txt)" = "$(cat data/in.txt)" ]; then echo 1 > /logs/verifier/reward.txt; exit 0; fi
echo "noise"
echo "expected $(cat data/in.txt); found $(cat out.txt 2>&1)"
echo 0 > /logs/verifier/reward.txt
"""
Step = tuple[str, float, bool, bool, dict[str, Any]]


def text(content: str, mode: int = 0o644) -> FileState:
    return FileState("file", mode, content.encode())


def a_task(name: str = "copy", test: str = TEST, dockerfile: str = DOCKERFILE, **config: Any) -> HarborTask:
    metadata = {"retort_sandbox": "bwrap", **config.pop("metadata", {})}
    return HarborTask(
        name,
        "Copy data/in.txt to out.txt.",
        {"metadata": metadata, **config},
        {"Dockerfile": text(dockerfile), "data/in.txt": text("moon\n")},
        {"test.sh": script(test)},
        {"solve.sh": script("#!/bin/bash\ncp data/in.txt out.txt\n")},
    )


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., HarborEnv]]:
    """Makes the environment of some tasks, and closes it."""
    opened: list[HarborEnv] = []

    def make(*tasks: HarborTask, **options: Any) -> HarborEnv:
        folder = tmp_path / f"tasks-{len(opened)}"
        for task in tasks:
            write_task(task, folder)
        env = gymnasium.make("retort/Harbor-v0", folder=folder, **options).unwrapped
        assert isinstance(env, HarborEnv)
        opened.append(env)
        return env

    yield make
    for env in opened:
        env.close()


def play(env: HarborEnv, plan: Sequence[str] | None = None, key: str | None = None) -> list[Step]:
    """The steps of an episode that follows a plan and then says done, or the gold one."""
    said, _ = env.reset(options={"task": key or env.tasks()[0].key})
    steps: list[Step] = []
    while not (steps and (steps[-1][2] or steps[-1][3])):
        action = env.gold(said) if plan is None else [*plan, "done"][len(steps)]
        steps.append(env.step(action))
        said = steps[-1][0]
    return steps


def hidden(step: Step) -> dict[Source, str]:
    return {item.source: item.text for item in step[4]["feedback"] if not item.visible}


def test_gold_and_feedback(made: Callable[..., HarborEnv]) -> None:
    env = made(a_task(metadata={"retort_hint": "try cp"}))
    observation, info = env.reset(seed=0)
    assert observation.endswith("write: done\n\nCopy data/in.txt to out.txt.")
    assert (info["task"].key, info["task"].split) == ("copy", "test")
    *_, last = play(env)
    assert (last[1:4], last[4]["success"]) == ((1.0, True, False), True)
    assert hidden(last) == {
        Source.VERIFIER: "the tests passed",
        Source.SOLUTION: "#!/bin/bash\ncp data/in.txt out.txt",
    }
    first, second, last = play(env, ["pwd; ls; cat none", "echo sun > out.txt"])
    said = "/app\ndata\ncat: none: No such file or directory\nexit 1"
    assert (first[0], first[4]["feedback"]) == (said, (Feedback(said, Source.TERMINAL_STATE, 0, True),))
    assert second[4]["feedback"] == ()
    assert (last[1], last[4]["success"], last[4]["failure"]) == (0.0, False, Failure.POLICY)
    assert hidden(last)[Source.VERIFIER] == "expected moon; found sun"
    assert hidden(last)[Source.HINT] == "try cp"


REWARDS: dict[str, tuple[str, float]] = {
    "a number": ("echo 0.25 > /logs/verifier/reward.txt", 0.25),
    "no number": ("echo good > /logs/verifier/reward.txt", 0.0),
    "not finite": ("echo nan > /logs/verifier/reward.txt", 0.0),
    "too much": ("echo 7 > /logs/verifier/reward.txt", 1.0),
    "json before text": ('cd /logs/verifier; echo 0 > reward.txt; echo \'{"reward": 0.5, "b": 1}\' > reward.json', 0.5),
    "several": ('echo \'{"right": 1, "fast": 0}\' > /logs/verifier/reward.json', 0.5),
    "json that is none": ("echo { > /logs/verifier/reward.json", 0.0),
    "no file, status 0": ("true", 1.0),
    "no file, status 1": ("exit 3", 0.0),
    "a folder": ("rm /logs/verifier/reward.txt; mkdir /logs/verifier/reward.txt; exit 1", 0.0),
    "killed": ("kill -9 $$", 0.0),
}  # fmt: skip


def test_rewards(made: Callable[..., HarborEnv]) -> None:
    env = made(*(a_task(name.replace(" ", "-"), f"#!/bin/bash\n{test}\n") for name, (test, _) in REWARDS.items()))
    found = {name: play(env, [], name.replace(" ", "-"))[-1] for name in REWARDS}
    assert {name: step[1] for name, step in found.items()} == {name: reward for name, (_, reward) in REWARDS.items()}
    assert found["several"][4]["reward_components"] == {"right": 1.0, "fast": 0.0}
    assert hidden(found["no number"])[Source.VERIFIER] == "expected a number as reward; found 'good'"
    assert hidden(found["no file, status 1"])[Source.VERIFIER] == "the tests ended with 3"
    assert found["a number"][4]["success"] is False


FORGERIES = {
    "reward files": "echo 1 > /logs/verifier/reward.txt; echo 1 > /logs/verifier/reward.json",
    "a process that waits": "cd /logs/verifier; (while :; do echo 1 | tee reward.json > reward.txt; done) & disown",
    "tests of its own": "mkdir -p /tests; echo 'echo 1 > /logs/verifier/reward.txt' > /tests/test.sh; echo > /tests/x",
    "links": "rm -r /logs/verifier; mkdir /app/mine; ln -s /app/mine /logs/verifier; echo 1 > /app/mine/reward.txt",
    "programs in the work folder": "mkdir bin; printf '#!/bin/sh\\necho moon' > bin/cat; chmod +x bin/cat",
    "packages at home": (
        "for v in $(seq 9 15); do d=.local/lib/python3.$v/site-packages; mkdir -p $d; "
        "echo 'import os; os._exit(0)' > $d/a.pth; done"
    ),
    "a profile": "for f in .profile .bash_profile .bashrc; do echo 'exit 0' > $f; done",
}


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
def test_a_reward_cannot_be_forged(made: Callable[..., HarborEnv], forgery: str) -> None:
    strict = '#!/bin/bash\ncd /app\n[ "$(cat out.txt)" = moon ]\n'  # writes no reward: a forged one would count
    python = '#!/bin/bash\npython3 -c \'import sys; sys.exit(open("/app/out.txt").read() != "moon\\n")\'\n'
    env = made(
        a_task("writes"), a_task("status", strict, DOCKERFILE + "ENV PATH=/app/bin:$PATH\n"), a_task("python", python),
    )  # fmt: skip
    for key in ("writes", "status", "python"):
        assert play(env, [FORGERIES[forgery]], key)[-1][1] == 0.0, key
        assert play(env, None, key)[-1][1] == 1.0, key


PYTHON_TRAP = """for name in json sitecustomize usercustomize runpy unittest msvcrt warnings conftest trap; do
  echo 'import os; open("/logs/verifier/reward.txt", "w").write("1"); os._exit(0)' > $name.py
done
mkdir trap-1.dist-info; printf '[trap]\\ntrap = trap\\n' > trap-1.dist-info/entry_points.txt
printf 'Name: trap\\nVersion: 1\\n' > trap-1.dist-info/METADATA"""
GIT_TRAP = """printf '#!/bin/sh\\necho 1 > /logs/verifier/reward.txt\\n' > trap; chmod +x trap
tree=$(git write-tree)
printf "tree $tree\\nauthor a <a> 1 +0000\\ncommitter a <a> 1 +0000\\ngpgsig x\\n y\\n\\nm\\n" > c
git update-ref HEAD $(git hash-object -t commit -w c); git config log.showSignature true; touch data/in.txt
git config --global core.hooksPath /app/trap; cp trap .git/hooks/post-index-change; cp trap .git/hooks/pre-commit
for name in core.fsmonitor gpg.program; do git config $name /app/trap; git config --global $name /app/trap; done"""
# What an agent leaves (all of them together would do as well), and what a task's test does in the work folder.
TRAPS = {
    "typed": (PYTHON_TRAP, "python3 -c 'import json, subprocess; json.load(open(\"out.txt\"))'"),
    "on its input": (PYTHON_TRAP, "echo 'import json; json.load(open(\"out.txt\"))' | python3 -"),
    "a module of the machine": (PYTHON_TRAP, "python3 -W ignore -um json.tool out.txt"),
    "plugins": (
        PYTHON_TRAP,
        "python3 -c 'from importlib.metadata import entry_points as e; [x.load() for x in e()[\"trap\"]]'",
    ),
    "tests of the task's": (PYTHON_TRAP, "python3 -m unittest discover -s /tests -p check.py"),
    "byte code": (
        "echo 'import os; os._exit(0)' > task.py && python3 -m compileall -q --invalidation-mode unchecked-hash . && "
        "echo 'raise SystemExit(1)' > task.py",
        "PYTHONPATH=/app:$PYTHONPATH python3 -c 'import task'",
    ),
    "git's programs": (GIT_TRAP, "git status; git log -1; git -c user.name=a -c user.email=a commit -qm x; exit 1"),
    "settings at home": ("echo 'echo 1 > /logs/verifier/reward.txt' > .bash_profile", "bash -lc 'exit 1'"),
    "a link to what is expected": ("ln -s /tests/expected.txt out.txt", "diff out.txt /tests/expected.txt"),
    "links by way of others": (
        "ln -s / top; ln -s ../app/top/tests dir; ln -s dir/./expected.txt out.txt",
        "diff out.txt /tests/expected.txt",
    ),
    "a link to the pipe": ("ln -s /dev/stdin out.txt", "echo moon | diff out.txt -"),
    "a link to a pipe by number": ("ln -s /proc/self/fd/63 out.txt", "diff out.txt <(echo moon)"),
    "a link to what a test puts down": ("ln -s /tmp/want out.txt", "echo moon > /tmp/want; diff out.txt /tmp/want"),
    "a link that is locked": (
        "mkdir locked; ln -s /tests/expected.txt locked/out.txt; chmod 500 locked",
        "diff locked/out.txt /tests/expected.txt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trap", sorted(TRAPS))
def test_the_work_folder_is_no_trap_for_the_tests(made: Callable[..., HarborEnv], trap: str) -> None:
    """Where the tests start in it, nothing of it is run or followed that they did not name."""
    plan, test = TRAPS[trap]
    tests = {
        "test.sh": script(f"#!/bin/bash\ncd /app\n{test}\n"), "expected.txt": text("moon\n"),
        "check.py": text("import json, unittest\nclass T(unittest.TestCase):\n    def test(self): self.fail()\n"),
    }  # fmt: skip
    task = a_task(dockerfile=DOCKERFILE + "RUN git init -q . && git add .\n")
    env = made(HarborTask(task.name, task.instruction, task.config, task.context, tests, task.solution))
    first, last = play(env, [plan])
    assert (first[0], last[1]) == ("", 0.0), hidden(last)


def test_what_tests_run_by_name_is_found(made: Callable[..., HarborEnv]) -> None:
    """Programs have the modules beside them, an agent's module can be run, and a task can ask for the rest."""
    tests = [
        "python3 main.py", "python3 -m main", "python3 /app/main.py", "./main.py", "test -e link && test -e data/null",
    ]  # fmt: skip
    plain = a_task(test="#!/bin/bash\nset -e\ncd /app\n" + "\n".join(tests) + "\n")
    asks = "#!/bin/bash\nset -e\ncd /app\npython3 -c 'import own'\n[ $HOME = /app ]\ngit commit -q --allow-empty -m x\n"
    hooked = "echo '#!/bin/sh' > .git/hooks/pre-commit; echo 'echo > /app/hooked' >> .git/hooks/pre-commit"
    variables = {"PYTHONPATH": "/app", "GIT_CONFIG_COUNT": "0", "HOME": "/app"}
    env = made(plain, a_task("asks", asks + "[ -e hooked ]\n", verifier={"env": variables}))
    files = (
        "echo 'x = 1' > own.py; printf '#!/usr/bin/env python3\\nimport own\\n' > main.py; chmod +x main.py; "
        "ln -s data/in.txt link; ln -s /dev/null data/null"
    )
    assert play(env, [files], "copy")[-1][1] == 1.0
    name = "git init -q .; git config --global user.name a; git config user.name a; git config user.email a"
    plan = [f"{files}; {name}; {hooked}; chmod +x .git/hooks/pre-commit"]
    assert play(env, plan, "asks")[-1][1] == 1.0


def test_the_tests_are_nowhere_before_the_end(made: Callable[..., HarborEnv]) -> None:
    env = made(a_task())
    look = "ls /tests /solution; grep -rl 'reward.txt' /app /logs /tmp"
    assert play(env, [look])[0][0] == "/solution:\n\n/tests:\nexit 1"


def test_answers(made: Callable[..., HarborEnv]) -> None:
    test = '#!/bin/bash\n[ "$(cat /tmp/answer)" = "$(ls /app/data | wc -l)" ]\n'
    env = made(
        a_task("asked", test, metadata={"retort_scope": "answer", "retort_answer": "/tmp/answer"}),
        a_task("work", test, metadata={"retort_answer": "/tmp/answer"}),
        a_task("none"),
    )
    for key in ("asked", "work"):
        assert play(env, ["submit 1"], key)[-1][1:4] == (1.0, True, False)
        assert play(env, ["submit 2"], key)[-1][1] == 0.0
        assert play(env, ["submit"], key)[-1][1] == 0.0
        assert play(env, ["echo 1 > /tmp/answer"], key)[-1][1] == 1.0
        assert play(env, [], key)[-1][1] == 0.0
    emptied = ["rm data/in.txt", "submit 0"]
    assert play(env, emptied, "asked")[-1][1] == 0.0  # what the agent did to the files does not make it right
    assert play(env, emptied, "work")[-1][1] == 1.0
    assert play(env, ["submit 1"], "none")[0][0] == NO_ANSWER


def test_timeouts(made: Callable[..., HarborEnv]) -> None:
    slow = a_task("slow", "#!/bin/bash\necho started\nsleep 60\n", verifier={"timeout_sec": 0.3})
    short = a_task("short", agent={"timeout_sec": 0.5})
    env = made(slow, short)
    last = play(env, [], "slow")[-1]
    assert (last[1], hidden(last)[Source.VERIFIER]) == (0.0, "expected tests that end in 0.3 s; started")
    (only,) = play(env, ["cp data/in.txt out.txt; sleep 60"], "short")
    assert only[0] == "timed out"
    assert only[1:4] == (1.0, False, True)  # the time was up, and what had been done by then is graded
    env = made(a_task(), command_s=0.3)
    first, _ = play(env, ["sleep 60"])
    assert first[0] == "timed out"


def test_out_of_turns(made: Callable[..., HarborEnv]) -> None:
    env = made(a_task(), max_turns=2)
    first, second = play(env, ["pwd", "pwd"])
    assert (first[1:4], second[1:4]) == ((0.0, False, False), (0.0, False, True))


def test_limits(made: Callable[..., HarborEnv]) -> None:
    sized = a_task(environment={"memory_mb": 64, "storage_mb": 8, "cpus": 1})
    env = made(sized)
    fills = ["head -c 9000000 /dev/zero > big", "python3 -c 'bytearray(80_000_000)'"]
    disk, memory, _ = play(env, fills)
    assert "exit 1" in disk[0] or "signal" in disk[0]
    assert "MemoryError" in memory[0]
    limits = env._places["copy"].limits
    assert (limits.memory_mb, limits.disk_mb, limits.cpus) == (64, 8, 1)


def test_an_entrypoint_runs_behind_and_the_environment_is_set(
    made: Callable[..., HarborEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_TEST", "from here")
    lines = 'COPY start.sh /tmp/start.sh\nENV COLOR=red\nENTRYPOINT ["bash", "/tmp/start.sh"]\n'
    task = a_task(
        dockerfile=DOCKERFILE + lines, environment={"env": {"HOST": "${RETORT_TEST}", "OTHER": "${NO_SUCH:-default}"}}
    )
    start = script('echo up > /app/up\nsleep 4242 &\nexec "$@"\n')
    env = made(HarborTask(task.name, task.instruction, task.config, {**task.context, "start.sh": start}, task.tests))
    for _ in range(2):
        first, second, _ = play(env, ["cat up; echo $COLOR $HOST $OTHER", "pgrep -f 'sleep 4242' | wc -l"])
        assert (first[0], second[0]) == ("up\nred from here default", "1")
    with pytest.raises(UsageError, match=r"copy has no solution/solve\.sh"):
        env.gold("")


def test_a_dockerfile_that_fails_or_leaves_its_place(made: Callable[..., HarborEnv]) -> None:
    env = made(
        a_task("fails", dockerfile=DOCKERFILE + "RUN echo why >&2; exit 3\n"),
        a_task("leaves", dockerfile=DOCKERFILE + "COPY data/in.txt /etc/in.txt\n"),
    )
    with pytest.raises(UsageError, match=r"fails: RUN .* ended with 3: why"):
        env.reset(options={"task": "fails"})
    with pytest.raises(UsageError, match=r"leaves: its Dockerfile copies to /etc/in.txt: Read-only file system"):
        env.reset(options={"task": "leaves"})


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("ls -l", "ls -l"),
        ("```bash\nls\n```", "ls"),
        ("I look around.\n\n```sh\nls\npwd\n```\n", "ls\npwd"),
        ("```\n\ndone\n```", "\ndone"),
        ("cat > a.md <<'EOF'\n```sh\nls\n```\nEOF", "cat > a.md <<'EOF'\n```sh\nls\n```\nEOF"),
        ("```sh\nls\n```\nor\n```sh\npwd\n```", "```sh\nls\n```\nor\n```sh\npwd\n```"),
    ],
)
def test_fences(action: str, expected: str) -> None:
    assert unfenced(action) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"sandbox": "bwarp"}, "unknown sandbox 'bwarp'; did you mean 'bwrap'"),
        ({"sandbox": "unsafe"}, "unknown sandbox 'unsafe'"),
        ({"only": ("cpoy",)}, "unknown task 'cpoy'; did you mean 'copy'"),
        ({"max_turns": 0}, "max_turns: expected a number above 0"),
        ({"command_s": -1}, "command_s: expected a number above 0"),
    ],
)
def test_unknown_values(made: Callable[..., HarborEnv], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        made(a_task(), **options)


def test_no_folder() -> None:
    with pytest.raises(UsageError, match="folder: expected a folder of tasks"):
        HarborEnv()


def test_ends(made: Callable[..., HarborEnv]) -> None:
    env = made(a_task())
    for call in (lambda: env.step("done"), lambda: env.gold("")):
        with pytest.raises(ResetNeeded):
            call()
    env.reset(seed=0)
    with pytest.raises(TypeError):
        env.step(3)  # type: ignore[arg-type]
    env.step("done")
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("done")
    env.close()
    env.close()


def exported(folder: Path, count: int, image: str | None = None) -> Path:
    with gymnasium.make("retort/Shell-v0", split="test") as made:
        env = made.unwrapped
        assert isinstance(env, ShellEnv)
        refs = env.tasks()
        export_tasks(env, refs[:: len(refs) // count], folder, image)
    return folder


def test_exported_shell_tasks_come_back(tmp_path: Path, made: Callable[..., HarborEnv]) -> None:
    folder = exported(tmp_path / "out", 36)
    env = gymnasium.make("retort/Harbor-v0", folder=folder).unwrapped
    assert isinstance(env, HarborEnv)
    try:
        assert len(env.tasks()) >= 36
        assert len({ref.family for ref in env.tasks()}) == 18
        for ref in env.tasks():
            assert play(env, None, ref.key)[-1][1] == 1.0, ref.key
            assert play(env, [], ref.key)[-1][1] == 0.0, ref.key
            assert (
                play(env, ["touch more", env.export(ref.key).solution["solve.sh"].data.decode()], ref.key)[-1][1] == 0.0
            )
        asked = next(ref.key for ref in env.tasks() if "answer.txt" in env.export(ref.key).tests)
        word = env.export(asked).tests["answer.txt"].data.decode()
        assert play(env, [f"submit {word}"], asked)[-1][1] == 1.0
        last = play(env, ["submit wrong"], asked)[-1]
        assert hidden(last)[Source.VERIFIER] == f"expected the answer {word.strip()}; found wrong"
    finally:
        env.close()
    assert play(made(*(env.export(ref.key) for ref in env.tasks()[:1])))[-1][1] == 1.0  # written out once more


@pytest.fixture(scope="session")
def base(docker_image: Path) -> str:
    return image_of(docker_image)


def test_images_are_built(base: str, tmp_path: Path, made: Callable[..., HarborEnv]) -> None:
    """From its own Dockerfile, with work folder, environment and entrypoint; and the tasks that were exported."""
    lines = [
        f"FROM {base}", "WORKDIR /app", "COPY data/ /app/data/", "RUN ln -s data/in.txt link && mkdir empty",
        "ENV COLOR=red", 'ENTRYPOINT ["bash", "-c", "echo up > /app/up; exec \\"$@\\"", "start"]',
    ]  # fmt: skip
    env = made(a_task(dockerfile="\n".join(lines) + "\n", metadata={"retort_sandbox": "docker"}))
    first, last = play(env, ["cat link up; echo $COLOR; ls; touch /bin/x"])
    assert first[0] == (
        "moon\nup\nred\ndata  empty  link  up\ntouch: cannot touch '/bin/x': Read-only file system\nexit 1"
    )
    assert last[1] == 0.0
    assert play(env)[-1][1] == 1.0
    folder = exported(tmp_path / "out", 4, base)
    with gymnasium.make("retort/Harbor-v0", folder=folder, sandbox="docker") as registered:
        shell = registered.unwrapped
        assert isinstance(shell, HarborEnv)
        for ref in shell.tasks():
            assert (play(shell, None, ref.key)[-1][1], play(shell, [], ref.key)[-1][1]) == (1.0, 0.0)


def test_another_harness_can_run_what_was_exported(base: str, tmp_path: Path) -> None:
    """As Harbor does it: a plain container of root's, the solution, then the tests in the same one."""
    for place in sorted(exported(tmp_path / "out", 4, base).iterdir()):
        image = image_of(place / "environment")
        volumes = {str(place / name): {"bind": f"/{name}", "mode": "ro"} for name in ("tests", "solution")}
        grade = "mkdir -p /logs/verifier; {} >/dev/null; /tests/test.sh >/dev/null; cat /logs/verifier/reward.txt"
        with engine() as client:
            for action, reward in (("/solution/solve.sh", b"1\n"), ("true", b"0\n")):
                command = ["bash", "-c", grade.format(action)]
                said = client.containers.run(image, command, volumes=volumes, network_mode="none", remove=True)
                assert said == reward, (place.name, action)


MACHINE = """#!/bin/bash
if [ "$(stat -c '%U %a' /etc/motd)" = "root 600" ] && grep -q ^tom: /etc/passwd; then exit 0; fi
echo "expected /etc/motd of root with 600; found $(stat -c '%U %a' /etc/motd)"
exit 1
"""


def test_a_whole_machine(base: str, made: Callable[..., HarborEnv]) -> None:
    dockerfile = f"FROM {base}\nRUN echo hello > /etc/motd && ln -s bin/find /find\nWORKDIR /root\n"
    task = a_task("machine", MACHINE, dockerfile, metadata={"retort_sandbox": "docker", "retort_scope": "machine"})
    solution = {"solve.sh": script("echo tom:x:1001:1001::/:/bin/sh >> /etc/passwd\nchmod 600 /etc/motd\n")}
    whole = HarborTask(task.name, task.instruction, task.config, task.context, task.tests, solution)
    theirs = HarborTask(
        "theirs", task.instruction, task.config, {"Dockerfile": text(dockerfile + "RUN mkdir /tests\n")}, task.tests
    )
    env = made(whole, theirs)
    first, *_ = play(env, ["id -u; pwd; echo $HOME; cat /etc/motd"], "machine")
    assert first[0] == "0\n/root\n/root\nhello"
    assert play(env, None, "machine")[-1][1] == 1.0
    last = play(env, [], "machine")[-1]  # nothing of the episode before is left
    assert (last[1], hidden(last)[Source.VERIFIER]) == (0.0, "expected /etc/motd of root with 600; found root 644")
    for forgery in ("reward files", "a process that waits", "links"):
        assert play(env, ["mkdir -p /app /logs/verifier", FORGERIES[forgery]], "machine")[-1][1] == 0.0, forgery
    last = play(env, ["mkdir /tests; echo 'exit 0' > /tests/test.sh"], "machine")[-1]
    assert (last[1], hidden(last)[Source.VERIFIER]) == (0.0, "expected no /tests; found one that the agent made")
    with pytest.raises(UsageError, match="its image holds /tests"):
        env.reset(options={"task": "theirs"})
    demanding = a_task(
        "disk", MACHINE, dockerfile, metadata=dict(task.config["metadata"]), environment={"storage_mb": 9}
    )
    with pytest.raises(UnsupportedLimit, match="disk_mb=9 cannot be enforced"):
        made(demanding).reset(seed=0)


def test_a_machine_needs_a_container(made: Callable[..., HarborEnv]) -> None:
    env = made(a_task(metadata={"retort_scope": "machine"}))
    with pytest.raises(UsageError, match="its agent is root, which it can be in a container alone"):
        env.reset(seed=0)


def test_reward_json_is_read_as_harbor_reads_it(made: Callable[..., HarborEnv]) -> None:
    said = json.dumps({"reward": 1.0})
    env = made(a_task(test=f"#!/bin/bash\necho '{said}' > /logs/verifier/reward.json\n"))
    assert play(env, [])[-1][4]["reward_components"] == {"reward": 1.0}
