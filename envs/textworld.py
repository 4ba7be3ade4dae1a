"""`retort/TextWorld-v0`: text adventures, made on the spot by the package `textworld` and played in its interpreter.

The first observation is the game's opening: what to do, and where one is. An action is one command, such as "open
fridge"; its first line and first sentence count. The game's answer is the next observation, with the commands that do
something now (`admissible`). The reward is 1 when the game is won; losing it ends the episode, and so does the limit on
turns, as a truncation. Commands to the interpreter itself (save, restart, undo, ...) are refused: they would write
files, or put the game out of step with what is known of it.

The interpreter is a C library inside this process, a private copy for each environment: nothing is started for an
episode, and nothing is left. A game is made once, in a process of its own, and kept in the user's cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gymnasium.error import ResetNeeded
from retort.envs.base import (
    Feedback,
    Source,
    Split,
    TaskRef,
    TextEnv,
    TextSpace,
    UsageError,
    checked_split,
    nearest,
    step_info,
)
from retort.envs.textworld_digests import DIGESTS
from retort.envs.textworld_games import DIFFICULTIES, FAMILIES, PACKAGES, SEEDS, game_file, opened, package

PROTOCOL = "You play a text adventure. Write one command a turn."
LONGEST = 150  # characters of a command
REFUSED = "That command is not possible here."
META = re.compile(
    # It looks at nine letters of a word alone, so that longer ones mean the same.
    r"\b(?:(?:q|quit|save|restore|restart|script|noscript|unscript|replay|undo|verify|tw)\b|transcrip|recording)",
    re.I,
)
UNREAD = re.compile(r"That's not a verb I|I didn't understand that|I only understood you|I beg your pardon")
Game = tuple[TaskRef, int, str]  # and its seed and digest; the family and the difficulty stand in the key


class TextWorldEnv(TextEnv):
    """Games of four families.

    split: "train", "validation" or "test". families: which of "coin_collector", "cooking", "custom" and
    "treasure_hunter"; None is all. difficulty: 1, 2 or 3. max_turns: commands in an episode; None is twice as many as
    the walkthrough has, and four. admissible: observations list the commands that do something now.
    explain: the first observation also says how to act.

    Raises:
        MissingPackage: textworld, or what it needs, is not installed.
        UsageError: an unknown value, with the nearest valid one.
        GameFailed: from `reset`, when a game cannot be made here.
    """

    counts = {"train": 80, "validation": 20, "test": 20}  # noqa: RUF012
    packages = PACKAGES

    def __init__(
        self,
        split: Split = "train",
        families: Sequence[str] | None = None,
        difficulty: int = 1,
        max_turns: int | None = None,
        admissible: bool = True,
        explain: bool = True,
    ) -> None:
        if difficulty not in DIFFICULTIES:
            raise UsageError(f"difficulty: expected 1, 2 or 3, found {difficulty!r}")
        if max_turns is not None and max_turns < 1:
            raise UsageError(f"max_turns: expected at least 1, found {max_turns}")
        self._package = package()
        self.split, self.families, self.difficulty = checked_split(split), _families(families), difficulty
        self.max_turns, self.admissible, self.explain = max_turns, admissible, explain
        self.observation_space, self.action_space = TextSpace(), TextSpace(1_000)
        self._games = {game[0].key: game for family in self.families for game in _games(family, difficulty, self.split)}
        self._refs = tuple(game[0] for game in self._games.values())
        self._player: Any = None
        self._state: Any = None
        self._ref: TaskRef | None = None
        self._turn, self._limit = 0, 0

    def tasks(self) -> Sequence[TaskRef]:
        return self._refs

    def backend(self) -> str:
        return "jericho"

    def gold(self, observation: str) -> str:
        """The next command of a shortest way to win from here; "look" where the game can no longer be won."""
        return self._way()[0] if self._way() else "look"

    def near_misses(self) -> Sequence[Sequence[str]]:
        """The walkthrough without its last command, without its first, and something harmless over and over."""
        way = self._way()
        return [[*way[:-1], "wait"], [*way[1:], "look"], ["look"] * (len(way) + 1)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        ref, number, digest = self._games[self._refs[self.pick(self._refs, options)].key]
        self.close()
        path = game_file(ref.family, self.difficulty, number, digest)
        infos = self._package.EnvInfos(admissible_commands=True, policy_commands=True)
        self._player = opened(path, infos)
        self._state, self._ref, self._turn = self._player.reset(), ref, 0
        self._limit = self.max_turns or 2 * len(self._way()) + 4
        text = self._told(self._state.objective + self._state.feedback.rpartition(self._state.objective)[2])
        return f"{PROTOCOL}\n{text}" if self.explain else text, step_info(ref)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        ref = self._current()
        if self._player is None:
            raise ResetNeeded("the game has ended: call reset before step")
        if not isinstance(action, str):
            raise TypeError(f"action: expected a command, found {type(action).__name__}")
        way = self._way()  # from where this command is given, for a teacher
        turn, self._turn = self._turn, self._turn + 1
        command = _command(action) if self.action_space.contains(action) else ""
        refused = not command or bool(META.search(command))
        if not refused:
            self._state, _, _ = self._player.step(command)
            said = self._state.feedback
            refused = bool(UNREAD.match(said.strip()))
        else:
            said = REFUSED
        progress = self._state["_game_progression"]
        won, over = bool(progress.completed and self._state.won), bool(self._state.done)
        ends = over or self._turn >= self._limit
        observation = _bare(said) if ends else self._told(said)
        feedback = [Feedback(observation, Source.TERMINAL_STATE, turn, visible=True)] if observation else []
        if ends:
            feedback += _lessons(way if over else self._way(), turn, won=won, lost=bool(self._state.lost))
            self._leave()
        score = progress.score / self._state.max_score
        info = step_info(
            ref,
            feedback=feedback,
            components={"score": float(score)},
            success=won if ends else None,
            invalid=refused,
        )
        return observation, float(won), over, ends and not over, info

    def close(self) -> None:
        self._leave()
        self._ref = self._state = None

    def _leave(self) -> None:
        """Ends the game in the interpreter; the state stays."""
        if self._player is not None:
            self._player.close()
            self._player = None

    def _current(self) -> TaskRef:
        if self._ref is None:
            raise ResetNeeded("there is no episode: call reset first")
        return self._ref

    def _way(self) -> list[str]:
        """Commands that win from here; none where it is won, or cannot be won any more."""
        self._current()
        return list(self._state.policy_commands or [])

    def _told(self, said: str) -> str:
        text = _bare(said)
        if not self.admissible:
            return text
        return f"{text}\nYou can: {'; '.join(self._state.admissible_commands)}"


def _families(asked: Sequence[str] | None) -> tuple[str, ...]:
    if asked is None:
        return tuple(FAMILIES)
    if isinstance(asked, str):
        raise UsageError(f"families: expected a tuple of names, found the text {asked!r}; write ({asked!r},)")
    for name in asked:
        if name not in FAMILIES:
            raise UsageError(f"unknown family {name!r}; {nearest(str(name), FAMILIES)}")
    if not asked:
        raise UsageError(f"families: expected at least one name; valid: {', '.join(FAMILIES)}")
    return tuple(name for name in FAMILIES if name in asked)


def _games(family: str, difficulty: int, split: Split) -> list[Game]:
    first, _ = SEEDS[split]
    return [
        (TaskRef(f"{family}/{difficulty}/{seed}", digest, split, family), seed, digest)
        for seed, digest in enumerate(DIGESTS[family, difficulty][split].split(), first)
        if digest != "-"
    ]


def _command(action: str) -> str:
    """The first sentence of the first line that is no Markdown fence, without a prompt in front of it.

    Letters, digits and a few marks alone: to the interpreter a backslash begins a command to itself, and it may hang.
    """
    for line in action.splitlines():
        text = re.split(r"[.;\0]|\bthen\b", line, flags=re.IGNORECASE)[0]
        text = " ".join(re.sub(r"[^a-zA-Z0-9',-]+", " ", text).split())
        if text and not line.strip().startswith("```"):
            return text[:LONGEST]
    return ""


def _bare(said: str) -> str:
    """The game's words without the prompt, the line of state after it, and blank lines."""
    text = re.split(r"\n>|\n\s*Would you like to RESTART", said)[0]
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


def _lessons(way: list[str], turn: int, *, won: bool, lost: bool) -> list[Feedback]:
    """What a teacher may see at the end and the student never does. way: commands that would have won."""
    found = "found it won" if won else "found it lost" if lost else "found no end"
    texts = [(Source.VERIFIER, f"expected the game won; {found}")]
    if way and not won:
        texts += [(Source.HINT, f"next: {way[0]}"), (Source.SOLUTION, "\n".join(way))]
    return [Feedback(text, source, turn, visible=False) for source, text in texts]
