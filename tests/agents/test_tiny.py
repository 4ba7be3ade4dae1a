"""The tiny model: an ordinary folder, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from retort.agents import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def test_roles_and_line_breaks_are_one_token_and_digits_stand_alone() -> None:
    made = tiny.tokenizer(["cat card.csv > out.txt 42\n"] * 20)
    for word in (*tiny.ROLES, "\n", " card.csv"):
        assert len(made.encode(word, add_special_tokens=False)) == 1, word
    assert len(made.encode("427", add_special_tokens=False)) == 3
    assert made.decode(made.encode("é\t<|x|> 🙂", add_special_tokens=False)) == "é\t<|x|> 🙂"
    assert len(made) <= tiny.VOCABULARY


def test_roles_are_one_token_however_much_text_competes() -> None:
    made = tiny.tokenizer([f"{number:x}abc{number % 97:x}" for number in range(4000)], vocabulary=300)
    assert [len(made.encode(role, add_special_tokens=False)) for role in tiny.ROLES] == [1, 1, 1]


def test_a_folder_loads_as_any_other(folder: Path) -> None:
    network, made = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert network.dtype == torch.float32
    assert network.get_input_embeddings().weight.data_ptr() != network.get_output_embeddings().weight.data_ptr()
    assert network.config.vocab_size == len(made)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1, 2]


def test_the_seed_decides_the_weights_and_nothing_else() -> None:
    made = tiny.tokenizer(["say done\n"])
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (tiny.model(made, seed=seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 300 tokens, found 100"):
        tiny.tokenizer(["x"], vocabulary=100)
