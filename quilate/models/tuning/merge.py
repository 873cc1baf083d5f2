"""An adapter merged into its base, so that something can be trained on top of it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.files import atomic_folder
from quilate.models.load import save_model


def merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[PreTrainedModel, Path]:
    """Merge an adapter: to train further, and as a plain directory that the next adapter can name.

    Returns:
        The model, every weight trainable, and `folder`.
    """
    plain = model.merge_and_unload().requires_grad_(True)
    with atomic_folder(folder) as place:
        save_model(plain, tokenizer, place)
    return plain, folder
