"""What a stage computes: two ways that must give the same, and one that must not.

Shapes: T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from quilate.data.packing import Example, PackedBatch, pack, split_by_tokens
from quilate.engine.label_sets import LabelSetLoss
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import optimizer_step
from quilate.errors import ModelError
from quilate.models.load import context_length
from quilate.optim.adamw import AdamW
from quilate.rng import Streams
from quilate.verify.certificate import TOLERANCE, DoesNotApply, Finding
from quilate.verify.stage import HEAD, Examined, name_of

Loss = LanguageModellingLoss | LabelSetLoss


def packed_is_separate(examined: Examined) -> Finding:
    """The loss of packed rows is the sum of the rows' alone, of the stage's own targets and with every token a target.

    The control packs the same rows as if they were one document: were attention to leak, the loss would move so much.
    """
    if examined.is_head:
        raise DoesNotApply(HEAD)
    rows = examined.sample
    if len(rows) < 2:
        raise DoesNotApply("one row cannot be packed beside another")
    model = examined.loaded()
    loss = examined.loss(model)
    tolerance = TOLERANCE[examined.dtype]
    # A text's labels are read at one place of it.
    everywhere = rows if examined.classifies == "texts" else list(map(_every_token_a_target, rows))
    own, all_tokens = (_packed_against_alone(loss, part) for part in (rows, everywhere))
    control, why = _leaked(loss, model, everywhere)
    seen = control is None or control > tolerance
    figures = {"own targets": own, "every token a target": all_tokens}
    problem = "" if seen else f"a leak would not be seen: it moves the loss by {control:.4g} nats per target only"
    way = "attention confined to each document" if loss.encoder.packed else "documents padded side by side"
    return Finding(
        f"{len(rows)} rows, {sum(len(r.tokens) for r in rows):,} tokens, in {name_of(examined.dtype)} ({way}): the "
        "loss of the packed rows against the sum of the rows alone, in nats per target",
        max(own, all_tokens), tolerance, "nats per target", problem,
        {**figures, "if documents leaked": why if control is None else control},
    )  # fmt: skip


def _every_token_a_target(row: Example) -> Example:
    return replace(row, supervised=np.ones(len(row.tokens), dtype=bool))


@torch.no_grad()
def _packed_against_alone(loss: Loss, rows: Sequence[Example]) -> float:
    """How far apart they are, in nats per target."""
    packed = pack(rows)
    alone = sum(float(loss(pack([row]))) for row in rows)
    return abs(float(loss(packed)) - alone) / packed.supervised_tokens


@torch.no_grad()
def _leaked(loss: Loss, model: PreTrainedModel, rows: Sequence[Example]) -> tuple[float | None, str]:
    """How far the loss moves when documents see one another; None and why where that cannot be tried."""
    batch = pack(rows)
    one_document: PackedBatch = replace(batch, lengths=(batch.tokens,))
    if not loss.encoder.packed and batch.tokens > context_length(model):
        return None, "not tried: the rows together are longer than the model's context"
    try:
        together = float(loss(one_document))
    except ModelError as error:  # a sliding window
        return None, f"not tried: {error.message}"
    return abs(together - float(loss(batch))) / batch.supervised_tokens, ""


def accumulation_splits_agree(examined: Examined) -> Finding:
    """One optimizer step of the engine on the same rows, in one micro-batch and in several: equal gradient norms."""
    if examined.is_head:
        raise DoesNotApply(HEAD)
    rows = examined.sample
    if len(rows) < 2:
        raise DoesNotApply("one row cannot be divided into micro-batches")
    model = examined.untrained()
    loss = examined.loss(model)
    streams = Streams(examined.context.seed)
    parts = [[rows], split_by_tokens(rows, max(len(row.tokens) for row in rows)), [[row] for row in rows]]
    norms = []
    for division in parts:
        optimizer = AdamW(model.named_parameters(), rounding=streams["rounding"])
        packed = [pack(part) for part in division]
        step = optimizer_step(packed, loss, optimizer, learning_rate=0.0, clip_norm=float("inf"))
        norms.append(step.gradient_norm)
    apart = (max(norms) - min(norms)) / max(norms) if max(norms) > 0 else float("nan")
    return Finding(
        f"the norm of the first step's gradient on {len(rows)} rows, in {' and '.join(str(len(p)) for p in parts)} "
        f"micro-batches, in {name_of(examined.dtype)}; relative difference",
        apart, TOLERANCE[examined.dtype], "relative difference",
        "" if max(norms) > 0 else "the gradient is zero",
        {f"gradient norm, {len(division)} micro-batches": norm for division, norm in zip(parts, norms, strict=True)},
    )  # fmt: skip
