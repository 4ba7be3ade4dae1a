"""Our losses beside those of TRL, verl, AReaL and sdpo_rl on the same random tensors: values and gradients.

Usage: python benchmarks/conformance.py [--venv FOLDER] [--write docs/conformance.md]      (make conformance)

The peers live in a virtual environment of their own, which this script makes (about 1 GB), and are called there by
conformance_peers.py in one process. A check is a table entry: how its inputs are drawn, and what we answer to them.
Exits with 1 where a difference is above its bound.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from retort.algos import advantages, aggregate, divergences, sdpo, surrogates
from torch import Tensor

HERE = Path(__file__).parent
PEERS = ("trl==1.16.0", "torch==2.13.0")
BARE = ("verl==0.9.1", "areal==1.0.4", "sdpo_rl==0.0.3")  # their dependencies are engines that nothing here needs
SHAPES = ((2, 3, 7), (4, 9, 33))
SEEDS = range(3)
BOUND = {torch.float32: 2e-5, torch.float64: 1e-9}
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """ours: from the inputs to a tensor, compared entry by entry where the peer returns one of this shape, else by its
    sum, which is also what is differentiated for each input in `slopes`.

    peer: the function's name in conformance_peers.py. of: the peer's own callable. note: what the table adds.
    bound: in float32, where the peer itself is less exact; there 1e-7 will do in float64.
    """

    peer: str
    of: str
    ours: Callable[[Inputs], Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    slopes: Sequence[str] = ("logp",)
    note: str = ""
    bound: float = 0.0


def drawn(shape: tuple[int, int, int], dtype: torch.dtype, seed: int) -> Inputs:
    """Everything that any check reads: rows of unlike length in groups of two, as after a few updates."""
    generator = torch.Generator().manual_seed(seed)
    b, t, v = shape

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(dtype)

    old = normal(b, t) - 2
    lengths = torch.randint(1, t + 1, (b,), generator=generator)
    return {
        "student": 2 * normal(b, t, v),
        "teacher": 2 * normal(b, t, v),
        "logp": old + normal(b, t, scale=0.3),
        "old": old,
        "behaviour": old + normal(b, t, scale=0.5),
        "reference": old + normal(b, t, scale=0.5),
        "advantage": normal(b, 1).expand(b, t).contiguous(),
        "reward": normal(b).round(decimals=1),
        "group": torch.arange(b) // 2,
        "loss": normal(b, t),
        "mask": torch.arange(t) < lengths[:, None],
    }


def _jsd(given: Inputs) -> Tensor:
    return divergences.jsd(given["student"].log_softmax(-1), given["teacher"].log_softmax(-1), given["beta"])


def _topk(given: Inputs) -> Tensor:
    s, t = given["student"].log_softmax(-1), given["teacher"].log_softmax(-1)
    ids = (t if given.get("by_teacher") else s).topk(given["k"]).indices
    rest = given["rest"]
    return divergences.jsd(
        divergences.restrict(s, ids, rest=rest), divergences.restrict(t, ids, rest=rest), given["alpha"]
    )


def _token_divergence(given: Inputs) -> Tensor:
    asked = {key: given[key] for key in ("k", "alpha", "rest")}
    return sdpo.token_divergence(given["student"], given["teacher"], **asked)


def _ratio_clip(given: Inputs) -> Tensor:
    weight = surrogates.importance(given["logp"], given["old"], torch.ones_like(given["mask"]), high=given["high"])
    return given["loss"] * weight


def _ppo(given: Inputs) -> Tensor:
    names = ("clip_low", "clip_high", "dual_clip")
    value = surrogates.ppo(
        given["logp"], given["old"], given["advantage"], **{name: given[name] for name in names if name in given}
    )
    return _folded(value, given)


def _gspo(given: Inputs) -> Tensor:
    ratio = surrogates.sequence_ratio(given["logp"], given["old"], given["mask"])
    clips = {"clip_low": given["clip_low"], "clip_high": given["clip_high"]}
    return _folded(surrogates.clipped(ratio, given["advantage"], **clips), given)


def _cispo(given: Inputs) -> Tensor:
    value = surrogates.cispo(given["logp"], given["old"], given["advantage"], low=given["low"], high=given["high"])
    return _folded(value, given)


def _decoupled(given: Inputs) -> Tensor:
    value = surrogates.ppo(given["logp"], given["old"], given["advantage"])
    bounds = {"low": given.get("low", 0.0), "high": given["high"], "outside": given["outside"]}
    return _folded(value * surrogates.importance(given["old"], given["behaviour"], given["mask"], **bounds), given)


def _weights(given: Inputs) -> Tensor:
    names = ("low", "high", "outside", "level")
    asked = {name: given[name] for name in names if name in given}
    return surrogates.importance(given["old"], given["behaviour"], given["mask"], **asked).masked_fill(
        ~given["mask"], 0
    )


FOLDS: dict[str, Callable[..., Tensor]] = {
    "token_mean": aggregate.token_mean,
    "sequence_mean": aggregate.sequence_mean,
    "sequence_sum": aggregate.sequence_sum,
    "dr_grpo": partial(aggregate.dr_grpo, length=16),
}


def _folded(value: Tensor, given: Inputs) -> Tensor:
    return FOLDS[given["fold"]](value, given["mask"])


def _fold(given: Inputs) -> Tensor:
    return _folded(given["loss"], given)


def _advantages(given: Inputs) -> Tensor:
    a = advantages.group_relative(given["reward"], given["group"], scale=given["scale"], eps=given["eps"])
    return a.unsqueeze(-1) * given["mask"]


def _estimator(given: Inputs) -> Tensor:
    kinds = {"k1": lambda s, t: s - t, "k2": divergences.k2, "k3": divergences.k3}
    s, t = given["logp"], given["reference"]
    value: Tensor = kinds[given["kind"].rstrip("+")](s, t)
    return divergences.straight_through(value, divergences.k2(s, t)) if given["kind"].endswith("+") else value


BOTH = ("student", "teacher")
GKD, LOSS = "trl GKDTrainer.generalized_jsd_loss", "trl GRPOTrainer._compute_loss"
SDPO, CORE = "trl experimental.sdpo.loss_utils", "verl core_algos"
CLIPS = {"clip_low": 0.2, "clip_high": 0.28}
TAIL = "the peer's tail is 1 less the captured mass, which float32 holds to about 1e-7"
EPS = "the peer adds 1e-8 to the count"
HALVES = "the peer counts in float32"

CHECKS: dict[str, Check] = {
    **{
        f"divergences.jsd, beta {beta:g}": Check("gkd", GKD, _jsd, {"beta": beta}, BOTH)
        for beta in (0.0, 0.1, 0.5, 0.9, 1.0)
    },
    **{
        f"sdpo.token_divergence, k 5, alpha {alpha:g}, {rest}": Check(
            "sdpo_topk", f"{SDPO}.compute_topk_self_distillation_loss", _token_divergence,
            {"k": 5, "alpha": alpha, "rest": rest}, ("student",), TAIL if rest == "tail" else "", 1e-3,
        )
        for alpha in (0.0, 0.5, 1.0)
        for rest in ("tail", "renormalise")
    },
    **{
        f"sdpo.token_divergence, k = V, alpha {alpha:g}": Check(
            "sdpo_full", f"{SDPO}.compute_full_logit_self_distillation_loss", _token_divergence,
            {"k": 1 << 20, "alpha": alpha, "rest": "tail"}, ("student",),
        )
        for alpha in (0.0, 0.5, 1.0)
    },
    **{
        f"restrict and jsd, k 5, alpha {alpha:g}": Check(
            "sdpo_rl", "sdpo_rl.distillation.top_k_kl_divergence", _topk,
            {"k": 5, "alpha": alpha, "rest": "tail"}, BOTH, TAIL, 1e-3,
        )
        for alpha in (0.0, 0.5, 1.0)
    },
    "restrict and jsd, student's top 5, reverse": Check(
        "iw_opd", "trl IWOPDTrainer.generalized_jsd_loss", _topk,
        {"k": 5, "alpha": 1.0, "rest": "tail"}, BOTH, TAIL, 1e-3,
    ),
    "restrict and jsd, teacher's top 5, forward": Check(
        "iw_opd", "trl IWOPDTrainer.generalized_jsd_loss", _topk,
        {"k": 5, "alpha": 0.0, "rest": "tail", "by_teacher": True}, BOTH, TAIL, 1e-3,
    ),
    "surrogates.importance as SDPO's clip": Check(
        "sdpo_clip", f"{SDPO}.apply_importance_sampling_clipping", _ratio_clip, {"high": 2.0}, ("loss",)
    ),
    "ppo, sequence_mean": Check("trl_loss", f"{LOSS}, grpo", _ppo, {**CLIPS, "fold": "sequence_mean", "type": "grpo"}),
    "ppo, token_mean": Check("trl_loss", f"{LOSS}, bnpo", _ppo, {**CLIPS, "fold": "token_mean", "type": "bnpo"}),
    "ppo, token_mean, global": Check("trl_loss", f"{LOSS}, dapo", _ppo, {**CLIPS, "fold": "token_mean", "type":
    "dapo"}), "ppo, dr_grpo": Check("trl_loss", f"{LOSS}, dr_grpo", _ppo, {**CLIPS, "fold": "dr_grpo", "type":
    "dr_grpo"}), "gspo": Check(
        "trl_loss", f"{LOSS}, sequence level", _gspo, {**CLIPS, "fold": "sequence_mean", "type": "grpo", "level":
    "sequence"} ),
    "cispo, upper bound": Check(
        "trl_loss", f"{LOSS}, cispo", _cispo, {"low": 0.0, "high": 1.3, "fold": "token_mean", "type": "cispo"}
    ),
    "ppo with a dual clip": Check(
        "verl_ppo", f"{CORE}.compute_policy_loss", _ppo, {**CLIPS, "dual_clip": 3.0, "fold": "token_mean"}
    ),
    "gspo beside verl": Check(
        "verl_named", f"{CORE}.compute_policy_loss_gspo", _gspo, {**CLIPS, "fold": "sequence_mean", "which": "gspo"},
        note=EPS, bound=1e-7,
    ),
    "cispo, band": Check(
        "verl_named", f"{CORE}.compute_policy_loss_cispo", _cispo,
        {**CLIPS, "low": 0.8, "high": 1.28, "fold": "token_mean", "which": "cispo"},
    ),
    **{
        f"aggregate.{fold}": Check(
            "verl_fold", f"{CORE}.agg_loss, {mode}", _fold, {"fold": fold, "mode": mode}, ("loss",), note, 1e-7
        )
        for fold, mode, note in (
            ("token_mean", "token-mean", ""), ("sequence_sum", "seq-mean-token-sum", ""),
            ("sequence_mean", "seq-mean-token-mean", EPS), ("dr_grpo", "seq-mean-token-sum-norm", ""),
        )
    },
    **{
        f"divergences.{kind}": Check("verl_kl", f"{CORE}.kl_penalty, {kind}", _estimator, {"kind": kind})
        for kind in ("k2", "k3", "k3+")
    },
    **{
        f"advantages.group_relative, {scale}": Check(
            "verl_advantage", f"{CORE}.compute_grpo_outcome_advantage", _advantages, {"scale": scale, "eps": 1e-6}, (),
            "groups of equal rewards are ours to make exactly 0",
        )
        for scale in ("group", "none")
    },
    **{
        f"surrogates.importance, {name}": Check(
            "verl_weights", "verl compute_rollout_correction_weights", _weights, {**ours, **theirs}, ()
        )
        for name, ours, theirs in (
            ("token, truncated", {"high": 2.0}, {"rollout_is": "token", "threshold": 2.0}),
            ("sequence, truncated", {"high": 2.0, "level": "sequence"}, {"rollout_is": "sequence", "threshold": 2.0}),
            ("band", {"low": 0.5, "high": 1.5, "outside": "mask"}, {"rollout_is": "token", "threshold": "0.5_1.5"}),
        )
    },
    "decoupled ppo, truncated": Check(
        "areal", "areal ppo_actor_loss_fn, clamp", _decoupled,
        {"high": 1.5, "outside": "truncate", "fold": "token_mean", "action": "clamp"},
        note=HALVES, bound=1e-7,
    ),
    "decoupled ppo, masked": Check(
        "areal", "areal ppo_actor_loss_fn, mask", _decoupled,
        {"high": 1.5, "outside": "mask", "fold": "token_mean", "action": "mask"},
        note=HALVES, bound=1e-7,
    ),
}  # fmt: skip


def cases() -> Iterator[tuple[str, torch.dtype, Inputs]]:
    """Every check on every shape, dtype and seed."""
    for name, check in CHECKS.items():
        for shape in SHAPES:
            for dtype in (torch.float32, torch.float64):
                for seed in SEEDS:
                    yield name, dtype, {**drawn(shape, dtype, seed), **check.settings}


def answered(function: Callable[[Inputs], Tensor], given: Inputs, slopes: Sequence[str]) -> list[Tensor]:
    """The value and its gradients for `slopes`."""
    leaves = {name: given[name].clone().requires_grad_() for name in slopes}
    value = function({**given, **leaves})
    if not slopes:
        return [value.detach()]
    found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    kept = [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves.values(), strict=True)]
    return [value.detach(), *kept]


def apart(mine: Tensor, other: Tensor) -> float:
    """The largest difference of any entry, or that of the sums where the peer folds; relative to ours above 1."""
    if mine.shape != other.shape:
        mine, other = mine.sum(), other.sum()
    return float((mine.double() - other.double()).abs().max()) / max(1.0, float(mine.abs().max()))


def peers_python(folder: Path) -> str:
    """The interpreter of a virtual environment with the peers, made where it is not there yet."""
    python, done = folder / "bin" / "python", folder / "peers-installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *PEERS, "--requirement", str(HERE / "peers.txt")], check=True, stdout=sys.stderr)
        subprocess.run([*install, "--no-deps", *BARE], check=True, stdout=sys.stderr)
        done.touch()
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--venv", type=Path, default=Path("runs/benchmarks/peers"), help="where the peers are, or will be"
    )
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    args = parser.parse_args()
    asked = list(cases())
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder) / "asked.pt", Path(folder) / "answers.pt"
        torch.save([(CHECKS[name].peer, given, list(CHECKS[name].slopes)) for name, _, given in asked], there)
        # Without this folder on its path, where code.py would hide the standard library's.
        worker = [peers_python(args.venv), "-P", str(HERE / "conformance_peers.py"), str(there), str(back)]
        subprocess.run(worker, check=True)
        theirs = torch.load(back)
    worst: dict[tuple[str, torch.dtype], list[float]] = {}
    for (name, dtype, given), told in zip(asked, theirs, strict=True):
        ours = answered(CHECKS[name].ours, given, CHECKS[name].slopes)
        found = worst.setdefault((name, dtype), [0.0, 0.0])
        for place, (mine, other) in enumerate(zip(ours, told, strict=True)):
            found[place > 0] = max(found[place > 0], apart(mine, other))
    text, failed = report(worst)
    print(text)
    if args.write:
        args.write.write_text(text)
    if failed:
        sys.exit(f"above their bound: {', '.join(failed)}")


def report(worst: Mapping[tuple[str, torch.dtype], Sequence[float]]) -> tuple[str, list[str]]:
    """The table as Markdown, and the checks that are above their bounds."""
    lines = [
        "# Conformance",
        "",
        "Written by `make conformance`: our functions and the peers' on the same random tensors,",
        f"{len(SHAPES)} shapes by {len(SEEDS)} seeds; the largest difference of the value and of any gradient,",
        "relative to ours where that is above 1. The value is compared entry by entry where the peer returns a",
        "tensor of this shape, else by its sum. SDAR, RLSD, RLCSD, SRPO, OPSD's clip and OpenClaw are in none of",
        "these packages: their numbers are worked by hand in `tests/algos/test_hybrids.py` and `test_recipes.py`.",
        "",
        f"Peers: {', '.join((PEERS[0], *BARE))}.",
        "",
        "| ours | theirs | float32: value | gradient | float64: value | gradient | note |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    failed = []
    for name, check in CHECKS.items():
        cells = []
        for dtype in (torch.float32, torch.float64):
            value, slope = worst[name, dtype]
            loose = check.bound if dtype == torch.float32 else min(check.bound, 1e-7)
            if max(value, slope) > max(loose, BOUND[dtype]):
                failed.append(f"{name} in {dtype}")
            cells += [f"{value:.1e}", f"{slope:.1e}" if check.slopes else "none"]
        lines.append(f"| {name} | {check.of} | {' | '.join(cells)} | {check.note} |")
    return "\n".join(lines) + "\n", failed


if __name__ == "__main__":
    main()
