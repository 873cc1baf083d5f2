"""Muon on hidden matrices, AdamW on everything else."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from quilate.optim.adamw import update_adamw
from quilate.optim.master import MasterOptimizer, Update


class Muon(MasterOptimizer):
    """Momentum, orthogonalized by Newton-Schulz iterations (Jordan 2024), by torch's own `torch.optim.Muon`.

    An update is scaled by 0.2 * sqrt(max(rows, columns)), so that its root mean square is that of AdamW's and one
    learning rate and one weight decay serve both (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).

    Args:
        hidden: names of the matrices for Muon, from `hidden_matrices`; the other parameters get AdamW.
        momentum: Jordan's and torch's default.
        betas, eps: AdamW's.

    Raises:
        ValueError: a hidden parameter is no matrix.
        ConfigError: a parameter is sharded.
    """

    needs_whole_matrices = True

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        hidden: Collection[str],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rounding: torch.Generator | None = None,
    ) -> None:
        super().__init__(named_parameters, weight_decay=weight_decay, rounding=rounding)
        self.betas, self.eps = betas, eps
        matrices = [name for name in self.parameters if name in hidden]
        others = [name for name in self.parameters if name not in hidden]
        self.momentum = self.remember("momentum", matrices)
        self.first_moment = self.remember("first_moment", others)
        self.second_moment = self.remember("second_moment", others)
        self._muon = {name: self._torch_muon(name, momentum) for name in matrices}

    def _torch_muon(self, name: str, momentum: float) -> torch.optim.Muon:
        """torch's optimizer of one master; its buffer is ours, so that our state holds all there is to resume."""
        optimizer = torch.optim.Muon(
            [self.master[name]], weight_decay=self.weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        optimizer.state[self.master[name]]["momentum_buffer"] = self.momentum[name]
        return optimizer

    def update_parameter(self, name: str, gradient: Tensor, update: Update) -> None:
        compute, master = self.copies[name], self.master[name]
        if name not in self._muon:
            moments = self.first_moment[name], self.second_moment[name]
            update_adamw(
                compute, master, *moments, gradient, update, betas=self.betas, eps=self.eps, updates=self.updates
            )
            return
        self._muon[name].param_groups[0]["lr"] = update.learning_rate
        master.grad = gradient.float() * update.gradient_scale
        self._muon[name].step()  # type: ignore[no-untyped-call]
        master.grad = None
        self.round_copy(name, update)


def hidden_matrices(model: nn.Module, head: nn.Module | None) -> frozenset[str]:
    """Names of the trained matrices between a model's embeddings and its output `head`: what Muon is for.

    Jordan (2024) and torch's documentation leave embeddings, the head, norms and biases to AdamW.
    """
    outer = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    outer |= {id(p) for p in head.parameters()} if head is not None else set()
    return frozenset(n for n, p in model.named_parameters() if p.requires_grad and p.dim() == 2 and id(p) not in outer)
