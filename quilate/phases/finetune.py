"""Fine-tuning a model on a labelled task.

Labels and options are written: all methods but one teach a causal model to write an item's answer after its prompt,
with all weights, the last layers, a LoRA adapter or bottleneck adapters. `head` leaves the model as it is and puts a
classifier on its hidden states. Spans are tagged: the same methods train a token classifier, causal or masked. Where a
text may have several labels, they train a classifier of texts with a sigmoid for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.data.packing import Example
from quilate.engine.label_sets import LabelSetLoss
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.files import atomic_folder
from quilate.inference.label_sets import LabelSetScorer
from quilate.inference.records import RecordTagger
from quilate.inference.spans import ModelTagger
from quilate.inference.tagging import WindowPlan
from quilate.models.heads import classifier_of
from quilate.models.load import (
    context_length,
    load_causal,
    load_language_model,
    load_tokenizer,
    new_text_classifier,
    new_token_classifier,
    save_model,
    trainable_parameters,
)
from quilate.models.precision import compute_dtype
from quilate.models.quantized import Quantization
from quilate.models.tuning.bottleneck import BottleneckConfig, add_bottlenecks
from quilate.models.tuning.freeze import train_last_layers
from quilate.models.tuning.ia3 import add_ia3
from quilate.models.tuning.layers import layerwise_rates
from quilate.models.tuning.lora import TAKEN_FROM_THE_BASE, LoraConfig, add_lora
from quilate.models.tuning.merge import merged
from quilate.models.tuning.virtual import add_virtual_tokens
from quilate.phases.asking import WrittenScorer, written_scorer
from quilate.phases.example_training import RecomputingTraining, plan_batches, train, training_flops
from quilate.phases.examples import (
    Examples,
    item_of,
    label_set_examples,
    record_examples,
    tag_examples,
    written_examples,
)
from quilate.phases.head import HeadConfig, train_head
from quilate.phases.inputs import LearningConfig
from quilate.phases.search import PENALTY, PENALTY_FACTOR, Search, Trial, best_of_trials, combinations, config_of, sweep
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of, write_model_note
from quilate.rng import Streams
from quilate.tasks.bio import tag_names
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import ExtractionTask
from quilate.tasks.kinds import load_task
from quilate.tasks.multi_label import MultiLabelTask, indicators
from quilate.tasks.multiple_choice import AnswerForm
from quilate.tasks.task import Task

Method = Literal["full", "lora", "adapter", "ia3", "prefix", "prompt", "last_layers", "head"]

# LoRA's best rate is about ten times full fine-tuning's and hardly depends on the rank ("LoRA Without Regret",
# Schulman 2025). IA3: Liu et al. 2022, section 3.3. Few numbers to learn, far from where they start, bear large rates:
# those of the learned tokens are guesses. For the others: chosen on the development items of the ICD-10 demo.
# A token classifier's `head` is one fresh layer (guess).
DEFAULT_RATE: dict[Method, float] = {
    "full": 3e-5, "lora": 3e-4, "adapter": 1e-3, "ia3": 3e-3, "prefix": 1e-2, "prompt": 3e-2, "last_layers": 5e-4,
    "head": 1e-3,
}  # fmt: skip

DEFAULT_LAST_LAYERS = 2
DEFAULT_VIRTUAL_TOKENS = 20  # Lester et al. 2021, figure 3b: more than 20 gain little


class TuningConfig(RecomputingTraining):
    """What of a model is trained on labelled items, and how fast."""

    method: Method
    """`full` trains every weight, `last_layers` those of the last layers, `lora` a low-rank adapter on every linear
    layer, `adapter` bottleneck networks in every layer, `ia3` a factor for every channel of keys, values and MLPs,
    `prompt` the embeddings and `prefix` the keys and values of tokens before every text; the model learns to write the
    label after the item. `head` freezes the model and trains a linear classifier on it. `prompt` and `prefix` apart,
    all train a token classifier for extraction and, `head` apart, a classifier of texts for multi_label."""
    on: str = "base"
    """The stage whose model is fine-tuned."""
    answer: Literal["text", "letter", "records"] | None = None
    """What the model learns to write. For multiple choice: the right option's `text`, which is the default, or its
    `letter` after a prompt that lists all. For extraction: `records`, a causal model's list of entities as JSON under a
    grammar (needs the extra `grammar`); by default tokens are tagged."""
    max_new_tokens: int = Field(default=256, ge=8)
    """With `answer: records` and in question answering: the most tokens of an answer. Windows whose records need more
    are left out of training, and longer answers are cut; both are counted."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 3e-5 for `full`, 3e-4 for `lora`, 1e-3 for `adapter`, 3e-3 for `ia3`, 1e-2 for
    `prefix`, 3e-2 for `prompt`, 5e-4 for `last_layers`, 1e-3 for the `head` of an extraction task."""
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    """For `method: full`: each layer's learning rate is this times that of the layer above it, so that what the base
    knows of the language stays nearly as it was; 0.65 to 0.95 are usual."""
    lora: LoraConfig | None = None
    """Settings of the low-rank adapter, for `method: lora`."""
    quantize: Quantization | None = None
    """For `method: lora`: hold the base in four bits (`nf4`) or eight (`int8`), by the package bitsandbytes. The
    adapter is then loaded onto such a base again, and not merged."""
    adapter: BottleneckConfig | None = None
    """Settings of the bottleneck adapters, for `method: adapter`."""
    virtual_tokens: int | None = Field(default=None, ge=1)
    """How many tokens are learned, for `method: prompt` and `prefix`; 20 by default."""
    last_layers: int | None = Field(default=None, ge=1)
    """How many layers learn, for `method: last_layers`; 2 by default."""
    head: HeadConfig | None = None
    """Settings of the classifier, for `method: head`."""
    max_item_tokens: int = Field(default=512, ge=8)
    """Longer prompts are cut in the middle, and counted. For extraction and multi_label (its `head` apart, see `long`)
    longer texts are read in windows of so many tokens."""

    @model_validator(mode="after")
    def _settings_go_with_their_method(self) -> TuningConfig:
        for method in ("lora", "adapter", "last_layers", "head"):
            if getattr(self, method) is not None and self.method != method:
                raise ValueError(f"`{method}` settings go with `method: {method}`")
        if self.virtual_tokens is not None and self.method not in ("prompt", "prefix"):
            raise ValueError("`virtual_tokens` go with `method: prompt` and `method: prefix`")
        if self.layer_decay is not None and self.method != "full":
            raise ValueError("`layer_decay` goes with `method: full`")
        if self.quantize is not None and self.method != "lora":
            raise ValueError("`quantize` goes with `method: lora`: weights in so few bits cannot be trained")
        if self.quantize is not None and self.lora is not None and self.lora.init in TAKEN_FROM_THE_BASE:
            raise ValueError(f"`quantize` does not go with `lora.init: {self.lora.init}`, which changes the base")
        return self

    def option_form(self) -> AnswerForm:
        """What is written for an option of multiple choice."""
        return "letter" if self.answer == "letter" else "text"

    def tokens_before(self) -> int:
        """How many learned tokens stand before every text."""
        return (self.virtual_tokens or DEFAULT_VIRTUAL_TOKENS) if self.method in ("prompt", "prefix") else 0

    def rate(self) -> float:
        """The peak learning rate, given or by default."""
        return self.lr or DEFAULT_RATE[self.method]


class FinetuneConfig(TuningConfig, LearningConfig):
    kind: Literal["finetune"]
    """A model is trained on the labelled items."""
    search: Search | None = None
    """Settings to try, each key with its values: `{lr: [1e-4, 3e-4]}`, `{lora.rank: [1, 4, 16, 64]}`. Every combination
    is trained, with its share of the token budget, and the best on the development items is kept; all of them are
    the arm's cost."""

    @model_validator(mode="after")
    def _every_trial_is_possible(self) -> FinetuneConfig:
        for trial in self.trials():
            config_of(self, trial, 1)
        return self

    def trials(self) -> list[Trial]:
        """The combinations of settings to try; none without a search."""
        return [] if self.search is None else combinations(self.search)


