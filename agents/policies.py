"""Who plays: from a name on the command line to a policy.

gold, null, random      the scripts of `retort.agents.scripted`
script:MODULE:NAME      a script of one's own: NAME(env) gives a function (observation, turn, rng) -> action
openai:URL#NAME         a model behind an OpenAI-compatible endpoint
FOLDER, or NAME         a checkpoint, or a model by its Hugging Face name
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from retort.agents import scripted
from retort.agents.base import Policy
from retort.agents.chat import Chat
from retort.agents.lookup import SCRIPTS, look_up
from retort.envs.base import UsageError, nearest
from retort.envs.raised import is_missing


@dataclass(frozen=True)
class Player:
    """A policy and its chat.

    context: how many tokens its model can read, where that is known. bounded: a limit on an action's tokens means
    something to it. counted: the ids of its chat are the tokens that it reads. close: frees what it holds.
    """

    policy: Policy
    chat: Chat
    context: int | None = None
    bounded: bool = True
    counted: bool = True
    close: Callable[[], object] = tuple  # nothing to free


def load_player(model: str, arguments: Mapping[str, Any] | None = None) -> Player:
    """The player of that name. arguments: `device` and `dtype` of a model in this process, or `engine` (as in
    `retort.agents.engines`) and what that takes; or what `retort.agents.openai.Endpoint` takes.

    Raises:
        UsageError: there is none of that name, or an argument that it does not take.
        FileNotFoundError: a model folder without a tokenizer.
    """
    given = dict(arguments or {})
    prefix, colon, rest = model.partition(":")
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix](rest, given)
    return _built_in(model, given) if model in SCRIPTS else _model(model, given)


def _built_in(name: str, given: Mapping[str, Any]) -> Player:
    refuse_unknown(given, (), name)
    chat = scripted.byte_chat()
    return Player(getattr(scripted, name)(chat), chat, bounded=False, counted=False)


def _own_script(path: str, given: Mapping[str, Any]) -> Player:
    refuse_unknown(given, (), "a script")
    module, _, name = path.rpartition(":")
    where = f"model script:{path}: expected script:MODULE:NAME"
    if not module or module.startswith("."):
        raise UsageError(f"{where}, such as script:my_agent:play")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not is_missing(module, error):
            raise
        raise UsageError(f"{where}: {error}") from error
    if not callable(script := getattr(found, name, None)):
        offered = [key for key, value in vars(found).items() if getattr(value, "__module__", None) == module]
        raise UsageError(f"{where} with a function of that name in {module}; {nearest(name, offered)}")
    chat = scripted.byte_chat()
    policy = scripted.ScriptedPolicy(script, chat, name=f"script:{path}", threads=256)
    return Player(policy, chat, bounded=False, counted=False)


def _endpoint(path: str, given: Mapping[str, Any]) -> Player:
    from retort.agents.openai import Endpoint, OpenAIPolicy

    refuse_unknown(given, (item.name for item in fields(Endpoint) if item.name not in ("url", "model")), "an endpoint")
    url, _, name = path.partition("#")
    chat = scripted.byte_chat()
    return Player(OpenAIPolicy(Endpoint(url, name, **given), chat), chat, counted=False)


def _model(model: str, given: Mapping[str, Any]) -> Player:
    look_up(model)
    given = dict(given)
    if (engine := given.pop("engine", "hf")) != "hf":
        return _apart(model, engine, given)
    refuse_unknown(given, ("device", "dtype"), "a model in this process")
    from retort.agents.hf import HFPolicy
    from safetensors import SafetensorError

    try:
        loaded = HFPolicy.load(model, barrier=False, **{"device": "auto", **given})
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"model {model!r} cannot be loaded: {error}") from error
    config = loaded.model.config.get_text_config()
    return Player(loaded, loaded.chat, context=getattr(config, "max_position_embeddings", None))


def _apart(model: str, engine: str, given: Mapping[str, Any]) -> Player:
    from retort.agents.engines import make_engine

    chat = Chat.load(model)
    rest = dict(given)
    dtype = rest.pop("dtype", "auto") if engine == "vllm" else "auto"  # a server has one of its own
    made = make_engine(engine, model, chat, dtype=dtype, follows=False, arguments=rest)
    return Player(made, chat, context=made.context, close=made.close)


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], who: str) -> None:
    """Raises UsageError for an argument that `who` does not take, with the nearest one."""
    names = list(known)
    for key in given:
        if key not in names:
            raise UsageError(f"{who} takes no argument {key!r}; {nearest(key, names) if names else 'it takes none'}")


PREFIXES: dict[str, Callable[[str, Mapping[str, Any]], Player]] = {"script": _own_script, "openai": _endpoint}
