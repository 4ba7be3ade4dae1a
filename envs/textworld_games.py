"""The games of `retort/TextWorld-v0`: made on the spot by the package, compiled, and kept in a cache.

A game is made in a process of its own, with a home folder that is thrown away: the package draws from generators of its
whole process, and its compiler leaves files in the home folder. `textworld_digests` says what each seed has to make, so
that tasks are known, and known to differ between the splits, before any game is made.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

import numpy as np
from retort.envs.base import Split, content_digest, needed

VERSION = "1.7.0"
INSTALL = (
    f"pip install --no-deps textworld=={VERSION} jericho && "
    "pip install tatsu==5.8.3 hashids mementos more_itertools networkx prompt_toolkit termcolor tqdm"
)
MODULES = "textworld jericho tatsu hashids mementos more_itertools networkx prompt_toolkit termcolor tqdm"
PACKAGES = dict.fromkeys(MODULES.split(), INSTALL)
DIFFICULTIES = (1, 2, 3)
# The first seed of each split, and how many games it has of each family and difficulty.
SEEDS: dict[Split, tuple[int, int]] = {"train": (1000, 20), "validation": (2000, 5), "test": (3000, 5)}
MAKING_S = 120  # seconds that a game may take; the largest takes about five
_ALONE = RLock()


class GameFailed(RuntimeError):
    """The package could not make a game here, or made another one than everywhere else."""


@contextmanager
def untouched_generators() -> Iterator[None]:
    """The global generators are afterwards as they were before."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def package() -> ModuleType:
    """TextWorld, which draws a global number when it is imported. Raises MissingPackage where it is not installed."""
    with _ALONE, untouched_generators():
        return needed("textworld", INSTALL)


def opened(path: Path, infos: Any) -> Any:
    """A game in the interpreter. infos: what the player is told beside the text, a textworld.EnvInfos."""
    # The interpreter warns that it knows these games by their text alone, which is how they are played. Filters of
    # warnings belong to the whole process.
    with _ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        game = package().start(str(path), infos)
    game.seed(1)  # otherwise the interpreter takes the time of day
    return game


def _custom(options: Any, difficulty: int) -> Any:
    from textworld.generator import make_game

    options.nb_rooms, options.nb_objects, options.quest_length = {1: (2, 3, 2), 2: (4, 6, 4), 3: (6, 10, 6)}[difficulty]
    return make_game(options)


def _coin_collector(options: Any, difficulty: int) -> Any:
    from textworld.challenges.tw_coin_collector import coin_collector

    return coin_collector.make({"level": {1: 3, 2: 6, 3: 105}[difficulty]}, options)


def _treasure_hunter(options: Any, difficulty: int) -> Any:
    from textworld.challenges.tw_treasure_hunter import treasure_hunter

    return treasure_hunter.make({"level": {1: 3, 2: 13, 3: 23}[difficulty]}, options)


def _cooking(options: Any, difficulty: int) -> Any:
    from textworld.challenges.tw_cooking import cooking

    counts = {1: (1, 1, 1), 2: (1, 1, 6), 3: (2, 2, 6)}[difficulty]
    settings: dict[str, Any] = dict(zip(("recipe", "take", "go"), counts, strict=True))
    skills = {"open": difficulty > 1, "cook": difficulty > 1, "cut": difficulty > 2, "drop": False}
    seed = options.seeds["map"]
    return cooking.make({**settings, **skills, "recipe_seed": seed, "split": None}, options)


FAMILIES: dict[str, Callable[[Any, int], Any]] = {
    "coin_collector": _coin_collector,
    "cooking": _cooking,
    "custom": _custom,
    "treasure_hunter": _treasure_hunter,
}


def generated(family: str, difficulty: int, seed: int) -> Any:
    """The package's game of that seed. It seeds the package's own generator: call it in a process of its own."""
    textworld = package()
    textworld.g_rng.set_seed(seed)
    options = textworld.GameOptions()
    options.seeds = seed
    return FAMILIES[family](options, difficulty)


