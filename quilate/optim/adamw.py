"""AdamW over fp32 master weights, with a stochastically rounded bf16 copy for compute."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from quilate.kernels.library import operation
from quilate.optim.rounding import draw_key, stochastic_round_

# Elements updated together by the plain torch code: six fp32 arrays of this length are 3 MB and stay in a core's cache
# (guess for other machines). Even, as the rounding wants it.
BLOCK = 1 << 17


class AdamW:
    """Decoupled weight decay Adam (Loshchilov & Hutter 2019, algorithm 2), bias-corrected.

    The learning rate and the clipping factor are arguments of `step`: there is no hidden schedule. Weight decay applies
    to matrices and embeddings only, not to norms and biases (Brown et al. 2020, appendix B use it so).

    Args:
        named_parameters: the parameters; those with `requires_grad=False` are ignored. bf16 parameters get an fp32
            master; fp32 parameters are their own master.
        rounding: the random stream of the stochastic rounding; must be given when any parameter is bf16.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rounding: torch.Generator | None = None,
    ) -> None:
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.betas, self.eps, self.weight_decay, self.rounding = betas, eps, weight_decay, rounding
        self.updates = 0
        self.master = {
            name: p.detach() if p.dtype == torch.float32 else p.detach().float() for name, p in self.parameters.items()
        }
        self.first_moment = {name: torch.zeros_like(master) for name, master in self.master.items()}
        self.second_moment = {name: torch.zeros_like(master) for name, master in self.master.items()}
        self._accumulated: dict[str, Tensor] = {}
        if rounding is None and any(p.dtype != torch.float32 for p in self.parameters.values()):
            raise ValueError("bf16 parameters need a rounding stream: rounded to nearest they do not follow fp32")

    def accumulate(self) -> None:
        """Move the parameters' gradients into an fp32 sum: bf16 sums over micro-batches would lose the small terms."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            if name in self._accumulated:
                self._accumulated[name] += parameter.grad
            else:
                self._accumulated[name] = parameter.grad.float()
            parameter.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of each parameter that has one: the fp32 sum if `accumulate` was used."""
        if self._accumulated:
            return self._accumulated
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def gradient_norm(self) -> float:
        """The L2 norm over all gradients, summed in fp64."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self.gradients().values()]
        return float(torch.stack(norms).double().square().sum().sqrt()) if norms else 0.0

    def clear_gradients(self) -> None:
        self._accumulated.clear()
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Update every parameter that has a gradient, then forget the gradients."""
        self.updates += 1
        correction1, correction2 = (1 - beta**self.updates for beta in self.betas)
        for name, gradient in self.gradients().items():
            parameter = self.parameters[name]
            decay = 1 - learning_rate * (self.weight_decay if parameter.dim() >= 2 else 0.0)
            # Asked of the stream for every parameter, so that it moves alike with and without the fused kernel.
            key = 0 if parameter.dtype == torch.float32 else draw_key(self._stream())
            arrays = parameter.data, self.master[name], self.first_moment[name], self.second_moment[name], gradient
            rates = self.eps, learning_rate / correction1, correction2**0.5, decay, gradient_scale
            update = operation("adamw") if all(_fits_kernel(t) for t in arrays) else None
            (update or _update)(*arrays, *self.betas, *rates, key)
        self.clear_gradients()

    def _stream(self) -> torch.Generator:
        assert self.rounding is not None  # checked at construction
        return self.rounding

    def state(self) -> dict[str, Tensor]:
        """Everything a later `restore` needs to continue bit for bit, as named tensors."""
        tensors = {"updates": torch.tensor(self.updates)}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter.data
            if parameter.dtype != torch.float32:
                tensors[f"master.{name}"] = self.master[name]
            tensors[f"first_moment.{name}"] = self.first_moment[name]
            tensors[f"second_moment.{name}"] = self.second_moment[name]
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`, parameters included.

        Raises:
            KeyError: a tensor is missing, unexpected, or of another shape (the checkpoint is of another model).
        """
        expected = self.state()
        shapes, given = ({name: tuple(t.shape) for name, t in state.items()} for state in (expected, tensors))
        if shapes != given:  # checked before the first copy, which would broadcast some other shapes without a word
            raise KeyError(f"tensors differ: {sorted({name for name, _ in shapes.items() ^ given.items()})[:3]}")
        for name, tensor in expected.items():
            if name != "updates":
                tensor.copy_(tensors[name])
        self.updates = int(tensors["updates"])

    @torch.no_grad()
    def write_nearest(self) -> None:
        """Set each bf16 parameter to its master rounded to nearest: the best single copy, for the final model."""
        for name, parameter in self.parameters.items():
            if parameter.dtype != torch.float32:
                parameter.data.copy_(self.master[name])


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
