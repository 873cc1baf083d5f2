"""Frozen base and trained head: every training text is encoded once, and a linear classifier learns from the vectors.

The cheapest way to use a model's knowledge (feature extraction; "linear probe"): one forward pass over the data, no
backward pass, and a few kilobytes to keep for each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save

from quilate.config import Config
from quilate.engine.runlog import Progress
from quilate.files import digest, read_json, write_bytes, write_json
from quilate.inference.features import Features, Long, Pooling
from quilate.inference.scorer import HeadScorer
from quilate.models.load import is_masked_directory, load_tokenizer
from quilate.models.precision import Precision
from quilate.phases.logistic import fit_labels, labels_present
from quilate.phases.stage import StageContext
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.labels import Item
from quilate.tasks.multi_label import MultiLabelTask
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.segments import prompt_tokens
from quilate.tokenization.windows import windows

PLAIN = PromptTemplate("{{ text }}")  # where a text has several labels, none follows it


class HeadConfig(Config):
    pooling: Pooling | None = None
    """Which hidden states stand for a text: the `last` token's, or the `mean` of all; by default `last` for a causal
    model and `mean` for a masked one."""
    long: Long = "cut"
    """What becomes of texts longer than `max_item_tokens`: `cut` in their middle, or read in overlapping `windows`
    whose vectors are averaged. Both are counted."""
    regularization: float = Field(default=0.01, gt=0)
    """Inverse strength C of the logistic regression's L2 penalty, on standardized features. Chosen on the development
    items of the ICD-10 demo."""


@dataclass(frozen=True)
class TrainedHead:
    """The scorer, what it learned from, and how: `left_out` training items did not fit the token budget."""

    scorer: HeadScorer
    features: Features
    left_out: int
    iterations: int


def train_head(
    context: StageContext[Any],
    task: ClassificationTask | MultiLabelTask,
    model: Path,
    config: HeadConfig,
    *,
    max_item_tokens: int,
    max_train_tokens: int | None,
    precision: Precision,
) -> TrainedHead:
    """Encode the training items (once: a resumed run finds the vectors in its folder) and fit the head.

    Standardization, which the penalty needs, is folded into the head's weights: the scorer sees plain vectors.

    Raises:
        DataError: the training rows have fewer than two labels.
        ModelError: the model cannot be loaded or divided.
    """
    several = isinstance(task, MultiLabelTask)
    pooling = config.pooling or ("mean" if is_masked_directory(model) else "last")
    template = PLAIN if isinstance(task, MultiLabelTask) else task.prompt_template()
    labels = task.trained_labels if isinstance(task, MultiLabelTask) else list(task.labels)

    def scorer(weights: np.ndarray, bias: np.ndarray) -> HeadScorer:
        return HeadScorer(
            model, labels, weights, bias, template=template.source, pooling=pooling, max_item_tokens=max_item_tokens,
            long=config.long, link="sigmoid" if several else "softmax", precision=precision,
        )  # fmt: skip

    items: Sequence[Item] = task.train
    if max_train_tokens is not None:
        prompts = prompt_tokens(load_tokenizer(model), [template.prompt(item.text) for item in items])
        lengths = [_tokens_read(len(tokens), max_item_tokens, config.long) for tokens in prompts]
        items = items[: int(np.searchsorted(np.cumsum(lengths), max_train_tokens, side="right"))]
    if not several:
        labels_present([item.label for item in items], labels)  # before the minutes that encoding takes
    features = _features(context, scorer(np.empty(0), np.empty(0)), [item.text for item in items])
    mean, deviation = features.vectors.mean(axis=0), features.vectors.std(axis=0)
    deviation[deviation == 0] = 1.0
    standardized = (features.vectors - mean) / deviation
    fitted = fit_labels(task, items, labels, standardized, regularization=config.regularization)
    weights = fitted.weights / deviation
    trained = scorer(weights, fitted.bias - weights @ mean)
    return TrainedHead(trained, features, len(task.train) - len(items), fitted.iterations)


def _tokens_read(length: int, size: int, long: Long) -> int:
    """Roughly, for windows have an opening of their own."""
    if long == "cut":
        return min(length, size)
    return sum(window.stop - window.start for window in windows(length, size, both_sides=False))


def _features(context: StageContext[Any], encoder: HeadScorer, texts: list[str]) -> Features:
    """The texts' vectors, computed once: by whoever comes first of a stage's attempts and of a search's trials, whose
    cost they are."""
    path = (context.shared or context.folder) / f"features-{digest([encoder.encoding(), texts])[:8]}.safetensors"
    facts_path = path.with_suffix(".json")
    if facts_path.exists():  # written last
        facts = read_json(facts_path)
        paid = {} if facts.pop("by") == context.folder.name else {"tokens": 0, "flops": 0.0}
        return Features(load_file(path)["vectors"], **facts | paid)

    def listen(done: int, total: int) -> None:
        context.stop.raise_if_set()
        context.listener(Progress(done, total, "items"))

    features = encoder.features(texts, listen)
    write_bytes(path, save({"vectors": features.vectors}))
    facts = {name: value for name, value in vars(features).items() if name != "vectors"}
    write_json(facts_path, facts | {"by": context.folder.name})
    return features
