"""The other side of benchmarks/peer.py: GRPO steps of TRL's GRPOTrainer, run in a virtual environment of its own.

Reads what to do as one line of JSON on standard input, then makes one step for every further line, and answers each
with a line of JSON. Whatever the libraries print goes to standard error.
"""

import json
import os
import resource
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
asked = json.loads(sys.stdin.readline())
tokens = 0


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def reward(completions, completion_ids, **_):
    """The same as peer.py gives; counts the tokens besides."""
    global tokens
    tokens = sum(len(ids) for ids in completion_ids)
    return [len(messages[0]["content"]) % 5 / 5 for messages in completions]


class Turns(TrainerCallback):
    """Steps when it is told to."""

    def on_step_begin(self, *_, **__):
        if not sys.stdin.readline():
            sys.exit("nobody asks any more")
        self.start = time.perf_counter(), cpu()

    def on_step_end(self, *_, **__):
        wall, spent = time.perf_counter() - self.start[0], cpu() - self.start[1]
        print(json.dumps({"wall": wall, "cpu": spent, "tokens": tokens}), file=answers, flush=True)


torch.set_num_threads(asked["threads"])
with tempfile.TemporaryDirectory() as folder:
    config = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=asked["lr"],
        lr_scheduler_type="constant",
        per_device_train_batch_size=len(asked["prompts"]) * asked["group"],
        num_generations=asked["group"],
        steps_per_generation=1,
        max_completion_length=asked["max_new_tokens"],
        temperature=1.0,
        beta=0.0,
        max_steps=asked["steps"],
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in asked["prompts"]]),
        processing_class=AutoTokenizer.from_pretrained(asked["model"]),
        callbacks=[Turns()],
    )
    trainer.train()
