"""LoRA (Hu et al. 2021) through peft: W + (alpha / r) B A, on every linear layer.

All layers, not attention only: "LoRA Without Regret" (Schulman 2025) finds attention-only worse even at equal size.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from transformers import PreTrainedModel

from quilate.config import Config
from quilate.models.heads import classifier_name


class LoraConfig(Config):
    rank: int = Field(default=16, ge=1)
    """Rank of the update; SFT on small data saturates early (peft's own default is 8)."""
    alpha: int = Field(default=32, ge=1)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""


def add_lora(model: PreTrainedModel, config: LoraConfig, *, base: Path) -> PreTrainedModel:
    """Freeze `model` and give it a fresh adapter; at the start its logits are unchanged, for B is zero.

    Args:
        base: the base model's directory, recorded in the adapter so that plain peft finds it.
    """
    import peft

    classifier = classifier_name(model)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        exclude_modules=classifier,
        modules_to_save=classifier,  # it is new: there is nothing to adapt
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    model.config._name_or_path = str(base)
    adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    recorded = adapted.peft_config["default"]
    recorded.base_model_name_or_path = str(base)
    # peft keeps a set and writes it in the order of this process's string hashes: equal runs, unequal files.
    recorded.target_modules = sorted(recorded.target_modules)
    return adapted
