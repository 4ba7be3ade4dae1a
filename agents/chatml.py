"""ChatML for the `renderers` package: every message is `<|im_start|>role\\ncontent<|im_end|>\\n`, and nothing is added.

One renderer serves every ChatML checkpoint. It differs from the templates that many of them ship in two ways: no
system prompt is slipped in, and text that merely looks like a special token is encoded as plain text, so that what a
command prints cannot end a turn or begin one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from renderers.base import ParsedResponse, RenderedTokens
from renderers.configs import BaseRendererConfig

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIALS = (START, END, PAD)
TOOLS = "Tools, one JSON schema a line:\n"

# The same text as a chat template, for the tokenizer files of the checkpoints that we write.
TEMPLATE = (
    "{%- if tools -%}"
    "{{- '<|im_start|>system\\nTools, one JSON schema a line:\\n' -}}"
    "{%- for tool in tools -%}{{- '' if loop.first else '\\n' -}}{{- tool | tojson -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


class ChatMLConfig(BaseRendererConfig):  # type: ignore[misc]
    """ChatML has nothing to configure."""


class ChatMLRenderer:
    """A `renderers.Renderer` whose turns can always be extended.

    Raises:
        ValueError: the tokenizer lacks one of ChatML's two markers.
    """

    config_class: ClassVar[type[ChatMLConfig]] = ChatMLConfig
    is_prefix_stable: ClassVar[bool] = True

    def __init__(self, tokenizer: Any, config: ChatMLConfig | None = None) -> None:
        self.config = config or ChatMLConfig()
        self.tokenizer = tokenizer
        found = {token: number for token in SPECIALS if (number := _special_id(tokenizer, token)) is not None}
        if missing := [token for token in (START, END) if token not in found]:
            raise ValueError(f"ChatML: the tokenizer has no {' and no '.join(missing)}")
        # The episodes of a group begin with one text.
        self._known = lru_cache(256)(self._encode)
        self._start, self._end = found[START], found[END]
        self._stops = [found[token] for token in (END, PAD) if token in found]
        self._opening, self._break = [self._start, *self.encode("assistant\n")], self.encode("\n")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> RenderedTokens:
        """Token ids with the message that each belongs to, and which of them a model would have sampled."""
        out = RenderedTokens(message_roles=[message["role"] for message in messages])
        if tools:
            lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            self._message(out, {"role": "system", "content": TOOLS + lines}, -1)
        for index, message in enumerate(messages):
            self._message(out, message, index)
        if add_generation_prompt:
            _add(out, self._opening, -1)
        return out

    def render_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """The token ids of `render`."""
        ids: list[int] = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt).token_ids
        return ids

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> RenderedTokens | None:
        """Everything so far, kept token for token, then the new messages and the next opening.

        A completion that was cut gets the end marker that it lacks. None where a new message is the assistant's own,
        which would have to be encoded afresh.
        """
        if not previous_prompt_ids or any(message["role"] == "assistant" for message in new_messages):
            return None
        out = RenderedTokens(message_roles=[message["role"] for message in new_messages])
        _add(out, [*previous_prompt_ids, *previous_completion_ids], -1)
        if not previous_completion_ids or previous_completion_ids[-1] not in self._stops:
            _add(out, [self._end], -1)
        _add(out, self._break, -1)
        for index, message in enumerate(new_messages):
            self._message(out, message, index)
        _add(out, self._opening, -1)
        return out

    def parse_response(
        self,
        token_ids: list[int],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        prompt_ids: list[int] | None = None,
    ) -> ParsedResponse:
        """The completion as text, without its stop token."""
        ids = token_ids[:-1] if token_ids and token_ids[-1] in self._stops else token_ids
        return ParsedResponse(content=self.tokenizer.decode(ids, skip_special_tokens=False))

    def get_stop_token_ids(self) -> list[int]:
        """The end marker first."""
        return list(self._stops)

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; what looks like a special token stays text."""
        return list(self._known(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _message(self, out: RenderedTokens, message: Mapping[str, Any], index: int) -> None:
        role, content = message["role"], _text(message["content"])
        if role == "assistant":
            # What a model samples begins after the line break, so it must be encoded apart from the role.
            _add(out, self._opening, index)
            _add(out, [*self.encode(content), self._end], index, sampled=True, content=True)
        else:
            _add(out, [self._start, *self.encode(f"{role}\n{content}"), self._end], index, content=True)
        _add(out, self._break, index)


def _special_id(tokenizer: Any, token: str) -> int | None:
    token_id = tokenizer.convert_tokens_to_ids(token)
    return token_id if isinstance(token_id, int) and token_id != tokenizer.unk_token_id else None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _add(out: RenderedTokens, ids: list[int], index: int, *, sampled: bool = False, content: bool = False) -> None:
    out.token_ids.extend(ids)
    out.message_indices.extend([index] * len(ids))
    out.sampled_mask.extend([sampled] * len(ids))
    out.is_content.extend([content] * len(ids))
