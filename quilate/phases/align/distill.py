"""Context distillation (Askell et al. 2021, section 2.4): a model learns to answer without a prompt as it does with it.

The teacher is the model itself, before training, behind the prompt; the student sees the same conversation without. So
nothing has to be labelled, and the prompt's tokens need no longer be read, nor its room in the context be paid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from quilate.data.batches import ExampleBatches
from quilate.data.conversations import Conversation
from quilate.data.packing import Example, PackedBatch, pack, split_by_tokens
from quilate.engine.completions import WithoutDropout
from quilate.errors import DataError
from quilate.files import digest
from quilate.models.encoder import DocumentEncoder
from quilate.models.load import context_length, load_causal, trainable_parameters
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.objectives.distillation import Head, linear_distillation_sum
from quilate.phases.align.common import apart_from_held_out, check_adapter
from quilate.phases.align.training import load_policy
from quilate.phases.conversations import stored_conversations
from quilate.phases.example_training import ExampleTraining, plan_batches, train, training_flops
from quilate.phases.sft import save_chat_model
from quilate.phases.stage import StageContext, StageKind, StageReport, once
from quilate.rng import Streams
from quilate.tokenization.chat import ChatTemplate, Message, UnrenderableError

DEFAULT_RATE = {"full": 1e-5, "lora": 1e-4}  # between sft's and dpo's (guess)

MEASURE = "nats per assistant token from the prompted model"


class DistillConfig(ExampleTraining):
    kind: Literal["distill"]
    """A model learns to answer without a prompt as it does with it."""
    on: str = "base"
    """The stage whose model is trained; the same model behind the prompt is the teacher."""
    prompt: str = Field(min_length=1)
    """What the teacher reads before every conversation, as the system's message: an instruction, or example
    dialogues."""
    conversations: list[str] = Field(min_length=1)
    """The sets on whose answers student and teacher are compared. Every set that is named is measured with."""
    method: Literal["lora", "full"] = "lora"
    """`lora` trains a low-rank adapter on every linear layer, and the base is in memory once; `full` trains every
    weight, beside a copy of the model."""
    lora: LoraConfig | None = None
    """Settings of the low-rank adapter, for `method: lora`."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default 1e-5 for `full`, 1e-4 for `lora`."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the conversations."""
    length: int = Field(default=1024, ge=8)
    """Longest conversation in tokens, without the prompt; longer ones are cut after their last turn that fits, and
    counted."""
    once: bool = False
    """Make the model once, with the recipe's first seed, for all seeds of what stands on it."""

    @model_validator(mode="after")
    def _adapter_settings(self) -> DistillConfig:
        check_adapter(self.method, self.lora, is_its_own_reference=False)
        return self


@dataclass
class Lessons:
    """Conversations as the student and as the teacher reads them, by the same ids.

    The supervised tokens of the two are the same ones; `counts` says what was cut or left out.
    """

    student: list[Example] = field(default_factory=list)
    teacher: dict[str, Example] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def lessons(
    conversations: Sequence[Conversation], template: ChatTemplate, prompt: str, *, length: int, context: int
) -> Lessons:
    """Conversations without and with the prompt.

    Args:
        length: most tokens of the student's; context: most of the teacher's.
    """
    found = Lessons()
    for conversation in conversations:
        try:
            plain = template.encode(conversation.messages, context=conversation.context)
            shown = prompted(conversation.messages, prompt)
            more = len(shown) - len(conversation.messages)
            led = template.encode(shown, context=conversation.context + (more if conversation.context else 0))
        except UnrenderableError as error:
            found.counts[error.reason] += 1
            continue
        cut = plain.cut(length)
        if cut is None:
            found.counts["conversations with no whole answer within the length"] += 1
            continue
        end = led.turn_ends[len(cut.turn_ends) - 1]
        student = Example(conversation.id, np.array(cut.tokens), np.array(cut.learned))
        teacher = Example(conversation.id, np.array(led.tokens[:end]), np.array(led.learned[:end]))
        if end > context:
            found.counts["conversations that do not fit behind the prompt"] += 1
        elif not np.array_equal(student.targets()[1], teacher.targets()[1]):
            found.counts["conversations whose answers are other tokens behind the prompt"] += 1
        else:
            found.counts["conversations cut at a turn's end"] += cut is not plain
            found.student.append(student)
            found.teacher[conversation.id] = teacher
    found.counts = Counter({reason: count for reason, count in found.counts.items() if count})
    return found