def default_search(config: FinetuneConfig, kind: str, trials: int) -> Search:
    """What an arm tries that is told how often to try and not what: learning rates around its own.

    Args:
        kind: of the task; the `head` of a classification task has no rate, and tries strengths of its penalty.
    """
    if config.method == "head" and kind in ("classification", "multi_label"):
        return {PENALTY: sweep((config.head or HeadConfig()).regularization, trials, PENALTY_FACTOR)}
    return {"lr": sweep(config.rate(), trials)}


def _run(context: StageContext[FinetuneConfig]) -> StageReport:
    task = load_task(context.inputs["task"] / "task")
    trials = context.config.trials()
    return best_of_trials(context, task, trials, _run_once) if trials else _run_once(context)


def _run_once(context: StageContext[FinetuneConfig]) -> StageReport:
    task = context.config.what_is_learned(load_task(context.inputs["task"] / "task"), context.seed)
    base = model_of(context.inputs["model"])
    if isinstance(task, ClassificationTask | MultiLabelTask) and context.config.method == "head":
        return _run_head(context, task, base)
    return _run_weights(context, task, base)


def _run_head(
    context: StageContext[FinetuneConfig], task: ClassificationTask | MultiLabelTask, base: Path
) -> StageReport:
    """A classifier on the hidden states of a model that stays as it is."""
    config = context.config
    trained = train_head(
        context, task, base, config.head or HeadConfig(), max_item_tokens=config.max_item_tokens,
        max_train_tokens=config.max_train_tokens, precision=config.precision,
    )  # fmt: skip
    trained.scorer.save(context.folder / "scorer")
    return StageReport(
        train_tokens=trained.features.tokens,
        flops=trained.features.flops,
        trainable_parameters=trained.scorer.weights.size + trained.scorer.bias.size,
        counts={"prompts cut": trained.features.truncated, "rows over the token budget": trained.left_out}
        | trained.features.counts(),
        facts={"train_rows": len(task.train) - trained.left_out, "solver_iterations": trained.iterations},
    )


