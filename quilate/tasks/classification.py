"""From labelled rows to a leak-free classification task, with everything that was dropped counted.

`Task.report` has these keys:

    read                rows given, all files
    filtered            rows dropped by `where`; filtered_by: {column: rows}
    empty_text          rows dropped for an empty text
    missing_label       rows dropped for a missing label
    missing_group       rows without a value in the group column, each made its own group
    unseen_label        {"dev": rows, "test": rows} dropped because train lacks their label (unseen_labels: drop)
    duplicates_tied     rows whose text another row also has, tied into one group (only when quilate splits)
    overlaps_tied       distinct texts tied by n-gram overlap (only when quilate splits)
    conflicting_labels  distinct texts that carry more than one label
    dropped_leaks       {"train": rows, "dev": rows} removed by drop_leaks
    unused              usable rows beyond the sizes asked for
    splits              {split: {"items", "groups", "duplicates", "labels": {label: items}}}
    never_tested        labels that have training items and no test item
    leaks               {pair: {"items", "exact", "overlap", "group", "any_ngram", "of"}} for the pairs train-test,
                        train-dev, dev-test; counts of the later split's items, `of` how many it has
    allowed_leak        true when leaks were found and `allow_leak` let the task go on
    warnings            what to warn of, as {"code", "values"}: quilate.evaluation.wording has the sentences
    sources             the notes of the tables, by split
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from quilate.config import Config, validate
from quilate.errors import DataError, GateError
from quilate.files import atomic_folder, read_json, read_jsonl, write_json, write_jsonl
from quilate.tasks.columns import Condition, Row, TextColumn, columns_of, filter_rows, require_column
from quilate.tasks.labels import Item, cell_text, check_verbalizers, verbalizers_of
from quilate.tasks.leaks import Leaks, find_leaks, normalize
from quilate.tasks.splits import SplitConfig, carve_dev, sample, split, tie_duplicates
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.sandbox import is_template

SPLITS = ("train", "dev", "test")
DEFAULT_TEMPLATES = {"es": "Texto: {{ text }}\nEtiqueta:", "en": "Text: {{ text }}\nLabel:"}
_PAIRS = (("train", "test"), ("train", "dev"), ("dev", "test"))


class TaskConfig(Config):
    """A classification task: which columns, which rows, how it is split, how a language model sees it."""

    name: str
    """Name of the task in reports."""
    kind: Literal["classification"] = "classification"
    """Kind of task."""
    text: str
    """Column that holds the text, or a Jinja template over the columns, e.g. `{{ title }}: {{ body }}`."""
    label: str
    """Column that holds the label."""
    group: str | None = None
    """Column whose equal values must stay in one split: the patient, the document, the three-character code."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """Conditions on columns; rows that fail one are dropped and counted."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Short text that stands for each label in prompts; by default the label itself."""
    language: str = "es"
    """Language of the texts, as an ISO 639-1 code; chooses the default template."""
    template: str = ""
    """How an item is shown to a language model, a Jinja template with `{{ text }}` and optionally `{{ labels }}`. The
    label is written after it, with one space between. Default: `Texto: ... Etiqueta:` in the task's language."""
    instruction: str = ""
    """What a language model reads once, before the demonstrations."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """Score by which arms are compared."""
    split: SplitConfig = SplitConfig()
    """Sizes of the splits; with given files, how many of their rows to use."""
    unseen_labels: Literal["stop", "drop"] = "stop"
    """What to do with dev and test rows whose label no training row has."""
    drop_leaks: bool = False
    """With given files: remove from train (and from dev) what also occurs in the test split, instead of stopping."""
    allow_leak: bool = False
    """Go on although splits share texts or groups; every report then says so."""

    @field_validator("labels", mode="before")
    @classmethod
    def _number_labels(cls, value: Any) -> Any:
        """In YAML `0: negativo` has a number for a key; labels are texts."""
        if not isinstance(value, Mapping):
            return value
        return {cell_text(key) if isinstance(key, (int, float)) else key: text for key, text in value.items()}

    @field_validator("labels")
    @classmethod
    def _usable_verbalizers(cls, value: dict[str, str]) -> dict[str, str]:
        check_verbalizers(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        if not self.template and self.language not in DEFAULT_TEMPLATES:
            raise ValueError(
                f"there is no default template for language '{self.language}' (only {', '.join(DEFAULT_TEMPLATES)}): "
                "give one under `template:`"
            )
        if self.template and not is_template(self.template):
            raise ValueError("template: it must contain {{ text }}, or every prompt would be the same")
        if self.template != self.template.rstrip():
            raise ValueError(
                "template: it ends in a space or line break, but a space and the label follow it; use `|-`"
            )
        if self.drop_leaks and self.allow_leak:
            raise ValueError("drop_leaks and allow_leak contradict each other: choose one")
        return self

    def prompt_template(self, verbalizers: Sequence[str] = ()) -> PromptTemplate:
        """The template as configured or by language.

        Raises:
            ConfigError: it is not valid Jinja, uses unknown variables, or leaves the sandbox.
        """
        template = self.template or DEFAULT_TEMPLATES[self.language]
        return PromptTemplate(template, instruction=self.instruction, verbalizers=verbalizers)


@dataclass(frozen=True)
class Task:
    """A task ready to use. `labels` is sorted, `verbalizers` aligned with it; `report` as this module's head says."""

    config: TaskConfig
    name: str
    labels: list[str]
    verbalizers: list[str]
    train: list[Item]
    dev: list[Item]
    test: list[Item]
    report: dict[str, Any]

    def prompt_template(self) -> PromptTemplate:
        """The prompts of this task, its verbalizers filled in."""
        return self.config.prompt_template(self.verbalizers)

    def verbalizer(self, label: str) -> str:
        """The short text that stands for a label."""
        return self.verbalizers[self.labels.index(label)]

    def save(self, folder: Path) -> None:
        """Write `task.json` and one JSONL file a split into a private folder, atomically; equal tasks, equal bytes."""
        with atomic_folder(folder, fault="task") as temporary:
            head = {"config": self.config.as_json(), "labels": self.labels, "verbalizers": self.verbalizers}
            write_json(temporary / "task.json", {**head, "report": self.report})
            for name in SPLITS:
                write_jsonl(temporary / f"{name}.jsonl", [asdict(item) for item in getattr(self, name)])

    @classmethod
    def load(cls, folder: Path) -> Task:
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing, altered, or does not agree with the others.
        """
        head = read_json(folder / "task.json")
        try:
            config = validate(TaskConfig, head["config"], source=str(folder / "task.json"))
            parts = {name: [Item(**row) for row in read_jsonl(folder / f"{name}.jsonl")] for name in SPLITS}
            task = cls(config, config.name, head["labels"], head["verbalizers"], **parts, report=head["report"])
            counts = {name: part["items"] for name, part in task.report["splits"].items()}
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder} does not hold a whole task", hint="remove it and run again") from error
        if counts != {name: len(parts[name]) for name in SPLITS}:
            raise DataError(
                f"{folder}: the splits do not have the sizes that task.json records", hint="remove it and run again"
            )
        return task


def render_texts(config: TaskConfig, rows: Sequence[Row]) -> list[str]:
    """The texts of rows that need no label, for prediction; "" where there is none.

    Raises:
        DataError: the text column is missing; the message names the nearest.
    """
    reader = TextColumn(config.text, columns_of(rows))
    return [reader.of(row) for row in rows]


def prepare(config: TaskConfig, rows: Mapping[str, Sequence[Row]], notes: Mapping[str, Any]) -> Task:
    """Make a task of tables.

    Args:
        rows: `{"all": rows}` to be split here, or `{"train", "test"}` with optional `"dev"` as given; a missing dev
            is taken out of train, by group.
        notes: the tables' notes by the same keys, kept in the report as `sources`.

    Raises:
        ConfigError: the templates or verbalizers are unusable.
        DataError: a column is missing, a label of dev or test is unseen in train, or there are too few rows.
        GateError: given splits share texts or groups, and neither `drop_leaks` nor `allow_leak` is set.
    """
    config.prompt_template()
    counts = _Counts()
    pools = {name: _items(config, name, part, counts) for name, part in rows.items()}
    usable = sum(map(len, pools.values()))
    parts = _split_here(config, pools["all"], counts) if "all" in pools else _use_given(config, dict(pools), counts)
    _refuse_unseen(parts)
    leaks = {pair: find_leaks(parts[pair[0]], parts[pair[1]]) for pair in _PAIRS}
    leaked = any(found.items for found in leaks.values())
    if leaked and not config.allow_leak:
        raise _gate(leaks)
    labels = sorted({item.label for item in parts["train"]})
    never_tested = sorted(set(labels) - {item.label for item in parts["test"]})
    if never_tested:
        counts.warn("never_tested", count=len(never_tested), names=never_tested)
    if leaked:
        counts.warn("splits_leak")
    report = {
        **counts.report(),
        "conflicting_labels": _conflicts([item for pool in pools.values() for item in pool]),
        "unused": usable - sum(map(len, parts.values())) - counts.total_dropped_later(),
        "splits": {name: _describe(parts[name]) for name in SPLITS},
        "never_tested": never_tested,
        "leaks": {f"{first}-{second}": found.counts() for (first, second), found in leaks.items()},
        "allowed_leak": leaked,
        "warnings": counts.warnings,
        "sources": dict(notes),
    }
    verbalizers = verbalizers_of(labels, config.labels, known=counts.label_values)
    return Task(config, config.name, labels, verbalizers, **parts, report=report)


class _Counts:
    """What happened to the rows on the way."""

    def __init__(self) -> None:
        self.simple: Counter[str] = Counter()
        self.filtered_by: Counter[str] = Counter()
        self.unseen_label: dict[str, int] = {"dev": 0, "test": 0}
        self.dropped_leaks: dict[str, int] = {"train": 0, "dev": 0}
        self.label_values: set[str] = set()
        self.warnings: list[dict[str, Any]] = []

    def warn(self, code: str, **values: Any) -> None:
        self.warnings.append({"code": code, "values": values})

    def total_dropped_later(self) -> int:
        return sum(self.unseen_label.values()) + sum(self.dropped_leaks.values())

    def report(self) -> dict[str, Any]:
        names = ("read", "filtered", "empty_text", "missing_label", "missing_group", "duplicates_tied", "overlaps_tied")
        return {
            **{name: self.simple[name] for name in names},
            "filtered_by": dict(sorted(self.filtered_by.items())),
            "unseen_label": self.unseen_label,
            "dropped_leaks": self.dropped_leaks,
        }


def _items(config: TaskConfig, name: str, rows: Sequence[Row], counts: _Counts) -> list[Item]:
    """The usable rows of one table. Ids are `table:row number`, so that a row can be found again."""
    columns = columns_of(rows)
    reader = TextColumn(config.text, columns)
    require_column(config.label, columns, role="label")
    if config.group is not None:
        require_column(config.group, columns, role="group")
    counts.label_values |= {cell_text(row.get(config.label)) for row in rows} - {""}
    kept, dropped = filter_rows(rows, config.where)
    counts.filtered_by.update(dropped)
    counts.simple.update(read=len(rows), filtered=len(rows) - len(kept))
    items = []
    for number, row in kept:
        text, label = reader.of(row), cell_text(row.get(config.label))
        if not text or not label:
            counts.simple["empty_text" if not text else "missing_label"] += 1
            continue
        identity = f"{name}:{number}"
        group = cell_text(row.get(config.group)) if config.group is not None else identity
        counts.simple["missing_group"] += not group
        items.append(Item(identity, text, label, group or identity))
    if not items:
        raise DataError(
            f"{name}: none of the {len(rows)} rows is usable: {len(rows) - len(kept)} dropped by `where`, "
            f"{len(kept)} without a text or label",
            hint="check the names under text:, label: and where:",
        )
    return items


def _split_here(config: TaskConfig, items: list[Item], counts: _Counts) -> dict[str, list[Item]]:
    ties = tie_duplicates(items)
    counts.simple.update(duplicates_tied=ties.equal, overlaps_tied=ties.overlapping)
    parts = split(ties.items, config.split)
    _warn_if_short("train", config.split.train, parts["train"], counts)
    return parts


def _use_given(config: TaskConfig, pools: dict[str, list[Item]], counts: _Counts) -> dict[str, list[Item]]:
    """Choose from given splits, the test first: what leaks into it can then be taken from the others."""
    missing = {"train", "test"} - set(pools)
    if missing:
        raise DataError(f"the source has no {' and no '.join(sorted(missing))} file", hint="give train and test files")
    known = {item.label for item in pools["train"]}
    if config.unseen_labels == "drop":
        for name in ("dev", "test"):
            kept = [item for item in pools.get(name, []) if item.label in known]
            counts.unseen_label[name] = len(pools.get(name, [])) - len(kept)
            if name in pools:
                pools[name] = kept
    if "dev" not in pools:
        original = {item.id: item for item in pools["train"]}
        carved = carve_dev(tie_duplicates(pools["train"]).items, config.split)
        pools["train"], pools["dev"] = ([original[item.id] for item in part] for part in carved)
    sizes = {"test": config.split.test, "dev": config.split.dev, "train": config.split.train}
    parts: dict[str, list[Item]] = {}
    for name, size in sizes.items():
        pool = pools[name]
        if config.drop_leaks:
            guilty = frozenset[str]().union(*(find_leaks(pool, later).earlier for later in parts.values()))
            counts.dropped_leaks[name] = len(guilty)
            pool = [item for item in pool if item.id not in guilty]
        parts[name] = sample(pool, len(pool) if size is None else size, config.split, at_least=int(name == "train"))
        _warn_if_short(name, size, parts[name], counts)
    counts.dropped_leaks.pop("test", None)
    return parts


def _warn_if_short(name: str, size: int | None, items: Sequence[Item], counts: _Counts) -> None:
    if size is not None and len(items) < size:
        counts.warn("fewer_rows", split=name, asked=size, available=len(items))


def _refuse_unseen(parts: Mapping[str, Sequence[Item]]) -> None:
    known = {item.label for item in parts["train"]}
    unseen = {name: Counter(item.label for item in parts[name] if item.label not in known) for name in ("dev", "test")}
    if any(unseen.values()):
        listed = "; ".join(
            f"{name}: " + ", ".join(f"'{label}' ({count} rows)" for label, count in sorted(found.items()))
            for name, found in unseen.items()
            if found
        )
        raise DataError(
            f"labels that no training row has: {listed}",
            hint="add training rows of these labels, raise split.train, exclude them with `where`, "
            "or set unseen_labels: drop",
        )


def _gate(leaks: Mapping[tuple[str, str], Leaks]) -> GateError:
    listed = "; ".join(
        f"{len(found.items)} of the {found.of} {later} items occur in {earlier} "
        f"({len(found.exact)} equal, {len(found.overlap)} overlapping, {len(found.group)} of a shared group)"
        for (earlier, later), found in leaks.items()
        if found.items
    )
    return GateError(
        f"the given splits leak: {listed}",
        hint="set drop_leaks: true to remove them from the training side, or allow_leak: true to go on; "
        "the report will say so",
    )


def _conflicts(items: Sequence[Item]) -> int:
    labels: dict[str, set[str]] = defaultdict(set)
    for item in items:
        labels[normalize(item.text)].add(item.label)
    return sum(len(found) > 1 for found in labels.values())


def _describe(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "items": len(items),
        "groups": len({item.group for item in items}),
        "duplicates": len(items) - len({normalize(item.text) for item in items}),
        "labels": dict(sorted(Counter(item.label for item in items).items())),
    }
