"""What an update of the tiny model costs at a small and at a large vocabulary, against the ways that keep all logits.

Usage: python benchmarks/learner.py [--threads 1] [--repeats 3] [--rows 128]

Three ways, each in a process of its own, on the same rows, weights, optimiser and budget of tokens a pass:
  retort     the learner: rows by length, hidden states of model tokens alone, the head in chunks
  gathered   the same rows as they come, the head on model tokens alone, all their logits at once
  naive      the model's own logits at every position, then log_softmax and gather
Half of a row's tokens after the prompt are the model's. Tokens are real ones (no padding) a CPU second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from measure import machine, median, spending, table

WAYS = ("retort", "gathered", "naive")
VOCABULARIES = (640, 150_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "VOCABULARY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]), given)))
        return
    print(machine(), f"{given.threads} threads", sep=", ")
    rows = []
    for vocabulary in VOCABULARIES:
        found = {way: in_own_process(way, vocabulary) for way in WAYS}
        ours = found["retort"]
        for way, one in found.items():
            assert abs(one["loss"] - ours["loss"]) < 1e-3 * abs(ours["loss"]), "the ways must compute the same loss"
            ratios = one["seconds"] / ours["seconds"], one["peak"] / ours["peak"]
            rows.append([vocabulary, way, one["seconds"], one["tokens"] / one["seconds"], one["peak"], *ratios])
    table(["vocabulary", "way", "CPU s", "tokens/s", "peak MiB", "time / retort", "memory / retort"], rows)


def in_own_process(way: str, vocabulary: int) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", way, str(vocabulary)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def measure(way: str, vocabulary: int, given: argparse.Namespace) -> dict[str, float]:
    """Median CPU seconds of an update, tokens in it, and the peak of the whole process in MiB."""
    import resource

    import torch
    from retort.algos import sft
    from retort.algos.base import TokenBatch
    from retort.algos.learner import Learner, LearnerOptions
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
        )
    )
    learner = Learner(model, LearnerOptions(device="cpu", lr=1e-4, micro_tokens=given.micro_tokens))
    lengths = torch.randint(31, 80, (given.rows,))
    at = torch.arange(int(lengths.max()))
    tokens = torch.randint(vocabulary, (given.rows, len(at)))
    mask = (at >= 20) & (at < lengths[:, None]) & (torch.rand(tokens.shape) < 0.5)
    zeros, row = torch.zeros(tokens.shape), torch.arange(given.rows)
    batch = TokenBatch(
        tokens=tokens,
        mask=mask,
        turn=mask.long() - 1,
        turn_reward=zeros,
        behaviour_logp=zeros,
        proximal_logp=zeros,
        episode=row,
        group=row,
        reward=torch.ones(given.rows),
        success=torch.ones(given.rows, dtype=torch.bool),
        temperature=torch.ones(given.rows),
        teacher_mask=torch.zeros(0, *tokens.shape, dtype=torch.bool),
        teacher_logp=zeros[None][:0],
    )
    options, size = sft.SFTOptions(), max(1, given.micro_tokens // len(at))

    def retort() -> float:
        return learner.update(batch, sft.credit(batch, options), sft.loss, options).loss

    def plain() -> float:
        total = 0.0
        for start in range(0, given.rows, size):
            part = slice(start, start + size)
            ids, wanted = tokens[part], mask[part][:, 1:]
            if way == "naive":
                logp = model(ids, use_cache=False).logits[:, :-1].log_softmax(-1)
                logp = logp.gather(-1, ids[:, 1:, None])[..., 0][wanted]
            else:
                hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1][wanted]
                logp = model.lm_head(hidden).log_softmax(-1).gather(-1, ids[:, 1:][wanted][:, None])[:, 0]
            loss = -logp.sum() / mask.sum()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(learner.parameters, 1.0)
        learner.optimisers[0].step()
        learner.optimisers[0].zero_grad(set_to_none=True)
        return total

    update, spent = retort if way == "retort" else plain, []
    losses = []
    for _ in range(given.repeats + 1):
        with spending() as since:
            losses.append(update())
        spent.append(since().own)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": median(spent[1:]), "tokens": int(lengths.sum()), "peak": peak, "loss": losses[-1]}


if __name__ == "__main__":
    main()
