"""What a stage saved: the files it wrote, the merged adapter, and what plain transformers or peft read from them.

Shapes: T tokens of all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from quilate.data.packing import Example, pack
from quilate.errors import ModelError
from quilate.files import read_json, sha256_of_file
from quilate.models.encoder import DocumentEncoder
from quilate.models.load import BROKEN
from quilate.models.precision import compute_device
from quilate.phases.sft import SftConfig
from quilate.verify.certificate import TOLERANCE, DoesNotApply, Finding
from quilate.verify.stage import Examined, name_of

# Methods whose update is a matrix that is added to a weight, or a scale of it.
MERGEABLE = ("LORA", "IA3")

# With what anybody reads a model, by what it classifies.
FACTORIES: dict[str, Any] = {
    "": AutoModelForCausalLM,
    "tokens": AutoModelForTokenClassification,
    "texts": AutoModelForSequenceClassification,
}

# Files are compared in fp32, whatever they were trained in: through the layers of a real model bf16 alone moves the
# logits by some hundredths of their spread (0.04 on a fine-tuned SmolLM2-135M), as much as a small mistake would.
EXACT = torch.float32


def files_unaltered(examined: Examined) -> Finding:
    """Every file that the manifest lists is there with the SHA-256 it was written with."""
    if examined.manifest is None:
        raise DoesNotApply("the stage is planned: it has saved nothing yet")
    altered = []
    for name, expected in examined.manifest["outputs"].items():
        path = examined.context.folder / name
        if not path.is_file():
            altered.append(f"{name} is missing")
        elif sha256_of_file(path) != expected["sha256"]:
            altered.append(f"{name} was altered")
    count = len(examined.manifest["outputs"])
    return Finding(
        f"{count} files of the stage against the SHA-256 in its manifest",
        len(altered), 0, "files altered or missing", ", ".join(altered), {"files": count},
    )  # fmt: skip


@torch.no_grad()
def merge_parity(examined: Examined) -> Finding:
    """The adapter merged into its base gives the logits that it gives beside it."""
    directory = examined.model_directory
    if not (directory / "adapter_config.json").exists():
        merged = isinstance(examined.config, SftConfig) and examined.config.merge
        raise DoesNotApply("only the merged model was saved" if merged else "the stage trains no adapter")
    method = str(read_json(directory / "adapter_config.json").get("peft_type"))
    if method not in MERGEABLE:
        raise DoesNotApply(f"an adapter of type {method} cannot be merged into a weight")
    rows = examined.sample
    apart = {dtype: _moved_by_merging(examined, dtype, rows) for dtype in {EXACT, examined.dtype}}
    return Finding(
        f"logits of {len(rows)} rows, {_tokens(rows):,} tokens, adapter beside its base against merged into it, in "
        f"{name_of(EXACT)}; difference over spread",
        apart[EXACT], TOLERANCE[EXACT], "of the logits' spread",
        figures={f"in {name_of(dtype)}": value for dtype, value in apart.items() if dtype != EXACT},
    )  # fmt: skip


def _moved_by_merging(examined: Examined, dtype: torch.dtype, rows: Sequence[Example]) -> float:
    """How far merging in a number format, which rounds every sum once more, moves the logits; see `_apart`."""
    model = examined.loaded(dtype)
    beside = _plain_logits(model, rows)
    return _apart(_plain_logits(model.merge_and_unload(), rows), beside, examined)


@torch.no_grad()
def export_parity(examined: Examined) -> Finding:
    """The saved directory, read by plain transformers or peft a row at a time, gives the logits that quilate gives with
    the rows packed."""
    directory = examined.model_directory
    rows = sorted(examined.sample, key=lambda row: -len(row.tokens))  # the order in which `pack` lays them
    plain_model, reader = _plainly_loaded(directory, FACTORIES[examined.classifies], EXACT)
    plain = _plain_logits(plain_model, rows)
    del plain_model
    encoder = DocumentEncoder(examined.loaded(EXACT))
    batch = pack(rows).to(encoder.device)
    hidden = encoder(batch.input_ids, batch.position_ids, batch.lengths)
    if examined.classifies == "texts":
        hidden = hidden[batch.source_positions]
    ours = encoder.divided.head(encoder.divided.transform(hidden)).float()
    return Finding(
        f"logits of {len(rows)} rows, {_tokens(rows):,} tokens: {reader} reads the saved directory, a row at a time, "
        f"against quilate with the rows packed, in {name_of(EXACT)}; difference over spread",
        _apart(ours, plain, examined), TOLERANCE[EXACT], "of the logits' spread",
    )  # fmt: skip


def _plainly_loaded(directory: Path, factory: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    """The model as anybody would load it, and with what.

    Raises:
        ModelError: it does not load.
    """
    try:
        if not (directory / "adapter_config.json").exists():
            model = factory.from_pretrained(directory, dtype=dtype, local_files_only=True)
            return model.to(compute_device()).eval(), "plain transformers"
        import peft

        import quilate.models.tuning.bottleneck_peft  # noqa: F401 (plain peft reads its adapters after this import)

        base = Path(read_json(directory / "adapter_config.json")["base_model_name_or_path"])
        named = {}
        if (
            factory is not AutoModelForCausalLM
        ):  # the classifier comes with the adapter; how many outputs it has must be told
            named = {"num_labels": AutoConfig.from_pretrained(directory, local_files_only=True).num_labels}
        model = factory.from_pretrained(base, dtype=dtype, local_files_only=True, **named)
        adapted = peft.PeftModel.from_pretrained(model, directory, autocast_adapter_dtype=False)
        return adapted.to(compute_device()).eval(), "plain peft"
    except BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{directory} is not read by plain transformers or peft: {reason}") from error


def _tokens(rows: Sequence[Example]) -> int:
    return sum(len(row.tokens) for row in rows)


def _plain_logits(model: PreTrainedModel, rows: Sequence[Example]) -> Tensor:
    """[T, V] float32, each row by itself; of a classifier of texts one a row."""
    device = compute_device()
    each = [model(input_ids=torch.from_numpy(r.tokens)[None].to(device)).logits[0] for r in rows]
    if each[0].dim() == 1:
        return torch.stack(each).float()
    # Prompt tuning's learned tokens have logits too: they stand before the row's.
    return torch.cat([logits[-len(row.tokens) :].float() for logits, row in zip(each, rows, strict=True)])


def _apart(one: Tensor, other: Tensor, examined: Examined) -> float:
    """The root mean square of the difference, over that of the logits: [T, V] -> no unit. Of what becomes a softmax the
    mean of each token's logits says nothing, and is taken off."""
    mean = 0.0 if examined.classifies == "texts" else other.mean(-1, keepdim=True)
    spread = (other - mean).double().square().mean().sqrt()
    return float((one - other).double().square().mean().sqrt() / spread)
