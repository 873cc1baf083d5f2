"""An adapter merged into its base, so that something can be trained on top of it; or the reason why it cannot be."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.errors import ModelError
from quilate.files import atomic_folder
from quilate.models.load import save_model
from quilate.models.quantized import NOTE, quantization_of
from quilate.models.tuning.virtual import virtual_tokens_of


def merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[PreTrainedModel, Path]:
    """Merge an adapter: to train further, and as a plain directory that the next adapter can name.

    Returns:
        The model, every weight trainable, and `folder`.

    Raises:
        ModelError: see `merge`.
    """
    plain = merge(model).requires_grad_(True)
    if not folder.is_dir():  # an earlier process of this stage, or one that trains with this one, has written the same
        with atomic_folder(folder) as place:
            save_model(plain, tokenizer, place)
    return plain, folder


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model that computes what the adapted one does; `model` is used up.

    Raises:
        ModelError: the adapter is nothing that a weight could take up (bottlenecks, learned tokens); a weight that
            would take it up is used elsewhere too; or it would be rounded away, in a quantized base.
    """
    if virtual_tokens_of(model) is not None:
        raise ModelError("learned tokens cannot be merged into a base: they are in no weight", hint=_INSTEAD)
    if quantization_of(model) is not None:
        raise ModelError(
            "an adapter cannot be merged into a quantized base: rounded to so few values, most of it would be lost",
            hint=f"remove {NOTE} from the adapter's folder: it is then loaded, and merged, onto the base as it was",
        )
    tied = _tied_under_an_adapter(model)
    if tied:
        raise ModelError(
            f"the adapter on {tied[0]} cannot be merged: that weight is also {tied[1]}, which would change with it",
            hint="adapt other layers, or untie the weights first (tie_word_embeddings: false)",
        )
    plain: PreTrainedModel = model.merge_and_unload()
    return plain


_INSTEAD = "train on top of a full or LoRA model instead"


def _tied_under_an_adapter(model: PreTrainedModel) -> list[str]:
    """The names of a weight that an adapter changes and that has several uses; empty if there is none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners: dict[int, list[str]] = {}
    for name, parameter in model.get_base_model().named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.replace(".base_layer", ""))
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            names = owners.get(id(module.get_base_layer().weight), [])
            if len(names) > 1:
                own = next((n for n in names if "embed" not in n), names[0])
                return [own, *(n for n in names if n != own)]
    return []
