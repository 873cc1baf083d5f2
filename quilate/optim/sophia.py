"""Sophia: momentum divided by a diagonal curvature, every coordinate's step at most the learning rate.

Liu, Li, Hall, Liang & Ma 2023, "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training",
algorithm 3. Every few steps the loop differentiates a probe of the loss in place of the loss, before the update that
uses it; micro-batches add up in the gradients as in a step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from quilate.optim.curvature import directional_derivative, gauss_newton_bartlett, hutchinson
from quilate.optim.master import MasterOptimizer, Update


class Sophia(MasterOptimizer):
    """weights <- weights * (1 - lr * decay) - lr * clip(m / max(gamma * h, eps), -1, 1), of moving averages m and h.

    m is of the gradient, h of the curvature; neither is corrected for its start at zero, so at first every coordinate
    is clipped and moves by the sign of its momentum. Where curvature is not positive it always does.

    Args:
        estimates: the random stream of the curvature estimates.
        gamma: how much curvature counts; by default the paper's (section 3.1), to be tuned so that 10 to 50 % of the
            coordinates are not clipped: `measured` tells.
        betas: of m and h. The paper has 0.96 for m, its code 0.965.
        every: steps from one estimate to the next (the paper's k).

    Attributes:
        estimate_cost: what an estimate costs, in training steps on the same tokens.
    """

    default_gamma: ClassVar[float]
    estimate_cost: ClassVar[float]

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        estimates: torch.Generator,
        gamma: float | None = None,
        betas: tuple[float, float] = (0.965, 0.99),
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        every: int = 10,
        rounding: torch.Generator | None = None,
    ) -> None:
        super().__init__(named_parameters, weight_decay=weight_decay, rounding=rounding)
        self.estimates, self.betas, self.eps, self.every = estimates, betas, eps, every
        self.gamma = self.default_gamma if gamma is None else gamma
        self.first_moment, self.curvature = self.remember("first_moment"), self.remember("curvature")
        self._unclipped: list[Tensor] = []

    def estimate_due(self) -> bool:
        """Whether the next update wants a fresh estimate: the first does, then every `every`-th."""
        return self.updates % self.every == 0

    @abstractmethod
    def probe(self, loss: Tensor) -> Tensor:
        """The scalar whose gradients, summed over micro-batches, `update_curvature` is to find."""

    @abstractmethod
    def diagonal(self, name: str, gradient: Tensor, tokens: int) -> Tensor:
        """The curvature of one parameter, from the gradient of the probe."""

    @torch.no_grad()
    def update_curvature(self, tokens: int) -> bool:
        """Let the average follow the estimate that the gradients of the probe make, then forget the gradients.

        Args:
            tokens: over how many the probed loss was averaged, all micro-batches together.

        Returns:
            Whether the estimate was finite; if not, it changed nothing.
        """
        usable = math.isfinite(self.gradient_norm())
        if usable:
            for name, gradient in self.gradients().items():
                self.curvature[name].lerp_(self.diagonal(name, gradient.float(), tokens), 1 - self.betas[1])
        self.clear_gradients()
        return usable

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        self._unclipped.clear()
        super().step(learning_rate, gradient_scale)

    def update_parameter(self, name: str, gradient: Tensor, update: Update) -> None:
        master, momentum = self.master[name], self.first_moment[name]
        momentum.lerp_(gradient.float() * update.gradient_scale, 1 - self.betas[0])
        direction = momentum / (self.gamma * self.curvature[name]).clamp_(min=self.eps)
        self._unclipped.append((direction.abs() < 1).sum())
        master.mul_(update.decay).sub_(direction.clamp_(-1, 1), alpha=update.learning_rate)
        self.round_copy(name, update)

    def measured(self) -> dict[str, float]:
        coordinates = sum(p.numel() for p in self.parameters.values())
        return {"unclipped": float(sum(self._unclipped)) / coordinates}


class SophiaG(Sophia):
    """Curvature is the Gauss-Newton diagonal; the loss to probe is that of labels drawn from the model itself."""

    default_gamma = 0.05
    estimate_cost = 1.0

    def probe(self, loss: Tensor) -> Tensor:
        return loss

    def diagonal(self, name: str, gradient: Tensor, tokens: int) -> Tensor:
        return gauss_newton_bartlett(gradient, tokens)


class SophiaH(Sophia):
    """Curvature is the Hessian's diagonal; the loss to probe is the real one, twice differentiable."""

    default_gamma = 0.01
    # Of each matrix product a step does three (forward, by weights, by inputs); the derivative of a direction
    # differentiates the forward one and both others again, two products each: nine.
    estimate_cost = 3.0
    _directions: dict[str, Tensor] | None = None

    def probe(self, loss: Tensor) -> Tensor:
        if self._directions is None:  # one direction for all micro-batches of an estimate
            self._directions = {name: self._normal(parameter) for name, parameter in self.parameters.items()}
        return directional_derivative(loss, list(self.parameters.values()), list(self._directions.values()))

    def _normal(self, parameter: Tensor) -> Tensor:
        drawn = torch.randn(parameter.shape, generator=self.estimates, device=self.estimates.device)
        return drawn.to(parameter.device, parameter.dtype)

    def diagonal(self, name: str, gradient: Tensor, tokens: int) -> Tensor:
        assert self._directions is not None  # `probe` made the gradients
        return hutchinson(self._directions[name], gradient)

    def clear_gradients(self) -> None:
        self._directions = None
        super().clear_gradients()
