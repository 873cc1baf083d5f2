"""What prompted arms share: which solved examples they show and how, and the choice between several ways on dev."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from safetensors.numpy import load_file, save_file

from quilate.config import Config
from quilate.engine.runlog import Progress
from quilate.errors import DataError
from quilate.files import make_folder, read_json, write_json
from quilate.inference import demonstrations
from quilate.inference.demonstrations import Order, Pool, Selection, Similarity
from quilate.inference.prompts import Demonstration
from quilate.phases.evaluate import answer, score_of
from quilate.phases.stage import StageContext, StageReport
from quilate.rng import derive_seed, numpy_stream
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import Document, ExtractionTask
from quilate.tasks.labels import Item
from quilate.tasks.multiple_choice import AnswerForm, ChoiceItem, ChoiceTask
from quilate.tasks.question_answering import AskedItem, QuestionTask
from quilate.tasks.records import written
from quilate.tasks.task import Task
from quilate.tasks.templates import PromptTemplate

Shots = Annotated[int, Field(ge=0)] | Literal["fit"]


class PromptingConfig(Config):
    """The keys of a prompt."""

    shots: Shots | list[Shots] = 0
    """Solved examples in the prompt; with `per_class`, of each class; `fit` is as many as fit. Of a list, the number
    that does best on the development items is used."""
    per_class: bool = False
    """Count `shots` for each class instead of in all."""
    demonstrations: Selection = "balanced"
    """Which training rows are shown: drawn evenly over the classes (`balanced`), drawn blindly (`random`), the `rows`
    named (`fixed`), the middles of k-means clusters (`diverse`), or each item's `nearest`."""
    rows: list[str] = Field(default_factory=list)
    """For `fixed`: the training rows shown, as FILE:NUMBER from 0, such as `all:12` or `train:3`."""
    similarity: Similarity = "tfidf"
    """For `nearest` and `diverse`: by which texts are alike, `tfidf` or the model's own hidden states (`embedding`)."""
    order: Order | None = None
    """Order of the examples: as chosen (`given`), `random`, one class after another (`alternating`), or the most
    similar right before the item (`nearest_last`). By default `nearest_last` for nearest ones, `given` for fixed ones,
    else `random`."""
    permutations: int = Field(default=1, ge=1)
    """Random orders to try; the one that does best on the development items is used."""
    templates: list[str] = Field(default_factory=list)
    """Templates to try instead of the task's; the one that does best on the development items is used."""
    instruction: bool = True
    """Begin the prompt with the task's instruction."""

    @model_validator(mode="after")
    def _consistent_prompt(self) -> PromptingConfig:
        numbers = self.numbers()
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError("shots: a list must hold at least one number, and none twice")
        if self.per_class and (self.demonstrations != "balanced" or "fit" in numbers):
            raise ValueError("per_class: it goes with `demonstrations: balanced` and numbers of shots")
        if bool(self.rows) != (self.demonstrations == "fixed"):
            raise ValueError("rows: they are named with `demonstrations: fixed`, and only there")
        if self.rows and numbers == [0]:
            raise ValueError("shots: say how many of the `rows` to show, or `fit`")
        if self.demonstrations == "diverse" and "fit" in numbers:
            raise ValueError("shots: `diverse` needs a number: it makes that many clusters")
        if self.order == "nearest_last" and self.demonstrations != "nearest":
            raise ValueError("order: `nearest_last` goes with `demonstrations: nearest`")
        if self.permutations > 1 and self.reading_order() != "random":
            raise ValueError("permutations: several orders can only be tried with `order: random`")
        for template in self.templates:
            if not template.strip() or template != template.rstrip():
                raise ValueError("templates: one is empty, or ends in a space or line break; use `|-`")
        return self

    def numbers(self) -> list[int | Literal["fit"]]:
        return self.shots if isinstance(self.shots, list) else [self.shots]

    def reading_order(self) -> Order:
        if self.order is not None:
            return self.order
        by_selection: dict[Selection, Order] = {"nearest": "nearest_last", "fixed": "given"}
        return by_selection.get(self.demonstrations, "random")

    def draws(self) -> bool:
        """Whether another seed gives another prompt."""
        drawn = self.demonstrations not in ("nearest", "fixed") or self.reading_order() == "random"
        return drawn and self.numbers() != [0]

    def method(self) -> str:
        """The field's name for it."""
        numbers = self.numbers()
        if numbers == [0]:
            return "zero-shot"
        shots = " or ".join(map(str, numbers)) if len(numbers) < 4 else f"{numbers[0]} to {numbers[-1]}"
        name = "as many as fit" if numbers == ["fit"] else f"{shots} per class" if self.per_class else f"{shots}-shot"
        return name if self.demonstrations == "balanced" else f"{name}, {self.demonstrations}"


