"""AdamW over fp32 master weights, with a stochastically rounded bf16 copy for compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from quilate.kernels.operations import operation
from quilate.optim.master import MasterOptimizer, Update
from quilate.optim.rounding import stochastic_round_

# Elements updated together by the plain torch code: six fp32 arrays of this length are 3 MB and stay in a core's cache
# (guess for other machines). Even, as the rounding wants it.
BLOCK = 1 << 17


class AdamW(MasterOptimizer):
    """Decoupled weight decay Adam (Loshchilov & Hutter 2019, algorithm 2), bias-corrected; see `MasterOptimizer`."""

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rounding: torch.Generator | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(named_parameters, weight_decay=weight_decay, rounding=rounding, rates=rates)
        self.betas, self.eps = betas, eps
        self.first_moment, self.second_moment = self.remember("first_moment"), self.remember("second_moment")

    def update_parameter(self, name: str, gradient: Tensor, update: Update) -> None:
        arrays = self.copies[name], self.master[name], self.first_moment[name], self.second_moment[name]
        update_adamw(*arrays, gradient, update, betas=self.betas, eps=self.eps, updates=self.updates)


def update_adamw(
    compute: Tensor,
    master: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    update: Update,
    *,
    betas: tuple[float, float],
    eps: float,
    updates: int,
) -> None:
    """AdamW on one parameter, fused where that can be; the arrays have one shape.

    Args:
        compute: the bf16 copy, or the master itself.
        updates: how many there have been, this one included.
    """
    arrays = compute, master, first, second, gradient
    correction1, correction2 = (1 - beta**updates for beta in betas)
    rates = eps, update.learning_rate / correction1, correction2**0.5, update.decay, update.gradient_scale
    fused = operation("adamw") if all(_fits_kernel(t) for t in arrays) else None
    (fused or _update)(*arrays, *betas, *rates, update.key)


def _fits_kernel(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype in (torch.float32, torch.bfloat16)


def _update(
    compute: Tensor,
    master: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    corrected_rate: float,
    second_correction: float,
    decay: float,
    gradient_scale: float,
    key: int,
) -> None:
    """One parameter's update; the fused kernel `adamw` is the same in one pass over memory."""
    flat = [t.view(-1) for t in (compute, master, first, second)]
    flat_gradient = gradient.reshape(-1)
    for start in range(0, master.numel(), BLOCK):
        compute_block, weight, m, v = (t[start : start + BLOCK] for t in flat)
        g = flat_gradient[start : start + BLOCK].float() * gradient_scale
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        weight.mul_(decay).addcdiv_(m, v.sqrt().div_(second_correction).add_(eps), value=-corrected_rate)
        if compute.dtype != torch.float32:
            stochastic_round_(compute_block, weight, key, first=start)
