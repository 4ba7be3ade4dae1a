"""Where an environment's commands run: a warm sandbox, its terminal, and what of the output an agent reads."""

from __future__ import annotations

from retort.envs.base import UsageError, nearest
from retort.sandboxes.base import ExecResult, Layout, Limits, Sandbox, SandboxClosed, Terminal
from retort.sandboxes.named import STARTERS, is_name, open_sandbox

NOT_FOUND = 127  # what bash says of a command that it does not know


class Room:
    """One sandbox, made when first needed, clean for each episode and replaced where it cannot be made clean.

    sandbox: "bwrap", "docker:IMAGE" or "unsafe". layout: where in it one works and may write.

    Raises:
        UsageError: an unknown sandbox, with the nearest one.
    """

    def __init__(self, sandbox: str, limits: Limits, layout: Layout = Layout()) -> None:  # noqa: B008 (frozen)
        if not is_name(str(sandbox)):
            raise UsageError(f"unknown sandbox {sandbox!r}; {nearest(str(sandbox), STARTERS)}")
        self.sandbox, self.limits, self.layout = sandbox, limits, layout
        self._held: Sandbox | None = None

    def fresh(self) -> Sandbox:
        """The sandbox without anything of the last episode.

        Raises:
            SandboxError: none can be started.
        """
        if self._held is not None:
            try:
                self._held.reset()
                return self._held
            except SandboxClosed:
                self._held.close()
        self._held = open_sandbox(self.sandbox, self.limits, self.layout)
        return self._held

    @property
    def held(self) -> Sandbox:
        """The sandbox that `fresh` gave last. Raises SandboxClosed where there is none."""
        if self._held is None:
            raise SandboxClosed("no sandbox was opened: call fresh first")
        return self._held

    def close(self) -> None:
        """Ends the sandbox. May be called again."""
        if self._held is not None:
            self._held.close()
            self._held = None


def run_line(sandbox: Sandbox, terminal: Terminal, line: str, timeout: float) -> ExecResult:
    """Runs what an agent wrote, at most `timeout` seconds. The command reads an empty input.

    Raises:
        SandboxClosed: the command ended the sandbox, or its shell for good.
    """
    # No shell can be sent NUL, nor half a character.
    text = line.replace("\0", "").encode(errors="replace").decode()
    result = terminal.run(text, timeout=timeout, interactive=False)
    try:
        sandbox.list_dir()  # raises SandboxClosed where the sandbox is gone, but not its shell
    except OSError:
        pass  # the agent may have locked the folder; an error is an answer
    return result


def is_no_command(action: str, result: ExecResult) -> bool:
    """Whether bash knew no such command, or there was nothing to run: for `step_info(..., invalid=)`."""
    return result.exit_code == NOT_FOUND or not action.strip()


def shown(result: ExecResult, limit: int) -> str:
    """Terminal output as an observation: at most `limit` characters of it, cut in the middle at a mark, and how the
    command ended, unless that was exit code 0."""
    text = result.text.rstrip("\n")
    if len(text) > limit:
        text = f"{text[: (limit + 1) // 2]} ... {text[len(text) - limit // 2 :]}"
    end = _ending(result)
    return f"{text}\n{end}" if text and end else text + end


def _ending(result: ExecResult) -> str:
    if result.timed_out:
        return "timed out"
    if result.signal:
        return f"signal {result.signal}"
    if result.exit_code is None:
        return "new shell"
    return f"exit {result.exit_code}" if result.exit_code else ""
