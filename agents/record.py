"""What stands beside numbers in a folder: versions and host, in files that are whole or not there."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("retort-rl", "torch", "transformers", "tokenizers", "renderers", "gymnasium", "numpy")


def manifest() -> dict[str, Any]:
    """Versions and host: what numbers depend on beside their configuration."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": {"machine": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside the file's place and renames into it."""
    fresh = path.with_name(f".{path.name}.partial")
    fresh.write_bytes(data)
    fresh.replace(path)
