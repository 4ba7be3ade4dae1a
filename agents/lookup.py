"""Whether a model's name leads anywhere: found out at once, before anything is loaded.

A name that looks like a path is a folder here and is asked for nowhere else. Any other is asked for at the Hugging Face
hub: once, without the minutes of retries that its loaders begin with.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from retort.envs.base import UsageError

SCRIPTS = ("gold", "null", "random")
PREFIXED = ("openai:", "script:")
TO_TRAIN = "tiny, a checkpoint folder or a Hugging Face name"
TO_PLAY = (
    "gold, null, random, a checkpoint folder, a Hugging Face name, openai:URL#NAME for a model behind an endpoint or "
    "script:MODULE:NAME"
)
DESCRIPTIONS = ("config.json", "adapter_config.json")
PLACES = ("*", "checkpoints/step-*", "*/checkpoints/step-*", "*/*/checkpoints/step-*")  # of models below a folder
TIMEOUT_S = 10.0


def look_up(model: str, *, trains: bool = False) -> None:
    """Returns where a model of that name can be loaded: from a folder, from the hub, or offline from its cache.

    trains: it is to be trained, not to be played: errors name what can be.

    Raises:
        UsageError: it cannot, with the reason in one line and the nearest that can.
    """
    folder, names = Path(model), ("tiny",) if trains else SCRIPTS
    if folder.is_dir():
        if not _is_model(folder):
            inside = newest(folder)
            advice = f"; did you mean {inside}?" if inside != folder else ""
            raise UsageError(f"{model}: expected a model folder with config.json, found none{advice}")
    elif model in SCRIPTS or model.startswith(PREFIXED):
        raise UsageError(f"{model} plays and cannot be trained: expected {TO_TRAIN}")
    elif model == "tiny":
        raise UsageError("tiny is a model without training: `retort train sft` gives it some; evaluate its checkpoint")
    elif is_path(model):
        what = "a file" if folder.exists() else "nothing"
        where = Path(os.path.abspath(folder.expanduser()))
        found = f"found {what} at {where}; {_nearest(where)}"
        raise UsageError(f"model {model!r}: expected a checkpoint folder with config.json, {found}")
    elif "/" not in model and (close := get_close_matches(model, names)):
        raise UsageError(f"unknown model {model!r}; did you mean {close[0]!r}? {_expected(trains)}")
    else:
        _ask_the_hub(model, trains)


def is_path(model: str) -> bool:
    """Whether a name can only mean a folder: the hub's are NAME or OWNER/NAME, and OWNER is no folder here."""
    first, slash, rest = model.partition("/")
    return model.startswith((".", "/", "~")) or "/" in rest or bool(slash and Path(first).is_dir())


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run's folder, or the folder itself where it has none."""
    return max(folder.glob("checkpoints/step-*"), default=folder)


def _expected(trains: bool) -> str:
    return f"expected {TO_TRAIN if trains else TO_PLAY}"


def _is_model(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in DESCRIPTIONS)  # also where one may not look


@cache
def _ask_the_hub(model: str, trains: bool) -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    cause: Exception | None = None
    try:
        if not constants.is_offline_mode():
            HfApi().model_info(model, timeout=TIMEOUT_S)
            return
        if _is_cached(model):
            return
        trouble = "HF_HUB_OFFLINE is set, and it is not cached"
    except (HFValidationError, RepositoryNotFoundError) as error:
        near = f"{_alike(model, trains)}; {_expected(trains)}"
        raise UsageError(f"unknown model {model!r}: no folder here, and none at the hub{near}") from error
    except Exception as error:  # whatever the hub's client is built on has errors of its own
        trouble, cause = f"offline? {str(error).splitlines()[0] if str(error) else type(error).__name__}", error
        if _is_cached(model):
            trouble += "; it is in the cache: set HF_HUB_OFFLINE=1"
    raise UsageError(
        f"model {model!r}: no folder of this name is here, and the Hugging Face hub ({constants.ENDPOINT}) cannot be "
        f"asked for it ({trouble}){_alike(model, trains)}; {_expected(trains)}"
    ) from cause


def _is_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(model, name), str) for name in DESCRIPTIONS)


def _alike(model: str, trains: bool) -> str:
    """The nearest of the models in this folder and in the hub's cache; else, to play, how an endpoint is named."""
    from huggingface_hub import constants

    here = Path.cwd()
    known = {name: f"./{path.relative_to(here)}" for name, path in _models(here).items()}
    cached = ("/".join(path.name.split("--")[1:]) for path in Path(constants.HF_HUB_CACHE).glob("models--*"))
    known |= {name: name for name in cached}
    if close := get_close_matches(model, known, n=1):
        return f"; did you mean {known[close[0]]!r}?"
    return "" if trains else f"; behind an endpoint it is openai:URL#{model}"


def _nearest(where: Path) -> str:
    """Half a sentence on the likeliest model near a path that leads to none: below the last of its folders."""
    folder, asked = where.parent, where.name
    while not folder.is_dir():
        folder, asked = folder.parent, folder.name
    models = _models(folder)
    close = get_close_matches(asked, models, n=1, cutoff=0.0)
    return f"nearest: {models[close[0]]}" if close else f"there is no model in {folder} either"


def _models(folder: Path) -> dict[str, Path]:
    """The newest model below each thing in a folder, by the thing's name."""
    places = PLACES if folder.name else PLACES[:1]  # not below the root, where nobody keeps a run
    found = [path for place in places for path in folder.glob(place) if _is_model(path)]
    ordered = sorted(found, key=lambda path: (-len(path.parts), path))  # a run's own come after its cold start's
    return {name: path for path in ordered if not (name := path.relative_to(folder).parts[0]).startswith(".")}
