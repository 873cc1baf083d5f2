"""Bottleneck adapters: small networks with a skip in every layer, each before the residual sum.

Houlsby et al. 2019 ("Parameter-Efficient Transfer Learning for NLP") put one after the attention and one after the MLP.
Pfeiffer et al. 2021 ("AdapterFusion", section 3) found the one after the MLP to suffice, with a ReLU and frozen norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from quilate.config import Config
from quilate.errors import ModelError
from quilate.models.heads import classifier_name

# What ends a layer's attention and its MLP, by the names that families of architectures give to it.
SUBLAYER_OUTPUTS = (
    ("o_proj", "down_proj"),  # Llama, Mistral, Qwen, Gemma, SmolLM
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2
    ("self_attention.dense", "mlp.dense_4h_to_h"),  # Falcon
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX, Pythia
    ("attention.output.dense", "output.dense"),  # BERT, RoBERTa
)


class BottleneckConfig(Config):
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """`houlsby` puts a network after the attention and one after the MLP, `pfeiffer` one after the MLP."""
    size: int = Field(default=64, ge=1)
    """Width of the bottleneck; Houlsby et al. try 8, 64 and 256."""
    norms: bool | None = None
    """Train the layers' norms too; by default for `houlsby`, whose authors do, and not for `pfeiffer`."""


def add_bottlenecks(model: PreTrainedModel, config: BottleneckConfig, *, base: Path) -> PreTrainedModel:
    """Freeze `model` and give it fresh adapters; at the start its logits are nearly unchanged.

    Args:
        base: the base model's directory, recorded in the adapter.

    Raises:
        ModelError: the model's layers have names that are not known here.
    """
    # Here, not above: peft takes a second to import, and recipes only need the config.
    import peft

    from quilate.models.tuning.bottleneck_peft import PeftBottleneckConfig

    houlsby = config.placement == "houlsby"
    after_attention, after_mlp = _outputs_of(model)
    norms = _norms_of(model) if (houlsby if config.norms is None else config.norms) else []
    settings = PeftBottleneckConfig(
        size=config.size,
        activation="gelu" if houlsby else "relu",
        target_modules=[after_attention, after_mlp] if houlsby else [after_mlp],
        # BERT's attention ends in a name that ends like its MLP's.
        exclude_modules=None if houlsby else [after_attention],
        modules_to_save=[*norms, *(classifier_name(model) or [])] or None,
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    model.config._name_or_path = str(base)
    adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return adapted


def _outputs_of(model: PreTrainedModel) -> tuple[str, str]:
    names = [name for name, _ in model.named_modules()]
    for pair in SUBLAYER_OUTPUTS:
        if all(any(name.endswith(f".{output}") for name in names) for output in pair):
            return pair
    raise ModelError(
        f"{type(model).__name__} has layers whose outputs quilate cannot name, so no adapter can be put after them",
        hint="use `lora`, which goes on every linear layer",
    )


def _norms_of(model: PreTrainedModel) -> list[str]:
    """The names of the norms inside the layers; the last norm, after all layers, stays as it is."""
    named = (name.split(".") for name, module in model.named_modules() if type(module).__name__.endswith("Norm"))
    return sorted({".".join(_after_number(parts)) for parts in named if any(part.isdigit() for part in parts)})


def _after_number(parts: list[str]) -> list[str]:
    last = max(index for index, part in enumerate(parts) if part.isdigit())
    return parts[last + 1 :]
