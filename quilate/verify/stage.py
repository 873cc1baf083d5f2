"""The stage under examination: its config and inputs, and its examples made again by the phase's own functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quilate.data.batches import ExampleBatches
from quilate.data.conversations import Conversation
from quilate.data.packing import Example
from quilate.engine.label_sets import LabelSetLoss
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.errors import UsageError
from quilate.models.load import (
    context_of_directory,
    load_causal,
    load_classifier,
    load_token_classifier,
    load_tokenizer,
)
from quilate.models.precision import compute_dtype
from quilate.models.tuning.merge import merged
from quilate.phases import finetune, sft
from quilate.phases.conversations import stored_conversations
from quilate.phases.example_training import plan_batches
from quilate.phases.examples import (
    RecordTexts,
    item_of,
    record_examples,
    record_texts,
    shown_and_said,
    written_examples,
)
from quilate.phases.finetune import FinetuneConfig
from quilate.phases.search import config_of
from quilate.phases.sft import SftConfig
from quilate.phases.stage import StageContext, StageReport, model_of
from quilate.rng import Streams, numpy_stream
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import ExtractionTask
from quilate.tasks.kinds import load_task
from quilate.tasks.multi_label import MultiLabelTask
from quilate.tasks.multiple_choice import ChoiceTask
from quilate.tasks.question_answering import QuestionTask
from quilate.tasks.task import Task
from quilate.tokenization.chat import ChatTemplate
from quilate.tokenization.segments import answer_tokens, prompt_tokens
from quilate.verify.certificate import DoesNotApply

WORK = ".verify"  # in the stage's folder, gone when the certificate is written

# A few of the user's rows decide whether two ways of computing the same agree (guess: enough to differ in length).
SAMPLE_ROWS = 8
SAMPLE_TOKENS = 2048

NO_LIMIT = 1 << 30

HEAD = "a head is a linear classifier on hidden states: no token is supervised and no step is taken"


@dataclass(frozen=True)
class TrainedExamples:
    """What the stage trains on.

    Attributes:
        examples: as the phase makes them.
        whole: each row's tokens before anything was cut, by the examples' ids; rows that were dropped are in it too.
        counts: what the phase says of cut and dropped rows.
        items: how many training items stand behind the examples; a document may have several.
    """

    examples: Sequence[Example]
    whole: dict[str, int]
    counts: dict[str, int]
    items: int


class Examined:
    """A stage that `verify` looks at. What takes time is made when it is first asked for.

    Args:
        context: the stage's own, see `quilate.recipe.worker`; nothing but `WORK` is written to its folder.
        run: what the stage's kind does.
        manifest: of a finished stage; None for one that is only planned.
        task: the run's labelled task, for the leak check; a fine-tuning stage knows its own.

    Attributes:
        config: what the stage was trained with; of a search, what the trial was that it kept.
        trial: which one that is; "" without a search.
        task: with the training items that the stage learns from.

    Raises:
        UsageError: the stage is of no kind that can be verified.
        DataError: the task has fewer training items than the stage is to learn from.
    """

    def __init__(
        self,
        context: StageContext[Any],
        run: Callable[[StageContext[Any]], StageReport],
        manifest: dict[str, Any] | None,
        task: Task | None,
    ) -> None:
        if not isinstance(context.config, FinetuneConfig | SftConfig):
            raise UsageError(
                f"{context.folder.name} is of no kind that can be verified", hint="name a finetune or sft stage"
            )
        self.run, self.manifest = run, manifest
        self.config, self.trial = _trained_config(context.config, manifest)
        self.context = replace(context, config=self.config)
        self.task = load_task(context.inputs["task"] / "task") if "task" in context.inputs else task
        if isinstance(self.config, FinetuneConfig) and self.task is not None:
            self.task = self.config.what_is_learned(self.task, context.seed)
        self.base = model_of(context.inputs["model"])
        self.dtype = compute_dtype(self.config.precision)
        self.work = context.folder / WORK

    @property
    def is_head(self) -> bool:
        """Whether nothing is trained by steps: a classifier of texts on a model that stays as it is."""
        return self.config.method == "head" and not isinstance(self.task, ExtractionTask)

    @property
    def classifies(self) -> Literal["", "tokens", "texts"]:
        """What the model puts tags or labels on; "" if it writes."""
        if not isinstance(self.config, FinetuneConfig) or self.task is None:
            return ""
        if finetune.writes_answers(self.task, self.config):
            return ""
        return "tokens" if isinstance(self.task, ExtractionTask) else "texts"

    @property
    def model_directory(self) -> Path:
        """What the stage saved.

        Raises:
            DoesNotApply: it saves no model, or has not run yet.
        """
        if self.is_head:
            raise DoesNotApply("a head is kept beside the name of its model, which is not copied")
        if self.manifest is None:
            raise DoesNotApply("the stage is planned: it has saved nothing yet")
        return self.context.folder / "model"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.base)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template of an sft stage."""
        assert isinstance(self.config, SftConfig)
        return sft.chat_template(self.tokenizer, self.config.template, name=self.base.name)

    @cached_property
    def trained(self) -> TrainedExamples:
        """The examples, made again.

        Raises:
            DoesNotApply: a head has none.
        """
        context = context_of_directory(self.base)
        if isinstance(self.config, SftConfig):
            return self._trained_conversations(min(self.config.length, context))
        if self.is_head:
            raise DoesNotApply(HEAD)
        if self.classifies:
            return self._trained_windows()
        limits = {"max_item_tokens": self.config.max_item_tokens, "context": context - self.config.tokens_before()}
        if isinstance(self.task, ExtractionTask):
            most = self.config.max_new_tokens
            made = record_examples(self.task, self.tokenizer, max_new_tokens=most, **limits)
            texts = record_texts(self.task, self.tokenizer, max_new_tokens=most, **limits)
            return TrainedExamples(made.examples, self._whole_windows(texts), made.counts, made.rows)
        assert self.task is not None  # a fine-tuning stage has one
        form = self.config.option_form()
        made = written_examples(self.task, form, self.tokenizer, **limits)
        unlimited = {"max_item_tokens": NO_LIMIT, "context": NO_LIMIT}
        whole = written_examples(self.task, form, self.tokenizer, **unlimited)
        return TrainedExamples(made.examples, _lengths(whole.examples), made.counts, made.rows)

    def _trained_windows(self) -> TrainedExamples:
        """Of a classifier: windows of the texts, which nothing is cut from."""
        assert isinstance(self.config, FinetuneConfig) and self.task is not None
        made = finetune.examples_of(self.task, self.loaded(), self.tokenizer, self.config)
        return TrainedExamples(made.examples, _lengths(made.examples), made.counts, made.rows)

    def _whole_windows(self, texts: RecordTexts) -> dict[str, int]:
        """Tokens of every window and its answer, those too long an answer among them."""
        end = self.tokenizer.eos_token_id is not None
        asked = prompt_tokens(self.tokenizer, texts.prompts)
        answers = answer_tokens(self.tokenizer, texts.answers)
        return {
            id: len(prompt) + len(answer) + end for id, prompt, answer in zip(texts.ids, asked, answers, strict=True)
        }

    def _trained_conversations(self, length: int) -> TrainedExamples:
        quiet = replace(self.context, note=lambda _: None)
        train, _ = sft.training_examples(quiet, self.template, length)
        whole, _ = sft.training_examples(quiet, self.template, NO_LIMIT)
        return TrainedExamples(train.examples, _lengths(whole.examples), dict(train.counts), len(train.examples))

    @cached_property
    def batches(self) -> ExampleBatches:
        """All steps of the stage, as it plans them."""
        return plan_batches(self.config, self.trained.examples, self.context.seed)

    @cached_property
    def conversations(self) -> dict[str, Conversation]:
        """The conversations an sft stage trains on, by their examples' ids."""
        assert isinstance(self.config, SftConfig)
        used = {example.id for example in self.trained.examples}
        found = {}
        for name in self.config.conversations:
            for conversation in stored_conversations(self.context.inputs[f"conversations:{name}"], "train"):
                if f"{name}:{conversation.id}" in used:
                    found[f"{name}:{conversation.id}"] = conversation
        return found

    @cached_property
    def sample(self) -> list[Example]:
        """A few rows drawn by the stage's seed, at least two where there are two."""
        examples = self.trained.examples
        order = numpy_stream(self.context.seed, "verify").permutation(len(examples))
        chosen: list[Example] = []
        tokens = 0
        for index in order[:SAMPLE_ROWS]:
            tokens += len(examples[index].tokens)
            if len(chosen) >= 2 and tokens > SAMPLE_TOKENS:
                break
            chosen.append(examples[index])
        return chosen

    def shortest(self, count: int) -> list[Example]:
        """The rows of fewest tokens, for what needs training steps; of a document that is among them, every window."""
        by_item: dict[str, list[Example]] = {}
        for example in self.trained.examples:
            by_item.setdefault(self.item_of(example), []).append(example)
        groups = sorted(by_item.values(), key=lambda own: (sum(len(e.tokens) for e in own), own[0].id))
        return [example for own in groups[:count] for example in own]

    def item_of(self, example: Example) -> str:
        """The id of the item, or conversation, that an example is made of."""
        windows = isinstance(self.task, ExtractionTask | MultiLabelTask)
        return item_of(example.id) if windows and isinstance(self.config, FinetuneConfig) else example.id

    def texts(self) -> dict[str, tuple[str, str]]:
        """(prompt, answer) of every row that the stage trains on, by the examples' ids; see `trained` for errors."""
        assert isinstance(self.config, FinetuneConfig)
        if isinstance(self.task, ExtractionTask):
            made = record_texts(
                self.task, self.tokenizer, max_item_tokens=self.config.max_item_tokens,
                max_new_tokens=self.config.max_new_tokens,
                context=context_of_directory(self.base) - self.config.tokens_before(),
            )  # fmt: skip
            return dict(zip(made.ids, zip(made.prompts, made.answers, strict=True), strict=True))
        assert isinstance(self.task, ClassificationTask | ChoiceTask | QuestionTask)  # others were refused
        pairs = shown_and_said(self.task, self.config.option_form())
        return dict(zip([item.id for item in self.task.train], pairs, strict=True))

    def untrained(self) -> PreTrainedModel:
        """The model as it is before the first step, without dropout, which would tell two gradients apart."""
        self.context.stop.raise_if_set()
        Streams(self.context.seed)  # a fresh adapter is drawn from torch's own stream
        if isinstance(self.config, FinetuneConfig) and self.task is not None:
            model, base = finetune.load_for_task(self.task, self.base, self.tokenizer, self.config, self.work / "base")
            return finetune.made_trainable(model, self.config, base).eval()
        assert isinstance(self.config, SftConfig)
        model, base = load_causal(self.base, dtype=self.dtype), self.base
        if hasattr(model, "peft_config"):
            model, base = merged(model, self.tokenizer, self.work / "base")
        return sft.made_trainable(model, self.config, base).eval()

    def loaded(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """What the stage saved, or is planned to begin with, as quilate reads it; by default in the stage's format."""
        dtype = dtype or self.dtype
        if self.manifest is None:
            return self.untrained() if self.classifies else load_causal(self.base, dtype=dtype)
        match self.classifies:
            case "tokens":
                return load_token_classifier(self.model_directory, dtype=dtype)
            case "texts":
                return load_classifier(self.model_directory, dtype=dtype)
        return load_causal(self.model_directory, dtype=dtype)

    def loss(self, model: PreTrainedModel) -> LanguageModellingLoss | LabelSetLoss:
        """What the stage's training lowers."""
        if isinstance(self.config, FinetuneConfig) and self.task is not None:
            return finetune.loss_of(self.task, model, self.trained.examples)
        return LanguageModellingLoss(model)

    def clean(self) -> None:
        """Take away what the checks wrote."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.work)


def _trained_config(
    config: FinetuneConfig | SftConfig, manifest: dict[str, Any] | None
) -> tuple[FinetuneConfig | SftConfig, str]:
    """What the stage was trained with, and in words which trial of its search that is: of a planned one the first."""
    trials = config.trials() if isinstance(config, FinetuneConfig) else []
    if not trials:
        return config, ""
    number = 0 if manifest is None else int(manifest["facts"]["chosen"])
    values = ", ".join(f"{key} {value}" for key, value in trials[number].values.items())
    which = "the first" if manifest is None else "the chosen"
    return config_of(config, trials[number], len(trials)), f"{which} of {len(trials)} trials ({values})"


def _lengths(examples: Sequence[Example]) -> dict[str, int]:
    return {example.id: len(example.tokens) for example in examples}


def name_of(dtype: torch.dtype) -> str:
    """ "float32", "bfloat16"."""
    return str(dtype).removeprefix("torch.")
