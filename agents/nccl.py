"""New weights by NCCL: from the learner's GPU straight to those of a vLLM server, without a file between them.

To vLLM's own interface (`vllm.distributed.weight_transfer`, vLLM 0.32): the learner is rank 0 of a group with the
workers of a server, one group for each server, which `retort serve` starts with `--weight-transfer-config`. Learner and
server need GPUs of their own, and this interpreter needs vLLM too. A server that came back gets the newest version by
path.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch
from retort.agents import serving
from retort.agents.base import EngineError
from retort.agents.vllm_server import Server
from retort.envs.base import UsageError, needed
from torch import Tensor

INSTALL = "pip install vllm"


def check() -> None:
    """Whether weights can go this way from here.

    Raises:
        UsageError: there is no GPU, or (MissingPackage) no vLLM in this interpreter.
    """
    if not torch.cuda.is_available():
        raise UsageError("transfer=nccl goes from GPU to GPU, and the learner has none here; set transfer=path")
    needed("vllm", INSTALL)


class Wire:
    """A group of the learner and one server's workers. Made and used while the server computes nothing.

    Raises:
        EngineError: the server does not join.
    """

    def __init__(self, server: Server, model: Any) -> None:
        engine = needed("vllm.distributed.weight_transfer.nccl_engine", INSTALL)
        workers = int(server.call("GET", "/get_world_size")["world_size"])
        address = _address(server.url)
        with socket.socket() as free:
            free.bind((address, 0))
            port = free.getsockname()[1]
        client = _Client(server)
        client.shutdown()  # of a group that an earlier run left
        info = engine.NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=workers + 1)
        trainer = engine.NCCLTrainerWeightTransferEngine
        with _told(server):
            self._sender: Any = trainer.trainer_init(info, client=client, source=_Source(model))
        self._server = server

    def send(self) -> None:
        """The weights as they are; returns when all workers have them.

        Raises:
            EngineError: the server refuses them, or the line broke.
        """
        with _told(self._server):
            self._sender.send_weights()

    def close(self) -> None:
        """Leaves the group."""
        self._sender.shutdown()


class _Source:
    """A learner's weights as vLLM's `WeightSource` wants them: what will come, and then each in that order."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def metadata(self) -> list[Any]:
        meta = needed("vllm.distributed.weight_transfer.base", INSTALL).ParamMeta
        weights = serving.served(self._model, merged=False)
        return [meta(name, value.dtype, tuple(value.shape)) for name, value in weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return serving.served(self._model)


class _Client:
    """vLLM's `VLLMWeightSyncClient`: what a sender has a server do."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._server.call("POST", "/init_weight_transfer_engine", json={"init_info": init_info})

    def start_weight_update(self) -> None:
        self._server.call("POST", "/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._server.call("POST", "/update_weights", json={"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        told = None if weight_version is None else {"weight_version": weight_version}
        self._server.call("POST", "/finish_weight_update", json=told)

    def shutdown(self) -> None:
        self._server.call("POST", "/shutdown_weight_transfer_engine")


@contextmanager
def _told(server: Server) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"{server.url}: new weights by NCCL: {type(error).__name__}: {error}") from error


def _address(url: str) -> str:
    """What the machine of a server knows this one by."""
    place = urlsplit(url)
    default = 443 if place.scheme == "https" else 80
    with socket.create_connection((place.hostname or "", place.port or default), timeout=10) as line:
        return str(line.getsockname()[0])