@dataclass(frozen=True)
class Trial:
    """One way of prompting; `template` is its number among the config's `templates`."""

    shots: int | Literal["fit"]
    template: int
    permutation: int


@dataclass(frozen=True)
class Shown:
    """The training items that a trial shows, in the order in which they are read; or, with `own`, all of them, for each
    item is shown its own nearest. `left_out` did not fit."""

    items: list[Item]
    own: bool = False
    left_out: int = 0


def trials_of(config: PromptingConfig) -> list[Trial]:
    """Every combination that the config lists; an order of no examples is tried once."""
    combinations = itertools.product(config.numbers(), range(len(config.templates) or 1), range(config.permutations))
    return [Trial(*combination) for combination in combinations if combination[0] != 0 or combination[2] == 0]


def task_template(task: Task, form: AnswerForm) -> PromptTemplate:
    """The task's own template, verbalizers filled in; `form` is what is asked for in multiple choice."""
    match task:
        case ClassificationTask():
            return task.prompt_template()
        case ChoiceTask():
            return task.config.prompt_template(form)
        case ExtractionTask():
            return task.config.prompt_template(task.trained_labels)
        case QuestionTask():
            return task.config.prompt_template()
    raise AssertionError(f"no such kind of task: {task.config.kind}")  # a recipe with another kind is refused


def template_of(config: PromptingConfig, given: PromptTemplate, trial: Trial) -> PromptTemplate:
    """The template of a trial; `given` is the task's, its instruction and verbalizers filled in.

    Raises:
        ConfigError: it is no usable template.
    """
    source = config.templates[trial.template] if config.templates else given.source
    return given.with_source(source, instruction=given.instruction if config.instruction else "")


def solved_labels(task: ClassificationTask, items: Sequence[Item]) -> list[Demonstration]:
    """(text, verbalizer)"""
    return [(item.text, task.verbalizer(item.label)) for item in items]


def solved_choices(items: Sequence[Item]) -> list[tuple[ChoiceItem, int]]:
    """(question, place of the right option)"""
    return [(item, item.right) for item in items if isinstance(item, ChoiceItem)]


def solved_documents(items: Sequence[Item]) -> list[tuple[str, str]]:
    """(text, its records as they are written)"""
    return [(item.text, written(item.text, item.spans)) for item in items if isinstance(item, Document)]


def solved_questions(items: Sequence[Item]) -> list[tuple[str, str, str]]:
    """(question, context, right answer)"""
    return [(item.text, item.context, item.right_answers[0]) for item in items if isinstance(item, AskedItem)]


def nearest_of(shown: Shown, trial: Trial) -> int | None:
    """How many of what is shown each item is given; None if all."""
    if not shown.own:
        return None
    assert isinstance(trial.shots, int)  # `fit` goes with a `Pool`, or is refused
    return trial.shots


def pool_of(
    config: PromptingConfig, task: ClassificationTask, shown: Shown, trial: Trial, *, seed: int,
    embed: demonstrations.Embed,
) -> Pool | None:  # fmt: skip
    """What labelled texts choose their nearest from; None if all are shown the same."""
    if not shown.own:
        return None
    vectors = np.asarray(embed([i.text for i in shown.items])) if config.similarity == "embedding" else None
    shots = None if trial.shots == "fit" else trial.shots
    order_seed = derive_seed(seed, "permutation", trial.permutation)
    return Pool(solved_labels(task, shown.items), shots, config.reading_order(), order_seed, vectors)


def _tfidf(texts: Sequence[str]) -> demonstrations.Matrix:
    return demonstrations.tfidf_embedder(texts)(texts)


