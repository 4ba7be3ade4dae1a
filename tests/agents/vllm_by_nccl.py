"""New weights over a group of learner and server: run by `test_vllm_in_process.py` with the interpreter that has vLLM.

Without a GPU the store of the group carries the tensors, one by one; see `conftest.py`.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import retort_store  # type: ignore[import-not-found]  # of the folder that the server has too
import torch
from peft import LoraConfig, get_peft_model  # type: ignore[attr-defined, unused-ignore]
from retort.agents import nccl
from retort.agents.base import EngineError, Prompt, Sampling
from retort.agents.chat import Chat
from retort.agents.hf import load_model
from retort.agents.scoring import score_tokens
from retort.agents.vllm_http import VLLMServers
from retort.agents.vllm_server import Serving
from vllm.distributed.weight_transfer import nccl_engine

URL, FOLDER = os.environ["RETORT_SERVER"], os.environ["RETORT_FOLDER"]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    retort_store.put()
    monkeypatch.setattr(nccl, "check", lambda: None)
    monkeypatch.setattr(nccl_engine, "NCCLTrainerInitInfo", partial(nccl_engine.NCCLTrainerInitInfo, packed=False))


@pytest.fixture
def engine(tmp_path: Path) -> VLLMServers:
    options = Serving(shared=str(tmp_path / "shared"), transfer="nccl", timeout_s=60)
    return VLLMServers([URL], Chat.load(FOLDER), name="tiny", expected=FOLDER, options=options)


def apart(engine: VLLMServers, model: torch.nn.Module, version: int) -> float:
    asked = engine.chat.prompt([{"role": "user", "content": "say 3 and then done"}])

    async def one() -> tuple[list[int], list[float], set[int]]:
        sampling = Sampling(max_new_tokens=60)
        done = await engine.generate(Prompt(tuple(asked), ()), sampling, episode="0", seed=version)
        return [*asked, *done.token_ids], list(done.logp), set(done.versions)

    ids, logp, versions = asyncio.run(one())
    assert versions == {version}
    with torch.no_grad():
        own = score_tokens(model, [ids], [range(len(asked), len(ids))])[0].logp.numpy()
    return float(np.abs(own - np.asarray(logp)).max())


def test_each_update_goes_over_and_no_file_is_written(engine: VLLMServers, tmp_path: Path) -> None:
    model = load_model(FOLDER)
    for version in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        engine.update(model, version)
        assert apart(engine, model, version) < 1e-3
    assert not (tmp_path / "shared").exists()
    # A server that was gone has lost its group: it gets this version by path, and the next over another one.
    engine.servers[0].usable = False
    assert apart(engine, model, 3) < 1e-3
    assert [item.name for item in (tmp_path / "shared").iterdir()] == ["version-3"]
    engine.update(model, 4)
    assert apart(engine, model, 4) < 1e-3
    assert not list((tmp_path / "shared").iterdir())


def test_merged_weights_are_what_was_announced() -> None:
    layout = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
    source = nccl._Source(get_peft_model(load_model(FOLDER), layout))
    meta = source.metadata()
    checked = nccl_engine.NCCLTrainerWeightTransferEngine._checked_iter
    assert [name for name, _ in checked(source, meta)] == [item.name for item in meta]
    with pytest.raises(ValueError, match="disagrees"):
        list(checked(source, meta[::-1]))


def test_a_server_that_refuses_says_so(engine: VLLMServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "_address", lambda url: "127.0.0.1")
    with pytest.raises(EngineError, match="rank_offset"), nccl._told(engine.servers[0]):
        nccl._Client(engine.servers[0]).init_weight_transfer_engine({"world_size": 2})
