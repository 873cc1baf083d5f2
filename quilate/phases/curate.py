"""Raw sources, curated once: a clean corpus for other stages, and the card that says what was done to it."""

from __future__ import annotations

from collections.abc import Iterator

from quilate.curation.card import make_card, render_card
from quilate.curation.config import CurateConfig
from quilate.curation.decontaminate import BenchmarkConfig
from quilate.curation.pipeline import Watch, curate
from quilate.data.tables import SourceConfig, read_table
from quilate.engine.runlog import Progress
from quilate.files import digest, write_json, write_text
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
    tally = curate(config, base=context.base_folder, folder=context.folder, items=_items(context), watch=watch)
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
    """The dev and test items of the recipe's task and of every benchmark named."""
    if "task" in context.inputs:
        task = load_task(context.inputs["task"] / "task")
        yield from (item.text for part in (task.dev, task.test) for item in part)
    against = context.config.decontaminate.against if context.config.decontaminate is not None else []
    for benchmark in against:
        yield from _texts(benchmark, context)


def _texts(benchmark: BenchmarkConfig, context: StageContext[CurateConfig]) -> Iterator[str]:
    table = read_table(SourceConfig(path=benchmark.path), base=context.base_folder)
    column = TextColumn(benchmark.text, table.columns)
    yield from (column.of(row) for row in table.rows)


CURATE = StageKind("curate", 1, CurateConfig, _run)