def show(
    config: PromptingConfig,
    train: Sequence[Item],
    trial: Trial,
    *,
    seed: int,
    embed: demonstrations.Embed,
    fitting: Callable[[Sequence[Item]], int],
) -> Shown:
    """Choose and order the demonstrations of a trial.

    Args:
        embed: texts to hidden states, for `similarity: embedding`.
        fitting: how many of these, in order of preference, fit before an item.
    """
    if trial.shots == 0:
        return Shown([])
    if config.demonstrations == "nearest":
        return Shown(list(train), own=True)
    ranked = _ranked(config, train, trial, seed, embed)
    kept = ranked[: fitting(ranked)]
    rng = numpy_stream(seed, "order", trial.permutation)
    arranged = demonstrations.arrange(kept, config.reading_order(), label=lambda item: item.label, rng=rng)
    return Shown(arranged, left_out=0 if trial.shots == "fit" else len(ranked) - len(kept))


def _ranked(
    config: PromptingConfig, train: Sequence[Item], trial: Trial, seed: int, embed: demonstrations.Embed
) -> list[Item]:
    """The trial's demonstrations, the dearest first."""
    shots = len(train) if trial.shots == "fit" else trial.shots
    match config.demonstrations:
        case "random":
            return demonstrations.uniform(train, shots, seed=seed)
        case "fixed":
            return demonstrations.named(train, config.rows)[:shots]
        case "diverse":
            texts = [item.text for item in train]
            if config.similarity == "tfidf":
                vectors = _tfidf(texts)
            else:
                hidden = np.asarray(embed(texts))
                vectors = demonstrations.centred(hidden, hidden.mean(axis=0))
            return demonstrations.diverse(train, vectors, shots, seed=seed)
    return demonstrations.balanced(train, shots, per_class=config.per_class, seed=seed)


@dataclass(frozen=True)
class Tried:
    """What a trial scored on dev; `tokens` and, of an endpoint, money (`cost`) are what that took."""

    trial: Trial
    score: float
    tokens: int
    cost: float


def choose_on_dev(
    context: StageContext[Any], task: Task, trials: Sequence[Trial], scorer_of: Callable[[Trial], Any]
) -> tuple[Trial, list[Tried]]:
    """Score every trial on the development items and take the best; of equals, the one that read fewest tokens.

    A finished trial's scores stay in `trials/`, for the report's curve and for a run that was killed. One trial alone
    is taken as it is.

    Raises:
        DataError: there are no development items to choose on.
        Interrupted: a stop was asked for; finished trials are kept.
    """
    if len(trials) == 1:
        return trials[0], []
    if not task.dev:
        raise DataError("there are no development items to choose on", hint="set split.dev, or list no alternatives")
    folder = make_folder(context.folder / "trials")
    tried = []
    for number, trial in enumerate(trials):
        note = folder / f"{number:03}.json"  # written last: with it the trial is finished
        answers = trial_answers(context.folder, number)
        if not note.exists():
            found = answer(task, scorer_of(trial), task.dev, _listener(context, number, len(trials)))
            save_file({"dev": found.array}, answers)
            write_json(note, asdict(trial) | {"tokens": found.tokens, "cost": found.cost})
        score = score_of(task, task.dev, load_file(answers)["dev"])
        taken = read_json(note)
        tried.append(Tried(trial, score, taken["tokens"], taken["cost"]))
    best = max(tried, key=lambda entry: (entry.score, -entry.tokens))
    context.note(f"{len(trials)} ways tried on {len(task.dev)} dev items: {best.score:.3f} with {_words(best.trial)}")
    return best.trial, tried


def report_of(chosen: Trial, shown: Shown, tried: list[Tried], **facts: Any) -> StageReport:
    """What a prompted arm says of itself."""
    return StageReport(
        counts={"demonstrations that did not fit": shown.left_out},
        facts={
            "train_rows": len(shown.items),
            "demonstrations": [] if shown.own else [item.id for item in shown.items],
            "chosen": asdict(chosen),
            "trials": [asdict(entry) for entry in tried],
        }
        | facts,
    )


def trial_answers(folder: Path, number: int) -> Path:
    """Where the stage in `folder` keeps a trial's answers to the development items: `Answered.array` under `dev`."""
    return folder / "trials" / f"{number:03}.safetensors"


def _words(trial: Trial) -> str:
    return f"{trial.shots} shots, template {trial.template}, order {trial.permutation}"


def _listener(context: StageContext[Any], number: int, total: int) -> Callable[[int, int], None]:
    def listen(done: int, items: int) -> None:
        context.stop.raise_if_set()
        context.listener(Progress(number * items + done, total * items, "items"))

    return listen
