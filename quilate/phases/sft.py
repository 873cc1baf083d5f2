"""Supervised fine-tuning on conversations: a causal model learns what the assistant says, and to stop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.data.conversations import Conversation
from quilate.data.packing import Example
from quilate.errors import DataError
from quilate.evaluation.bits_per_byte import sum_loss
from quilate.files import atomic_folder
from quilate.models.load import context_length, load_causal, load_tokenizer, save_model, trainable_parameters
from quilate.models.precision import compute_dtype
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.models.tuning.merge import merge, merged
from quilate.phases.conversations import stored_conversations
from quilate.phases.example_training import RecomputingTraining, plan_batches, train_on_examples, training_flops
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of, once, write_model_note
from quilate.rng import Streams
from quilate.tasks.leaks import normalize
from quilate.tokenization.chat import ChatTemplate, UnrenderableError, default_template, template_of

# Full: Tülu 2 (Ivison et al. 2023, "Camels in a Changing Climate"), 7B and 13B. LoRA: ten times that, see finetune.
DEFAULT_RATE = {"full": 2e-5, "lora": 2e-4}

MEASURE = "nats per assistant token"


class SftConfig(RecomputingTraining):
    kind: Literal["sft"]
    """A causal model is trained on conversations, on what the assistant says in them."""
    conversations: list[str] = Field(min_length=1)
    """The sets to train on, names of the recipe's `conversations`. The model is measured on all of them."""
    on: str = "base"
    """The stage whose model is trained."""
    method: Literal["full", "lora"] = "lora"
    """`full` trains every weight, `lora` a low-rank adapter on every linear layer."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 2e-5 for `full`, 2e-4 for `lora`."""
    lora: LoraConfig | None = None
    """Settings of the low-rank adapter, for `method: lora`."""
    merge: bool = False
    """For `method: lora`: write the model with the adapter merged in, not the adapter."""
    template: str | None = None
    """A chat template (Jinja) to train and save the model with, instead of its own. A base without one gets a plain
    one, whose turns end with its end-of-sequence token."""
    length: int = Field(default=1024, ge=8)
    """Longest conversation in tokens; longer ones are cut after their last turn that fits, and counted."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it."""

    @model_validator(mode="after")
    def _adapter_settings_have_an_adapter(self) -> SftConfig:
        if self.method != "lora" and (self.lora is not None or self.merge):
            raise ValueError("`lora` settings and `merge` go with `method: lora`")
        return self


@dataclass
class ChatExamples:
    """Conversations as examples; `counts` says what was cut or dropped, `refusal` what the template said first."""

    examples: list[Example] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refusal: str = ""

    @property
    def learned_tokens(self) -> int:
        return sum(example.supervised_tokens for example in self.examples)


def chat_examples(conversations: Sequence[Conversation], template: ChatTemplate, length: int) -> ChatExamples:
    """Conversations as a model trains on them, at most `length` tokens each.

    Raises:
        ModelError: the template cannot tell which tokens are the assistant's, or never ends a turn.
    """
    result = ChatExamples()
    for conversation in conversations:
        try:
            chat = template.encode(conversation.messages, context=conversation.context)
        except UnrenderableError as error:
            result.counts[error.reason] += 1
            result.refusal = result.refusal or str(error)
            continue
        result.counts["first tokens of a turn that hold the end of its header"] += chat.moved_borders
        cut = chat.cut(length)
        if cut is None:
            result.counts["conversations with no whole answer within the length"] += 1
            continue
        result.counts["conversations cut at a turn's end"] += cut is not chat
        supervised = np.array(cut.learned)
        result.examples.append(Example(conversation.id, np.array(cut.tokens, dtype=np.int64), supervised))
    result.counts = Counter({reason: count for reason, count in result.counts.items() if count})
    return result


def chat_template(tokenizer: PreTrainedTokenizerBase, given: str | None, *, name: str) -> ChatTemplate:
    """The template to train with: the one given, else the model's own, else a plain one.

    Raises:
        ModelError: the model has none, and no token to end a turn with.
        ConfigError: the template is not usable.
    """
    source = given or template_of(tokenizer) or default_template(tokenizer)
    return ChatTemplate(tokenizer, source, name=name)


