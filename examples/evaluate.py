"""Evaluate an agent on unseen tasks from Python: what `retort eval` does.

python examples/evaluate.py [MODEL] [LIMIT] [FOLDER]
"""

import sys
from pathlib import Path

from retort.agents.evaluate import evaluate
from rich import print

from retort.progress import Bars, report_table

model = sys.argv[1] if len(sys.argv) > 1 else "gold"
limit = int(sys.argv[2]) if len(sys.argv) > 2 else 100
folder = Path(sys.argv[3]) if len(sys.argv) > 3 else None  # keeps every episode; without it nothing is written

with Bars() as bars:
    report = evaluate("retort/Shell-v0", model, split="test", limit=limit, out=folder, watch=bars)
print(report_table(report, model))
