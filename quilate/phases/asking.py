"""A trained model asked a task in the way it was trained to answer, for the task it learned or for any other."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from quilate.config import Config
from quilate.inference.answers import AnswerWriter
from quilate.inference.choice import ChoicePromptScorer
from quilate.inference.scorer import PromptScorer
from quilate.inference.written_spans import WrittenTagger
from quilate.models.load import context_of_directory, load_tokenizer
from quilate.models.precision import Precision
from quilate.phases.examples import longest_list
from quilate.phases.stage import StageContext, StageKind, StageReport, model_of
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import ExtractionTask
from quilate.tasks.kinds import load_task
from quilate.tasks.multiple_choice import AnswerForm, ChoiceTask
from quilate.tasks.question_answering import QuestionTask
from quilate.tasks.task import Task

# A list of entities may grow to this many times the longest one seen in training (guess).
ROOM_FOR_A_LIST = 2


class Asked(Protocol):
    """How a model is asked; the configs of fine-tuning say it too."""

    def option_form(self) -> AnswerForm: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def max_item_tokens(self) -> int: ...

    @property
    def max_new_tokens(self) -> int: ...


class AskConfig(Config):
    answer: AnswerForm = "text"
    precision: Precision = "auto"
    max_item_tokens: int = 512
    max_new_tokens: int = 256

    def option_form(self) -> AnswerForm:
        """What is written for an option of multiple choice."""
        return self.answer


WrittenScorer = PromptScorer | ChoicePromptScorer | WrittenTagger | AnswerWriter


def written_scorer(model: Path, task: Task, asked: Asked) -> WrittenScorer:
    """The scorer of a model that writes its answers."""
    match task:
        case ExtractionTask():
            return WrittenTagger(
                model,
                task.trained_labels,
                language=task.config.language,
                max_new_tokens=ROOM_FOR_A_LIST * longest_list(task, load_tokenizer(model)),
                max_item_tokens=asked.max_item_tokens,
                precision=asked.precision,
            )
        case ChoiceTask():
            return ChoicePromptScorer(
                model,
                form=asked.option_form(),
                template=task.config.prompt_template(asked.option_form()).source,
                # Options are far less alike in length than labels, and few examples do not undo what their length
                # costs: they are compared by the mean (guess), letters and labels by what training raised.
                normalization="mean" if asked.option_form() == "text" else "sum",
                max_prompt_tokens=asked.max_item_tokens,
                precision=asked.precision,
            )
        case QuestionTask():
            return AnswerWriter(
                model,
                template=task.config.prompt_template().source,
                extractive=task.config.extractive,
                max_new_tokens=asked.max_new_tokens,
                max_prompt_tokens=asked.max_item_tokens,
                precision=asked.precision,
            )
        case ClassificationTask():
            return PromptScorer(
                model,
                list(task.labels),
                list(task.verbalizers),
                template=task.prompt_template().source,
                normalization="sum",  # the label's log-probability, which is what training raised
                max_prompt_tokens=asked.max_item_tokens,
                precision=asked.precision,
            )
    raise AssertionError(f"no such kind of task: {task.config.kind}")


def _run(context: StageContext[AskConfig]) -> StageReport:
    task = load_task(context.inputs["task"] / "task")
    model, config = model_of(context.inputs["model"]), context.config
    # Nobody chose how long its answers may be: they leave a question half of a small context.
    most = min(config.max_new_tokens, context_of_directory(model) // 2)
    written_scorer(model, task, config.model_copy(update={"max_new_tokens": most})).save(context.folder / "scorer")
    return StageReport()


ASK = StageKind("ask", 2, AskConfig, _run)
