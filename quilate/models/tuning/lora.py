"""LoRA (Hu et al. 2021) and kin through peft: W + (alpha / r) B A, on every linear layer.

All layers, not attention only: "LoRA Without Regret" (Schulman 2025) finds attention-only worse even at equal size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from quilate.config import Config
from quilate.errors import ModelError
from quilate.files import read_json, write_json
from quilate.models.heads import classifier_name

Initialization = Literal["zero", "gaussian", "orthogonal", "pissa", "olora"]

# Under these the base gives up what the adapter starts as; its weights alone are then no longer the base.
TAKEN_FROM_THE_BASE = ("pissa", "olora")

# As peft names them.
_PEFT_NAMES: dict[Initialization, bool | str] = {"zero": True, "gaussian": "gaussian"}


class LoraConfig(Config):
    rank: int = Field(default=16, ge=1)
    """Rank of the update; SFT on small data saturates early (peft's own default is 8)."""
    alpha: int = Field(default=32, ge=1)
    """Scale: the update is multiplied by alpha / rank."""
    targets: list[str] | None = Field(default=None, min_length=1)
    """The linear layers that get one, by the last part of their names, as in `[q_proj, v_proj]`; by default all of
    them but the head (Dettmers et al. 2023, "QLoRA": adapting all matters more than the rank)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Multiply the update by alpha / √rank instead, so that large ranks learn as fast (Kalajdzievski 2023)."""
    dora: bool = False
    """Learn each weight's column magnitudes apart from its directions (Liu et al. 2024, "DoRA")."""
    init: Initialization = "zero"
    """What the adapter starts as. `zero` (A uniform, B zero), `gaussian` (A normal, B zero) and `orthogonal` leave the
    model as it was. `pissa` takes the weights' largest singular vectors (Meng et al. 2024) and `olora` their QR
    factors (Büyükakyüz 2024) out of the base; what is saved is a plain LoRA of twice the rank for the base as it
    was."""

    @model_validator(mode="after")
    def _possible_together(self) -> LoraConfig:
        if self.dora and self.init in TAKEN_FROM_THE_BASE:
            raise ValueError(
                f"dora: with `init: {self.init}` the result is no sum of the base and a plain adapter: choose one"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: `orthogonal` needs an even rank, not {self.rank}")
        return self


def add_lora(model: PreTrainedModel, config: LoraConfig, *, base: Path) -> PreTrainedModel:
    """Freeze `model` and give it a fresh adapter; at the start its logits are unchanged, but for rounding where the
    initialization takes something out of the base.

    Args:
        base: the base model's directory, recorded in the adapter so that plain peft finds it.

    Raises:
        ModelError: a layer is too small for the rank that the initialization needs, or there is none of a name.
    """
    import peft

    if config.targets is not None:
        _refuse_unknown(model, config.targets)

    classifier = classifier_name(model)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        init_lora_weights=_PEFT_NAMES.get(config.init, config.init),
        target_modules="all-linear" if config.targets is None else list(config.targets),
        exclude_modules=classifier,
        modules_to_save=classifier,  # it is new: there is nothing to adapt
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    if config.init in TAKEN_FROM_THE_BASE:
        _refuse_small_layers(model, config)
    model.config._name_or_path = str(base)
    adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    recorded = adapted.peft_config["default"]
    recorded.base_model_name_or_path = str(base)
    # peft keeps a set and writes it in the order of this process's string hashes: equal runs, unequal files.
    recorded.target_modules = sorted(recorded.target_modules)
    if config.init in TAKEN_FROM_THE_BASE:
        _keep_start(adapted, model.dtype)
    return adapted


def _refuse_unknown(model: PreTrainedModel, targets: Sequence[str]) -> None:
    heads = [model.get_output_embeddings(), *(getattr(model, name) for name in classifier_name(model) or [])]
    known = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
            and not any(module is head for head in heads)
        }
    )
    for target in targets:
        if target not in known:
            raise ModelError(
                f"lora.targets: the model has no linear layer '{target}'", hint=f"it has {', '.join(known)}"
            )


def _refuse_small_layers(model: PreTrainedModel, config: LoraConfig) -> None:
    heads = [model.get_output_embeddings(), *(getattr(model, name) for name in classifier_name(model) or [])]
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or any(module is head for head in heads):
            continue
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        if type(module).__name__ == "Conv1D" and config.init == "olora":
            raise ModelError(
                f"peft's `olora` does not know the transposed weights of {type(model).__name__}", hint="use `pissa`"
            )
        if min(weight.shape) < config.rank:
            raise ModelError(
                f"{name} has {min(weight.shape)} singular vectors; `init: {config.init}` asks for {config.rank}",
                hint=f"lower lora.rank to {min(weight.shape)} or less",
            )


def _keep_start(adapted: PreTrainedModel, dtype: torch.dtype) -> None:
    """Remember what the adapter started as; without it nobody could tell what was learned."""
    start = {}
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            parameter.data = parameter.data.to(dtype)  # peft leaves the factors in fp32
            start[name.replace(".default.", ".")] = parameter.detach().clone()
    adapted.lora_start = start


def as_plain_lora(model: PreTrainedModel, folder: Path) -> None:
    """Rewrite the adapter in `folder`, just saved from `model`, for the base as it was: BA - B₀A₀ as one product.

    peft has this too (`path_initial_model_for_weight_conversion`), and drops a classifier's weights on the way. Nothing
    is done where the base was left as it was.
    """
    start: dict[str, Tensor] | None = getattr(model, "lora_start", None)
    if start is None:
        return
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, first in start.items():
        first = first.to(tensors[name])
        pair = [tensors[name], first] if ".lora_A." in name else [tensors[name], -first]
        tensors[name] = torch.cat(pair, dim=0 if ".lora_A." in name else 1).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = read_json(folder / "adapter_config.json")
    growth = 2**0.5 if config["use_rslora"] else 2
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": growth * config["lora_alpha"]}
    write_json(folder / "adapter_config.json", config)
