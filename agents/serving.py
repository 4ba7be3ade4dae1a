"""A model as an inference engine loads it: plain weights under their checkpoint names, and a folder of them.

Adapters are merged into what they adapt. A head that is tied to the embeddings stands apart: vLLM keeps the old head
when tied weights are loaded again.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from retort.agents.base import EngineError
from retort.agents.chat import Chat
from retort.agents.vllm_requests import MOST
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def causal(model: Any) -> Any:
    """The language model below an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _stored(model: Any) -> Iterator[tuple[str, Tensor, Any]]:
    """Every weight by its checkpoint name, as it stands, and what adapts it, where anything does."""
    plain = causal(model)
    adapted = {name: layer for name, layer in plain.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, parameter in plain.named_parameters():
        path, _, leaf = name.rpartition(".")
        owner, _, last = path.rpartition(".")
        if last != "base_layer":
            if not any(name.startswith(f"{layer}.") for layer in adapted):
                yield name, parameter.detach(), None
            continue
        yield f"{owner}.{leaf}", parameter.detach(), adapted[owner] if leaf == "weight" else None
    head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        (name,) = (name for name, module in plain.named_modules() if module is head)
        yield f"{name}.weight", head.weight.detach(), None


@torch.no_grad()
def served(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its checkpoint name, one at a time, without gradient."""
    for name, value, layer in _stored(model):
        for adapter in () if layer is None else layer.active_adapters:
            value = value + layer.get_delta_weight(adapter).to(value.dtype)
        yield name, value


def shapes(model: Any) -> Shapes:
    """Those of what `served` gives, by name; nothing is merged for them."""
    return {name: tuple(value.shape) for name, value, _ in _stored(model)}


def check_shapes(found: Shapes, expected: Shapes) -> None:
    """Whether weights are all of an engine's, and no others: engines take a part of them without a word.

    Raises:
        EngineError: by name.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise EngineError(f"expected {len(expected)} weights, found {len(found)}; missing: {', '.join(missing[:4])}")
    if foreign := sorted(found.keys() - expected.keys()):
        raise EngineError(f"the engine's model has no weight {', '.join(foreign[:4])}")
    if other := [name for name in expected if found[name] != expected[name]]:
        raise EngineError(f"{other[0]}: expected shape {expected[other[0]]}, found {found[other[0]]}")


def save_served(model: Any, chat: Chat, folder: Path) -> Path:
    """An ordinary model folder with these weights, whole or not at all: what a server is pointed at."""
    from safetensors.torch import save_file

    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    plain = causal(model)
    config = copy.deepcopy(plain.config)
    config.tie_word_embeddings = False
    config.save_pretrained(fresh)
    if getattr(plain, "generation_config", None) is not None:
        plain.generation_config.save_pretrained(fresh)
    weights = {name: value.cpu().contiguous().clone() for name, value in served(model)}
    save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})
    chat.save(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder


def servable(folder_or_name: str, chat: Chat, workplace: Path, dtype: str = "auto") -> Path | str:
    """What an engine can load: the folder or name itself, or a folder in `workplace` with its adapter merged or its
    head untied. dtype: of such a copy; "auto" is that of the model's configuration.
    """
    from retort.agents.hf import load_model
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    folder = Path(folder_or_name)
    if find_adapter_config_file(folder_or_name) is not None:
        kind = "float32"
    else:
        config = AutoConfig.from_pretrained(folder_or_name)
        if not config.get_text_config().tie_word_embeddings:
            return folder if folder.is_dir() else folder_or_name
        kind = str(config.get_text_config().dtype or "float32").removeprefix("torch.")
    return save_served(load_model(folder_or_name, dtype=kind if dtype == "auto" else dtype), chat, workplace / "served")


def command(
    model: str | Path, port: int, *, dtype: str, name: str | None = None, context: int | None = None
) -> tuple[list[str], dict[str, str]]:
    """The arguments of `python -m` and the environment of a server that can be trained with. name: what it is called.

    It has to answer log-probs of the distribution that was sampled from, take tokens for text, and load new weights.
    """
    arguments = ["vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port), "--dtype", dtype]
    arguments += ["--host", "127.0.0.1", "--logprobs-mode", "processed_logprobs", "--max-logprobs", str(MOST)]
    arguments += ["--generation-config", "vllm", "--enable-scale-out"]
    if name is not None:
        arguments += ["--served-model-name", name]
    if context is not None:
        arguments += ["--max-model-len", str(context)]
    if not torch.cuda.is_available():
        arguments += ["--enforce-eager", "--no-enable-chunked-prefill"]  # see `vllm.py`
    return arguments, {**quiet(), "VLLM_SERVER_DEV_MODE": "1"}


def quiet() -> dict[str, str]:
    """Environment variables of vLLM that are not set yet: no network, one thread a core, little cache on a CPU."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not torch.cuda.is_available():
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {name: value for name, value in wanted.items() if name not in os.environ}
