"""The optimizers that a recipe can name, with what their authors train with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from quilate.optim.adamw import AdamW
from quilate.optim.master import MasterOptimizer
from quilate.optim.muon import Muon, hidden_matrices
from quilate.optim.sophia import SophiaG, SophiaH
from quilate.rng import Streams

OptimizerName = Literal["adamw", "sophia_g", "sophia_h", "muon"]

# A shorter memory of squared gradients than fine-tuning's default (Brown et al. 2020, appendix B).
PRETRAINING_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Defaults:
    """Of pretraining."""

    learning_rate: float
    weight_decay: float


DEFAULTS: dict[OptimizerName, Defaults] = {
    # Decay: Brown et al. 2020, appendix B. Small models bear larger rates than their 6e-4 for 125M (1e-3 is a guess).
    "adamw": Defaults(1e-3, 0.1),
    # Sophia's training code for its smallest model, 125M; nothing smaller is published.
    "sophia_g": Defaults(6e-4, 0.2),
    "sophia_h": Defaults(6e-4, 0.2),
    # Its updates are scaled to AdamW's, whose rate and decay then serve (Liu et al. 2025, section 2.2).
    "muon": Defaults(1e-3, 0.1),
}


def make_optimizer(
    name: OptimizerName,
    model: nn.Module,
    streams: Streams,
    *,
    head: nn.Module | None,
    weight_decay: float | None = None,
    gamma: float | None = None,
) -> MasterOptimizer:
    """The named optimizer of a model's trained parameters.

    Args:
        head: the model's output head, which Muon leaves to AdamW.
        weight_decay: by default that of `DEFAULTS`; gamma: Sophia's, by default the paper's.
    """
    parameters, rounding = list(model.named_parameters()), streams["rounding"]
    decay = DEFAULTS[name].weight_decay if weight_decay is None else weight_decay
    match name:
        case "adamw":
            return AdamW(parameters, betas=PRETRAINING_BETAS, weight_decay=decay, rounding=rounding)
        case "muon":
            hidden = hidden_matrices(model, head)
            return Muon(parameters, hidden=hidden, betas=PRETRAINING_BETAS, weight_decay=decay, rounding=rounding)
        case "sophia_g" | "sophia_h":
            method = SophiaG if name == "sophia_g" else SophiaH
            return method(
                parameters, estimates=streams["curvature"], gamma=gamma, weight_decay=decay, rounding=rounding
            )
