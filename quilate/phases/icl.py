"""In-context learning: the base model, a prompt, and solved examples in it; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from quilate.config import Config
from quilate.inference.scorer import PromptScorer
from quilate.inference.scores import Normalization
from quilate.models.precision import Precision
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of
from quilate.rng import numpy_stream
from quilate.tasks.classification import Task
from quilate.tasks.labels import Item


class IclConfig(Config):
    kind: Literal["icl"]
    """A prompt, with or without solved examples; nothing is trained."""
    on: str = "base"
    """The stage whose model is prompted."""
    shots: int = Field(default=0, ge=0)
    """Solved examples in the prompt; with `per_class`, of each class."""
    per_class: bool = False
    """Count `shots` for each class instead of in all."""
    normalization: Normalization = "mean"
    """How a label's token log-probabilities become its score: their `mean` or their `sum`."""
    instruction: bool = True
    """Begin the prompt with the task's instruction."""
    precision: Precision = "auto"
    """Number format of the forward pass: bf16 where the processor is fast at it, else fp32."""


def choose_demonstrations(items: Sequence[Item], shots: int, *, per_class: bool, seed: int) -> list[Item]:
    """Draw demonstrations from the training items and shuffle them.

    Without `per_class` the draw is balanced all the same: no label appears twice before every label that has items left
    appears once.
    """
    rng = numpy_stream(seed, "demonstrations")
    by_label: dict[str, list[Item]] = {}
    for index in rng.permutation(len(items)):
        by_label.setdefault(items[index].label, []).append(items[index])
    if per_class:
        chosen = [item for label in sorted(by_label) for item in by_label[label][:shots]]
    else:
        labels = list(rng.permutation(sorted(by_label)))
        rounds = [by_label[label][turn] for turn in range(shots) for label in labels if turn < len(by_label[label])]
        chosen = rounds[:shots]
    return [chosen[i] for i in np.asarray(rng.permutation(len(chosen)), dtype=int)]


def _run(context: StageContext[IclConfig]) -> StageReport:
    config = context.config
    task = Task.load(context.inputs["task"] / "task")
    chosen = choose_demonstrations(task.train, config.shots, per_class=config.per_class, seed=context.seed)
    template = task.prompt_template()
    scorer = PromptScorer(
        model_of(context.inputs["model"]),
        list(task.labels),
        list(task.verbalizers),
        template=template.source,
        instruction=template.instruction if config.instruction else "",
        demonstrations=[(item.text, task.verbalizer(item.label)) for item in chosen],
        normalization=config.normalization,
        precision=config.precision,
    )
    scorer.save(context.folder / "scorer")
    return StageReport(facts={"train_rows": len(chosen), "demonstrations": [item.id for item in chosen]})


ICL = StageKind("icl", 1, IclConfig, _run)
