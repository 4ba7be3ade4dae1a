"""The peers' side of benchmarks/conformance.py, run in a virtual environment of its own.

Reads what to compute from one file and writes values and gradients to another: (function, inputs, names to
differentiate for) becomes [value, gradient, ...].
"""

import os
import sys
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from areal.api.cli_args import RejectionSamplingConfig
from areal.utils.functional.functional import ppo_actor_loss_fn
from sdpo_rl.distillation import top_k_kl_divergence
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer
from trl.experimental.sdpo import loss_utils
from trl.trainer.grpo_trainer import GRPOTrainer
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import ActorConfig


def gkd(given):
    return GKDTrainer.generalized_jsd_loss(given["student"], given["teacher"], beta=given["beta"], reduction="sum")


def sdpo_topk(given):
    return loss_utils.compute_topk_self_distillation_loss(
        given["student"],
        given["teacher"],
        distillation_topk=given["k"],
        distillation_alpha=given["alpha"],
        distillation_add_tail=given["rest"] == "tail",
    )


def sdpo_full(given):
    return loss_utils.compute_full_logit_self_distillation_loss(
        given["student"], given["teacher"], distillation_alpha=given["alpha"]
    )


def sdpo_rl(given):
    student, teacher = given["student"].log_softmax(-1), given["teacher"].log_softmax(-1)
    ids = student.topk(given["k"]).indices
    return top_k_kl_divergence(student.gather(-1, ids), teacher.gather(-1, ids), alpha=given["alpha"], add_tail=True)


def iw_opd(given):
    return IWOPDTrainer.generalized_jsd_loss(
        given["student"], given["teacher"], beta=given["alpha"], top_k=given["k"], add_tail=True, reduction="sum"
    )


def sdpo_clip(given):
    return loss_utils.apply_importance_sampling_clipping(given["loss"], given["logp"], given["old"], given["high"])


class Metrics(dict):
    """Takes in whatever is logged."""

    def __missing__(self, key):
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def trl_loss(given):
    """`_compute_loss` on a stand-in for the trainer that knows the log-probs already."""
    rows, width = given["mask"].shape
    own = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (given["logp"], torch.zeros_like(given["logp"]), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=given.get("level", "token"),
        beta=0.0,
        epsilon_low=given.get("clip_low", 0.2),
        epsilon_high=given.get("clip_high", given.get("high")),
        loss_type=given["type"],
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, *_, **__: x),
        _metrics=Metrics(),
    )
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, width, dtype=torch.long),
        "completion_mask": given["mask"].long(),
        "advantages": given["advantage"],
        "old_per_token_logps": given["old"],
        "num_items_in_batch": given["mask"].sum(),
    }
    return GRPOTrainer._compute_loss(own, None, inputs)


def verl_ppo(given):
    return core_algos.compute_policy_loss(
        given["old"],
        given["logp"],
        given["advantage"],
        given["mask"].to(given["logp"].dtype),
        cliprange_low=given["clip_low"],
        cliprange_high=given["clip_high"],
        clip_ratio_c=given["dual_clip"],
        loss_agg_mode="token-mean",
    )[0]


MODES = {"token_mean": "token-mean", "sequence_mean": "seq-mean-token-mean"}


def verl_named(given):
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=0.2,
        clip_ratio_low=given["clip_low"],
        clip_ratio_high=given["clip_high"],
    )
    function = {"gspo": core_algos.compute_policy_loss_gspo, "cispo": core_algos.compute_policy_loss_cispo}
    mask = given["mask"].to(given["logp"].dtype)
    arguments = (given["old"], given["logp"], given["advantage"], mask)
    return function[given["which"]](*arguments, loss_agg_mode=MODES[given["fold"]], config=config)[0]


def verl_fold(given):
    mask = given["mask"].to(given["loss"].dtype)
    return core_algos.agg_loss(given["loss"], mask, given["mode"], loss_scale_factor=16)


def verl_kl(given):
    return core_algos.kl_penalty(given["logp"], given["reference"], given["kind"])


def verl_advantage(given):
    mask = given["mask"].to(given["reward"].dtype)
    rewards = torch.zeros_like(given["old"])
    rewards[:, 0] = given["reward"]
    return core_algos.compute_grpo_outcome_advantage(
        rewards,
        mask,
        given["group"].numpy(),
        epsilon=given["eps"],
        norm_adv_by_std_in_grpo=given["scale"] == "group",
    )[0]


def verl_weights(given):
    found, _ = compute_rollout_correction_weights(
        given["old"] - given["behaviour"],
        given["mask"].to(given["old"].dtype),
        rollout_is=given["rollout_is"],
        rollout_is_threshold=given["threshold"],
    )
    return found.masked_fill(~given["mask"], 0)


def areal(given):
    config = RejectionSamplingConfig(level="token", action=given["action"], metric="ratio", upper=given["high"])
    return ppo_actor_loss_fn(
        given["logp"],
        given["old"],
        given["behaviour"],
        given["advantage"],
        0.2,
        given["mask"],
        rejection_sampling=config,
    )[0]


answers = []
for function, given, slopes in torch.load(sys.argv[1]):
    leaves = {name: given[name].clone().requires_grad_() for name in slopes}
    value = globals()[function]({**given, **leaves})
    if not slopes:
        answers.append([value.detach()])
        continue
    found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    kept = [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves.values(), strict=True)]
    answers.append([value.detach(), *kept])
torch.save(answers, sys.argv[2])
