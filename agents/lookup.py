"""Whether a model's name leads anywhere: found out at once, before anything is loaded.

A name that looks like a path is a folder here and is asked for nowhere else. Any other is asked for at the Hugging Face
hub: once, without the minutes of retries that its loaders begin with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from retort.envs.base import UsageError

SCRIPTS = ("gold", "null", "random")
PREFIXED = ("openai:", "script:")
FORMS = (
    "gold, null, random, tiny (to train), a checkpoint folder, a Hugging Face name, openai:URL#NAME or "
    "script:MODULE:NAME"
)
DESCRIPTIONS = ("config.json", "adapter_config.json")
TIMEOUT_S = 10.0


def look_up(model: str) -> None:
    """Returns where a model of that name can be loaded: from a folder, from the hub, or offline from its cache.

    Raises:
        UsageError: it cannot, with the reason in one line and the nearest folder.
    """
    folder = Path(model)
    if folder.is_dir():
        if not any((folder / name).exists() for name in DESCRIPTIONS):
            inside = newest(folder)
            advice = f"; did you mean {inside}?" if inside != folder else ""
            raise UsageError(f"{model}: expected a model folder with config.json, found none{advice}")
    elif model in SCRIPTS or model.startswith(PREFIXED):
        raise UsageError(
            f"{model} plays and cannot be trained: expected tiny, a checkpoint folder or a Hugging Face name"
        )
    elif model == "tiny":
        raise UsageError("tiny is a model without training: `retort train sft` gives it some; evaluate its checkpoint")
    elif is_path(model):
        what = "a file" if folder.exists() else "nothing"
        where = Path(os.path.abspath(folder.expanduser()))
        raise UsageError(f"model {model!r}: expected a checkpoint folder, found {what} at {where}; {_nearest(where)}")
    elif "/" not in model and (close := get_close_matches(model, (*SCRIPTS, "tiny"))):
        raise UsageError(f"unknown model {model!r}; did you mean {close[0]!r}? expected {FORMS}")
    else:
        _ask_the_hub(model)


def is_path(model: str) -> bool:
    """Whether a name can only mean a folder: the hub's are NAME or OWNER/NAME, and OWNER is no folder here."""
    first, slash, rest = model.partition("/")
    return model.startswith((".", "/", "~")) or "/" in rest or bool(slash and Path(first).is_dir())


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run's folder, or the folder itself where it has none."""
    return max(folder.glob("checkpoints/step-*"), default=folder)


@cache
def _ask_the_hub(model: str) -> None:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        cached = any(isinstance(try_to_load_from_cache(model, name), str) for name in DESCRIPTIONS)
        if constants.is_offline_mode():
            if not cached:
                raise UsageError(
                    f"unknown model {model!r}: HF_HUB_OFFLINE is set, and it is not cached; expected {FORMS}"
                )
            return
        HfApi().model_info(model, timeout=TIMEOUT_S)
    except UsageError:
        raise
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UsageError(f"unknown model {model!r}: no folder here, and none at the hub; expected {FORMS}") from error
    except Exception as error:  # whatever the hub's client is built on has errors of its own
        advice = "it is in the cache: set HF_HUB_OFFLINE=1" if cached else f"expected {FORMS}"
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"model {model!r}: no folder here, and the Hugging Face hub ({constants.ENDPOINT}) cannot be asked for it "
            f"({said}); {advice}"
        ) from error


def _nearest(where: Path) -> str:
    """What is there instead of a folder: the likeliest of those beside it, or beside the first part that is missing."""
    if where.exists():
        return f"nearest: {newest(where if where.is_dir() else where.parent)}"
    missing = where
    while not missing.parent.exists():
        missing = missing.parent
    beside = {path.name: path for path in _folders(missing.parent)}
    if not beside:
        return f"nearest: {missing.parent}, which has no folders"
    close = get_close_matches(missing.name, beside, n=1, cutoff=0.0)
    return f"nearest: {newest(beside[close[0]])}"


def _folders(parent: Path) -> Iterator[Path]:
    return (path for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith("."))
