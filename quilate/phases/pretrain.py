"""Pretraining from raw text: a tokenizer, a new model, a mixture of corpora, next-token or masked.

What pretraining shares with adaptation (the mixture, the schedule, the measurement) is in `language_modelling.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from quilate.errors import DataError
from quilate.files import atomic_folder
from quilate.models.load import load_tokenizer, save_model
from quilate.phases.language_modelling import CorpusMixture, TextTraining, fits_of, measure, train_on_text
from quilate.phases.stage import StageContext, StageKind, StageReport, write_model_note
from quilate.rng import Streams

TOKENIZER_SAMPLE_BYTES = 50_000_000  # a tokenizer trained on more text measured no better (guess)


class PretrainConfig(TextTraining):
    kind: Literal["pretrain"]
    """A new model is trained on raw text."""
    shape: Literal["llama", "gpt2", "falcon", "roberta"] = "llama"
    """The architecture: `llama`, `gpt2` and `falcon` predict the next token, `roberta` masked ones."""
    size: Literal["tiny", "3M", "11M", "30M"] = "3M"
    """Named size, with an 8k vocabulary."""
    config: str | None = None
    """A `transformers` config.json to use instead of `shape` and `size`; its vocabulary size is set to the
    tokenizer's."""
    vocabulary: int = Field(default=8192, ge=259)
    """Size of the vocabulary, over bytes, trained on the corpora; 259 are the bytes and three special tokens."""
    segmentation: Literal["bpe", "unigram"] = "bpe"
    """How the new tokenizer cuts a word: `bpe` by the merges most frequent in the corpora, `unigram` into its most
    probable pieces."""
    tokenizer: str | None = None
    """A model directory whose tokenizer to use instead of training one."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; small models bear large ones. By default 1e-3, for Sophia 6e-4."""

    context: int = Field(default=512, ge=8)
    """Longest text the new model can read, in tokens."""

    @model_validator(mode="after")
    def _pieces_fit_the_context(self) -> PretrainConfig:
        if self.length > self.context:
            raise ValueError(f"length {self.length} exceeds the model's context of {self.context}")
        return self


def _run(context: StageContext[PretrainConfig]) -> StageReport:
    from quilate.models.create import create
    from quilate.models.precision import compute_device, compute_dtype
    from quilate.optim.choice import DEFAULTS

    config = context.config
    mixture = CorpusMixture.of(context.inputs, config.corpora)
    streams = Streams(context.seed)
    tokenizer = tokenizer_of(context, mixture)
    fits = fits_of(tokenizer, mixture, context)
    shape = shape_of(context, tokenizer)
    model = create(shape, masked=is_masked_shape(config, shape)).to(compute_device(), compute_dtype(config.precision))
    rate = config.lr or DEFAULTS[config.optimizer].learning_rate
    result = train_on_text(context, model, tokenizer, mixture, streams, rate=rate)
    with atomic_folder(context.folder / "model") as place:
        save_model(model, tokenizer, place)
    write_model_note(context.folder, context.folder / "model", epochs=result.epochs)
    report = result.report(model, measured=measure(model, tokenizer, mixture, config, context), before=None)
    report.facts["tokenizer"] = fits
    return report


def tokenizer_of(context: StageContext[PretrainConfig], mixture: CorpusMixture) -> PreTrainedTokenizerBase:
    """The named tokenizer, or one trained on the mixture; kept in the stage's folder.

    Raises:
        DataError: the named one has no end-of-text token, or the mixture is too small to train one.
    """
    from quilate.models.source import resolve_model
    from quilate.tokenization.train import TRAINERS

    folder = context.folder / "tokenizer"
    if context.config.tokenizer is not None:
        tokenizer = load_tokenizer(resolve_model(context.config.tokenizer, base=context.base_folder).path)
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer of {context.config.tokenizer} has no end-of-text token", hint="train one instead"
            )
    else:
        if not folder.exists():
            train = TRAINERS[context.config.segmentation]
            trained = train(mixture.sample(TOKENIZER_SAMPLE_BYTES), context.config.vocabulary)
            with atomic_folder(folder) as place:
                trained.save_pretrained(place)
        tokenizer = load_tokenizer(folder)  # as a resumed run does: what it saves in turn is the same to the byte
    return tokenizer


def shape_of(context: StageContext[PretrainConfig], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The new model's `transformers` config, its vocabulary that of the tokenizer.

    Raises:
        DataError: the config file that is named is not there.
    """
    from transformers import AutoConfig

    from quilate.models.create import shape_config
    from quilate.models.source import refuse_custom_code

    config = context.config
    vocabulary, end, pad = len(tokenizer), int(tokenizer.eos_token_id), int(tokenizer.pad_token_id or 0)
    if config.config is None:
        return shape_config(config.shape, config.size, vocabulary=vocabulary, context=config.context, end=end, pad=pad)
    path = Path(config.config)
    path = path if path.is_absolute() else context.base_folder / path
    if not path.is_file():
        raise DataError(f"no config file at {path}", hint="give the path of a transformers config.json")
    refuse_custom_code(path)
    try:
        given = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except ValueError as error:  # an architecture that transformers does not know
        raise DataError(
            f"{path} cannot be used: {error}", hint="give a config.json of a built-in architecture"
        ) from error
    given.update({"vocab_size": vocabulary, "eos_token_id": end, "bos_token_id": end, "pad_token_id": pad})
    return given


def is_masked_shape(config: PretrainConfig, shape: PretrainedConfig) -> bool:
    """Whether the new model is to predict masked tokens rather than next ones."""
    return "MaskedLM" in str(shape.architectures) or (config.config is None and config.shape == "roberta")


PRETRAIN = StageKind("pretrain", 2, PretrainConfig, _run)
