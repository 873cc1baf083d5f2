"""Several tasks learned by one model at once, each by its own prompt.

A model that writes its answers needs no head for each task: the prompt says which it is (Raffel et al. 2020), so tasks
of different kinds share all weights, and whatever a recipe can put on a base (LoRA, adapters, all of it) serves them
together. The tasks are mixed within each step.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quilate.data.mixing import apportion, mixing_weights, visits
from quilate.data.packing import Example
from quilate.models.load import context_length, load_tokenizer, trainable_parameters
from quilate.phases.example_training import plan_batches, train_on_examples, training_flops
from quilate.phases.examples import written_examples
from quilate.phases.finetune import TuningConfig, load_to_train, made_trainable, rates_by_layer, save_trained
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of
from quilate.rng import Streams
from quilate.tasks.kinds import load_task


class MultitaskConfig(TuningConfig):
    kind: Literal["multitask"]
    """One model is trained on several tasks at once."""
    tasks: list[str] = Field(min_length=1)
    """The tasks to train on: `task` is the recipe's own, the others are names of its `tasks`. Of extraction the model
    learns to write a list; one such task alone is what learning several is to be compared with."""
    temperature: float = Field(default=1.0, ge=1)
    """A task is trained on in proportion to its rows^(1 / temperature): 1 by size, high nearly all alike."""
    cap: int | None = Field(default=None, ge=1)
    """Count no task as having more rows than this when they are mixed."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it."""

    @model_validator(mode="after")
    def _tasks_are_written(self) -> MultitaskConfig:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: one is named twice; `temperature` and `cap` say how often each is trained on")
        if self.method == "head":
            raise ValueError("`method: head` trains no model: it has a classifier for each task, as arms of their own")
        return self


def _run(context: StageContext[MultitaskConfig]) -> StageReport:
    config = context.config
    streams = Streams(context.seed)
    base = model_of(context.inputs["model"])
    tokenizer = load_tokenizer(base)
    model, base = load_to_train(base, tokenizer, config, context.folder / "base")
    context_left = context_length(model) - config.tokens_before()
    made = {
        name: written_examples(
            load_task(context.inputs[f"task:{name}"] / "task"), config.option_form(), tokenizer,
            max_item_tokens=config.max_item_tokens, context=context_left,
        )
        for name in config.tasks
    }  # fmt: skip
    rows = {name: part.rows for name, part in made.items()}
    shares = mixing_weights(rows, temperature=config.temperature, cap=config.cap)
    counts = apportion(round(config.epochs * sum(rows.values())), shares)
    named = {n: [Example(f"{n}:{e.id}", e.tokens, e.supervised) for e in part.examples] for n, part in made.items()}
    mixed = visits(named, counts, context.seed)
    context.note(", ".join(f"{name}: {counts[name]} visits to {rows[name]} rows" for name in rows))
    model = made_trainable(model, config, base)
    batches = plan_batches(config.model_copy(update={"epochs": 1.0}), mixed, context.seed)
    result = train_on_examples(
        context, model, batches, streams, rate=config.rate(), rates=rates_by_layer(model, config)
    )
    save_trained(context.folder, model, tokenizer)
    trainable = trainable_parameters(model)
    return StageReport(
        train_tokens=result.tokens,
        flops=training_flops(result.tokens, sum(p.numel() for p in model.parameters()), trainable),
        trainable_parameters=trainable,
        counts={
            **{f"{name}: {reason}": count for name, part in made.items() for reason, count in part.counts.items()},
            **result.incidents(),
            "visits over the token budget": batches.examples_left_out,
        },
        facts={
            "rows": rows,
            "shares": shares,
            "visits": counts,
            "steps": result.steps,
            "train_rows": sum(rows.values()),
        },
    )


MULTITASK = StageKind("multitask", 2, MultitaskConfig, _run)
