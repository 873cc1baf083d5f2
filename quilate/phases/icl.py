"""In-context learning: the base model, a prompt, and solved examples in it; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from quilate.inference.answers import AnswerWriter
from quilate.inference.calibration import Calibration
from quilate.inference.choice import ChoicePromptScorer
from quilate.inference.demonstrations import most_that_fit
from quilate.inference.prompts import Demonstration, Format, layout_of
from quilate.inference.records import RecordTagger
from quilate.inference.scorer import PromptScorer
from quilate.inference.scores import Normalization
from quilate.models.precision import Precision
from quilate.phases.prompting import (
    PromptingConfig,
    Shown,
    Trial,
    arranged_of,
    choose_on_dev,
    nearest_of,
    report_of,
    show,
    template_of,
    trials_of,
)
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import Document, ExtractionTask
from quilate.tasks.kinds import load_task
from quilate.tasks.labels import Item
from quilate.tasks.multiple_choice import AnswerForm, ChoiceItem, ChoiceTask
from quilate.tasks.question_answering import AskedItem, QuestionTask
from quilate.tasks.records import written
from quilate.tasks.templates import PromptTemplate


class IclConfig(PromptingConfig):
    kind: Literal["icl"]
    """A prompt, with or without solved examples; nothing is trained."""
    on: str = "base"
    """The stage whose model is prompted."""
    format: Format = "plain"
    """One `plain` text, or a `chat` through the model's own template: the instruction as the system's turn, every
    example a question and its answer."""
    normalization: Normalization = "mean"
    """How a label's token log-probabilities become its score: their `mean`, their `sum`, the `first` alone, or the sum
    over the label's `characters`. `sum` and `characters` are `acc` and `acc_norm` of lm-evaluation-harness."""
    calibration: Calibration = "none"
    """`contextual` divides by what the prompt makes the model say of empty items (Zhao et al. 2021); `domain_pmi` by
    what it says after `domain_prompt` alone (Holtzman et al. 2021, who take the `sum`)."""
    domain_prompt: str = ""
    """The premise of `domain_pmi`; by default the template's words before the label, such as `Etiqueta:`."""
    max_item_tokens: int = Field(default=256, ge=1)
    """Room kept for an item when examples are fitted into the context, up to half of it. A longer item is cut in its
    middle only if it does not fit. With `answer: records`, the most tokens of a document that are shown at once."""
    answer: Literal["text", "letter", "records"] | None = None
    """For multiple choice: ask for an option's `text`, which is the default, or for its `letter` after a prompt that
    lists all of them. For extraction: `records`, a list of entities as JSON, written under a grammar (needs the extra
    `grammar`)."""
    max_new_tokens: int = Field(default=256, ge=8)
    """With `answer: records` and in question answering: the most tokens of an answer; longer ones are cut, and
    counted."""
    precision: Precision = "auto"
    """Number format of the forward pass: bf16 where the processor is fast at it, else fp32."""

    @model_validator(mode="after")
    def _consistent_scoring(self) -> IclConfig:
        if self.domain_prompt and self.calibration != "domain_pmi":
            raise ValueError("domain_prompt: it goes with `calibration: domain_pmi`")
        if self.domain_prompt != self.domain_prompt.rstrip():
            raise ValueError("domain_prompt: it ends in a space, but a space and the label follow it")
        return self


def _run(context: StageContext[IclConfig]) -> StageReport:
    config = context.config
    task = load_task(context.inputs["task"] / "task")
    model = model_of(context.inputs["model"])
    if isinstance(task, ChoiceTask):
        return _ask_choices(context, task, model)
    if isinstance(task, ExtractionTask):
        return _ask_records(context, task, model)
    if isinstance(task, QuestionTask):
        return _ask_questions(context, task, model)
    assert isinstance(task, ClassificationTask)  # a recipe with another kind is refused
    trials = trials_of(config)
    plain = PromptScorer(
        model,
        list(task.labels),
        list(task.verbalizers),
        template=template_of(config, task, trials[0]).source,
        instruction=template_of(config, task, trials[0]).instruction,
        style=config.format,
        normalization=config.normalization,
        calibration=config.calibration,
        domain_prompt=config.domain_prompt,
        precision=config.precision,
    )
    hidden = cache(lambda texts: plain.loaded().embed(texts))  # of the training texts, the same for all trials

    def shown_in(trial: Trial) -> Shown:
        template = template_of(config, task, trial)

        def fitting(ranked: Sequence[Demonstration]) -> int:
            return _fitting(config, model, template, task.verbalizers, ranked)

        return show(config, task, trial, seed=context.seed, embed=lambda texts: hidden(tuple(texts)), fitting=fitting)

    shown = {trial: shown_in(trial) for trial in trials}

    def scorer_of(trial: Trial) -> PromptScorer:
        source = template_of(config, task, trial).source
        return plain.with_prompt(template=source, demonstrations=shown[trial].demonstrations, pool=shown[trial].pool)

    if len(trials) > 1:
        plain.loaded()  # once for all trials
    chosen, tried = choose_on_dev(context, task, trials, scorer_of)
    scorer_of(chosen).save(context.folder / "scorer")
    return report_of(task, chosen, shown[chosen], tried)


