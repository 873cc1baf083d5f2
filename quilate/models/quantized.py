"""A base held in few bits under an adapter (Dettmers et al. 2023, "QLoRA"), by bitsandbytes, where there is one."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from quilate.errors import MachineError
from quilate.models.precision import compute_device

Quantization = Literal["nf4", "int8"]

# Beside an adapter that was trained on such a base: whoever loads it is to hold the base alike.
NOTE = "quantized_base.json"


def quantization_settings(kind: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told. nf4: four bits of a normal distribution's quantiles, their scales quantized too.

    Raises:
        MachineError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(
            f"a base in {kind} needs the package bitsandbytes, which is not installed",
            hint="pip install bitsandbytes (Linux, Windows; macOS without a GPU), or leave `quantize` out",
        )
    from transformers import BitsAndBytesConfig

    config = (
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        if kind == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": config, "device_map": {"": compute_device()}}


def quantization_of(model: PreTrainedModel) -> Quantization | None:
    """How a model's base is held; None for one in full."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if not getattr(inner, "is_quantized", False):
        return None
    return "nf4" if inner.config.quantization_config.load_in_4bit else "int8"
