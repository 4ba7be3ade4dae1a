"""A causal language model small enough to train on two cores, with a tokenizer of its own.

The recipe was measured, not derived: hidden 128, 2 layers, 4 heads, float32, 0.8 million parameters, and
960 byte-level BPE tokens over the texts that the model will meet. Embeddings are not tied, so that servers which
reload weights in place serve the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retort.agents.chatml import END, PAD, SPECIALS, TEMPLATE

VOCABULARY = 960
CONTEXT = 2048
ROLES = ("system", "user", "assistant")


def tokenizer(texts: Iterable[str], *, vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE tokenizer trained on `texts`, as a `PreTrainedTokenizerFast` with our ChatML template.

    Words keep the space before them; digits, slashes and line breaks stand alone, and each role's name is one token.

    Raises:
        ValueError: `vocabulary` has no room for the bytes, the special tokens and the roles' names.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 300:
        raise ValueError(f"vocabulary: expected at least 300 tokens, found {vocabulary}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s\d/]+|[\d/]|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = list(texts)
    # Twice as often as any text, so that the roles' merges are among the first.
    names = ["\n".join(ROLES)] * (1000 + 2 * len(corpus))
    bpe.train_from_iterator([*corpus, *names], trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SPECIALS[0]],
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def model(
    tokenizer: Any, *, seed: int, hidden: int = 128, layers: int = 2, heads: int = 4, context: int = CONTEXT
) -> Any:
    """A freshly initialised `LlamaForCausalLM` in float32 for `tokenizer`. The same seed gives the same weights."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    stops = tokenizer.convert_tokens_to_ids([END, PAD])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=stops[0],
        pad_token_id=stops[1],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
    ends: Any = GenerationConfig
    network.generation_config = ends(bos_token_id=None, eos_token_id=stops, pad_token_id=stops[1])
    return network


def build(folder: str | Path, texts: Iterable[str], *, seed: int, vocabulary: int = VOCABULARY) -> Path:
    """Make a tiny model and its tokenizer from `texts`, and save both as an ordinary Hugging Face folder."""
    made = tokenizer(texts, vocabulary=vocabulary)
    path = Path(folder)
    model(made, seed=seed).save_pretrained(path)
    made.save_pretrained(path)
    return path
