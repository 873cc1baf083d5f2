"""What every optimizer here shares: fp32 master weights, rounding, accumulated gradients, a state to resume from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from quilate.errors import ConfigError
from quilate.optim.rounding import draw_key, stochastic_round_


@dataclass(frozen=True)
class Update:
    """What one update asks of every parameter.

    Attributes:
        gradient_scale: the clipping factor; the gradient is to be multiplied with it.
        decay: what the weights are multiplied with first: 1 - learning_rate * weight_decay, or 1.
        key: of the stochastic rounding of the bf16 copy; 0 and unused for an fp32 parameter.
    """

    learning_rate: float
    gradient_scale: float
    decay: float
    key: int


class MasterOptimizer(ABC):
    """An optimizer over fp32 master weights, with a stochastically rounded bf16 copy for compute.

    Of a parameter that is sharded over processes (a `DTensor` of FSDP2, fp32), all this is of the rows that this
    process has; a method that needs a matrix as a whole says so by `needs_whole_matrices`.

    The learning rate and the clipping factor are arguments of `step`: there is no hidden schedule. Weight decay is
    decoupled (Loshchilov & Hutter 2019) and applies to matrices and embeddings only, not to norms and biases (Brown et
    al. 2020, appendix B use it so). A method brings `update_parameter` and what it remembers, from `remember`.

    Args:
        named_parameters: the parameters; those with `requires_grad=False` are ignored. bf16 parameters get an fp32
            master; fp32 parameters are their own master.
        rounding: the random stream of the stochastic rounding; must be given when any parameter is bf16.
        rates: what the learning rate is multiplied by for a parameter, by its name; 1 for those it does not name.

    Attributes:
        copies: of each parameter what the model computes with: bf16, or the master itself.
    """

    needs_whole_matrices: ClassVar[bool] = False

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        weight_decay: float,
        rounding: torch.Generator | None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.weight_decay, self.rounding, self.rates = weight_decay, rounding, dict(rates or {})
        self.updates = 0
        self.copies = {name: own_rows(p.detach()) for name, p in self.parameters.items()}
        self.master = {name: c if c.dtype == torch.float32 else c.float() for name, c in self.copies.items()}
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._accumulated: dict[str, Tensor] = {}
        if rounding is None and any(p.dtype != torch.float32 for p in self.parameters.values()):
            raise ValueError("bf16 parameters need a rounding stream: rounded to nearest they do not follow fp32")
        if self.needs_whole_matrices and self.rows():
            raise ConfigError(
                f"{type(self).__name__} needs whole matrices, and the model is sharded over processes",
                hint="use `optimizer: adamw`, or --sharding ddp",
            )

    def remember(self, what: str, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """An fp32 tensor of zeros beside each parameter (or the named ones), saved and restored as `what.NAME`."""
        names = self.parameters if names is None else names
        self._memory[what] = {name: torch.zeros_like(self.master[name]) for name in names}
        return self._memory[what]

    def accumulate(self) -> None:
        """Move the parameters' gradients into an fp32 sum: bf16 sums over micro-batches would lose the small terms."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            gradient = own_rows(parameter.grad)
            if name in self._accumulated:
                self._accumulated[name] += gradient
            else:
                self._accumulated[name] = gradient.float()
            parameter.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of each parameter that has one: the fp32 sum if `accumulate` was used."""
        if self._accumulated:
            return self._accumulated
        return {name: own_rows(p.grad) for name, p in self.parameters.items() if p.grad is not None}

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
        for name, gradient in self.gradients().items():
            parameter = self.parameters[name]
            rate = learning_rate * self.rates.get(name, 1.0)
            decay = 1 - rate * (self.weight_decay if parameter.dim() >= 2 else 0.0)
            key = 0 if parameter.dtype == torch.float32 else draw_key(self._stream())
            self.update_parameter(name, gradient, Update(rate, gradient_scale, decay, key))
        self.clear_gradients()

    @abstractmethod
    def update_parameter(self, name: str, gradient: Tensor, update: Update) -> None:
        """Change one parameter's master, what is remembered of it, and its copy; `gradient` may be bf16."""

    def round_copy(self, name: str, update: Update) -> None:
        """Round one parameter's master into its bf16 copy; an fp32 parameter is its own master."""
        parameter = self.parameters[name]
        if parameter.dtype != torch.float32:
            stochastic_round_(self.copies[name].view(-1), self.master[name].view(-1), update.key)

    def measured(self) -> dict[str, float]:
        """What the method has to tell of its last update, for the run's metrics."""
        return {}

    def _stream(self) -> torch.Generator:
        assert self.rounding is not None  # checked at construction
        return self.rounding

    def state(self) -> dict[str, Tensor]:
        """Everything a later `restore` needs to continue bit for bit, as named tensors; see `rows` for sharded ones."""
        tensors = {"updates": torch.tensor(self.updates)}
        for name, copy in self.copies.items():
            tensors[f"master.{name}"] = self.master[name]
            if copy.dtype != torch.float32:
                tensors[f"copy.{name}"] = copy
        for what, of_parameters in self._memory.items():
            tensors |= {f"{what}.{name}": tensor for name, tensor in of_parameters.items()}
        return tensors

    def rows(self) -> dict[str, tuple[int, int]]:
        """Of each tensor of `state` that is sharded, which rows of the whole this process has: from, up to."""
        of_parameters = {name: rows for name, p in self.parameters.items() if (rows := _rows_of(p)) is not None}
        return {name: of_parameters[key] for name in self.state() if (key := name.partition(".")[2]) in of_parameters}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`, parameters included. Where it was taken without bf16 copies they are rounded to nearest.

        Raises:
            KeyError: a tensor is missing, unexpected, or of another shape (the checkpoint is of another model or
                another optimizer).
        """
        expected = self.state()
        shapes, given = (
            {name: tuple(t.shape) for name, t in state.items() if not name.startswith("copy.")}
            for state in (expected, tensors)
        )
        if shapes != given:  # checked before the first copy, which would broadcast some other shapes without a word
            raise KeyError(f"tensors differ: {sorted({name for name, _ in shapes.items() ^ given.items()})[:3]}")
        for name, tensor in expected.items():
            if name in shapes and name != "updates":
                tensor.copy_(tensors[name])
        for name, copy in self.copies.items():
            if copy.dtype != torch.float32:
                copy.copy_(tensors.get(f"copy.{name}", self.master[name]))
        self.updates = int(tensors["updates"])

    @torch.no_grad()
    def write_nearest(self) -> None:
        """Set each bf16 parameter to its master rounded to nearest: the best single copy, for the final model."""
        for name, parameter in self.parameters.items():
            if parameter.dtype != torch.float32:
                self.copies[name].copy_(self.master[name])


def own_rows(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor that this process has, in the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _rows_of(parameter: nn.Parameter) -> tuple[int, int] | None:
    """Which rows `own_rows` gives: FSDP2 divides them into equal parts, of which the last ones may be smaller."""
    if not isinstance(parameter, DTensor):
        return None
    rows, mesh = parameter.shape[0], parameter.device_mesh
    part = -(-rows // mesh.size())
    first = min(rows, part * mesh.get_local_rank())
    return first, min(rows, first + part)
