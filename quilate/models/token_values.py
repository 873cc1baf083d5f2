"""What choosing a token is worth: Q and V heads on a language model's hidden states (Snell et al. 2022).

Shapes: S states, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quilate.errors import ModelError
from quilate.files import make_folder
from quilate.objectives.ilql import guided_log_probs, sync_target

NAME = "values.safetensors"


class TokenValues(nn.Module):
    """Two Q heads, their slowly following targets, and a V head, each one hidden layer of 2D (as trlX has them), fp32:
    differences between values are small beside the values.

    Args:
        width: D; vocabulary: V.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.q = nn.ModuleList(_head(width, vocabulary) for _ in range(2))
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.v = _head(width, 1)

    def qs(self, states: Tensor) -> list[Tensor]:
        """[S, V] of each head."""
        return [head(states) for head in self.q]

    @torch.no_grad()
    def target_qs(self, states: Tensor) -> list[Tensor]:
        return [head(states) for head in self.target_q]

    def values(self, states: Tensor) -> Tensor:
        """[S]"""
        values: Tensor = self.v(states)[:, 0]
        return values

    def follow(self, rate: float) -> None:
        """Move the targets by `rate` of the way (Polyak averaging)."""
        sync_target(self.target_q.parameters(), self.q.parameters(), rate=rate)

    def targets(self) -> dict[str, Tensor]:
        """What changes without being trained, for a checkpoint."""
        return {f"target_q.{name}": tensor for name, tensor in self.target_q.named_parameters()}

    def save(self, folder: Path) -> None:
        """Write them beside a model."""
        make_folder(folder)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}, folder / NAME
        )


def _head(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, out)).float()


def load_token_values(folder: Path) -> TokenValues:
    """What `TokenValues.save` wrote.

    Raises:
        ModelError: there is nothing of that kind.
    """
    if not (folder / NAME).exists():
        raise ModelError(f"no token values in {folder}", hint="give the `values` folder that an `ilql` stage made")
    tensors = load_file(folder / NAME)
    vocabulary, twice_width = tensors["q.0.2.weight"].shape
    values = TokenValues(twice_width // 2, vocabulary)
    values.load_state_dict(tensors)
    return values.requires_grad_(False)


class GuidedHead(nn.Module):
    """Callable `(hidden [B, D]) -> [B, V]`: what to sample from, up to a constant a row.

    log softmax(logits) + beta (min Q - V): the larger `beta`, the more the values decide and the less the language.
    """

    def __init__(self, head: nn.Module, values: TokenValues, beta: float) -> None:
        super().__init__()
        self.head, self.values, self.beta = head, values, beta

    def forward(self, hidden: Tensor) -> Tensor:
        states = hidden.float()
        values = self.values
        return guided_log_probs(self.head(hidden), values.qs(states), values.values(states), beta=self.beta)
