"""Raw text, read once: documents for training and documents held out to measure with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field

from quilate.config import Config
from quilate.data.tables import SourceConfig, locate, read_table
from quilate.data.text import Unit, read_text
from quilate.errors import DataError, GateError
from quilate.files import read_jsonl, write_jsonl
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.classification import Task
from quilate.tasks.columns import Condition, TextColumn, filter_rows
from quilate.tasks.labels import Item
from quilate.tasks.leaks import find_leaks

TEXT_SUFFIXES = (".txt", ".text", ".md")


class CorpusConfig(Config):
    path: str
    """A text file (.txt, also .gz and .zst) or a table (jsonl, csv, parquet), relative to the recipe's folder."""
    documents: Unit = "paragraph"
    """What one document is in a text file: a `paragraph` (between blank lines), a `line`, or the whole `file`. In a
    table it is a row."""
    text: str = "text"
    """For a table: the column with the text, or a Jinja template over the columns."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """For a table: conditions on columns; rows that fail one are dropped and counted."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Use the first documents up to so many bytes of text."""
    held_out: float = Field(default=0.05, gt=0, lt=1)
    """Share of the documents that is never trained on and serves to measure bits per byte."""
    held_out_bytes: int = Field(default=50_000, ge=1)
    """Most bytes of held-out text to measure with; more would only cost time."""


class CorpusStageConfig(Config):
    corpus: CorpusConfig
    allow_leak: bool = False


def _run(context: StageContext[CorpusStageConfig]) -> StageReport:
    config = context.config.corpus
    counts: dict[str, int] = {}
    documents = list(dict.fromkeys(_read(config, context.base_folder, counts)))
    counts["duplicate documents"] = counts.pop("read") - len(documents)
    if config.max_bytes is not None:
        documents, counts["documents beyond max_bytes"] = _first_bytes(documents, config.max_bytes)
    if "task" in context.inputs:
        _refuse_leak(
            documents, Task.load(context.inputs["task"] / "task"), config.path, allow=context.config.allow_leak
        )
    held_out = [d for d in documents if _draw(d) < config.held_out]
    train = [d for d in documents if _draw(d) >= config.held_out]
    if not train or not held_out:
        raise DataError(
            f"{config.path} has {len(documents)} documents: too few to train on and hold out {config.held_out:.0%}",
            hint="give more text, or smaller documents (`documents: paragraph`)",
        )
    measured, _ = _first_bytes(held_out, config.held_out_bytes)
    write_jsonl(context.folder / "train.jsonl", [{"text": d} for d in train])
    write_jsonl(context.folder / "held_out.jsonl", [{"text": d} for d in measured])
    size = sum(len(d.encode()) for d in train)
    context.note(f"{len(train)} documents ({size / 1e6:.2f} MB) to train on, {len(measured)} to measure with")
    facts = {"train_documents": len(train), "train_bytes": size, "held_out_documents": len(measured)}
    return StageReport(counts={k: v for k, v in counts.items() if v}, facts=facts)


def _read(config: CorpusConfig, base: Path, counts: dict[str, int]) -> list[str]:
    source = SourceConfig(path=config.path)
    path = locate(source, base=base)
    if path.name.removesuffix(".gz").removesuffix(".zst").endswith(TEXT_SUFFIXES):
        text = read_text(path, config.documents)
        counts |= {"read": len(text.documents), "undecodable lines": text.undecodable}
        return text.documents
    table = read_table(source, base=base)
    rows, filtered = filter_rows(table.rows, config.where)
    column = TextColumn(config.text, table.columns)
    texts = [column.of(row).strip() for _, row in rows]
    kept = [text for text in texts if text]
    counts |= {
        "read": len(kept),
        "filtered rows": sum(filtered.values()),
        "rows without text": len(texts) - len(kept),
        "broken records": sum(table.notes["quarantined"].values()),
    }
    if not kept:
        raise DataError(f"{config.path}: no row has a text in '{config.text}'", hint="check `text` and `where`")
    return kept


def _first_bytes(documents: list[str], limit: int) -> tuple[list[str], int]:
    """As many documents as fit into `limit` bytes (at least one), and how many were left out."""
    size = 0
    for index, document in enumerate(documents):
        size += len(document.encode())
        if size > limit and index:
            return documents[:index], len(documents) - index
    return documents, 0


def _draw(document: str) -> float:
    """A number in [0, 1) that depends on the text alone: adding documents never moves one from train to held-out."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:6], "big") / 2**48


def _refuse_leak(documents: list[str], task: Task, path: str, *, allow: bool) -> None:
    """Stop if test items of the task stand in the corpus: as a document or line of it, or by n-gram overlap."""
    lines = {line.strip() for document in documents for line in (document, *document.splitlines())}
    corpus = [Item(str(i), text, "", f"corpus {i}") for i, text in enumerate(sorted(lines)) if text]
    leaks = find_leaks(corpus, task.test)
    if leaks.items and not allow:
        raise GateError(
            f"{len(leaks.items)} of {len(task.test)} test items of {task.name} stand in the corpus {path}",
            hint="take them out of the corpus, or set task.allow_leak: true, and every report will say so",
        )


def corpus_documents(folder: Path, part: str) -> list[str]:
    """The documents of a finished corpus stage; `part` is "train" or "held_out"."""
    return [row["text"] for row in read_jsonl(folder / f"{part}.jsonl")]


CORPUS = StageKind("corpus", 1, CorpusStageConfig, _run)
