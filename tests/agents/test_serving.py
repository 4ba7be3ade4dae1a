"""What an engine loads is what the learner computes with, whatever the learner is made of."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model  # type: ignore[attr-defined, unused-ignore]
from retort.agents import serving, tiny
from retort.agents.base import EngineError
from retort.agents.chat import Chat
from retort.agents.hf import load_model
from retort.agents.versions import Behind, Version
from retort.algos.learner import Learner, LearnerOptions
from retort.envs.base import UsageError
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaForCausalLM


@pytest.fixture
def tied(model: Any) -> Any:
    config = type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": True})
    torch.manual_seed(1)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def adapted(folder: Path) -> Any:
    layout = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM")
    made = get_peft_model(load_model(folder), layout)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:  # which starts at zero, so that an adapter starts as nothing
                parameter.normal_(std=0.3)
    return made.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 40)[None]).logits
    return found


@pytest.mark.parametrize("kind", ["model", "tied", "adapted"])
def test_a_served_folder_says_the_same_as_the_model(
    kind: str, request: pytest.FixtureRequest, chat: Chat, tmp_path: Path
) -> None:
    learner = request.getfixturevalue(kind)
    place = serving.save_served(learner, chat, tmp_path / "served")
    assert torch.allclose(logits(load_model(place)), logits(learner), atol=1e-5)
    assert not AutoConfig.from_pretrained(place).tie_word_embeddings
    names = load_file(place / "model.safetensors")
    assert names.keys() == serving.shapes(learner).keys()
    assert "lm_head.weight" in names
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    assert Chat.load(place).template_digest == chat.template_digest
    assert not list(tmp_path.glob(".*"))


def test_only_what_engines_lose_is_copied(folder: Path, tied: Any, chat: Chat, tmp_path: Path) -> None:
    assert serving.servable(str(folder), chat, tmp_path) == folder
    tied.save_pretrained(tmp_path / "tied")
    chat.save(tmp_path / "tied")
    for dtype, kind in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        place = serving.servable(str(tmp_path / "tied"), chat, tmp_path, dtype)
        assert place == tmp_path / "served"
        assert load_file(place / "model.safetensors")["lm_head.weight"].dtype == kind


def test_shapes_are_those_of_what_is_served_and_nothing_is_merged_for_them(
    adapted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: tuple(value.shape) for name, value in serving.served(adapted)}
    layer = next(item for item in adapted.modules() if hasattr(item, "get_delta_weight"))
    monkeypatch.setattr(type(layer), "get_delta_weight", None)
    assert serving.shapes(adapted) == expected


def test_other_weights_are_named(model: Any) -> None:
    expected = serving.shapes(model)
    found = dict(expected)
    serving.check_shapes(found, expected)
    name = next(iter(found))
    with pytest.raises(EngineError, match="has no weight other"):
        serving.check_shapes({**found, "other": (1,)}, expected)
    with pytest.raises(EngineError, match=f"{name}: expected shape"):
        serving.check_shapes({**found, name: (1,)}, expected)
    del found[name]
    with pytest.raises(EngineError, match=f"missing: {name}"):
        serving.check_shapes(found, expected)


def test_a_server_is_started_with_what_training_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_SERVER_DEV_MODE", raising=False)
    arguments, environment = serving.command(tmp_path, 8001, dtype="float32", name="mine", context=512)
    pairs = dict(pairwise(arguments))
    assert pairs["--model"] == str(tmp_path)
    assert pairs["--logprobs-mode"] == "processed_logprobs"
    assert pairs["--max-model-len"] == "512"
    assert pairs["--served-model-name"] == "mine"
    assert {"--enable-scale-out", "--enforce-eager"} <= set(arguments) or torch.cuda.is_available()
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_server_that_takes_adapters_is_started_for_a_rank_that_holds_them(folder: Path) -> None:
    arguments, environment = serving.command(folder, 8001, dtype="float32", lora_rank=9)
    assert dict(pairwise(arguments))["--max-lora-rank"] == "16"
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert serving.adaptable(folder) == layers, "all that an adapter of `all-linear` changes, and not the head"
    assert all(name in arguments for name in layers)
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "--enable-lora" not in serving.command(folder, 8001, dtype="float32")[0]
    assert [serving.rank_for(rank) for rank in (1, 2, 8, 512)] == [1, 8, 8, 512]
    with pytest.raises(UsageError, match="rank 1 to 512, found 513"):
        serving.rank_for(513)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_weights_are_held_until_a_step_moves_them(folder: Path, optimiser: Any) -> None:
    learner = Learner(load_model(folder), LearnerOptions(optimiser=optimiser, lora_rank=2, lr=1e-7))
    held = serving.Held(learner.model, 3)
    with torch.no_grad():
        logits(learner.model)
    assert held.current()
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    for stepper in learner.optimisers:
        stepper.step()
    assert not held.current()


def test_an_adapter_alone_is_what_peft_reads(adapted: Any, folder: Path, tmp_path: Path) -> None:
    place = serving.save_adapter(adapted, tmp_path / "adapter")
    assert sorted(path.name for path in place.glob("adapter_*")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert torch.allclose(logits(PeftModel.from_pretrained(load_model(folder), place).eval()), logits(adapted))
    assert not list(tmp_path.glob(".*"))
    plain = serving.save_served(adapted, Chat.load(folder), tmp_path / "below", merged=False)
    assert torch.allclose(logits(load_model(plain)), logits(load_model(folder)))


def test_a_version_is_written_once_and_not_after_the_learner_moved_on(adapted: Any, chat: Chat, tmp_path: Path) -> None:
    for number in (1, 2):
        version = Version(adapted, number, chat, tmp_path)
        assert version.adapter() == version.adapter() == tmp_path / "adapter"
        assert (tmp_path / "adapter").resolve().name == f"adapter-{number}"
    version.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "adapter-2"]
    with torch.no_grad():
        next(item for item in adapted.parameters() if item.requires_grad).add_(1e-6)
    version.adapter()  # is there already
    with pytest.raises(Behind):
        version.whole()


def test_the_tiny_model_fits_what_vllm_takes() -> None:
    tokens = tiny.tokenizer(["say 3\n"] * 30, vocabulary=300)
    config = tiny.model(tokens, seed=0).config
    assert config.head_dim in (32, 64, 80, 96, 112, 128)
    assert not config.tie_word_embeddings
