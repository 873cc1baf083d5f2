"""What training on human judgements has in common, for a reward model and for a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from quilate.data.preference_batches import (
    EncodedPrompt,
    PreferenceBatch,
    PreferenceBatches,
    collate,
    encode_prompts,
    split_prompts,
)
from quilate.data.preferences import JudgedPrompt
from quilate.errors import DataError
from quilate.evaluation.preferences import JudgedPairs, length_direction, pair_report
from quilate.models.load import context_length, load_causal, load_tokenizer
from quilate.models.precision import compute_dtype
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.models.tuning.merge import merged
from quilate.phases.align.common import apart_from_held_out, check_adapter
from quilate.phases.align.preferences import stored_preferences
from quilate.phases.example_training import ExampleTraining
from quilate.phases.sft import chat_template
from quilate.phases.stage import StageContext, model_of
from quilate.tokenization.chat import ChatTemplate


class PreferenceTraining(ExampleTraining):
    """What every stage that trains on judgements can be told."""

    on: str = "base"
    """The stage whose model is trained: one that was tuned on conversations, as a rule."""
    preferences: list[str] = Field(min_length=1)
    """The sets of judgements to train on. Every set of the recipe is measured with."""
    method: Literal["lora", "full"] = "lora"
    """`lora` trains a low-rank adapter on every linear layer, `full` every weight."""
    lora: LoraConfig | None = None
    """Settings of the low-rank adapter, for `method: lora`. Dropout must stay 0: a policy that drops at random
    differs from its own reference."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the prompts; judgements are soon learned by heart (Ouyang et al. 2022 use one)."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per optimizer step, each with all its completions."""
    length: int = Field(default=512, ge=64)
    """Longest prompt and completion in tokens. Of longer ones the prompt is cut, never the completion."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it."""

    @model_validator(mode="after")
    def _adapter_settings(self) -> PreferenceTraining:
        check_adapter(self.method, self.lora, is_its_own_reference=True)
        return self


@dataclass
class Prepared:
    """A causal model ready to be trained and measured, and judgements as its tokens.

    Attributes:
        base: the plain directory that `model` is of.
        judged: the training prompts as they were read, by the encoded ones' ids.
        held_out: encoded prompts that have pairs, by set.
        counts: what was cut or left out.
    """

    template: ChatTemplate
    model: PreTrainedModel
    base: Path
    judged: list[JudgedPrompt]
    train: list[EncodedPrompt]
    held_out: dict[str, list[EncodedPrompt]]
    counts: Counter[str]

    @property
    def limit(self) -> int:
        return max(len(c.tokens) for prompt in self.train for c in prompt.completions)


def load_policy(context: StageContext[Any]) -> tuple[ChatTemplate, PreTrainedModel, Path]:
    """The model that the stage stands on, an adapter merged into it, as template, model and plain directory.

    Raises:
        ModelError: it cannot be loaded, or its template tells nothing.
    """
    base = model_of(context.inputs["model"])
    tokenizer = load_tokenizer(base)
    template = chat_template(tokenizer, None, name=base.name)
    tokenizer.chat_template = template.source
    model = load_causal(base, dtype=compute_dtype(context.config.precision))
    if hasattr(model, "peft_config"):
        model, base = merged(model, tokenizer, context.folder / "base")
    return template, model, base


def prepare(context: StageContext[Any]) -> Prepared:
    """Load the model (an adapter is merged first) and encode every set.

    Raises:
        DataError: nothing of the training sets can be used.
        ModelError: the model cannot be loaded, or its template tells nothing.
    """
    config: PreferenceTraining = context.config
    template, model, base = load_policy(context)
    limit = min(config.length, context_length(model))
    folders = {
        role.partition(":")[2]: folder for role, folder in context.inputs.items() if role.startswith("preferences:")
    }
    measured = {name: _named(name, folder, "held_out") for name, folder in folders.items()}
    stored = [prompt for name in config.preferences for prompt in _named(name, folders[name], "train")]
    judged = apart_from_held_out(stored, chain.from_iterable(measured.values()), attrgetter("question"))
    train, counts = encode_prompts(judged, template, limit=limit)
    if len(judged) < len(stored):
        counts["prompts that another set holds out"] = len(stored) - len(judged)
    if not train:
        reasons = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise DataError(
            f"no judgement of {', '.join(config.preferences)} can be trained on: {reasons or 'none is left'}",
            hint="raise `length`, or give the set less to hold out",
        )
    held_out = {}
    for name, part in measured.items():
        encoded, lost = encode_prompts(part, template, limit=limit)
        held_out[name] = [prompt for prompt in encoded if prompt.pairs]
        lost["prompts without a pair"] = len(encoded) - len(held_out[name])
        counts |= {f"held out, {name}: {reason}": count for reason, count in lost.items() if count}
    return Prepared(template, model, base, judged, train, held_out, Counter(counts))