def _ask_choices(context: StageContext[IclConfig], task: ChoiceTask, model: Path) -> StageReport:
    """Questions with options of their own: one prompt, its demonstrations drawn or named."""
    config = context.config
    arranged = arranged_of(config, task.train, context.seed)
    form: AnswerForm = "letter" if config.answer == "letter" else "text"
    template = task.config.prompt_template(form)
    scorer = ChoicePromptScorer(
        model,
        form=form,
        template=template.source,
        instruction=template.instruction if config.instruction else "",
        demonstrations=[(item, item.right) for item in arranged if isinstance(item, ChoiceItem)],
        nearest=nearest_of(config),
        style=config.format,
        normalization=config.normalization,
        precision=config.precision,
    )
    scorer.save(context.folder / "scorer")
    return _shown_report(config, arranged)


def _ask_records(context: StageContext[IclConfig], task: ExtractionTask, model: Path) -> StageReport:
    """Documents whose entities are to be written as records: one prompt, its demonstrations drawn or named."""
    config = context.config
    arranged = arranged_of(config, task.train, context.seed)
    template = task.config.prompt_template()
    scorer = RecordTagger(
        model,
        task.trained_labels,
        template=template.source,
        instruction=template.instruction if config.instruction else "",
        demonstrations=[(item.text, written(item.text, item.spans)) for item in arranged if isinstance(item, Document)],
        style=config.format,
        max_item_tokens=config.max_item_tokens,
        max_new_tokens=config.max_new_tokens,
        precision=config.precision,
    )
    scorer.save(context.folder / "scorer")
    return _shown_report(config, arranged)


def _ask_questions(context: StageContext[IclConfig], task: QuestionTask, model: Path) -> StageReport:
    """Questions that are answered by text: one prompt, its demonstrations drawn or named."""
    config = context.config
    arranged = [item for item in arranged_of(config, task.train, context.seed) if isinstance(item, AskedItem)]
    template = task.config.prompt_template()
    scorer = AnswerWriter(
        model,
        template=template.source,
        instruction=template.instruction if config.instruction else "",
        demonstrations=[(item.text, item.context, item.right_answers[0]) for item in arranged],
        nearest=nearest_of(config),
        style=config.format,
        extractive=task.config.extractive,
        max_new_tokens=config.max_new_tokens,
        precision=config.precision,
    )
    scorer.save(context.folder / "scorer")
    return _shown_report(config, arranged)


def _shown_report(config: IclConfig, arranged: Sequence[Item]) -> StageReport:
    named = [] if config.demonstrations == "nearest" else [item.id for item in arranged]
    return StageReport(facts={"train_rows": len(arranged), "demonstrations": named})


def _fitting(
    config: IclConfig, model: Path, template: PromptTemplate, verbalizers: list[str], ranked: Sequence[Demonstration]
) -> int:
    """How many of the demonstrations leave room for an item and its label."""
    from quilate.inference.prompting import length_of, prompt_limit
    from quilate.models.load import context_of_directory, load_tokenizer

    tokenizer = load_tokenizer(model)
    layout = layout_of(template, config.format, tokenizer, model=model.name)
    limit = prompt_limit(layout, tokenizer, verbalizers, context_of_directory(model))
    room = limit - min(config.max_item_tokens, limit // 2)
    return most_that_fit(
        lambda count: length_of(layout, tokenizer, layout.prompt(ranked[:count], "")), room, len(ranked)
    )


ICL = StageKind("icl", 3, IclConfig, _run)
