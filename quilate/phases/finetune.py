"""Fine-tuning a model on a labelled task.

Labels and options are written: all methods but one teach a causal model to write an item's answer after its prompt,
with all weights, the last layers, a LoRA adapter or bottleneck adapters. `head` leaves the model as it is and puts a
classifier on its hidden states. Spans are tagged: the same methods train a token classifier, causal or masked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.files import atomic_folder
from quilate.inference.choice import ChoicePromptScorer
from quilate.inference.scorer import PromptScorer
from quilate.inference.spans import ModelTagger
from quilate.inference.tagging import WindowPlan
from quilate.models.heads import classifier_of
from quilate.models.load import (
    context_length,
    load_causal,
    load_language_model,
    load_tokenizer,
    new_token_classifier,
    save_model,
    trainable_parameters,
)
from quilate.models.precision import compute_dtype
from quilate.models.tuning.bottleneck import BottleneckConfig, add_bottlenecks
from quilate.models.tuning.freeze import train_last_layers
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.models.tuning.merge import merged
from quilate.phases.example_training import ExampleTraining, plan_batches, train_on_examples, training_flops
from quilate.phases.examples import Examples, choice_examples, label_examples, tag_examples
from quilate.phases.head import HeadConfig, train_head
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of, write_model_note
from quilate.rng import Streams
from quilate.tasks.bio import tag_names
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import ExtractionTask
from quilate.tasks.kinds import load_task
from quilate.tasks.multiple_choice import AnswerForm, ChoiceTask
from quilate.tasks.task import Task

Method = Literal["full", "lora", "adapter", "last_layers", "head"]

# LoRA's best rate is about ten times full fine-tuning's and hardly depends on the rank ("LoRA Without Regret",
# Schulman 2025).
# For the others: chosen on the development items of the ICD-10 demo.
# A token classifier's `head` is one fresh layer (guess).
DEFAULT_RATE = {"full": 3e-5, "lora": 3e-4, "adapter": 1e-3, "last_layers": 5e-4, "head": 1e-3}


DEFAULT_LAST_LAYERS = 2


class FinetuneConfig(ExampleTraining):
    kind: Literal["finetune"]
    """A model is trained on the labelled items."""
    method: Method
    """`full` trains every weight, `last_layers` those of the last layers, `lora` a low-rank adapter on every linear
    layer, `adapter` two bottleneck networks in every layer; the model learns to write the label after the item. `head`
    freezes the model and trains a linear classifier on it. For extraction all of them train a token classifier."""
    on: str = "base"
    """The stage whose model is fine-tuned."""
    answer: AnswerForm = "text"
    """For multiple choice: learn to write the right option's `text`, or its `letter` after a prompt that lists all."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 3e-5 for `full`, 3e-4 for `lora`, 1e-3 for `adapter`, 5e-4 for `last_layers`, 1e-3
    for the `head` of an extraction task."""
    lora: LoraConfig | None = None
    """Settings of the low-rank adapter, for `method: lora`."""
    adapter: BottleneckConfig | None = None
    """Settings of the bottleneck adapters, for `method: adapter`."""
    last_layers: int | None = Field(default=None, ge=1)
    """How many layers learn, for `method: last_layers`; 2 by default."""
    head: HeadConfig | None = None
    """Settings of the classifier, for `method: head`."""
    max_item_tokens: int = Field(default=512, ge=8)
    """Longer prompts are cut in the middle, and counted."""

    @model_validator(mode="after")
    def _settings_go_with_their_method(self) -> FinetuneConfig:
        for method in ("lora", "adapter", "last_layers", "head"):
            if getattr(self, method) is not None and self.method != method:
                raise ValueError(f"`{method}` settings go with `method: {method}`")
        return self


def _run(context: StageContext[FinetuneConfig]) -> StageReport:
    task = load_task(context.inputs["task"] / "task")
    base = model_of(context.inputs["model"])
    if isinstance(task, ClassificationTask) and context.config.method == "head":
        return _run_head(context, task, base)
    return _run_weights(context, task, base)


def _run_head(context: StageContext[FinetuneConfig], task: ClassificationTask, base: Path) -> StageReport:
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
        counts={"prompts cut": trained.features.truncated, "rows over the token budget": trained.left_out},
        facts={"train_rows": len(task.train) - trained.left_out, "solver_iterations": trained.iterations},
    )


def _run_weights(context: StageContext[FinetuneConfig], task: Task, base: Path) -> StageReport:
    """Weights are trained: of a causal model that learns to write the answer, or of a token classifier."""
    config = context.config
    streams = Streams(context.seed)
    dtype = compute_dtype(config.precision)
    tokenizer = load_tokenizer(base)
    model, base = _load(task, base, tokenizer, config, context.folder / "base")
    made = _examples(task, model, tokenizer, config)
    model = made_trainable(model, config, base)
    batches = plan_batches(config, made.examples, context.seed)
    rate = config.lr or DEFAULT_RATE[config.method]
    result = train_on_examples(context, model, batches, streams, rate=rate)
    _save(context.folder, model, tokenizer, task, config)
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


def _load(
    task: Task, base: Path, tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig, folder: Path
) -> tuple[PreTrainedModel, Path]:
    """The model to train and the directory its weights are from: `folder`, if the base is an adapter."""
    dtype = compute_dtype(config.precision)
    if not isinstance(task, ExtractionTask):
        model = load_causal(base, dtype=dtype)
        return merged(model, tokenizer, folder) if hasattr(model, "peft_config") else (model, base)
    if (base / "adapter_config.json").exists():
        _, base = merged(load_language_model(base, dtype=dtype), tokenizer, folder)
    return new_token_classifier(base, tag_names(task.trained_labels), dtype=dtype), base


def _examples(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig
) -> Examples:
    sizes = {"max_item_tokens": config.max_item_tokens, "context": context_length(model)}
    match task:
        case ExtractionTask():
            return tag_examples(task, tokenizer, WindowPlan.of(model, tokenizer, config.max_item_tokens))
        case ChoiceTask():
            return choice_examples(task, config.answer, tokenizer, **sizes)
        case ClassificationTask():
            return label_examples(task, tokenizer, **sizes)
    raise AssertionError(f"no such kind of task: {task.config.kind}")


def made_trainable(model: PreTrainedModel, config: FinetuneConfig, base: Path) -> PreTrainedModel:
    """The model with those parameters to train that the method trains, and the others frozen."""
    classifier = classifier_of(model)
    match config.method:
        case "head":  # of a token classifier; a classification task's head is not trained here
            model.requires_grad_(False)
        case "lora":
            return add_lora(model, config.lora or LoraConfig(), base=base)
        case "adapter":
            return add_bottlenecks(model, config.adapter or BottleneckConfig(), base=base)
        case "last_layers":
            train_last_layers(model, config.last_layers or DEFAULT_LAST_LAYERS)
    if classifier is not None:
        classifier.requires_grad_(True)
    return model


def _only_the_classifier(model: PreTrainedModel) -> bool:
    """Whether no gradient goes into the body: then a step computes little more than a forward pass."""
    return not any(p.requires_grad for p in model.base_model.parameters())


def _save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, config: FinetuneConfig
) -> None:
    with atomic_folder(folder / "model") as place, torch.no_grad():
        save_model(model, tokenizer, place)
    write_model_note(folder, folder / "model")
    _scorer(folder / "model", task, config).save(folder / "scorer")


def _scorer(model: Path, task: Task, config: FinetuneConfig) -> PromptScorer | ChoicePromptScorer | ModelTagger:
    match task:
        case ExtractionTask():
            return ModelTagger(
                model, task.trained_labels, max_item_tokens=config.max_item_tokens, precision=config.precision
            )
        case ChoiceTask():
            return ChoicePromptScorer(
                model,
                form=config.answer,
                template=task.config.prompt_template(config.answer).source,
                # Options are far less alike in length than labels, and few examples do not undo what their length
                # costs: they are compared by the mean (guess), letters and labels by what training raised.
                normalization="mean" if config.answer == "text" else "sum",
                precision=config.precision,
            )
        case ClassificationTask():
            return PromptScorer(
                model,
                list(task.labels),
                list(task.verbalizers),
                template=task.prompt_template().source,
                normalization="sum",  # the label's log-probability, which is what training raised
                precision=config.precision,
            )
    raise AssertionError(f"no such kind of task: {task.config.kind}")


FINETUNE = StageKind("finetune", 2, FinetuneConfig, _run)
