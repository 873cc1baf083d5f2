"""Load and save plain Hugging Face directories and PEFT adapter directories."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
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
from quilate.files import read_json, write_json
from quilate.models.heads import CLASSIFIER_NAMES, classifier_name, classifier_of
from quilate.models.precision import compute_device
from quilate.models.quantized import NOTE, Quantization, quantization_of, quantization_settings
from quilate.models.source import check_model_directory
from quilate.models.tuning.lora import as_plain_lora
from quilate.models.tuning.virtual import virtual_tokens_of


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
        directory = base_of_adapter(directory)
    return any("MaskedLM" in name for name in read_json(directory / "config.json").get("architectures") or [])


def load_language_model(
    directory: Path, *, dtype: torch.dtype, attention: str = "sdpa", quantize: Quantization | None = None
) -> PreTrainedModel:
    """A causal or masked language model, as the directory says, in evaluation mode, with its adapter applied when
    `directory` is a PEFT directory.

    Args:
        quantize: hold the weights in few bits; the base of an adapter is held as it was when that was trained.

    Raises:
        ModelError: see `check_model_directory`; or transformers cannot load it; or an adapter's base is missing.
        MachineError: this machine has nothing to hold weights in few bits.
    """
    check_model_directory(directory)
    if (directory / "adapter_config.json").exists():
        return _load_adapter(directory, dtype=dtype, attention=attention)
    factory = AutoModelForMaskedLM if is_masked_directory(directory) else AutoModelForCausalLM
    settings = quantization_settings(quantize, dtype) if quantize else {}
    return _load(factory, directory, dtype=dtype, attention=attention, **settings)


def load_causal(
    directory: Path, *, dtype: torch.dtype, attention: str = "sdpa", quantize: Quantization | None = None
) -> PreTrainedModel:
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
    return load_language_model(directory, dtype=dtype, attention=attention, quantize=quantize)


def load_classifier(directory: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """A classifier of texts, a reward model say, in evaluation mode: a plain directory, or an adapter beside its
    classifier's config.

    Raises:
        ModelError: see `check_model_directory`; or transformers cannot load it, or its classifying layer is missing.
    """
    check_model_directory(directory)
    if (directory / "adapter_config.json").exists():
        model = new_text_classifier(base_of_adapter(directory), _label_names(directory), dtype=dtype)
        return with_adapter(model, directory)
    return _load(AutoModelForSequenceClassification, directory, dtype=dtype, attention="sdpa")


def load_token_classifier(directory: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """A token classifier as `save_model` left it: a plain directory, or an adapter beside its classifier's config.

    Raises:
        ModelError: see `load_language_model`.
    """
    check_model_directory(directory)
    if (directory / "adapter_config.json").exists():
        model = new_token_classifier(base_of_adapter(directory), _label_names(directory), dtype=dtype)
        return with_adapter(model, directory)
    return _load(AutoModelForTokenClassification, directory, dtype=dtype, attention="sdpa")


def _label_names(directory: Path) -> list[str]:
    """The names that a classifier's config gives to its outputs, in order."""
    names: dict[int, str] = AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    ).id2label
    return [names[number] for number in sorted(names)]


def new_token_classifier(directory: Path, tags: Sequence[str], *, dtype: torch.dtype) -> PreTrainedModel:
    """The body of a language model with a fresh classifier of tags on it, drawn from torch's global stream.

    Raises:
        ModelError: the architecture has no token classifier in transformers, or the directory cannot be loaded.
    """
    return _fresh_classifier(AutoModelForTokenClassification, directory, tags, dtype=dtype)


def new_text_classifier(directory: Path, labels: Sequence[str], *, dtype: torch.dtype) -> PreTrainedModel:
    """The body of a causal model with a fresh linear map from a text's last hidden state to the log-odds of labels, of
    which a text may have several; drawn from torch's global stream.

    Raises:
        ModelError: it is a masked model, whose classifiers do more; or as `new_token_classifier`.
    """
    if is_masked_directory(directory):
        raise ModelError(
            f"{directory} is a masked language model: its weights cannot be trained to label whole texts here",
            hint="use `method: head`, which leaves them as they are, or a causal model",
        )
    settings = {"problem_type": "multi_label_classification"}
    return _fresh_classifier(AutoModelForSequenceClassification, directory, labels, dtype=dtype, **settings)


def _fresh_classifier(
    factory: Any, directory: Path, labels: Sequence[str], *, dtype: torch.dtype, **settings: Any
) -> PreTrainedModel:
    check_model_directory(directory)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}
    model = _load(factory, directory, dtype=dtype, attention="sdpa", fresh=CLASSIFIER_NAMES, **names, **settings)
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
    return (model if "quantization_config" in settings else model.to(compute_device())).eval()


