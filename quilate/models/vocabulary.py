"""Rows for new tokens in a model's embedding and in its head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def extend_embeddings(model: PreTrainedModel, first: int, pieces: Sequence[Sequence[int]]) -> None:
    """Give a model the tokens `first`, `first` + 1, ..., each starting as the mean of older tokens, in place.

    Where input and output share one table they still do; rows that pad a table are used before it grows. What the
    model computes of older tokens stays, but for the new logits beside theirs.

    Args:
        pieces: for each new token, the ids of those it stands for (Hewitt 2021 takes the mean of all rows instead).
    """
    needed = first + len(pieces)
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
    for table in {t.data_ptr(): t for t in tables if t is not None}.values():
        rows = [table[list(ids)].float().mean(dim=0) for ids in pieces]
        table[first:needed] = torch.stack(rows).to(table.dtype)
