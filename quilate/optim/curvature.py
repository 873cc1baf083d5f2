"""Estimates of the diagonal of a loss's curvature, each from one gradient of a scalar: the "probe".

Liu et al. 2023 ("Sophia"), section 2.3. Both are unbiased for the loss of the batch they see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gauss_newton_bartlett(gradient: Tensor, tokens: int) -> Tensor:
    """The diagonal of the Gauss-Newton matrix of a mean cross-entropy (algorithm 2).

    Args:
        gradient: of the mean over `tokens` of -log p(label), each label drawn from the model's own softmax.
    """
    return tokens * gradient.square()


def directional_derivative(loss: Tensor, parameters: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """The derivative of `loss` along `directions`: a scalar whose gradient is the Hessian's product with them.

    Args:
        loss: twice differentiable; a step in its graph with no second derivative raises RuntimeError.
        parameters, directions: of equal shapes, in the same order.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    return torch.stack([(g * u).sum().float() for g, u in zip(gradients, directions, strict=True)]).sum()


def hutchinson(direction: Tensor, product: Tensor) -> Tensor:
    """The diagonal of the Hessian from its product with a standard normal direction (algorithm 1)."""
    return direction * product
