"""Muon: momentum whose update is orthogonalised, for the two-dimensional weights of hidden layers.

    B <- momentum B + (1 - momentum) G        U = NewtonSchulz(nesterov ? lerp(G, B, momentum) : B), about S V^T of B
    W <- (1 - lr weight_decay) W - lr sqrt(max(1, rows / columns)) U

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the interface is that of `torch.optim.Muon`,
which orthogonalises in bfloat16. Here it is bfloat16 on accelerators and float32 on CPUs, many of which have no unit
for bfloat16. Matrices of one shape are orthogonalised together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

Coefficients = tuple[float, float, float]
QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)


def orthogonalise(
    matrices: Tensor, *, coefficients: Coefficients = QUINTIC, steps: int = 5, eps: float = 1e-7
) -> Tensor:
    """[N,R,C] matrices with their singular values brought near 1 (0.7 to 1.2 with the quintic), vectors kept."""
    a, b, c = coefficients
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Arguments, defaults and state as `torch.optim.Muon`.

    Raises:
        ValueError: a parameter that is not a matrix, or a setting out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = QUINTIC,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
    ) -> None:
        if lr < 0 or momentum < 0 or weight_decay < 0:
            raise ValueError(
                f"expected lr, momentum and weight_decay of 0 or more, found {lr}, {momentum}, {weight_decay}"
            )
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"expected adjust_lr_fn 'original' or 'match_rms_adamw', found {adjust_lr_fn!r}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices, found a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[tuple[torch.Size, torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape, parameter.device, parameter.dtype].append(parameter)
            for same in shapes.values():
                self._step_alike(same, group)
        return loss

    def _step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Parameters of one shape, device and dtype."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._buffer(parameter) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        moved = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        updates = orthogonalise(
            torch.stack(list(moved)),
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            eps=group["eps"],
        ).to(parameters[0].dtype)
        rows, columns = parameters[0].shape
        scale = math.sqrt(max(1, rows / columns))
        if group["adjust_lr_fn"] == "match_rms_adamw":
            scale = 0.2 * math.sqrt(max(rows, columns))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * scale)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
