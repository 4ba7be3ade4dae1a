"""Chat as exact token ids: prompts are rendered once, then extended; what a model sampled is never encoded again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from retort.agents.base import Message
from retort.agents.lookup import look_up
from retort.envs.base import content_digest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "reply"},
)


class Chat:
    """A tokenizer and the renderer of its chat format.

    renderer: any `renderers.Renderer`; by default ours for ChatML, and for other families the one that `renderers` has
        for the tokenizer's name. stop_ids: more stop tokens, such as those of a generation config.
    """

    def __init__(self, tokenizer: Any, renderer: Any = None, *, stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.renderer: Any = renderer if renderer is not None else _renderer(tokenizer)
        template_stops = list(self.renderer.get_stop_token_ids())
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        if not (every := [*template_stops, *stop_ids, *end]):
            raise ValueError("the chat format has no stop token: neither its template nor its tokenizer names one")
        self.stop_ids: frozenset[int] = frozenset(every)
        self._stop = every[0]
        self.tokenizer_digest = _tokenizer_digest(tokenizer)
        probe = tokenizer.decode(self.prompt(PROBE), skip_special_tokens=False)
        self.template_digest = content_digest([type(self.renderer).__qualname__, probe])

    @classmethod
    def load(cls, folder_or_name: str | Path, renderer: Any = None) -> Self:
        """The chat of a model folder, or of a Hugging Face name.

        Raises:
            UsageError: there is no model of that name.
            FileNotFoundError: a folder without a tokenizer. A tokenizer built elsewhere would give other ids.
        """
        from renderers.base import load_tokenizer
        from transformers import GenerationConfig

        folder = Path(folder_or_name)
        if not folder.is_dir():
            look_up(str(folder_or_name))
        elif not any((folder / name).exists() for name in TOKENIZER_FILES):
            raise FileNotFoundError(
                f"{folder}: no tokenizer beside the model (expected one of {', '.join(TOKENIZER_FILES)}); "
                "save the one it was trained with there"
            )
        tokenizer = load_tokenizer(str(folder_or_name))
        tokenizer.clean_up_tokenization_spaces = False
        try:
            ends = GenerationConfig.from_pretrained(str(folder_or_name)).eos_token_id
        except OSError:  # the file is optional; the template and the tokenizer name stop tokens too
            ends = None
        return cls(tokenizer, renderer, stop_ids=[ends] if isinstance(ends, int) else ends or ())

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer, with the template that this chat renders, for `AutoTokenizer` and servers to load."""
        from retort.agents import chatml

        if isinstance(self.renderer, chatml.ChatMLRenderer):
            self.tokenizer.chat_template = chatml.TEMPLATE
        self.tokenizer.save_pretrained(str(folder))

    def prompt(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The ids of a whole conversation and the opening of the next assistant turn."""
        return list(self.renderer.render_ids(list(messages), tools=list(tools) or None, add_generation_prompt=True))

    def extend(self, prefix: Sequence[int], message: Message, *, sampled: int = 1) -> list[int] | None:
        """What follows `prefix` when `message` arrives: its ids and the opening of the next assistant turn.

        `prefix` ends with `sampled` tokens of the model; where they were cut before their stop token, the answer
        begins with one. None where the format cannot be extended without changing what is there: render anew.
        """
        ids = list(prefix)
        split = len(ids) - sampled
        bridged = self.renderer.bridge_to_next_turn(ids[:split], ids[split:], [message])
        if bridged is None or bridged.token_ids[: len(ids)] != ids:
            return None
        delta: list[int] = bridged.token_ids[len(ids) :]
        return delta

    def text(self, completion: Sequence[int]) -> str:
        """What a completion says: no stop token, no reasoning; tool calls as the model wrote them."""
        ids = list(completion)
        parsed = self.renderer.parse_response(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)
        return "\n".join(part for part in (parsed.content, *(call.raw for call in parsed.tool_calls)) if part)

    def action_ids(self, text: str) -> list[int]:
        """The ids of an action that somebody wrote, with the stop token."""
        return [*self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), self._stop]


def _renderer(tokenizer: Any) -> Any:
    from renderers.base import MODEL_RENDERER_MAP, create_renderer
    from renderers.configs import AutoRendererConfig
    from retort.agents.chatml import ChatMLRenderer

    known = MODEL_RENDERER_MAP.get(tokenizer.name_or_path)
    if known is not None:
        # Whole turns are kept, reasoning included, so that a conversation stays one row.
        return create_renderer(tokenizer, AutoRendererConfig(thinking_retention="all"))
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")]
    if not any(number in (None, tokenizer.unk_token_id) for number in marks):
        return ChatMLRenderer(tokenizer)
    return create_renderer(tokenizer)


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(tokenizer)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
