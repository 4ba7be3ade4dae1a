"""vLLM in this process: its tests run with the interpreter that has it, and count here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", ["tests/agents/vllm_in_process.py", "tests/algos/vllm_in_process.py"])
def test_the_engine_in_this_process(engine_python: str, path: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RETORT_NO_SKIPS": "1"}
    command = [engine_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
