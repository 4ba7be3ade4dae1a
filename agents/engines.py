"""Which engine plays: from a name on the command line to a policy whose weights can follow a learner's.

vllm            vLLM in this process
vllm:URL        a vLLM server that runs elsewhere; vllm:URL,URL for several with the same model
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from retort.agents.base import Engine
from retort.agents.chat import Chat
from retort.agents.policies import refuse_unknown
from retort.envs.base import MissingPackage, UsageError, nearest

INSTALL = "pip install vllm (with a GPU), or 'make vllm' and .venv-vllm/bin/retort (without one)"


class Apart(Engine, Protocol):
    """An engine with weights of its own. context: tokens it reads."""

    context: int

    def check(self, model: Any, dtype: str) -> None:
        """Raises EngineError where it was made with other weights than those of `model`; and so does every later
        update with weights of other names or shapes than these."""
        ...

    def close(self) -> None: ...


def check_engine(spec: str) -> None:
    """Raises UsageError for what names no engine."""
    prefix, colon, rest = spec.partition(":")
    if prefix != "vllm" or (colon and not all(url.startswith(("http://", "https://")) for url in rest.split(","))):
        raise UsageError(f"engine {spec!r}: {nearest(prefix, ['hf', 'vllm', 'vllm:http://HOST:PORT'])}")


def check_installed(spec: str) -> None:
    """Raises MissingPackage where an engine of this process is not installed."""
    if spec == "vllm" and find_spec("vllm") is None:
        raise MissingPackage(f"vLLM is not installed: {INSTALL}")


def make_engine(
    spec: str,
    model: str | None,
    chat: Chat,
    *,
    dtype: str = "float32",
    shared: str = "",
    follows: bool = True,
    lora_rank: int = 0,
    arguments: Mapping[str, Any],
) -> Apart:
    """An engine with the weights of `model`, to be closed by who asked for it.

    model: None for servers that may have any with this tokenizer. shared: a folder where servers find new weights.
    follows: whether servers get a learner's weights before they play; otherwise they must have those of `model`.
    lora_rank: of the learner's adapter, where it trains one.

    Raises:
        UsageError: no such engine, or an argument that it does not take.
        EngineError: a server has another model, tokenizer or template, or a run's weights where it must not.
    """
    check_engine(spec)
    check_installed(spec)
    if urls := spec.partition(":")[2]:
        return _servers(urls, model, chat, shared, follows, arguments)
    assert model is not None
    return _here(model, chat, dtype, lora_rank, arguments)


def _here(model: str, chat: Chat, dtype: str, lora_rank: int, arguments: Mapping[str, Any]) -> Apart:
    from retort.agents.serving import rank_for, servable
    from retort.agents.vllm import VLLMPolicy

    if arguments.get("enable_lora"):
        if not lora_rank:
            raise UsageError("engine_args.enable_lora is for runs that train an adapter: learner.lora_rank above 0")
        arguments = {"max_lora_rank": rank_for(lora_rank), "max_loras": 1, **arguments}
    with tempfile.TemporaryDirectory(prefix="retort-served-") as place:  # read when the engine starts, and not again
        folder = servable(model, chat, Path(place), dtype)
        return VLLMPolicy(folder, chat, name=f"vllm:{model}", dtype=dtype, arguments=arguments)


def _servers(
    urls: str, model: str | None, chat: Chat, shared: str, follows: bool, arguments: Mapping[str, Any]
) -> Apart:
    from retort.agents.vllm_http import VLLMServers
    from retort.agents.vllm_server import Serving

    refuse_unknown(arguments, (item.name for item in fields(Serving)), "a vLLM server")
    options = Serving(**{"shared": shared, **arguments})
    name = f"vllm:{urls}" if model is None else f"vllm:{urls}#{model}"
    return VLLMServers(urls.split(","), chat, name=name, expected=model, options=options, follows=follows)