def _run(context: StageContext[SftConfig]) -> StageReport:
    config = context.config
    streams = Streams(context.seed)
    dtype = compute_dtype(config.precision)
    base = model_of(context.inputs["model"])
    tokenizer = load_tokenizer(base)
    model = load_causal(base, dtype=dtype)
    template = chat_template(tokenizer, config.template, name=base.name)
    tokenizer.chat_template = template.source
    train, held_out = training_examples(context, template, min(config.length, context_length(model)))
    if hasattr(model, "peft_config"):
        model, base = merged(model, tokenizer, context.folder / "base")
    before = once(context.folder / "before.json", lambda: _measure(context, model, held_out))
    trained = made_trainable(model, config, base)
    batches = plan_batches(config, train.examples, context.seed)
    rate = config.lr or DEFAULT_RATE[config.method]
    result = train_on_examples(context, trained, batches, streams, rate=rate)
    after = _measure(context, trained, held_out)
    parameters, trainable = sum(p.numel() for p in trained.parameters()), trainable_parameters(trained)
    save_chat_model(context.folder, merge(trained) if config.merge else trained, template)
    return StageReport(
        train_tokens=result.tokens,
        flops=training_flops(result.tokens, parameters, trainable),
        trainable_parameters=trainable,
        counts={
            **train.counts,
            **result.incidents(),
            "visits over the token budget": batches.examples_left_out,
        },
        facts={
            "conversations": len(train.examples),
            "steps": result.steps,
            "supervised_tokens": result.supervised_tokens,
            "parameters": parameters,
            "measure": MEASURE,
            "before": before,
            "after": after,
            "perplexity": {name: [round(math.exp(before[name]), 2), round(math.exp(after[name]), 2)] for name in after},
            "held_out_tokens": {name: part.learned_tokens for name, part in held_out.items()},
            "held_out_counts": {name: dict(part.counts) for name, part in held_out.items() if part.counts},
            "dtype": str(dtype).removeprefix("torch."),
        },
    )


def made_trainable(model: PreTrainedModel, config: SftConfig, base: Path) -> PreTrainedModel:
    """The model with those parameters to train that the method trains, and the others frozen."""
    return add_lora(model, config.lora or LoraConfig(), base=base) if config.method == "lora" else model


def training_examples(
    context: StageContext[SftConfig], template: ChatTemplate, length: int
) -> tuple[ChatExamples, dict[str, ChatExamples]]:
    """What to train on, all sets together, and what to measure with, by set.

    Raises:
        DataError: nothing is left to train on or to measure a set with.
    """
    sets = {role.removeprefix("conversations:"): f for role, f in context.inputs.items() if ":" in role}
    kept = {name: stored_conversations(folder, "held_out") for name, folder in sets.items()}
    questions = {normalize(conversation.question) for part in kept.values() for conversation in part}
    train = ChatExamples()
    for name in context.config.conversations:
        stored = stored_conversations(sets[name], "train")
        # Of one set they are apart already; two sets may share conversations.
        apart = [conversation for conversation in stored if normalize(conversation.question) not in questions]
        part = chat_examples(apart, template, length)
        if len(apart) < len(stored):
            part.counts["conversations that another set holds out"] = len(stored) - len(apart)
        named = [Example(f"{name}:{e.id}", e.tokens, e.supervised) for e in part.examples]
        train = ChatExamples(train.examples + named, train.counts + part.counts, train.refusal or part.refusal)
    held_out = {name: chat_examples(part, template, length) for name, part in kept.items()}
    for name, part in {"training": train, **held_out}.items():
        if not part.examples:
            reasons = ", ".join(f"{count} {reason}" for reason, count in part.counts.items())
            raise DataError(
                f"no conversation of {name} can be used: {reasons or 'there are none'}"
                + (f"; the first: {part.refusal}" if part.refusal else ""),
                hint="raise `length`, or give another `template`; `quilate data preview` shows what is learned",
            )
    cut = "".join(f", {count} {reason}" for reason, count in train.counts.items())
    context.note(f"{len(train.examples)} conversations, {train.learned_tokens:,} tokens to learn{cut}")
    return train, held_out


def _measure(
    context: StageContext[SftConfig], model: PreTrainedModel, held_out: dict[str, ChatExamples]
) -> dict[str, float]:
    """Loss on the held-out conversations of every set, in nats per assistant token."""
    measured = {}
    for name, part in held_out.items():
        nats, tokens = sum_loss(model, part.examples, context.stop.raise_if_set)
        measured[name] = round(nats / tokens, 4)
        perplexity = f"perplexity {math.exp(measured[name]):.2f}"
        seen = f"{len(part.examples)} conversations, {tokens:,} tokens"
        context.note(f"{name}: {measured[name]} {MEASURE}, {perplexity} ({seen})")
    return measured


def save_chat_model(folder: Path, model: PreTrainedModel, template: ChatTemplate) -> None:
    """A directory that can be talked to: it has the template, and a whole model stops where a turn ends."""
    configured = model.generation_config.eos_token_id
    known = configured if isinstance(configured, list) else [configured]
    ends = list(dict.fromkeys([template.end_of_turn(), *(end for end in known if end is not None)]))
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    with atomic_folder(folder / "model") as place, torch.no_grad():
        save_model(model, template.tokenizer, place)
    write_model_note(folder, folder / "model")


SFT = StageKind("sft", 1, SftConfig, _run)
