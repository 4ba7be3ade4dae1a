"""What keeps a task's tests from running or reading, unasked, what an agent left in its work folder for them.

The tests start in the work folder and run as the agent did. A program that looks there by itself for modules or
settings would run the agent's: the test would say what the agent wants. So a Python that is typed (`-c`, `-`) or runs a
module of the machine's (`-m pytest`) does not search the folder it starts in; byte code that lies about is not read;
git runs no hook and no monitor, and has settings of its own; the home folder is another one. Links of the agent's that
lead to where tests keep what they compare with are taken away: for `diff` a file and itself are the same.

A task that needs one of these says so in `verifier.env`: PYTHONPATH for the work folder, GIT_CONFIG_COUNT = "0" for
hooks, HOME. What an agent's own program does when a test starts it is as before.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

from retort.envs.harbor_wants import Wants
from retort.sandboxes.base import FileState, Layout, Sandbox

OWN = "/tests/.retort"
USUAL_HOME = "/root"  # where the tests have their home in Harbor's own containers
# Where a path may lead that a test names or makes: its files, its pipes, what it puts down for a moment.
KEPT = ("/dev", "/logs", "/proc", "/solution", "/tests", "/tmp")
HOPS = 40  # links in one path, as the kernel has it

# Python's own flag for it would also take from a program the folder that it lies in, and 3.10 does not have it.
SITE = '''"""Read by every Python that a task's tests start: the folder it starts in has no modules for it."""
import os, re, sys
from importlib.machinery import PathFinder

FLAGS = r"\\0-[bBdEiIOPqsSuvx]*m\\0?(\\w+)"


class Shut:
    """Asked for the first module after the path got its first folder, and for none after it."""

    def find_spec(self, name, path=None, target=None):
        sys.meta_path.remove(self)
        if sys.path[:1] in ([""], [os.getcwd()]) and not is_its_own():
            del sys.path[0]


def is_its_own():
    """Whether a module shall be run that is in this folder alone."""
    with open("/proc/self/cmdline") as file:
        found = re.search(FLAGS, file.read()) if sys.argv[0] == "-m" else None
    return found and not PathFinder.find_spec(found[1], sys.path[1:])


if sys.argv and sys.argv[0] in ("-c", "-m", "-", ""):
    sys.meta_path.insert(0, Shut())
'''
FILES = {f"{OWN}/sitecustomize.py": SITE, f"{OWN}/gitconfig": "", f"{OWN}/home/.keep": ""}
GIT = {"core.fsmonitor": "false", "core.hooksPath": "/dev/null", "log.showSignature": "false"}
ALWAYS = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONPYCACHEPREFIX": f"{OWN}/cache",
    "GIT_CONFIG_GLOBAL": f"{OWN}/gitconfig",
    "GIT_CONFIG_COUNT": str(len(GIT)),
    **{f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(GIT)},
    **{f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(GIT.values())},
}
# The task's own PYTHONPATH stays, behind ours; only the sandbox knows what its image sets.
START = ["sh", "-c", f'PYTHONPATH={OWN}${{PYTHONPATH:+:$PYTHONPATH}} exec "$@"', "sh"]


def guarded(asked: Wants, layout: Layout) -> dict[str, str]:
    """The variables of a task's tests, which begin with START where FILES are."""
    elsewhere = asked.scope == "work" and layout.work not in (USUAL_HOME, layout.env.get("HOME"))
    return {**ALWAYS, **({"HOME": f"{OWN}/home"} if elsewhere else {}), **asked.verifier_env}


def without_traps(ground: Sandbox, work: str) -> bool:
    """Takes links out of the work folder that lead to what tests keep; whether all could be taken."""
    traps = trapped(work, ground.tree())
    return not traps or ground.exec(["rm", "-f", "--", *traps]).exit_code == 0


def trapped(work: str, tree: Mapping[str, FileState]) -> list[str]:
    """The links in a work folder that lead, also by way of others, to where tests keep things; /dev/null is nothing."""
    links = {f"{work}/{path}": os.fsdecode(state.data) for path, state in tree.items() if state.kind == "link"}
    ends = {path: _end(path, links) for path in links}
    return [
        path
        for path, end in ends.items()
        if any(_inside(end, top) for top in KEPT) and not _inside(end, work) and end != "/dev/null"
    ]


def _inside(path: str, top: str) -> bool:
    return f"{path}/".startswith(f"{top}/")


def _end(path: str, links: Mapping[str, str]) -> str:
    """Where a path leads by the agent's links, as far as /proc, whose links are its own."""
    done, left, hops = "/", path.split("/"), 0
    while left and hops <= HOPS and not _inside(done, "/proc"):
        part = left.pop(0)
        step = os.path.normpath(os.path.join(done, part))
        if part not in ("", ".", "..") and step in links:
            left, hops = [*links[step].split("/"), *left], hops + 1
            step = "/" if links[step].startswith("/") else done
        done = step
    return done