def _run_weights(context: StageContext[FinetuneConfig], task: Task, base: Path) -> StageReport:
    """Weights are trained: of a causal model that learns to write the answer, or of a token classifier."""
    config = context.config
    streams = Streams(context.seed)
    dtype = compute_dtype(config.precision)
    tokenizer = load_tokenizer(base)
    model, base = load_for_task(task, base, tokenizer, config, context.folder / "base")
    made = examples_of(task, model, tokenizer, config)
    model = made_trainable(model, config, base)
    batches = plan_batches(config, made.examples, context.seed)
    loss, rates = loss_of(task, model, made.examples), rates_by_layer(model, config)
    result = train(context, model, batches, loss, streams, rate=config.rate(), rates=rates)
    save_trained(context.folder, model, tokenizer)
    _scorer(context.folder / "model", task, config).save(context.folder / "scorer")
    parameters = sum(p.numel() for p in model.parameters())
    trainable = trainable_parameters(model)
    return StageReport(
        train_tokens=result.tokens,
        flops=training_flops(result.tokens, parameters, trainable, body_learns=not _only_the_classifier(model)),
        trainable_parameters=trainable,
        counts=made.counts
        | {
            **result.incidents(),
            "visits over the token budget": batches.examples_left_out,
        },
        facts={
            "train_rows": made.rows,
            "steps": result.steps,
            "supervised_tokens": result.supervised_tokens,
            "dtype": str(dtype).removeprefix("torch."),
        },
    )


def load_for_task(
    task: Task, base: Path, tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig, folder: Path
) -> tuple[PreTrainedModel, Path]:
    """The model to train and the directory its weights are from: `folder`, if the base is an adapter. A classifier on
    it is fresh, drawn from torch's own stream."""
    dtype = compute_dtype(config.precision)
    if not isinstance(task, ExtractionTask | MultiLabelTask) or writes_answers(task, config):
        return load_to_train(base, tokenizer, config, folder)
    if (base / "adapter_config.json").exists():
        _, base = merged(load_language_model(base, dtype=dtype), tokenizer, folder)
    if isinstance(task, MultiLabelTask):
        classifier = new_text_classifier(base, task.trained_labels, dtype=dtype)
        # transformers reads a text's logits at the last token that is not padding.
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        classifier.config.pad_token_id = padding
        return classifier, base
    return new_token_classifier(base, tag_names(task.trained_labels), dtype=dtype), base


def writes_answers(task: Task, config: FinetuneConfig) -> bool:
    """Whether a causal model learns to write; else a classifier of tokens or of texts is trained."""
    return not isinstance(task, ExtractionTask | MultiLabelTask) or config.answer == "records"


