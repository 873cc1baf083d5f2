"""In-context learning: the base model, a prompt, and solved examples in it; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from quilate.inference.answers import AnswerWriter
from quilate.inference.calibration import Calibration
from quilate.inference.choice import ChoicePromptScorer, said_answers, shown_options
from quilate.inference.demonstrations import most_that_fit
from quilate.inference.prompts import Demonstration, Format, Layout, layout_of
from quilate.inference.records import SLACK, RecordTagger
from quilate.inference.scorer import PromptScorer
from quilate.inference.scores import Normalization
from quilate.models.precision import Precision
from quilate.phases.prompting import (
    PromptingConfig,
    Shown,
    Trial,
    choose_on_dev,
    nearest_of,
    pool_of,
    report_of,
    show,
    solved_choices,
    solved_documents,
    solved_labels,
    solved_questions,
    task_template,
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
from quilate.tasks.task import Task
from quilate.tasks.templates import PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    what it says after `domain_prompt` alone (Holtzman et al. 2021, who take the `sum`). For classification and multiple
    choice."""
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


Asked = PromptScorer | ChoicePromptScorer | RecordTagger | AnswerWriter


def _run(context: StageContext[IclConfig]) -> StageReport:
    config = context.config
    task = load_task(context.inputs["task"] / "task")
    model = model_of(context.inputs["model"])
    trials = trials_of(config)
    given = task_template(task, _form(config))
    plain = _scorer_of(config, task, model, template_of(config, given, trials[0]))
    hidden = cache(lambda texts: _embedded(plain, texts))  # of the training texts, the same for all trials

    def embed(texts: Sequence[str]) -> Any:
        return hidden(tuple(texts))

    def shown_in(trial: Trial) -> Shown:
        template = template_of(config, given, trial)

        def fitting(ranked: Sequence[Item]) -> int:
            return _fitting(config, task, model, template, ranked)

        return show(config, task.train, trial, seed=context.seed, embed=embed, fitting=fitting)

    shown = {trial: shown_in(trial) for trial in trials}

    def scorer_of(trial: Trial) -> Asked:
        asked: dict[str, Any] = {"template": template_of(config, given, trial).source}
        if isinstance(plain, PromptScorer):
            assert isinstance(task, ClassificationTask)
            asked["pool"] = pool_of(config, task, shown[trial], trial, seed=context.seed, embed=embed)
            solved: Any = [] if asked["pool"] is not None else solved_labels(task, shown[trial].items)
            return plain.with_prompt(demonstrations=solved, **asked)
        asked["nearest"] = nearest_of(shown[trial], trial)
        match plain:
            case ChoicePromptScorer():
                return plain.with_prompt(demonstrations=solved_choices(shown[trial].items), **asked)
            case RecordTagger():
                return plain.with_prompt(demonstrations=solved_documents(shown[trial].items), **asked)
            case AnswerWriter():
                return plain.with_prompt(demonstrations=solved_questions(shown[trial].items), **asked)

    if len(trials) > 1:
        plain.loaded()  # once for all trials
    chosen, tried = choose_on_dev(context, task, trials, scorer_of)
    scorer_of(chosen).save(context.folder / "scorer")
    return report_of(chosen, shown[chosen], tried)


def _form(config: IclConfig) -> AnswerForm:
    return "letter" if config.answer == "letter" else "text"


def _scorer_of(config: IclConfig, task: Task, model: Path, template: PromptTemplate) -> Asked:
    """Asks a model with a template and no demonstrations."""
    common: dict[str, Any] = {
        "template": template.source,
        "instruction": template.instruction,
        "style": config.format,
        "precision": config.precision,
    }
    scoring: dict[str, Any] = {
        "normalization": config.normalization,
        "calibration": config.calibration,
        "domain_prompt": config.domain_prompt,
    }
    writing: dict[str, Any] = {"max_new_tokens": config.max_new_tokens}
    match task:
        case ClassificationTask():
            return PromptScorer(model, list(task.labels), list(task.verbalizers), **scoring, **common)
        case ChoiceTask():
            return ChoicePromptScorer(model, form=_form(config), **scoring, **common)
        case ExtractionTask():
            size = config.max_item_tokens
            return RecordTagger(model, task.trained_labels, max_item_tokens=size, **writing, **common)
        case QuestionTask():
            return AnswerWriter(model, extractive=task.config.extractive, **writing, **common)
    raise AssertionError(f"no such kind of task: {task.config.kind}")


def _embedded(plain: Asked, texts: Sequence[str]) -> Any:
    assert isinstance(plain, PromptScorer)  # for another kind of task a recipe with `similarity: embedding` is refused
    return plain.loaded().embed(texts)


def _fitting(config: IclConfig, task: Task, model: Path, template: PromptTemplate, ranked: Sequence[Item]) -> int:
    """How many of the demonstrations leave room for an item and its answer."""
    from quilate.inference.prompting import length_of
    from quilate.models.load import context_of_directory, load_tokenizer

    tokenizer = load_tokenizer(model)
    layout = layout_of(template, config.format, tokenizer, model=model.name)
    limit = context_of_directory(model) - _longest_answer(config, task, layout, tokenizer)
    room = limit - min(config.max_item_tokens, limit // 2)
    solved = [_solved(config, task, template, item) for item in ranked]
    empty = template.prompt("")
    return most_that_fit(
        lambda count: length_of(layout, tokenizer, layout.write(solved[:count], empty)), room, len(ranked)
    )


def _longest_answer(config: IclConfig, task: Task, layout: Layout, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that are kept for an answer; an item's own are not known yet."""
    from quilate.tokenization.segments import answer_tokens

    match task:
        case ClassificationTask():
            answers = list(task.verbalizers)
        case ChoiceTask():
            answers = [said for item, _ in solved_choices(task.train) for said in said_answers(item, _form(config))]
        case ExtractionTask():
            return config.max_new_tokens + SLACK
        case _:
            return config.max_new_tokens
    return max(map(len, answer_tokens(tokenizer, answers, start=layout.answer_start)))


def _solved(config: IclConfig, task: Task, template: PromptTemplate, item: Item) -> Demonstration:
    """An item as the template shows it, and its answer."""
    match item:
        case ChoiceItem():
            form = _form(config)
            return template.prompt(item.text, shown_options(item, form)), said_answers(item, form)[item.right]
        case AskedItem():
            return template.prompt(item.text, context=item.context), item.right_answers[0]
        case Document():
            return template.prompt(item.text), written(item.text, item.spans)
    assert isinstance(task, ClassificationTask)
    return template.prompt(item.text), task.verbalizer(item.label)


ICL = StageKind("icl", 4, IclConfig, _run)
