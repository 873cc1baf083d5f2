"""Load and save plain Hugging Face directories and PEFT adapter directories."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from quilate.errors import ModelError
from quilate.files import read_json
from quilate.models.heads import CLASSIFIER_NAMES, classifier_name, classifier_of
from quilate.models.precision import compute_device
from quilate.models.source import check_model_directory


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or adapter directory.

    Raises:
        ModelError: there is none, or it is broken.
    """
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken tokenizer.json makes the tokenizers library raise just that
        raise ModelError(
            f"{directory}: the tokenizer cannot be loaded: {error}", hint="fetch the model again"
        ) from error


def is_masked_directory(directory: Path) -> bool:
    """Whether a model directory (or an adapter's base) holds a masked language model rather than a causal one."""
    if (directory / "adapter_config.json").exists():
        directory = _base_of(directory)
    return any("MaskedLM" in name for name in read_json(directory / "config.json").get("architectures") or [])


def load_language_model(directory: Path, *, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """A causal or masked language model, as the directory says, in evaluation mode, with its adapter applied when
    `directory` is a PEFT directory.

    Raises:
        ModelError: see `check_model_directory`; or transformers cannot load it; or an adapter's base is missing.
    """
    check_model_directory(directory)
    if (directory / "adapter_config.json").exists():
        return _load_adapter(directory, dtype=dtype, attention=attention)
    factory = AutoModelForMaskedLM if is_masked_directory(directory) else AutoModelForCausalLM
    return _load(factory, directory, dtype=dtype, attention=attention)


def load_causal(directory: Path, *, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """As `load_language_model`, for a use that only a causal model has.

    Raises:
        ModelError: as there; or it is a masked model.
    """
    check_model_directory(directory)
    if is_masked_directory(directory):
        raise ModelError(
            f"{directory} is a masked language model: it fills gaps and cannot write an answer after a prompt",
            hint="use a causal model here; a masked one can be adapted, and fine-tuned with `method: head`",
        )
    return load_language_model(directory, dtype=dtype, attention=attention)


def load_classifier(directory: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """A sequence classifier, a reward model say, in evaluation mode.

    Raises:
        ModelError: see `check_model_directory`; or transformers cannot load it, or its classifying layer is missing.
    """
    check_model_directory(directory)
    return _load(AutoModelForSequenceClassification, directory, dtype=dtype, attention="sdpa")


def load_token_classifier(directory: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """A token classifier as `save_model` left it: a plain directory, or an adapter beside its classifier's config.

    Raises:
        ModelError: see `load_language_model`.
    """
    check_model_directory(directory)
    if (directory / "adapter_config.json").exists():
        tags = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False).id2label
        model = new_token_classifier(_base_of(directory), list(tags.values()), dtype=dtype)
        return _with_adapter(model.eval(), directory)
    return _load(AutoModelForTokenClassification, directory, dtype=dtype, attention="sdpa")


def new_token_classifier(directory: Path, tags: Sequence[str], *, dtype: torch.dtype) -> PreTrainedModel:
    """The body of a language model with a fresh classifier of tags on it, drawn from torch's global stream.

    Raises:
        ModelError: the architecture has no token classifier in transformers, or the directory cannot be loaded.
    """
    check_model_directory(directory)
    names = {"id2label": dict(enumerate(tags)), "label2id": {tag: number for number, tag in enumerate(tags)}}
    model = _load(
        AutoModelForTokenClassification, directory, dtype=dtype, attention="sdpa", fresh=CLASSIFIER_NAMES, **names
    )
    classifier = classifier_of(model)
    assert isinstance(classifier, torch.nn.Linear)
    torch.nn.init.normal_(classifier.weight, std=0.02)  # Devlin et al. 2019, as for every other new layer
    if classifier.bias is not None:
        torch.nn.init.zeros_(classifier.bias)
    return model


def reads_both_sides(model: PreTrainedModel) -> bool:
    """Whether a token sees those after it: true of masked models, false of causal ones."""
    return not any(getattr(module, "is_causal", False) for module in model.modules())


# What transformers and peft were seen to raise for files that are broken or name things they do not know.
BROKEN = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)


def _load(
    factory: Any, directory: Path, *, dtype: torch.dtype, attention: str, fresh: tuple[str, ...] = (), **settings: Any
) -> PreTrainedModel:
    """`fresh` layers need not be there, and are then not reported as missing."""
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    if fresh:
        transformers.utils.logging.set_verbosity_error()
    model: PreTrainedModel
    try:
        model, loading = factory.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    except BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{directory} cannot be loaded: {reason}", hint="is it a language model, whole and unaltered?"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    missing = sorted(key for key in loading["missing_keys"] if key.partition(".")[0] not in fresh)
    if missing:  # transformers draws them at random and goes on
        raise ModelError(
            f"{directory} lacks {len(missing)} of its weights: {', '.join(missing[:3])}", hint="fetch the model again"
        )
    return model.to(compute_device()).eval()


def _load_adapter(directory: Path, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    return _with_adapter(load_language_model(_base_of(directory), dtype=dtype, attention=attention), directory)


def _with_adapter(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    from peft import PeftModel

    import quilate.models.tuning.bottleneck_peft  # noqa: F401 (its adapters are then among those that peft knows)

    try:
        # autocast_adapter_dtype would make the adapter fp32 and every layer convert back and forth.
        return PeftModel.from_pretrained(model, directory, autocast_adapter_dtype=False).eval()
    except BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{directory}: the adapter cannot be loaded: {reason}",
            hint="is it whole and made for this base?",
        ) from error


def _base_of(directory: Path) -> Path:
    """The base of an adapter directory."""
    named = read_json(directory / "adapter_config.json").get("base_model_name_or_path")
    base = Path(str(named))
    if not base.is_dir() or (base / "adapter_config.json").exists():
        raise ModelError(
            f"{directory} is an adapter for {named}, which is {'itself an adapter' if base.is_dir() else 'not there'}",
            hint="put the base model back, or edit base_model_name_or_path in adapter_config.json",
        )
    return base


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a directory that plain `transformers` (or `peft`, for an adapter) loads, tokenizer and template
    included."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Could not find a config file.*")
        model.save_pretrained(folder, safe_serialization=True) if hasattr(
            model, "peft_config"
        ) else model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if hasattr(model, "peft_config") and classifier_name(model.get_base_model()) is not None:
        model.get_base_model().config.save_pretrained(folder)  # the base's own config knows nothing of the tags


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for."""
    return _context_of(model.config)


def context_of_directory(directory: Path) -> int:
    """`context_length` of a model or adapter directory, without loading its weights.

    Raises:
        ModelError: its config cannot be read.
    """
    if (directory / "adapter_config.json").exists():
        directory = _base_of(directory)
    try:
        return _context_of(AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False))
    except BROKEN as error:
        raise ModelError(f"{directory}: the config cannot be read: {error}", hint="fetch the model again") from error


def _context_of(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30)
