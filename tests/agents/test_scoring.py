import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retort.agents.scoring import (
    backbone_and_head,
    forward_positions,
    pack,
    score_hidden,
    score_tokens,
    to_token_scores,
)
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 64


def llama(tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    ).eval()


def reference(hidden, head, targets, temperature, ids):
    """The same scores by plain autograd over all logits."""
    logp = (head(hidden) / temperature[:, None]).log_softmax(-1)
    inside = torch.zeros_like(logp, dtype=torch.bool).scatter(1, ids, True)
    rest = logp.masked_fill(inside, -torch.inf).logsumexp(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, targets[:, None])[:, 0], entropy, logp.gather(1, ids), rest


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    k=st.integers(1, 19),
    chunk=st.sampled_from([1, 45, 10_000]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_those_of_plain_autograd(rows, k, chunk, bias, seed):
    torch.manual_seed(seed)
    head = nn.Linear(6, 20, bias=bias).double()
    hidden = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    targets, heat = torch.randint(20, (rows,)), torch.rand(rows, dtype=torch.float64) + 0.5
    ids = torch.stack([torch.randperm(20)[:k] for _ in range(rows)])
    found = score_hidden(hidden, head, targets, temperature=heat, ids=ids, entropy=True, chunk=chunk)
    ours = (found.logp, found.entropy, found.ids_logp, found.rest_logp)
    theirs = reference(hidden, head, targets, heat, ids)
    weights = [torch.randn_like(value) for value in theirs]
    leaves = [hidden, *head.parameters()]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(ours, weights, strict=True)), leaves),
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(theirs, weights, strict=True)), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", [1, 10_000])
def test_an_empty_rest_is_minus_infinity_without_gradient(chunk):
    head, hidden = nn.Linear(4, 5), torch.randn(3, 4, requires_grad=True)
    found = score_hidden(hidden, head, torch.tensor([0, 1, 2]), k=5, chunk=chunk)
    assert torch.isneginf(found.rest_logp).all()
    (gradient,) = torch.autograd.grad(found.rest_logp, hidden, torch.ones(3))
    assert (gradient == 0).all()


@pytest.mark.parametrize("tail", [1e-3, math.exp(-16), math.exp(-25), math.exp(-60)])
def test_rest_is_exact_however_small(tail):
    head = nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [0.0], [math.log(tail)], [math.log(tail)]]))
    hidden = torch.ones(1, 1, requires_grad=True)
    found = score_hidden(hidden, head, torch.tensor([0]), k=2)
    assert found.rest_logp.item() == pytest.approx(math.log(tail / (1 + tail)), rel=1e-6)
    (gradient,) = torch.autograd.grad(found.rest_logp, hidden)
    assert gradient.item() == pytest.approx(math.log(tail) / (1 + tail), rel=1e-5)


def test_bfloat16_states_are_scored_in_float32():
    torch.manual_seed(0)
    head = nn.Linear(16, 500, bias=False).bfloat16()
    hidden = torch.randn(8, 16).bfloat16().requires_grad_()
    targets = torch.randint(500, (8,))
    found = score_hidden(hidden, head, targets)
    exact = (hidden.double() @ head.weight.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert found.logp.dtype == torch.float32
    assert (found.logp.double() - exact).abs().max() < 1e-5
    found.logp.sum().backward()
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.bfloat16


def test_bad_requests_are_refused():
    head, hidden, targets = nn.Linear(4, 5), torch.randn(1, 4), torch.tensor([0])
    with pytest.raises(ValueError, match="found both"):
        score_hidden(hidden, head, targets, ids=torch.zeros(1, 1, dtype=torch.long), k=1)
    with pytest.raises(ValueError, match="vocabulary's 5, found 6"):
        score_hidden(hidden, head, targets, k=6)
    with pytest.raises(ValueError, match="above 0, found 0"):
        score_hidden(hidden, head, targets, temperature=0)
    with pytest.raises(ValueError, match="sequence 1: expected positions from 1 to 2, found 3"):
        score_tokens(llama(), [[1, 2, 3], [1, 2, 3]], [[1], [3]])


@pytest.mark.parametrize(
    "make",
    [
        llama,
        lambda: llama(tied=True),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2)).eval(),
    ],
)
def test_score_tokens_equals_the_models_own_logits(make):
    model, generator = make(), np.random.default_rng(0)
    texts = [generator.integers(VOCABULARY, size=n).tolist() for n in (5, 30, 2, 17)]
    wheres = [[1, 4], [29, 3, 8], [], [16]]
    with torch.no_grad():
        found = score_tokens(model, texts, wheres, k=3, entropy=True, temperature=[0.5, 1, 1, 2], max_tokens=40)
        for text, where, heat, got in zip(texts, wheres, [0.5, 1, 1, 2], found, strict=True):
            logp = (model(torch.tensor([text])).logits[0] / heat).log_softmax(-1)
            expected = torch.tensor([logp[p - 1, text[p]] for p in where])
            torch.testing.assert_close(got.logp, expected, atol=1e-5, rtol=1e-5)
            for n, p in enumerate(where):
                torch.testing.assert_close(got.ids_logp[n], logp[p - 1].topk(3).values, atol=1e-5, rtol=1e-5)
    scores = to_token_scores(found[1])
    assert scores.logp.shape == (3,)
    assert scores.topk_ids.shape == (3, 3)
    assert np.allclose(np.exp(scores.topk_logp).sum(-1) + np.exp(scores.rest_logp), 1, atol=1e-5)


def test_ids_of_each_sequence_are_scored():
    model = llama()
    with torch.no_grad():
        top = score_tokens(model, [[1, 2, 3, 4], [5, 6, 7]], [[1, 3], [2]], k=4)
        same = score_tokens(model, [[1, 2, 3, 4], [5, 6, 7]], [[1, 3], [2]], ids=[s.ids for s in top])
    for a, b in zip(top, same, strict=True):
        torch.testing.assert_close(a.ids_logp, b.ids_logp)
        torch.testing.assert_close(a.rest_logp, b.rest_logp)


def test_lora_on_all_layers_and_the_head_gets_its_gradient():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    tokens, row, at = torch.randint(VOCABULARY, (2, 9)), torch.tensor([0, 1, 1]), torch.tensor([3, 8, 1])
    parameters = [p for p in model.parameters() if p.requires_grad]
    logp = model(tokens).logits.log_softmax(-1)[row, at - 1].gather(1, tokens[row, at][:, None])
    expected = torch.autograd.grad(logp.sum(), parameters)
    for chunk in (1, 1 << 20):
        ours = forward_positions(model, tokens, row, at, chunk=chunk).logp
        torch.testing.assert_close(ours, logp[:, 0])
        for a, b in zip(torch.autograd.grad(ours.sum(), parameters), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_model_that_caps_its_logits_is_refused_by_name():
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with pytest.raises(NotImplementedError, match="Gemma2ForCausalLM caps or scales"):
        backbone_and_head(Gemma2ForCausalLM(config))


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_packing_keeps_every_row_and_the_budget(lengths, budget):
    batches = pack(lengths, budget)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