def _load_adapter(directory: Path, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    base, note = base_of_adapter(directory), directory / NOTE
    quantize = read_json(note)["quantize"] if note.exists() else None
    return with_adapter(load_language_model(base, dtype=dtype, attention=attention, quantize=quantize), directory)


def with_adapter(model: PreTrainedModel, directory: Path, *, name: str = "default") -> PreTrainedModel:
    """The base `model` with the adapter of a directory applied; or a model with adapters, with one more beside them.

    Raises:
        ModelError: it is broken, lacks some of its weights, or was made for another base.
    """
    from peft import PeftModel, get_peft_model_state_dict

    import quilate.models.tuning.bottleneck_peft  # noqa: F401 (its adapters are then among those that peft knows)

    try:
        # autocast_adapter_dtype would make the adapter fp32 and every layer convert back and forth.
        if hasattr(model, "peft_config"):
            model.load_adapter(str(directory), adapter_name=name, autocast_adapter_dtype=False)
        else:
            model = PeftModel.from_pretrained(model, directory, adapter_name=name, autocast_adapter_dtype=False)
    except BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{directory}: the adapter cannot be loaded: {reason}",
            hint="is it whole and made for this base?",
        ) from error
    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    with safe_open(directory / "adapter_model.safetensors", framework="numpy") as file:
        missing = sorted(set(wanted) - set(file.keys()))
    if missing:  # peft draws them at random, warns and goes on
        raise ModelError(
            f"{directory} lacks {len(missing)} of its weights: {', '.join(missing[:3])}", hint="fetch the adapter again"
        )
    return model.eval()


def base_of_adapter(directory: Path) -> Path:
    """The base of an adapter directory.

    Raises:
        ModelError: it is not there, or is itself an adapter.
    """
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
    included.

    Raises:
        ModelError: the model is an adapter on embeddings that were resized, which it would not hold.
    """
    if hasattr(model, "peft_config"):
        _refuse_resized(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Could not find a config file.*")
        model.save_pretrained(folder, safe_serialization=True) if hasattr(
            model, "peft_config"
        ) else model.save_pretrained(folder)
    if hasattr(model, "peft_config"):
        as_plain_lora(model, folder)
        if quantization_of(model) is not None:
            write_json(folder / NOTE, {"quantize": quantization_of(model)})
    tokenizer.save_pretrained(folder)
    if hasattr(model, "peft_config") and classifier_name(model.get_base_model()) is not None:
        model.get_base_model().config.save_pretrained(folder)  # the base's own config knows nothing of the tags


def _refuse_resized(model: PreTrainedModel) -> None:
    base = Path(str(model.peft_config[model.active_adapter].base_model_name_or_path))
    if not (base / "config.json").exists():
        return
    rows, saved = model.get_base_model().get_input_embeddings().weight.shape[0], read_json(base / "config.json")
    if rows != saved.get("vocab_size", rows):
        raise ModelError(
            f"the embeddings have {rows} rows and those of {base} have {saved['vocab_size']}: they were resized, and "
            "an adapter does not hold them",
            hint="save the resized base first and put the adapter on that, or train in full",
        )


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def recompute_activations(model: torch.nn.Module) -> None:
    """Make the layers of the language model in `model` keep their inputs alone while they train (Chen et al. 2016).

    Raises:
        ValueError: the model stays in evaluation mode, in which transformers would keep all and say nothing.
    """
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    model.train()
    if not inner.training:
        raise ValueError("activations are recomputed in training mode only, and this model does not enter it")
    older_name = "gradient_checkpointing_enable"
    enable = getattr(inner, "activation_checkpointing_enable", None) or getattr(inner, older_name)
    enable({"use_reentrant": False})


def context_length(model: PreTrainedModel) -> int:
    """The longest text that the model can read; learned tokens before it take their place."""
    virtual = virtual_tokens_of(model)
    return _context_of(model.config) - (virtual.length if virtual else 0)


def context_of_directory(directory: Path) -> int:
    """`context_length` of a model or adapter directory, without loading its weights.

    Raises:
        ModelError: its config cannot be read.
    """
    virtual = 0
    if (directory / "adapter_config.json").exists():
        virtual = read_json(directory / "adapter_config.json").get("num_virtual_tokens") or 0
        directory = base_of_adapter(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return _context_of(config) - virtual
    except BROKEN as error:
        raise ModelError(f"{directory}: the config cannot be read: {error}", hint="fetch the model again") from error


def _context_of(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30)
