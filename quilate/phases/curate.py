"""Raw sources, curated once: a clean corpus for other stages, and the card that says what was done to it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from quilate.curation.card import make_card, render_card
from quilate.curation.config import CurateConfig
from quilate.curation.decontaminate import BenchmarkConfig
from quilate.curation.personal import Recognizer, Span, TaggerConfig
from quilate.curation.pipeline import Watch, curate
from quilate.data.tables import SourceConfig, read_table
from quilate.engine.runlog import Progress
from quilate.errors import ConfigError, DataError
from quilate.files import digest, write_json, write_text
from quilate.inference.scorer import content_of_arm, folder_of_arm, load_scorer
from quilate.phases.corpus import tasks_among
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.columns import TextColumn
from quilate.tasks.kinds import load_task

CARD = "data-card"


def _run(context: StageContext[CurateConfig]) -> StageReport:
    config = context.config
    watch = Watch(
        progress=lambda done, total, unit: context.listener(Progress(done, total, unit)),
        check=context.stop.raise_if_set,
    )
    personal = config.personal_data
    tagger = personal.tagger if personal is not None else None
    further = [recognizer_of(tagger, context.base_folder)] if tagger is not None else []
    tally = curate(
        config, base=context.base_folder, folder=context.folder, items=_items(context), watch=watch, recognizers=further
    )
    card = make_card(config, tally, base=context.base_folder, folder=context.folder)
    write_json(context.folder / f"{CARD}.json", card)
    write_text(context.folder / f"{CARD}.html", render_card(card, lang=_language(context)))
    out = card["output"]
    context.note(
        f"{out['documents']:,} of {card['documents_in']:,} documents kept, "
        f"{out['bytes'] / 1e6:.2f} of {card['bytes_in'] / 1e6:.2f} MB"
    )
    counts = {f"set aside: {reason}": n for reason, n in tally.refused.items()}
    counts |= {f"{name}: {rule}": n for name, step in tally.steps.items() for rule, n in step.dropped.items()}
    source = {
        "path": ", ".join(s["path"] for s in card["sources"]),
        "sha256": digest([s["sha256"] for s in card["sources"]]),
    }
    return StageReport(counts=counts, facts={"source": source, "output": out, "personal_data": card["personal_data"]})


def _language(context: StageContext[CurateConfig]) -> str:
    """The card's: of the recipe's task, as for its report; without a task of the text that is kept, if it has one."""
    if "task" in context.inputs:
        return "es" if load_task(context.inputs["task"] / "task").config.language == "es" else "en"
    kept = context.config.language.accept if context.config.language is not None else []
    return "es" if kept == ["es"] else "en"


def _items(context: StageContext[CurateConfig]) -> Iterator[str]:
    """The dev and test items of the recipe's tasks and of every benchmark named; of a question also what is read with
    it: its options, its passage."""
    for task in tasks_among(context.inputs):
        for item in (*task.dev, *task.test):
            yield from dict.fromkeys((item.text, item.content))
    against = context.config.decontaminate.against if context.config.decontaminate is not None else []
    for benchmark in against:
        yield from _texts(benchmark, context)


def _texts(benchmark: BenchmarkConfig, context: StageContext[CurateConfig]) -> Iterator[str]:
    table = read_table(SourceConfig(path=benchmark.path), base=context.base_folder)
    column = TextColumn(benchmark.text, table.columns)
    yield from (column.of(row) for row in table.rows)


def recognizer_of(config: TaggerConfig, base: Path) -> Recognizer:
    """A finished arm's tagger, as what finds personal data.

    Raises:
        ConfigError: it has no such label.
        DataError: the folder holds no tagger.
    """
    tagger = load_scorer(folder_of_arm(config.path, base) / "scorer")
    if not hasattr(tagger, "find"):
        raise DataError(
            f"{config.path} holds no model that finds spans", hint="give the folder of an arm of `task: extraction`"
        )
    for label in config.labels:
        if label not in tagger.labels:
            near = difflib.get_close_matches(label, tagger.labels, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"its labels: {', '.join(tagger.labels)}"
            raise ConfigError(f"personal_data.tagger.labels: {config.path} has no label '{label}'", hint=hint)
    types = config.labels or {label: label for label in tagger.labels}

    def recognize(text: str) -> list[Span]:
        (found,) = tagger.find([text]).spans
        return [Span(span.start, span.end, types[span.label]) for span in found if span.label in types]

    return recognize


def content_of_tagger(config: TaggerConfig, base: Path) -> str:
    """The digest of a tagger and of the model it uses.

    Raises:
        DataError: the folder holds none.
    """
    return content_of_arm(folder_of_arm(config.path, base))


CURATE = StageKind("curate", 2, CurateConfig, _run)
