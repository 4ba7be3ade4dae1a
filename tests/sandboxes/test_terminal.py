"""What every backend's terminal must do, on each backend."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retort.sandboxes.base import ExecTimeout, Limits, Terminal
from retort.sandboxes.guest import Guest
from retort.sandboxes.terminal import QUIET_S, BashTerminal, _Output, _quoted

NAP = f"{3000 + os.getpid()}"  # seconds that nobody else on this machine sleeps


def until(terminal: Terminal, text: bytes, seconds: float = 20.0) -> bytes:
    """What is printed up to and with `text`."""
    seen, deadline = b"", time.monotonic() + seconds
    while text not in seen and time.monotonic() < deadline:
        seen += terminal.read(0.1)
    assert text in seen
    return seen


def test_an_interactive_program(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    terminal.send("python3 -q -i -c 'print(\"up\")'\n")
    until(terminal, b">>> ")
    terminal.send("x = 6\n")
    terminal.send("print(x * 7, flush=True)\n")
    until(terminal, b"42\r\n>>> ")
    terminal.send(b"\x04")  # Ctrl-D
    terminal.send("echo in the $((1 + 1))nd\n")
    until(terminal, b"2nd")
    assert terminal.run("echo back").stdout == b"back\n"
    assert terminal.restarts == 0


def test_ctrl_c_and_ctrl_d(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    terminal.run("x=1")
    terminal.send(f"echo start; sleep {NAP}.1\n")
    until(terminal, b"start")
    time.sleep(0.1)
    terminal.interrupt()
    assert terminal.run("echo $x $?").stdout.startswith(b"1")
    terminal.send("cat > typed\n")
    time.sleep(0.2)
    terminal.send("words\n\x04")
    assert terminal.run("cat typed").stdout == b"words\n"


def test_a_full_screen_program(sandbox: Guest) -> None:
    program = (
        "import curses\n"
        "def main(screen):\n"
        "    screen.addstr(2, 5, 'a box'); screen.addstr(3, 5, 'é', curses.A_BOLD); screen.refresh()\n"
        "    key = screen.getkey(); screen.clear(); screen.addstr(0, 0, 'key ' + key); screen.refresh()\n"
        "    screen.getkey()\n"
        "curses.wrapper(main)\n"
    )
    sandbox.write_file("full.py", program)
    terminal = sandbox.open_terminal(rows=8, cols=30)
    terminal.send("python3 full.py\n")
    deadline = time.monotonic() + 20
    while "a box" not in terminal.screen() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert terminal.screen().splitlines()[2:4] == ["     a box", "     é"]
    terminal.send("k")
    while "key k" not in terminal.screen() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert terminal.screen() == "key k"
    terminal.send("q")
    assert terminal.run("echo back").stdout.endswith(b"back\n")


def test_ten_megabytes_of_output(make: Callable[..., Guest]) -> None:
    with make(Limits(output_bytes=16 << 20)) as sandbox:
        shown = sandbox.open_terminal().run("yes 0123456789abcde | head -c 10485760", timeout=60)
        assert len(shown.stdout) == 10 << 20
        assert shown.stdout == b"0123456789abcde\n" * (10 << 16)
        assert not shown.stdout_truncated


def test_terminal_keeps_its_state(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    assert terminal.run("mkdir d; cd d; x=5; f() { echo f$1; }").stdout == b""
    result = terminal.run("basename $PWD; echo $x; f 1; false")
    assert (result.stdout, result.exit_code) == (b"d\n5\nf1\n", 1)


def test_terminal_takes_several_lines_and_any_quotes(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    text = "cat <<'EOF'\nit's \"x\"\t\\n $A !! \x01 é\nEOF\nprintf '%s\\n' 'a'\n"
    assert terminal.run(text).stdout == 'it\'s "x"\t\\n $A !! \x01 é\na\n'.encode()
    assert terminal.run("printf '\\377\\036\\037\\r\\n'").stdout == b"\xff\x1e\x1f\r\n"
    assert terminal.run("echo 'unfinished").exit_code
    assert terminal.run("printf x").stdout == b"x"
    with pytest.raises(ValueError, match="NUL"):
        terminal.run("a\0b")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=50))
def test_quoting_is_exact(sandbox: Guest, text: str) -> None:
    assert sandbox.exec(f"printf %s {_quoted(text)}").stdout == text.encode()


def test_terminal_takes_a_long_line_and_shows_long_output(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    for size in (3900, 4100, 50_000):
        assert terminal.run(f"x={'y' * size}; echo ${{#x}}").stdout == f"{size}\n".encode()
    assert terminal.run("seq 100000").stdout == b"".join(b"%d\n" % i for i in range(1, 100_001))


def test_terminal_timeout(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    terminal.run("x=5")
    result = terminal.run("echo a; cat", timeout=0.3)
    assert (result.timed_out, result.stdout[:2]) == (True, b"a\n")
    assert terminal.run("echo $x").stdout == b"5\n"
    assert terminal.run("(trap '' INT; sleep 30)", timeout=0.3).timed_out
    assert terminal.run("echo $x").stdout == b"5\n"
    assert terminal.restarts == 0
    assert terminal.run("trap '' INT; while :; do :; done", timeout=0.3).timed_out
    assert terminal.run("echo [$x]").stdout == b"[]\n"
    assert terminal.restarts == 1


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 4", 4),
        ("set -e; false", 1),
        ("unset PROMPT_COMMAND", None),
        ("kill -9 $$", None),
        ("exec true", 0),
        ("PROMPT_COMMAND=exit", 0),
    ],
)
def test_terminal_gets_a_fresh_shell(sandbox: Guest, command: str, code: int | None) -> None:
    terminal = sandbox.open_terminal()
    start = time.monotonic()
    assert terminal.run(f"x=5; {command}", timeout=20).exit_code == code
    assert time.monotonic() - start < 20
    assert terminal.run("echo [$x]; cd /; pwd").stdout == b"[]\n/\n"
    assert terminal.restarts == 1


def test_terminal_output_survives_redirection_of_the_shell(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    assert terminal.run("exec > out 2>&1; echo hidden").exit_code == 0
    assert sandbox.read_file("out") == b"hidden\n"


def test_terminal_by_hand(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal(rows=5, cols=20)
    assert terminal.run("tput cols; tput lines").stdout == b"20\n5\n"
    terminal.send("read line; echo got $line\n")
    time.sleep(0.2)
    terminal.send(b"words\n")
    seen = b""
    for _ in range(50):
        seen += terminal.read(0.1)
        if b"got words" in seen:
            break
    assert b"got words" in seen
    terminal.run("printf '\\033[2J\\033[3;4Hhere'")
    assert terminal.screen() == "\n\n   here"


def test_terminal_closes_its_jobs(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    terminal.run(f"nohup sleep {NAP}.5 >/dev/null 2>&1 &")
    terminal.close()
    terminal.close()
    count = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep [{NAP[0]}]{NAP[1:]}[.]5' | wc -l"
    assert sandbox.exec(count).text.strip() == "0"


def test_exec_timeout_gives_the_terminal_a_fresh_shell(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    terminal.run("x=5")
    with pytest.raises(ExecTimeout):
        sandbox.exec("sleep 30", timeout=0.2)
    assert terminal.run("echo [$x]").stdout == b"[]\n"


def test_a_command_that_may_not_read_what_is_typed_reads_an_end(sandbox: Guest) -> None:
    terminal = sandbox.open_terminal()
    assert terminal.run("cat; cd /tmp; kept=1", interactive=False).exit_code == 0
    assert terminal.run("pwd; echo $kept", interactive=False).text.split() == ["/tmp", "1"]
    late = terminal.run("cat", timeout=0.3)
    assert late.timed_out


def test_a_shell_that_is_slow_to_read_has_lost_nothing(sandbox: Guest) -> None:
    """As on a busy machine: it stands at its prompt, and what was typed waits for longer than a lost marker may."""
    terminal = sandbox.open_terminal()
    assert isinstance(terminal, BashTerminal)
    terminal.run("true")
    while not terminal._at_prompt():
        time.sleep(0.001)
    sandbox.exec(["kill", "-STOP", str(terminal._pid)])
    go_on = threading.Timer(4 * QUIET_S, sandbox.exec, [["kill", "-CONT", str(terminal._pid)]])
    go_on.start()
    assert terminal.run("echo $((6 * 7))").text == "42\n"
    go_on.join()
    assert terminal.restarts == 0


def test_a_shell_that_waits_for_a_core_has_lost_nothing(sandbox: Guest) -> None:
    """It has read all that was typed and stands at its prompt: whether it sleeps tells it from one that is done."""
    terminal = sandbox.open_terminal()
    assert isinstance(terminal, BashTerminal)
    terminal.run("true")
    while not (terminal._at_prompt() and terminal._asleep()):
        time.sleep(0.001)
    sandbox.exec(["kill", "-STOP", str(terminal._pid)])
    assert terminal._await(_Output(1), time.monotonic() + 4 * QUIET_S) == "late"
    sandbox.exec(["kill", "-CONT", str(terminal._pid)])
    assert terminal._await(_Output(1), time.monotonic() + 60) == "lost"
    assert terminal.run("echo $((6 * 7))").text == "42\n"
    assert terminal.restarts == 0
