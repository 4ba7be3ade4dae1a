import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retort.agents.prefix import hidden_states
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, MistralConfig, MistralModel

VOCABULARY = 32
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(**options):
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, initializer_range=0.3, **SIZES, **options)
    return LlamaModel(config)


def gpt2():
    return GPT2Model(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def mistral():
    return MistralModel(MistralConfig(vocab_size=VOCABULARY, num_key_value_heads=1, sliding_window=4, **SIZES))


def grouped(lengths, branches, seed):
    """Rows [B,T] that share prompts of these lengths, `branches` rows each, and positions to score in them."""
    torch.manual_seed(seed)
    width = max(lengths) + 7
    tokens, row, at = [], [], []
    for length in lengths:
        prompt = torch.randint(VOCABULARY, (length,))
        for _ in range(branches):
            own = int(torch.randint(1, 8, ()))
            tokens.append(torch.cat([prompt, torch.randint(VOCABULARY, (width - length,))]))
            where = [length, *(length + j for j in range(1, own) if torch.rand(()) < 0.7)]
            row += [len(tokens) - 1] * len(where)
            at += where
    return torch.stack(tokens), torch.tensor(row), torch.tensor(at)


def plain(model, tokens, row, at):
    return model(input_ids=tokens, use_cache=False).last_hidden_state[row, at - 1]


def compared(model, tokens, row, at):
    """Checks values and gradients; returns how many tokens the tree's pass read."""
    model = model.double().eval()
    read = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = hidden_states(model, tokens, row, at)
    hook.remove()
    wanted = plain(model, tokens, row, at)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    weight, parameters = torch.randn_like(wanted), list(model.parameters())
    ours = torch.autograd.grad((found * weight).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((wanted * weight).sum(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    return read[0]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), branches=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_a_tree_gives_the_states_and_gradients_of_whole_rows(lengths, branches, seed):
    compared(llama(), *grouped(lengths, branches, seed))


@pytest.mark.parametrize("make", [llama, gpt2, mistral])
def test_architectures(make):
    compared(make(), *grouped([9, 5, 12], 4, 0))


def test_a_shared_prompt_is_read_once_and_windows_are_left_alone():
    tokens, row, at = grouped([20, 20], 8, 1)
    whole = tokens[:, :-1].numel()
    assert compared(llama(), tokens, row, at) < whole / 2
    assert compared(mistral(), tokens, row, at) == whole


def test_rows_without_a_position_and_rows_of_their_own_prompt():
    tokens, row, at = grouped([10, 10], 4, 2)
    kept = row != 3
    compared(llama(), tokens, row[kept], at[kept])


def test_nothing_shared_is_read_as_it_stands():
    tokens, row, at = grouped([4, 5, 6], 1, 3)
    assert compared(llama(), tokens, row, at) == tokens[:, :-1].numel()


def test_layers_that_are_computed_again_give_the_same_gradient():
    tokens, row, at = grouped([12], 6, 4)
    model = llama().double().train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    weight = torch.randn(len(at), 16, dtype=torch.float64)
    ours = torch.autograd.grad((hidden_states(model, tokens, row, at) * weight).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((plain(model, tokens, row, at) * weight).sum(), list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