def prompted(messages: Sequence[Message], prompt: str) -> list[Message]:
    """The conversation behind the prompt; a system's message it has already stands after it."""
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{prompt}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


@dataclass(frozen=True)
class LessonBatch:
    """Conversations packed as the student reads them, and the teacher's examples of the same ones."""

    student: PackedBatch
    teacher: tuple[Example, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return self.student.ids

    @property
    def tokens(self) -> int:
        return self.student.tokens

    @property
    def supervised_tokens(self) -> int:
        return self.student.supervised_tokens

    @property
    def weight(self) -> int:
        return self.supervised_tokens


class LessonBatches:
    """`ExampleBatches` of the student's examples, each with the teacher's."""

    def __init__(self, plan: ExampleBatches, teacher: Mapping[str, Example]) -> None:
        self.plan, self.teacher = plan, teacher
        self.fingerprint = digest([plan.fingerprint, [[id, e.tokens.tolist()] for id, e in teacher.items()]])

    @property
    def micro_batch_tokens(self) -> int:
        """Of the student's tokens; the loop lowers it where memory does not suffice."""
        return self.plan.micro_batch_tokens

    @micro_batch_tokens.setter
    def micro_batch_tokens(self, tokens: int) -> None:
        self.plan.micro_batch_tokens = tokens

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[LessonBatch]:
        return [LessonBatch(packed, tuple(self.teacher[id] for id in packed.ids)) for packed in self.plan[step]]


class DistillationLoss:
    """Callable `(batch) -> sum over the assistant's tokens` of KL(teacher || student).

    Args:
        student, teacher: causal models; they may be one, and `as_teacher` then makes it the teacher for a while.
        micro_batch_tokens: most tokens that the teacher, whose prompt makes every conversation longer, reads at once.
    """

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, *, micro_batch_tokens: int,
        as_teacher: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        self.student = DocumentEncoder(student)
        self.teacher = self.student if teacher is student else DocumentEncoder(teacher)
        self.micro_batch_tokens, self.as_teacher = micro_batch_tokens, as_teacher

    def __call__(self, batch: LessonBatch) -> Tensor:
        taught = self._taught(batch.teacher)  # first: peft freezes an adapter while it is off
        packed = batch.student.to(self.student.device)
        return linear_distillation_sum(
            _predicting(self.student, packed), _head(self.student), taught, _head(self.teacher)
        )

    @torch.no_grad()
    def _taught(self, examples: Sequence[Example]) -> Tensor:
        """[S, D] what the teacher predicts each supervised token from, in the order of `examples`."""
        by_id: dict[str, Tensor] = {}
        with self.as_teacher():
            for part in split_by_tokens(examples, self.micro_batch_tokens):
                packed = pack(part).to(self.teacher.device)
                rows = {example.id: example.supervised_tokens for example in part}
                hidden = _predicting(self.teacher, packed).split([rows[id] for id in packed.ids])  # type: ignore[no-untyped-call]
                by_id |= dict(zip(packed.ids, hidden, strict=True))
        return torch.cat([by_id[example.id] for example in examples])


def _predicting(encoder: DocumentEncoder, packed: PackedBatch) -> Tensor:
    hidden = encoder(packed.input_ids, packed.position_ids, packed.lengths)
    return encoder.divided.transform(hidden[packed.source_positions])


def _head(encoder: DocumentEncoder) -> Head:
    return encoder.divided.head.weight, encoder.divided.head.bias


def _run(context: StageContext[DistillConfig]) -> StageReport:
    config = context.config
    streams = Streams(context.seed)
    template, model, base = load_policy(context)
    training, held_out = _lessons(context, template, context_length(model))
    student, loss = _student(config, model, base)
    before = once(context.folder / "before.json", lambda: _measure(context, student, loss, held_out))
    plan = plan_batches(config, training.student, context.seed)
    batches = LessonBatches(plan, training.teacher)
    rate = config.lr or DEFAULT_RATE[config.method]
    fitted = train(context, WithoutDropout(student), batches, loss, streams, rate=rate)
    after = _measure(context, student, loss, held_out)
    parameters, trainable = sum(p.numel() for p in student.parameters()), trainable_parameters(student)
    save_chat_model(context.folder, student, template)
    read = sum(len(training.teacher[plan.examples[i].id].tokens) for batch in plan.plan for i in batch)
    return StageReport(
        train_tokens=fitted.tokens,
        flops=training_flops(fitted.tokens, parameters, trainable) + 2.0 * parameters * read,
        trainable_parameters=trainable,
        counts={
            **training.counts,
            **fitted.incidents(),
            "visits over the token budget": plan.examples_left_out,
        },
        facts={
            "conversations": len(training.student),
            "steps": fitted.steps,
            "supervised_tokens": fitted.supervised_tokens,
            "prompt_tokens": len(template.tokenizer(config.prompt, add_special_tokens=False).input_ids),
            "parameters": parameters,
            "measure": MEASURE,
            "before": before,
            "after": after,
            "held_out_tokens": {
                name: sum(e.supervised_tokens for e in part.student) for name, part in held_out.items()
            },
            "dtype": str(student.dtype).removeprefix("torch."),
        },
    )


def _student(config: DistillConfig, model: PreTrainedModel, base: Path) -> tuple[PreTrainedModel, DistillationLoss]:
    """What is trained, and its loss. With an adapter the teacher is the same model with the adapter off."""
    if config.method == "full":
        teacher = load_causal(base, dtype=model.dtype).requires_grad_(False)
        return model, DistillationLoss(model, teacher, micro_batch_tokens=config.micro_batch_tokens)
    student = add_lora(model, config.lora or LoraConfig(), base=base)
    return student, DistillationLoss(
        student, student, micro_batch_tokens=config.micro_batch_tokens, as_teacher=student.disable_adapter
    )


def _lessons(
    context: StageContext[DistillConfig], template: ChatTemplate, room: int
) -> tuple[Lessons, dict[str, Lessons]]:
    """What to train on, all sets together, and what to measure with, by set.

    Raises:
        DataError: nothing is left to train on or to measure a set with.
    """
    config = context.config
    folders = {name: context.inputs[f"conversations:{name}"] for name in config.conversations}
    kept = {name: stored_conversations(folder, "held_out") for name, folder in folders.items()}
    stored = [
        Conversation(f"{name}:{c.id}", c.messages, c.context, c.group)
        for name, folder in folders.items()
        for c in stored_conversations(folder, "train")
    ]
    apart = apart_from_held_out(stored, chain.from_iterable(kept.values()), attrgetter("question"))
    limits = {"length": min(config.length, room), "context": room}
    training = lessons(apart, template, config.prompt, **limits)
    training.counts["conversations that another set holds out"] = len(stored) - len(apart)
    held_out = {name: lessons(part, template, config.prompt, **limits) for name, part in kept.items()}
    for name, part in {"training": training, **held_out}.items():
        if not part.student:
            reasons = ", ".join(f"{count} {reason}" for reason, count in part.counts.items() if count)
            raise DataError(
                f"no conversation of {name} can be used: {reasons or 'there are none'}",
                hint="shorten the prompt or raise `length`; a template that refuses a system's message cannot show it",
            )
    context.note(
        f"{len(training.student)} conversations, {sum(e.supervised_tokens for e in training.student):,} tokens to learn"
    )
    return training, held_out


@torch.no_grad()
def _measure(
    context: StageContext[DistillConfig], student: PreTrainedModel, loss: DistillationLoss, held_out: dict[str, Lessons]
) -> dict[str, float]:
    """KL(teacher || student) a token on every set's held-out conversations."""
    student.eval()
    measured = {}
    for name, part in held_out.items():
        nats, tokens = 0.0, 0
        for examples in split_by_tokens(part.student, context.config.micro_batch_tokens):
            context.stop.raise_if_set()
            packed = pack(examples)
            nats += float(loss(LessonBatch(packed, tuple(part.teacher[id] for id in packed.ids))))
            tokens += packed.supervised_tokens
        measured[name] = round(nats / tokens, 6)
        context.note(f"{name}: {measured[name]:.4f} {MEASURE} ({len(part.student)} conversations, {tokens:,} tokens)")
    return measured


DISTILL = StageKind("distill", 1, DistillConfig, _run)
