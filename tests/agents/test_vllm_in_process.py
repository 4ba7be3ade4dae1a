"""vLLM in this process: its tests run with the interpreter that has it, and count here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# In this order: the last ones put something in the place of NCCL.
FILES = ["tests/agents/vllm_in_process.py", "tests/algos/vllm_in_process.py", "tests/agents/vllm_by_nccl.py"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_engine_in_this_process(engine_python: str, server: Any, folder: Path) -> None:
    """In one process, since it takes long to start; the server gets ready meanwhile."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RETORT_NO_SKIPS": "1", "PYTHONPATH": str(server.plugin)}
    environment |= {"RETORT_SERVER": server.url, "RETORT_FOLDER": str(folder)}
    command = [engine_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
