"""A batch with everything in it, scored by a real tiny Llama; and a tiny model that has begun to learn."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from retort.agents.scoring import score_tokens
from retort.algos.base import Student, TokenBatch
from retort.algos.config import preset, resolve
from retort.algos.runs import Run
from retort.algos.train import train
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 64


@pytest.fixture
def make_model():
    def make(seed: int = 0) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            initializer_range=0.15,
        )
        return LlamaForCausalLM(config).eval()

    return make


def _padded(batch: TokenBatch, values: list[torch.Tensor]) -> torch.Tensor:
    placed = torch.zeros((*batch.mask.shape, *values[0].shape[1:]), dtype=values[0].dtype)
    placed[batch.mask] = torch.cat(values)
    return placed


@pytest.fixture
def make_batch():
    def make(student, teacher=None, *, rows: int = 8, seed: int = 0, k: int = 6) -> TokenBatch:
        """Rows of unlike lengths in groups of four. Without `teacher` no channel has spoken."""
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(6, 20, (rows,), generator=generator)
        length = int(lengths.max())
        tokens = torch.randint(VOCABULARY, (rows, length), generator=generator)
        at = torch.arange(length)
        mask = (at >= 3) & (at < lengths[:, None]) & (torch.rand(rows, length, generator=generator) < 0.7)
        mask[:, 3] = True
        success = torch.arange(rows) % 4 < 2
        zeros = torch.zeros(rows, length)
        batch = TokenBatch(
            tokens=tokens,
            mask=mask,
            turn=mask.long() - 1,
            turn_reward=zeros,
            behaviour_logp=zeros,
            proximal_logp=zeros,
            episode=torch.arange(rows),
            group=torch.arange(rows) // 4,
            reward=success.float() + 0.1 * torch.arange(rows),
            success=success,
            temperature=torch.where(torch.arange(rows) < 3, 1.0, 0.7),
            teacher_mask=torch.zeros(1, rows, length, dtype=torch.bool),
            teacher_logp=zeros[None],
        )
        texts = [tokens[row, : lengths[row]] for row in range(rows)]
        wheres = [mask[row].nonzero()[:, 0] for row in range(rows)]
        heat = batch.temperature.tolist()
        with torch.no_grad():
            own = score_tokens(student, texts, wheres, k=k, entropy=True, temperature=heat)
            logp = _padded(batch, [score.logp for score in own])
            noise = 0.3 * torch.randn(rows, length, generator=generator) * mask
            batch = replace(
                batch,
                proximal_logp=logp,
                behaviour_logp=logp + noise,
                proximal_entropy=_padded(batch, [score.entropy for score in own]),
                support_ids=_padded(batch, [score.ids for score in own]),
                proximal_support_logp=_padded(batch, [score.ids_logp for score in own]),
                proximal_rest_logp=_padded(batch, [score.rest_logp for score in own]),
            )
            if teacher is None:
                return batch
            ids = [score.ids for score in own]
            told = score_tokens(teacher, texts, wheres, ids=ids, entropy=True, temperature=heat)
        taught = mask & (torch.arange(rows) % 4 != 3)[:, None]
        return replace(
            batch,
            teacher_mask=taught[None],
            teacher_logp=_padded(batch, [score.logp for score in told])[None],
            teacher_entropy=_padded(batch, [score.entropy for score in told])[None],
            teacher_support_logp=_padded(batch, [score.ids_logp for score in told])[None],
            teacher_rest_logp=_padded(batch, [score.rest_logp for score in told])[None],
        )

    return make


class Hand:
    """A batch small enough to work out by hand: two rows of one group; row 0 won with two tokens, row 1 lost with
    one.
    """

    def batch(self, **changes) -> TokenBatch:
        zeros = torch.zeros(2, 3)
        fields = {
            "tokens": torch.zeros(2, 3, dtype=torch.long),
            "mask": torch.tensor([[False, True, True], [False, True, False]]),
            "turn": torch.zeros(2, 3, dtype=torch.long),
            "turn_reward": zeros,
            "behaviour_logp": zeros,
            "proximal_logp": zeros,
            "episode": torch.tensor([0, 1]),
            "group": torch.tensor([0, 0]),
            "reward": torch.tensor([1.0, 0.0]),
            "success": torch.tensor([True, False]),
            "temperature": torch.ones(2),
            "teacher_mask": torch.tensor([[[False, True, True], [False, True, False]]]),
            "teacher_logp": zeros[None],
        }
        return TokenBatch(**{**fields, **changes})

    def student(self, logp, support=None, rest=None) -> Student:
        return Student(logp=logp, support_logp=support, rest_logp=rest)

    def total(self, terms) -> torch.Tensor:
        return sum((term.weight * term.aggregate(term.value, term.mask) for term in terms), torch.zeros(()))

    def episode(self, reward: float):
        return SimpleNamespace(reward=reward)


@pytest.fixture(scope="session")
def hand() -> Hand:
    return Hand()


@pytest.fixture(scope="session")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that solves one family now and then; `init` two folders up is the same without training."""
    small = {"traces": {"tasks": 60, "per_task": 3, "skill": 0.5}, "steps": 40, "prompts": 16, "checkpoint_every": 40}
    family = {"env_args": {"families": ["delete"]}}
    config = resolve({**preset("sft", "tiny"), **family, **small, "threads": 1})
    return train(Run.create(tmp_path_factory.mktemp("cold") / "run", config))
