"""A grade that the agent cannot forge, on every backend that isolates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from retort.sandboxes.base import SandboxClosed
from retort.sandboxes.guest import Guest
from retort.sandboxes.verifier import Verdict, take, verify

# The task: answer.py prints twice the number that it reads. The test file lies in the agent's folder, too.
TEST = "import sys\ndef right(said): return said.strip() == '42'\n"
CHECK = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import the_test
done = subprocess.run(["python3", "answer.py"], input="21", capture_output=True, text=True, timeout=10)
there = subprocess.run(["test", "-f", "answer.py"]).returncode == 0
sys.exit(0 if there and the_test.right(done.stdout) else "expected 42, found " + repr(done.stdout))
"""
RIGHT = "print(2 * int(input()))\n"


@pytest.fixture(scope="module")
def ground(fence: Callable[..., Guest]) -> Iterator[Guest]:
    with fence() as sandbox:
        yield sandbox


@pytest.fixture
def graded(fenced: Guest, ground: Guest) -> Callable[[str], Verdict]:
    """The verdict on what an agent's command makes of the work folder."""

    def grade(command: str, answer: str = "print(1)\n") -> Verdict:
        fenced.write_files({"answer.py": answer, "the_test.py": TEST})
        fenced.open_terminal().run(command)
        return verify(ground, take(fenced), CHECK, {"the_test.py": TEST}, timeout=8)

    return grade


def test_right_and_wrong(graded: Callable[..., Verdict]) -> None:
    right = graded("true", RIGHT)
    assert right.passed, right
    assert right.result.stderr == b""
    wrong = graded("true")
    assert not wrong.passed
    assert wrong.result.stderr == b"expected 42, found '1\\n'\n"


@pytest.mark.parametrize(
    "trick",
    [
        # a forged result
        "mkdir result; echo '{\"passed\": true}' | tee result.json reward.txt result/reward.txt /tmp/result",
        # a patched interpreter
        "printf '#!/bin/sh\\nexit 0\\n' > python3; cp python3 python; chmod +x python python3; export PATH=/work:$PATH",
        "for f in sitecustomize usercustomize subprocess encodings; do echo 'import os; os._exit(0)' > $f.py; done",
        "d=$HOME/.local/lib/python3.11/site-packages; mkdir -p $d; echo 'import os; os._exit(0)' > $d/usercustomize.py;"
        "echo 'import os; os._exit(0)' > $d/x.pth; export PYTHONSTARTUP=$d/x.pth PYTHONPATH=/work PYTHONHOME=/work",
        # shadowed programs
        "mkdir bin; printf '#!/bin/sh\\necho 42\\n' > bin/python3; cp bin/python3 bin/test; chmod +x bin/*; "
        "echo 'export PATH=/work/bin:$PATH; test() { true; }' | tee .bashrc .profile .bash_profile; . ./.bashrc",
        "python3() { echo 42; }; test() { true; }; export -f python3 test; hash -p /bin/true python3",
        # a modified test file
        "echo 'def right(said): return True' > the_test.py; chmod 444 the_test.py",
        "mkdir files; rm the_test.py; echo 'def right(said): return True' > files/the_test.py; ln -s files/* .",
        # a process that waits for the grading
        "(setsid sh -c 'sleep 0.3; while :; do echo \"print(42)\" > answer.py; done' > /dev/null 2>&1 &)",
    ],
)
def test_tricks(graded: Callable[..., Verdict], trick: str) -> None:
    assert not graded(trick).passed


@pytest.mark.parametrize(
    "answer",
    [
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getppid(), signal.SIGSTOP); import time; time.sleep(60)",
        "import glob\nfor name in glob.glob('/tmp/verifier-*/*.py'): open(name, 'w').write('')",
    ],
)
def test_an_answer_that_turns_on_its_check(graded: Callable[..., Verdict], answer: str, ground: Guest) -> None:
    assert not graded("true", answer).passed
    assert graded("true", RIGHT).passed  # the ground is as good as new


MEMORY = """
import os
for line in open(f"/proc/{os.getppid()}/maps"):
    print(line)
"""


def test_an_answer_cannot_reach_into_its_check(fenced: Guest, ground: Guest) -> None:
    reads = "import subprocess, sys; done = subprocess.run(['python3', 'answer.py'], capture_output=True, text=True); "
    fenced.write_file("answer.py", MEMORY)
    refused = verify(ground, take(fenced), reads + "sys.exit(done.returncode == 0 or 'Permission' not in done.stderr)")
    assert refused.passed, refused


@pytest.mark.parametrize(
    "answer",
    [
        "import glob, os\nn = glob.glob('/tmp/v*/files/the_test.py')[0]; os.unlink(n); open(n, 'w').write('x = 2')",
        "import glob\nopen(glob.glob('/tmp/verifier-*/files')[0] + '/json.py', 'w').write('')",
        "import glob, os\nos.rename(glob.glob('/tmp/verifier-*/files')[0], '/tmp/elsewhere')",
    ],
)
def test_a_check_whose_files_were_changed_is_not_passed(fenced: Guest, ground: Guest, answer: str) -> None:
    fenced.write_file("answer.py", answer)
    check = "import subprocess; subprocess.run(['python3', 'answer.py'], check=True)"
    assert not verify(ground, take(fenced), check, {"the_test.py": TEST}).passed
    fenced.write_file("answer.py", "")
    assert verify(ground, take(fenced), check, {"the_test.py": TEST}).passed


def test_a_check_that_imports_the_agents_code_cannot_be_ended_well_by_it(fenced: Guest, ground: Guest) -> None:
    check = "import sys; sys.path.insert(0, '/work'); import answer; sys.exit(answer.f() != 42)"
    for text, passed in (
        ("def f(): return 42", True),
        ("def f(): return 41", False),
        ("import os; os._exit(0)", False),
    ):
        fenced.write_file("answer.py", text)
        assert verify(ground, take(fenced), check).passed is passed


SNOOP = """
import glob, os
places = glob.glob("/tmp/**/*", recursive=True)
places += [f"/proc/{os.getppid()}/{name}" for name in ("mem", "environ", "fd/0")]
for place in places:
    try:
        with open(place, "rb") as file:
            if b"kept apart" in file.read(1 << 20):
                print("found in", place)
    except OSError:
        pass
"""


def test_a_secret_is_for_the_check_alone(fenced: Guest, ground: Guest) -> None:
    fenced.write_file("answer.py", SNOOP)
    check = (
        "import subprocess, sys; secret = sys.stdin.read(); "
        "said = subprocess.run(['python3', 'answer.py'], capture_output=True, check=True); "
        "sys.exit(said.stdout.decode() or secret != 'kept' + ' apart')"
    )
    kept = verify(ground, take(fenced), check, secret="kept apart")
    assert kept.passed, kept
    assert not verify(ground, take(fenced), check).passed


def test_a_dead_ground_says_nothing_about_the_agent(fence: Callable[..., Guest], fenced: Guest) -> None:
    ground = fence()
    ground.close()
    with pytest.raises(SandboxClosed):
        verify(ground, take(fenced), "")
