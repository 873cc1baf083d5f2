"""IA3 (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning")
through peft: keys, values and what enters a layer's last matrix are rescaled, one learned factor a channel.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from quilate.errors import ModelError
from quilate.models.heads import classifier_name


def add_ia3(model: PreTrainedModel, *, base: Path) -> PreTrainedModel:
    """Freeze `model` and give it factors of one; at the start its logits are unchanged.

    Args:
        base: the base model's directory, recorded in the adapter so that plain peft finds it.

    Raises:
        ModelError: peft does not know where the factors go in this architecture.
    """
    import peft
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    kind = model.config.model_type
    if kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        raise ModelError(f"peft does not know where IA3's factors go in a model of type {kind}", hint="use `lora`")
    settings = peft.IA3Config(
        target_modules=list(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind]),
        feedforward_modules=list(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]),
        modules_to_save=classifier_name(model),
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    model.config._name_or_path = str(base)
    adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    recorded = adapted.peft_config["default"]
    recorded.base_model_name_or_path = str(base)
    recorded.target_modules = sorted(recorded.target_modules)
    recorded.feedforward_modules = sorted(recorded.feedforward_modules)
    return adapted
