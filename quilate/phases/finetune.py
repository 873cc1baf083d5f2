"""Fine-tuning a model on a labelled task.

All methods but one teach a causal model to write an item's label after its prompt, with all weights, the last layers, a
LoRA adapter or bottleneck adapters. `head` leaves the model as it is and puts a classifier on its hidden states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.data.packing import Example
from quilate.errors import DataError
from quilate.files import atomic_folder
from quilate.inference.scorer import PromptScorer
from quilate.models.load import context_length, load_causal, load_tokenizer, save_model, trainable_parameters
from quilate.models.precision import compute_dtype
from quilate.models.tuning.bottleneck import BottleneckConfig, add_bottlenecks
from quilate.models.tuning.freeze import train_last_layers
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.models.tuning.merge import merged
from quilate.phases.example_training import ExampleTraining, plan_batches, train_on_examples, training_flops
from quilate.phases.head import HeadConfig, train_head
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of, write_model_note
from quilate.rng import Streams
from quilate.tasks.classification import Task
from quilate.tokenization.segments import answer_tokens, prompt_tokens, shorten

Method = Literal["full", "lora", "adapter", "last_layers", "head"]

# LoRA's best rate is about ten times full fine-tuning's and hardly depends on the rank ("LoRA Without Regret",
# Schulman 2025).
# For the others: chosen on the development items of the ICD-10 demo.
DEFAULT_RATE = {"full": 3e-5, "lora": 3e-4, "adapter": 1e-3, "last_layers": 5e-4}


DEFAULT_LAST_LAYERS = 2


class FinetuneConfig(ExampleTraining):
    kind: Literal["finetune"]
    """A model is trained on the labelled items."""
    method: Method
    """`full` trains every weight, `last_layers` those of the last layers, `lora` a low-rank adapter on every linear
    layer, `adapter` two bottleneck networks in every layer; the model learns to write the label after the item. `head`
    freezes the model, encodes every item once and trains a linear classifier."""
    on: str = "base"
    """The stage whose model is fine-tuned."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 3e-5 for `full`, 3e-4 for `lora`, 1e-3 for `adapter`, 5e-4 for `last_layers`."""
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
        if self.method == "head" and self.lr is not None:
            raise ValueError("`lr` does not go with `method: head`: its classifier has a solver that needs none")
        return self


def build_examples(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, max_item_tokens: int, context: int
) -> tuple[list[Example], int]:
    """Training items as tokens: prompt, label, end of sequence; the label and the end are supervised.

    Returns:
        The examples, and how many prompts were cut.

    Raises:
        DataError: the longest label leaves no room for a prompt in the model's `context`.
    """
    template = task.prompt_template()
    answers = dict(zip(task.labels, answer_tokens(tokenizer, task.verbalizers), strict=True))
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    room = min(max_item_tokens, context - len(end) - max(map(len, answers.values())))
    if room < 1:
        raise DataError(
            f"the longest label fills the model's context of {context} tokens",
            hint="give it a short text in task.labels",
        )
    examples, truncated = [], 0
    for item, tokens in zip(
        task.train, prompt_tokens(tokenizer, [template.prompt(i.text) for i in task.train]), strict=True
    ):
        prompt, was_cut = shorten(tokens, room)
        answer = answers[item.label] + end
        supervised = np.zeros(len(prompt) + len(answer), dtype=bool)
        supervised[len(prompt) :] = True
        examples.append(Example(item.id, np.array(prompt + answer, dtype=np.int64), supervised))
        truncated += was_cut
    return examples, truncated


def _run(context: StageContext[FinetuneConfig]) -> StageReport:
    task = Task.load(context.inputs["task"] / "task")
    base = model_of(context.inputs["model"])
    return _run_head(context, task, base) if context.config.method == "head" else _run_writer(context, task, base)


def _run_head(context: StageContext[FinetuneConfig], task: Task, base: Path) -> StageReport:
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


def _run_writer(context: StageContext[FinetuneConfig], task: Task, base: Path) -> StageReport:
    """A causal model that learns to write the label."""
    config = context.config
    streams = Streams(context.seed)
    dtype = compute_dtype(config.precision)
    tokenizer = load_tokenizer(base)
    model = load_causal(base, dtype=dtype)
    examples, truncated = build_examples(
        task, tokenizer, max_item_tokens=config.max_item_tokens, context=context_length(model)
    )
    if hasattr(model, "peft_config"):
        model, base = merged(model, tokenizer, context.folder / "base")
    model = made_trainable(model, config, base)
    batches = plan_batches(config, examples, context.seed)
    rate = config.lr or DEFAULT_RATE[config.method]
    result = train_on_examples(context, model, batches, streams, rate=rate)
    _save(context.folder, model, tokenizer, task, config)
    parameters = sum(p.numel() for p in model.parameters())
    trainable = trainable_parameters(model)
    return StageReport(
        train_tokens=result.tokens,
        flops=training_flops(result.tokens, parameters, trainable),
        trainable_parameters=trainable,
        counts={
            "prompts cut": truncated,
            "refused updates": result.refused_updates,
            "visits over the token budget": batches.examples_left_out,
        },
        facts={
            "train_rows": len(examples),
            "steps": result.steps,
            "supervised_tokens": result.supervised_tokens,
            "dtype": str(dtype).removeprefix("torch."),
        },
    )


def made_trainable(model: PreTrainedModel, config: FinetuneConfig, base: Path) -> PreTrainedModel:
    """The model with those parameters to train that the method trains, and the others frozen."""
    match config.method:
        case "lora":
            return add_lora(model, config.lora or LoraConfig(), base=base)
        case "adapter":
            return add_bottlenecks(model, config.adapter or BottleneckConfig(), base=base)
        case "last_layers":
            return train_last_layers(model, config.last_layers or DEFAULT_LAST_LAYERS)
    return model


def _save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, config: FinetuneConfig
) -> None:
    with atomic_folder(folder / "model") as place, torch.no_grad():
        save_model(model, tokenizer, place)
    write_model_note(folder, folder / "model")
    scorer = PromptScorer(
        folder / "model",
        list(task.labels),
        list(task.verbalizers),
        template=task.prompt_template().source,
        normalization="sum",  # the label's log-probability, which is what training raised
        precision=config.precision,
    )
    scorer.save(folder / "scorer")


FINETUNE = StageKind("finetune", 2, FinetuneConfig, _run)
