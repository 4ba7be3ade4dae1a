"""What a teacher says of itself before anybody asks it: whose weights, which tokens, and what it can give."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from retort.agents.base import EngineError
from retort.agents.chat import Chat

log = logging.getLogger(__name__)
# What a recipe may want of a teacher beside the log-probs of sampled tokens at temperature 1, in words.
WORDS = {
    "support": "the teacher's log-probs of the student's support",
    "entropy": "the teacher's entropy",
    "temperature": "scores at another temperature than 1",
}
SAMPLED = 64  # entries of each weight that its version depends on


@dataclass(frozen=True)
class Card:
    """A teacher, as it introduces itself.

    version: of its weights. tokenizer, template: digests. vocabulary: entries of its head. context: tokens it reads;
    None where that is not known. gives: which of `WORDS`.
    """

    model: str
    version: str
    tokenizer: str
    template: str
    vocabulary: int
    context: int | None
    gives: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_json(told: Any) -> Card:
        """Raises EngineError for what is no card."""
        if not isinstance(told, dict) or set(told) != set(Card.__dataclass_fields__):
            raise EngineError(f"expected a card with {', '.join(Card.__dataclass_fields__)}, found {str(told)[:200]}")
        return Card(**{**told, "gives": tuple(told["gives"])})

    def hold(self, chat: Chat, who: str) -> None:
        """Whether token ids mean the same to it as here. Another chat template is told and no fault: ids are sent.

        Raises:
            EngineError: they do not, or its head has fewer entries than there are tokens.
        """
        hold_tokenizer(self.tokenizer, chat, who)
        if self.vocabulary < len(chat.tokenizer):
            raise EngineError(
                f"{who} has another vocabulary than the learner: expected at least the {len(chat.tokenizer)} tokens of "
                f"its tokenizer, found {self.vocabulary}"
            )
        if self.template != chat.template_digest:
            log.warning(
                "%s was made for another chat template (digest %s) than the student's (%s), which it will read",
                who, self.template, chat.template_digest,
            )  # fmt: skip

    def missing(self, wants: Collection[str]) -> list[str]:
        """In words, what it cannot give of these."""
        return [words for name, words in WORDS.items() if name in wants and name not in self.gives]


def hold_tokenizer(digest: str, chat: Chat, who: str) -> None:
    """Raises EngineError where the digest is not that of the chat's own tokenizer."""
    if digest != chat.tokenizer_digest:
        raise EngineError(
            f"{who} has another tokenizer than the learner: expected digest {chat.tokenizer_digest}, found {digest}; "
            "a teacher must read the student's own token ids"
        )


def card_of(model: Any, chat: Chat, name: str) -> Card:
    """The card of a transformers model, which gives everything."""
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    entries = int(model.get_output_embeddings().weight.shape[0])
    return Card(name, fingerprint(model), chat.tokenizer_digest, chat.template_digest, entries, context, tuple(WORDS))


def fingerprint(model: Any) -> str:
    """A name for these very weights: a digest of their names, shapes and of some entries of each."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        flat = value.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)].float().cpu().numpy()
        found.update(f"{name} {tuple(value.shape)}".encode() + some.tobytes())
    return found.hexdigest()[:12]