def digest_of(game: Any) -> str:
    """What is where, what has to be done and how, by the names that a player reads; the wording does not count."""
    named = {variable: info.name or variable for variable, info in game.infos.items()}
    facts = sorted(
        f"{fact.name} {' '.join(str(named.get(var.name, var.name)) for var in fact.arguments)}"
        for fact in game.world.facts
    )
    return content_digest([facts, list(game.metadata["walkthrough"])])


def game_file(family: str, difficulty: int, seed: int, digest: str) -> Path:
    """The compiled game, from the cache, or made for it. Threads and processes may ask for the same one at once.

    Raises:
        GameFailed: it cannot be made here, or another game came out.
    """
    folder = _cache() / f"{family}-{difficulty}-{seed}-{digest}"
    if not _whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=folder.parent) as room:
            _make(family, difficulty, seed, digest, Path(room))
            _put(Path(room) / "made", folder)
    return folder / "game.z8"


def _put(made: Path, folder: Path) -> None:
    """Moves a whole game to its place, unless somebody was faster. What is there and not whole is thrown away."""
    while True:
        try:
            made.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _whole(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)


def _whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in ("game.z8", "game.json"))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "retort" / f"textworld-{VERSION}"


def _make(family: str, difficulty: int, seed: int, digest: str, room: Path) -> None:
    """Makes room/made in a process of its own."""
    code = "import sys, retort.envs.textworld_games as games; games.build(*sys.argv[1:])"
    arguments = [family, str(difficulty), str(seed), str(room / "made")]
    environment = {**os.environ, "HOME": str(room), "TMPDIR": str(room), "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAKING_S,
        )
    except subprocess.TimeoutExpired as error:
        raise GameFailed(f"{family} {difficulty} {seed}: not made in {MAKING_S} s") from error
    if done.returncode:
        raise GameFailed(f"{family} {difficulty} {seed}: {done.stderr.strip()[-2000:]}")
    if (found := json.loads(done.stdout.splitlines()[-1])) != digest:
        raise GameFailed(
            f"{family} {difficulty} {seed}: expected the game {digest}, found {found}; the tasks are those of "
            f"textworld {VERSION} with the networkx and numpy of constraints.txt"
        )


def build(family: str, difficulty: str, seed: str, folder: str) -> None:
    """Makes and compiles a game into `folder`, and prints its digest."""
    from textworld.generator import compile_game

    game = generated(family, int(difficulty), int(seed))
    options = package().GameOptions()
    options.path = str(Path(folder) / "game.z8")
    compile_game(game, options)
    (Path(folder) / "game.ni").unlink()
    print(json.dumps(digest_of(game)))


def write_digests(path: str) -> None:
    """Writes `textworld_digests.py` afresh: what each seed makes. Takes about fifteen minutes."""
    lines = ['"""What the seeds of `retort/TextWorld-v0` make; written by `textworld_games.write_digests`."""', ""]
    lines += ["# family and difficulty -> split -> digests of consecutive seeds; - where a game had been there before"]
    lines += ["DIGESTS: dict[tuple[str, int], dict[str, str]] = {"]
    for family in FAMILIES:
        for difficulty in DIFFICULTIES:
            lines.append(f'    ("{family}", {difficulty}): {{')
            known: set[str] = set()
            for split, (first, count) in SEEDS.items():
                found: list[str] = []
                while len(found) - found.count("-") < count:
                    digest = digest_of(generated(family, difficulty, first + len(found)))
                    found.append("-" if digest in known else digest)
                    known.add(digest)
                rows = [" ".join(found[place : place + 5]) for place in range(0, len(found), 5)]
                lines.append(f'        "{split}": """')
                lines += [f"            {row}" for row in rows]
                lines.append('        """,')
            lines.append("    },")
    Path(path).write_text("\n".join([*lines, "}", ""]))
