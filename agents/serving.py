"""A model as an inference engine loads it: plain weights under their checkpoint names, and a folder of them.

Adapters are merged into what they adapt, or go alone to an engine that was told to take them. A head that is tied to
the embeddings stands apart: vLLM keeps the old head when tied weights are loaded again.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from retort.agents.base import EngineError
from retort.agents.chat import Chat
from retort.agents.vllm_requests import MOST
from retort.envs.base import UsageError
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
ADAPTER = "retort"  # what an engine calls the learner's adapter
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM can be started for
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Held:
    """The learner's weights at one version, for as long as it has them: another thread may move them on."""

    def __init__(self, model: Any, version: int) -> None:
        self.model, self.version = model, version
        self._sums = _sums(model)

    def current(self) -> bool:
        """Whether the model still has these weights, to the bit."""
        return _sums(self.model) == self._sums


def _sums(model: Any) -> list[int]:
    """The bits of each weight that learns, as integers: their sum does not depend on the order it is taken in."""
    learning = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    sums = [value.view(INTEGERS[value.element_size()]).sum(dtype=torch.int64) for value in learning]
    return torch.stack(sums).tolist() if sums else []


def adapted(model: Any) -> bool:
    """Whether an adapter is what learns."""
    return hasattr(model, "peft_config")


def rank_for(rank: int) -> int:
    """The least rank that vLLM can be started for, and that holds an adapter of `rank`.

    Raises:
        UsageError: none does.
    """
    if found := [able for able in RANKS if able >= rank > 0]:
        return found[0]
    raise UsageError(f"lora_rank: vLLM takes adapters of rank 1 to {RANKS[-1]}, found {rank}")


def adaptable(model: str | Path) -> list[str]:
    """The last names of the layers that a learner's adapter may change, which are all linear ones but the head.

    vLLM is told them: where it may adapt the head as well, it counts the log-probs of a prompt by the requests of the
    step and not by their positions, so that on a CPU two of them end it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    made: Any = AutoModelForCausalLM
    with torch.device("meta"):
        plain = made.from_config(AutoConfig.from_pretrained(model))
    head = plain.get_output_embeddings()
    linear = (name for name, layer in plain.named_modules() if isinstance(layer, nn.Linear) and layer is not head)
    return sorted({name.rpartition(".")[2] for name in linear})


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
def served(model: Any, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its checkpoint name, one at a time, without gradient. merged: with its adapter, if it has one."""
    for name, value, layer in _stored(model):
        for adapter in layer.active_adapters if layer is not None and merged else ():
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


def save_served(model: Any, chat: Chat, folder: Path, *, merged: bool = True) -> Path:
    """An ordinary model folder with these weights, whole or not at all: what a server is pointed at."""
    from safetensors.torch import save_file

    plain = causal(model)
    config = copy.deepcopy(plain.config)
    config.tie_word_embeddings = False
    with _whole(folder) as fresh:
        config.save_pretrained(fresh)
        if getattr(plain, "generation_config", None) is not None:
            plain.generation_config.save_pretrained(fresh)
        weights = {name: value.cpu().contiguous().clone() for name, value in served(model, merged=merged)}
        save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})
        chat.save(fresh)
    return folder


def save_adapter(model: Any, folder: Path) -> Path:
    """A folder with the model's adapter alone, whole or not at all."""
    with _whole(folder) as fresh:
        model.save_pretrained(fresh, save_embedding_layers=False)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` when it is full."""
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


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
    model: str | Path,
    port: int,
    *,
    dtype: str,
    name: str | None = None,
    context: int | None = None,
    lora_rank: int = 0,
) -> tuple[list[str], dict[str, str]]:
    """The arguments of `python -m` and the environment of a server that can be trained with.

    It has to answer log-probs of the distribution that was sampled from, take tokens for text, and load new weights.
    name: what it is called. lora_rank: of the largest adapter that it takes apart from the weights; 0 takes none.
    """
    arguments = ["vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port), "--dtype", dtype]
    arguments += ["--host", "127.0.0.1", "--logprobs-mode", "processed_logprobs", "--max-logprobs", str(MOST)]
    arguments += ["--generation-config", "vllm", "--enable-scale-out"]
    if name is not None:
        arguments += ["--served-model-name", name]
    if context is not None:
        arguments += ["--max-model-len", str(context)]
    environment = {**quiet(), "VLLM_SERVER_DEV_MODE": "1"}
    if lora_rank:
        arguments += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank_for(lora_rank))]
        arguments += ["--lora-target-modules", *adaptable(model)]
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if torch.cuda.is_available():
        arguments += ["--weight-transfer-config", '{"backend": "nccl"}']
    else:
        arguments += ["--enforce-eager", "--no-enable-chunked-prefill"]  # see `vllm.py`
    return arguments, environment


def quiet() -> dict[str, str]:
    """Environment variables of vLLM that are not set yet: no network, one thread a core, little cache on a CPU."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if not torch.cuda.is_available():
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {name: value for name, value in wanted.items() if name not in os.environ}
