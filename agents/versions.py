"""The newest weights of a learner, as folders that servers read: each form is written once, when the first wants it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from retort.agents import serving
from retort.agents.chat import Chat


class Behind(RuntimeError):
    """The learner has moved on from this version: its next update brings another."""


class Version:
    """A learner's weights after an update. place: the folder of all versions; label: what servers call them.

    adapted: whether an adapter is all that learns, so that it may go alone.
    """

    def __init__(self, model: Any, version: int, chat: Chat, place: Path) -> None:
        self.model, self.label, self.adapted = model, str(version), serving.adapted(model)
        self._held, self._chat, self._place = serving.Held(model, version), chat, place
        self._whole: Path | None = None
        self._adapter: Path | None = None

    def whole(self) -> Path:
        """All weights, any adapter merged.

        Raises:
            Behind: they are not there yet, and the learner has others now.
        """
        if self._whole is None:
            self._check()
            folder = serving.save_served(self.model, self._chat, self._place / f"version-{self.label}")
            self._check()
            self._whole = folder
        return self._whole

    def adapter(self) -> Path:
        """The adapter alone, at a path that is the same for every version: servers keep the path that they were given.

        Raises:
            Behind: as `whole`.
        """
        place = self._place / "adapter"
        if self._adapter is None:
            self._check()
            folder = serving.save_adapter(self.model, self._place / f"adapter-{self.label}")
            self._check()
            link = self._place / ".adapter.partial"
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name)
            link.replace(place)
            self._adapter = folder
        return place

    def tidy(self) -> None:
        """Removes the folders of other versions."""
        for old in [*self._place.glob("version-*"), *self._place.glob("adapter-*")]:
            if old not in (self._whole, self._adapter):
                shutil.rmtree(old, ignore_errors=True)

    def _check(self) -> None:
        if not self._held.current():
            raise Behind