def _named(name: str, folder: Path, part: Literal["train", "held_out"]) -> list[JudgedPrompt]:
    """A set's prompts under ids that no other set has."""
    return [replace(prompt, id=f"{name}:{prompt.id}") for prompt in stored_preferences(folder, part)]


def made_trainable(prepared: Prepared, config: PreferenceTraining) -> PreTrainedModel:
    """The model, or an adapter on it; the base is in memory once either way."""
    if config.method == "full":
        return prepared.model
    return add_lora(prepared.model, config.lora or LoraConfig(), base=prepared.base)


def plan(config: PreferenceTraining, prompts: Sequence[EncodedPrompt], seed: int) -> PreferenceBatches:
    """The batches of a whole run.

    Raises:
        DataError: there are no prompts, or the token budget does not suffice for one step.
    """
    batches = PreferenceBatches(
        prompts,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=seed,
        micro_batch_tokens=config.micro_batch_tokens,
        max_tokens=config.max_train_tokens,
    )
    if len(batches) == 0:
        raise DataError(
            "there is not one training step" if prompts else "no judgement of the kind that is to be learned",
            hint="raise `max_train_tokens` or `epochs`"
            if prompts
            else "pairs are needed; `loss: kto` takes labels too",
        )
    return batches


def measured_batches(prompts: Sequence[EncodedPrompt], micro_batch_tokens: int) -> list[PreferenceBatch]:
    """All prompts once, to measure with."""
    return [collate(part) for part in split_prompts(prompts, micro_batch_tokens)]


def completion_lengths(prompts: Sequence[EncodedPrompt]) -> dict[str, int]:
    """Tokens of every completion, by its id; the end of the turn is one of them."""
    return {c.id: c.supervised_tokens for prompt in prompts for c in prompt.completions}


def judged_pairs(prompts: Sequence[EncodedPrompt], scores: Mapping[str, float]) -> JudgedPairs:
    """Every pair of `prompts` under the scores of its completions."""
    rows = [
        (prompt.completions[pair.better], prompt.completions[pair.worse], pair.strength, prompt.group)
        for prompt in prompts
        for pair in prompt.pairs
    ]
    return JudgedPairs(
        margin=np.array([scores[better.id] - scores[worse.id] for better, worse, _, _ in rows]),
        tokens_better=np.array([better.supervised_tokens for better, _, _, _ in rows], dtype=np.int64),
        tokens_worse=np.array([worse.supervised_tokens for _, worse, _, _ in rows], dtype=np.int64),
        strength=np.array([np.nan if s is None else s for _, _, s, _ in rows], dtype=np.float64),
        groups=[group for _, _, _, group in rows],
    )


def report_by_set(prepared: Prepared, scores: Mapping[str, float]) -> dict[str, Any]:
    """Held-out accuracy on every set that has pairs; which length the baseline prefers is learned in training pairs."""
    seen = judged_pairs(prepared.train, dict.fromkeys(completion_lengths(prepared.train), 0.0))
    direction = length_direction(seen.tokens_better, seen.tokens_worse)
    return {
        name: pair_report(judged_pairs(prompts, scores), direction=direction)
        for name, prompts in prepared.held_out.items()
        if prompts
    }


def describe(report: Mapping[str, Any]) -> str:
    """One line of a `pair_report`."""
    model, length = report["accuracy"], report["length_only"]
    return (
        f"{report['pairs']} held-out pairs of {report['groups']} groups: accuracy {model['estimate']:.3f} "
        f"({model['low']:.3f} to {model['high']:.3f}); by length alone {length['estimate']:.3f}"
    )