def load_to_train(
    base: Path, tokenizer: PreTrainedTokenizerBase, config: TuningConfig, folder: Path
) -> tuple[PreTrainedModel, Path]:
    """A causal model and the directory its weights are from: `folder`, if the base is an adapter, which is merged.

    Raises:
        ModelError: the adapter cannot be merged.
        MachineError: this machine has nothing to hold weights in few bits.
    """
    dtype = compute_dtype(config.precision)
    if (base / "adapter_config.json").exists():
        model, base = merged(load_causal(base, dtype=dtype), tokenizer, folder)
        if config.quantize is None:
            return model, base
    return load_causal(base, dtype=dtype, quantize=config.quantize), base


def examples_of(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig
) -> Examples:
    """What the model is trained on."""
    sizes = {"max_item_tokens": config.max_item_tokens, "context": context_length(model) - config.tokens_before()}
    match task:
        case ExtractionTask() if config.answer == "records":
            return record_examples(task, tokenizer, max_new_tokens=config.max_new_tokens, **sizes)
        case ExtractionTask():
            return tag_examples(task, tokenizer, WindowPlan.of(model, tokenizer, config.max_item_tokens))
        case MultiLabelTask():
            return label_set_examples(task, tokenizer, **sizes)
    return written_examples(task, config.option_form(), tokenizer, **sizes)


def loss_of(task: Task, model: PreTrainedModel, examples: Sequence[Example]) -> LanguageModellingLoss | LabelSetLoss:
    """What training lowers: the surprise at the answer's tokens or tags, or at a text's set of labels."""
    if not isinstance(task, MultiLabelTask):
        return LanguageModellingLoss(model)
    rows = torch.from_numpy(indicators(task.train, task.trained_labels).astype(np.float32))
    targets = dict(zip([item.id for item in task.train], rows, strict=True))
    return LabelSetLoss(model, {example.id: targets[item_of(example.id)] for example in examples})


def made_trainable(model: PreTrainedModel, config: TuningConfig, base: Path) -> PreTrainedModel:
    """The model with those parameters to train that the method trains, and the others frozen."""
    classifier = classifier_of(model)
    match config.method:
        case "head":  # of a token classifier; a classification task's head is not trained here
            model.requires_grad_(False)
        case "lora":
            return add_lora(model, config.lora or LoraConfig(), base=base)
        case "adapter":
            return add_bottlenecks(model, config.adapter or BottleneckConfig(), base=base)
        case "ia3":
            return add_ia3(model, base=base)
        case "prefix" | "prompt":
            return add_virtual_tokens(model, config.method, config.tokens_before(), base=base)
        case "last_layers":
            train_last_layers(model, config.last_layers or DEFAULT_LAST_LAYERS)
    if classifier is not None:
        classifier.requires_grad_(True)
    return model


def rates_by_layer(model: PreTrainedModel, config: TuningConfig) -> dict[str, float] | None:
    """What the learning rate is multiplied by for each parameter, where it falls by layer."""
    return None if config.layer_decay is None else layerwise_rates(model, config.layer_decay)


def _only_the_classifier(model: PreTrainedModel) -> bool:
    """Whether no gradient goes into the body: then a step computes little more than a forward pass."""
    return not any(p.requires_grad for p in model.base_model.parameters())


def save_trained(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Leave the model in `folder`, for the stages after this one."""
    with atomic_folder(folder / "model") as place, torch.no_grad():
        save_model(model, tokenizer, place)
    write_model_note(folder, folder / "model")


def _scorer(
    model: Path, task: Task, config: FinetuneConfig
) -> WrittenScorer | ModelTagger | LabelSetScorer | RecordTagger:
    size, precision = config.max_item_tokens, config.precision
    match task:
        case MultiLabelTask():
            return LabelSetScorer(model, task.trained_labels, max_item_tokens=size, precision=precision)
        case ExtractionTask() if config.answer == "records":
            return RecordTagger(
                model, task.trained_labels, template=task.config.prompt_template().source, max_item_tokens=size,
                max_new_tokens=config.max_new_tokens, precision=precision,
            )  # fmt: skip
        case ExtractionTask():
            return ModelTagger(model, task.trained_labels, max_item_tokens=size, precision=precision)
    return written_scorer(model, task, config)


FINETUNE = StageKind("finetune", 3, FinetuneConfig, _run)
