"""Domain- and task-adaptive pretraining of a base (Gururangan et al. 2020), with replay against forgetting.

The rate is warmed up and decayed once more and a share of general text is mixed in, which Ibrahim et al. (2024,
"Simple and Scalable Strategies to Continually Pre-train Large Language Models") found enough to match training on the
union.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.files import atomic_folder
from quilate.models.tuning.lora import LoraConfig
from quilate.phases.language_modelling import CorpusMixture, TextTraining, fits_of, measure, train_on_text
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of, once, write_model_note
from quilate.rng import Streams

DEFAULT_RATE = {"full": 5e-5, "lora": 5e-4}  # a tenth of a pretraining rate, and ten times that for LoRA (guess)


class AdaptConfig(TextTraining):
    kind: Literal["adapt"]
    """A base is trained further on raw text."""
    on: str = "base"
    """The stage whose model is adapted."""
    weights: Literal["full", "lora"] = "full"
    """Train every weight, or a LoRA adapter that is merged into the base at the end."""
    lora: LoraConfig | None = None
    """Settings of the adapter, for `weights: lora`."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 5e-5 for `full`, 5e-4 for `lora`."""
    extend_vocabulary: int | None = Field(default=None, ge=1)
    """Add so many tokens to the base's vocabulary, learned from the stage's corpora by their shares; every new one
    starts as the mean of the base's pieces that it stands for. Text then takes fewer tokens: more of it is read for the
    same compute, and fits the context. Needs `weights: full`."""
    tokens: int = Field(default=300_000, ge=1)
    """Training tokens in all."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens an optimizer step."""

    @model_validator(mode="after")
    def _adapter_settings_have_an_adapter(self) -> AdaptConfig:
        if self.lora is not None and self.weights != "lora":
            raise ValueError("`lora` settings go with `weights: lora`")
        if self.extend_vocabulary is not None and self.weights != "full":
            raise ValueError("`extend_vocabulary` needs `weights: full`: an adapter would not train the new tokens")
        return self


def _run(context: StageContext[AdaptConfig]) -> StageReport:
    from quilate.models.load import load_language_model, load_tokenizer, save_model
    from quilate.models.precision import compute_dtype
    from quilate.models.tuning.lora import add_lora
    from quilate.models.tuning.merge import merge, merged

    config = context.config
    mixture = CorpusMixture.of(context.inputs, config.corpora)
    streams = Streams(context.seed)
    base = model_of(context.inputs["model"])
    tokenizer = load_tokenizer(base)
    model = load_language_model(base, dtype=compute_dtype(config.precision))
    if hasattr(model, "peft_config"):
        model, base = merged(model, tokenizer, context.folder / "base")
    before = once(context.folder / "before.json", lambda: measure(model, tokenizer, mixture, config, context))
    vocabulary: dict[str, Any] = {}
    if config.extend_vocabulary is not None:
        tokenizer, vocabulary = _extend_vocabulary(context, model, tokenizer, mixture, config.extend_vocabulary)
    if config.weights == "lora":
        model = add_lora(model, config.lora or LoraConfig(), base=base)
    result = train_on_text(context, model, tokenizer, mixture, streams, rate=config.lr or DEFAULT_RATE[config.weights])
    report = result.report(model, measured={}, before=before)
    report.facts.update(vocabulary)
    if config.weights == "lora":
        model = merge(model)
    report.facts["after"] = measure(model, tokenizer, mixture, config, context)
    with atomic_folder(context.folder / "model") as place:
        save_model(model, tokenizer, place)
    write_model_note(context.folder, context.folder / "model", epochs=result.epochs)
    return report


def _extend_vocabulary(
    context: StageContext[AdaptConfig],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixture: CorpusMixture,
    add: int,
) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """Give the base new tokens, in place; its new tokenizer, and facts: how many tokens each corpus's held-out text
    takes before and after, and how well the model predicts it before the new tokens were trained."""
    from quilate.models.load import load_tokenizer
    from quilate.models.vocabulary import extend_embeddings
    from quilate.tokenization.extend import Extension, learn_extension, write_extended

    learned = once(
        context.folder / "extension.json",
        lambda: learn_extension(tokenizer, mixture.train, mixture.weights, add).as_json(),
    )
    extension = Extension.from_json(learned)
    folder = context.folder / "tokenizer"
    if not folder.exists():
        with atomic_folder(folder) as place:
            write_extended(tokenizer, extension, place)
    extended = load_tokenizer(folder)
    facts = {
        "tokenizer_before": fits_of(tokenizer, mixture, context),
        "tokenizer": fits_of(extended, mixture, context),
        "new_tokens": len(extension.tokens),
    }
    extend_embeddings(model, extension.first, extension.pieces)
    facts["extended"] = once(
        context.folder / "extended.json", lambda: measure(model, extended, mixture, context.config, context)
    )
    return extended, facts


ADAPT = StageKind("adapt", 2, AdaptConfig, _run)
