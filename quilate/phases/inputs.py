"""The two things every recipe starts from: a labelled task and a base model, read, checked and made ready once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field, model_validator

from quilate.config import Config
from quilate.data.tables import SourceConfig, read_table
from quilate.errors import DataError
from quilate.evaluation.schema import Notice
from quilate.evaluation.wording import say
from quilate.files import sha256_of_file, sha256_of_tree
from quilate.inference.demonstrations import balanced
from quilate.models.source import model_name, resolve_model
from quilate.phases.corpus import refuse_leaks
from quilate.phases.stage import StageContext, StageKind, StageReport, write_model_note
from quilate.tasks.kinds import TaskConfig, load_task
from quilate.tasks.prepare import prepare
from quilate.tasks.task import Task


class LabelledSources(Config):
    """Either one file, to be split by quilate, or the files of splits that were given."""

    all: SourceConfig | None = None
    """One file with all labelled rows; quilate splits it."""
    train: SourceConfig | None = None
    """The training rows, when the splits are given."""
    dev: SourceConfig | None = None
    """The development rows; carved from the training rows when absent."""
    test: SourceConfig | None = None
    """The test rows, when the splits are given."""

    @model_validator(mode="after")
    def _one_way_or_the_other(self) -> LabelledSources:
        if (self.all is None) == (self.train is None) or (self.train is None) != (self.test is None):
            raise ValueError("give either `all` (quilate splits it), or both `train` and `test`")
        if self.all is not None and self.dev is not None:
            raise ValueError("`dev` goes with `train` and `test`, not with `all`")
        return self

    def given(self) -> dict[str, SourceConfig]:
        return {name: source for name in ("all", "train", "dev", "test") if (source := getattr(self, name)) is not None}


class LearningConfig(Config):
    """The keys of an arm that learns from the labelled items."""

    train_rows: int | None = Field(default=None, ge=1)
    """Learn from so many of the training items, drawn evenly over the classes: those that an `icl` arm of the same seed
    shows as its `shots`. By default from all."""

    def what_is_learned(self, task: Task, seed: int) -> Task:
        """The task with the training items that are learned from.

        Raises:
            DataError: it has fewer.
        """
        if self.train_rows is None:
            return task
        if self.train_rows > len(task.train):
            raise DataError(
                f"train_rows: {self.train_rows:,} training items are asked for and there are {len(task.train):,}",
                hint="ask for fewer, or leave the key out for all",
            )
        return replace(task, train=balanced(task.train, self.train_rows, per_class=False, seed=seed))


class TaskStageConfig(Config):
    task: TaskConfig
    sources: LabelledSources
    strict: bool = False
    """Stop at the first broken record instead of setting it aside."""


class BaseStageConfig(Config):
    model: str
    """A model directory, a .gguf file, package:NAME, or a hub name."""


def _prepare_task(context: StageContext[TaskStageConfig]) -> StageReport:
    config = context.config
    tables = {
        name: read_table(
            source,
            base=context.base_folder,
            strict=config.strict,
            quarantine=context.folder / f"quarantine-{name}.jsonl",
        )
        for name, source in config.sources.given().items()
    }
    task = prepare(config.task, {n: t.rows for n, t in tables.items()}, {n: t.notes for n, t in tables.items()})
    _refuse_leaks_between(task, context)
    task.save(context.folder / "task")
    for warning in task.report["warnings"]:
        context.note(f"warning: {say(Notice(**warning), 'en')}")
    sizes = {split: len(getattr(task, split)) for split in ("train", "dev", "test")}
    context.note(", ".join(f"{size} {split}" for split, size in sizes.items()) + f" items, {len(task.labels)} labels")
    return StageReport(facts={"report": task.report})


def _refuse_leaks_between(task: Task, context: StageContext[TaskStageConfig]) -> None:
    """Stop if what is learned from one of a recipe's tasks stands in the test items of another.

    Raises:
        GateError: it does, and this task does not allow it.
    """
    for folder in context.inputs.values():
        other = load_task(folder / "task")
        for learned, tested in ((task, other), (other, task)):
            texts = list(dict.fromkeys(item.content for item in learned.train))
            refuse_leaks(texts, [tested], f"that task {learned.name} has", allow=task.config.allow_leak)


def _prepare_base(context: StageContext[BaseStageConfig]) -> StageReport:
    from quilate.models.load import load_tokenizer

    model = resolve_model(context.config.model, base=context.base_folder, note=context.note)
    load_tokenizer(model.path)  # fail here, not in every arm
    write_model_note(context.folder, model.path, source=model.source, fingerprint=model.fingerprint)
    return StageReport(
        facts={
            "name": model_name(model.path),
            "source": model.source,
            "sha256": model.fingerprint,
            "parameters": _parameters(model.path),
        }
    )


def _parameters(directory: Path) -> int:
    from safetensors import safe_open

    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                size = 1
                for extent in file.get_slice(name).get_shape():
                    size *= extent
                total += size
    return total


def content_of_sources(sources: LabelledSources, base: Path) -> dict[str, str]:
    """The digests of the source files, part of the task stage's identity: another content is another stage."""
    from quilate.data.tables import locate

    places = {name: locate(source, base=base) for name, source in sources.given().items()}
    return {name: sha256_of_tree(p) if p.is_dir() else sha256_of_file(p) for name, p in places.items()}


TASK = StageKind("task", 3, TaskStageConfig, _prepare_task)
BASE = StageKind("base", 1, BaseStageConfig, _prepare_base)
