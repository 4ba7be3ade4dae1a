"""Train the tiny agent on retort/Shell-v0 from Python: what `retort train srpo` does.

python examples/train_shell.py [--model M] [--out FOLDER] [key=value ...]
"""

import argparse
from pathlib import Path

from retort.algos.config import preset, resolve
from retort.algos.launch import launch
from rich import print

from retort.progress import Bars, train_table

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="tiny", help="a checkpoint; tiny is cold-started first")
parser.add_argument("--out", type=Path, default=Path("runs/example"))
parser.add_argument("settings", nargs="*", help="key=value")
arguments = parser.parse_args()

config = resolve({**preset("srpo", arguments.model), "env": "retort/Shell-v0"}, arguments.settings)
with Bars() as bars:
    run = launch(config, arguments.out, bars)
print(train_table(run))
print(f"checkpoint: {run.checkpoints()[-1]}")
