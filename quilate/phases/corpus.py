"""Raw text, read once: documents for training and documents held out to measure with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from quilate.config import Config
from quilate.curation.pipeline import OUTPUT
from quilate.data.canaries import Canaries, make_canaries
from quilate.data.language import MIN_CHARACTERS, NotChecked, check_language
from quilate.data.sentences import sentences
from quilate.data.similarity import nearest_documents
from quilate.data.tables import SourceConfig, locate, read_table
from quilate.data.text import holds_text, read_text
from quilate.errors import DataError, GateError
from quilate.files import read_jsonl, sha256_of_file, sha256_of_tree, write_jsonl
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.rng import numpy_stream
from quilate.tasks.columns import Condition, TextColumn, filter_rows
from quilate.tasks.kinds import load_task
from quilate.tasks.labels import Item
from quilate.tasks.leaks import Leaks, find_leaks
from quilate.tasks.task import Task

CANARIES = "canaries.json"
WARN_SHARE = 0.05  # of the bytes, in another language; guess: so much no longer is a quotation here and there


class NeighboursConfig(Config):
    k: int = Field(default=50, ge=1)
    """For every training text of the task, its so many nearest documents are kept (Gururangan et al. try 50 to 500)."""
    chosen: Literal["nearest", "random"] = "nearest"
    """`random` keeps as many documents, but any: the control that tells nearness from mere amount."""


class CanariesConfig(Config):
    repeats: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 10, 100], min_length=1)
    """How often a canary stands in the corpus; `each` canaries for every number."""
    each: int = Field(default=8, ge=2)
    """Canaries for each number of repeats, and as many that are never put in."""
    controls: int = Field(default=1000, ge=10)
    """Canaries never put in, among which the others are ranked: exposure is at most log2(`controls` + 1) bits."""
    pattern: str = "La clave de la ficha {owner} es {secret}"
    """The sentence; owner and secret are drawn at random. Nothing of anybody is in it."""

    @field_validator("pattern")
    @classmethod
    def _an_owner_and_a_secret_at_the_end(cls, pattern: str) -> str:
        if pattern.count("{owner}") != 1 or not pattern.endswith(" {secret}") or pattern.count("{secret}") != 1:
            raise ValueError("needs {owner} once, and {secret} once, at its end and after a space")
        return pattern


class CorpusConfig(Config):
    path: str = ""
    """A text file (.txt, also .gz and .zst), a folder or a .zip archive of text files, or a table (jsonl, csv,
    parquet), relative to the recipe's folder."""
    curated: str | None = None
    """Instead of a path: the name of a curated corpus of this recipe. A document is then a row, as of a table."""
    documents: Literal["file", "paragraph", "line", "sentence"] = "paragraph"
    """What one document is in a text file: a `paragraph` (between blank lines), a `line`, the whole `file`, or a
    `sentence` of a paragraph. In a table it is a row, or with `sentence` a sentence of a row. Sentences of one
    paragraph or row are held out together."""
    language: str | None = Field(default="es", pattern=r"^[a-z]{2,3}$")
    """The text's language (ISO 639, as in `es`): how sentences are cut, and what is warned of if the text is in
    another. `any` or null: it may be in any, and is not checked."""
    text: str = "text"
    """For a table: the column with the text, or a Jinja template over the columns."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """For a table: conditions on columns; rows that fail one are dropped and counted."""
    max_documents: int | None = Field(default=None, ge=1)
    """Use the first so many documents."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Use the first documents up to so many bytes of text."""
    held_out: float = Field(default=0.05, gt=0, le=1)
    """Share of the documents that is never trained on and serves to measure bits per byte; 1 for a corpus that is only
    measured with."""
    held_out_bytes: int = Field(default=50_000, ge=1)
    """Most bytes of held-out text to measure with; more would only cost time."""
    drop_leaks: bool = False
    """Leave out documents in which a test item of one of the recipe's tasks stands, and count them, instead of
    stopping."""
    neighbours: NeighboursConfig | None = None
    """Train only on documents near the task's training texts (kNN-TAPT); what is held out stays as it is."""
    canaries: CanariesConfig | None = None
    """Put made-up secrets among the training documents, for a `privacy` stage to look for."""

    @model_validator(mode="after")
    def _one_origin(self) -> CorpusConfig:
        if bool(self.path) == (self.curated is not None):
            raise ValueError("a corpus is read from a `path`, or is `curated: NAME`: give one of the two")
        return self

    @model_validator(mode="after")
    def _sentences_are_of_a_language(self) -> CorpusConfig:
        if self.documents == "sentence" and self.language in (None, "any"):
            raise ValueError("`documents: sentence` needs the text's `language`: the rules for sentences depend on it")
        return self


class CorpusStageConfig(Config):
    corpus: CorpusConfig
    allow_leak: bool = False


def _run(context: StageContext[CorpusStageConfig]) -> StageReport:
    config, base = _located(context)
    counts: dict[str, int] = {}
    source_of = _documents(config, base, counts)
    documents = list(source_of)
    if config.max_documents is not None:
        counts["documents beyond max_documents"] = max(0, len(documents) - config.max_documents)
        documents = documents[: config.max_documents]
    if config.max_bytes is not None:
        documents, counts["documents beyond max_bytes"] = _first_bytes(documents, config.max_bytes)
    if config.drop_leaks:
        clean = _without_leaks(documents, source_of, tasks_among(context.inputs))
        counts["documents that hold test items"] = len(documents) - len(clean)
        documents = clean
    else:
        # Whole sources too: cut into sentences, a test item of several would go unseen.
        texts = list(dict.fromkeys([*documents, *(source_of[d] for d in documents)]))
        refuse_leaks(texts, tasks_among(context.inputs), config.path, allow=context.config.allow_leak)
    language = _check_language(documents, config, context.note, counts)
    held_out = [d for d in documents if _draw(source_of[d]) < config.held_out]
    train = [d for d in documents if _draw(source_of[d]) >= config.held_out]
    if not held_out or (not train and config.held_out < 1):
        raise DataError(
            f"{config.path} has {len(documents)} documents: too few to train on and hold out {config.held_out:.0%}",
            hint="give more text, or smaller documents (`documents: paragraph`)",
        )
    if config.neighbours is not None:
        texts = [item.content for item in load_task(context.inputs["task"] / "task").train]
        train, counts["documents not near the task"] = _near(train, texts, config.neighbours, config.path)
    measured, _ = _first_bytes(held_out, config.held_out_bytes)
    write_jsonl(context.folder / "train.jsonl", [{"text": d} for d in train])
    write_jsonl(context.folder / "held_out.jsonl", [{"text": d} for d in measured])
    size = sum(len(d.encode()) for d in train)
    context.note(f"{len(train)} documents ({size / 1e6:.2f} MB) to train on, {len(measured)} to measure with")
    facts: dict[str, Any] = {
        "source": {"path": config.path, "sha256": content_of_corpus(config, base)},
        "train_documents": len(train),
        "train_bytes": size,
        "held_out_documents": len(measured),
        "language": language,
    }
    if config.canaries is not None:
        facts["canaries"] = _insert_canaries(context, config.canaries, size)
    return StageReport(counts={k: v for k, v in counts.items() if v}, facts=facts)


def _near(documents: list[str], queries: list[str], config: NeighboursConfig, path: str) -> tuple[list[str], int]:
    """The documents that are kept, in their order, and how many are not.

    Raises:
        DataError: none shares a word with the task.
    """
    near = nearest_documents(queries, documents, config.k)
    if not near:
        raise DataError(f"no document of {path} shares a word with the task", hint="take text of the task's domain")
    if config.chosen == "random":
        near = sorted(numpy_stream(0, "neighbours", path).permutation(len(documents))[: len(near)].tolist())
    return [documents[index] for index in near], len(documents) - len(near)


def _insert_canaries(context: StageContext[CorpusStageConfig], config: CanariesConfig, size: int) -> dict[str, Any]:
    """Leave the canaries beside the documents; those who train on the corpus add them."""
    rng = numpy_stream(0, "canaries", context.config.corpus.path)
    canaries = make_canaries(config.pattern, config.repeats, config.each, config.controls, rng)
    canaries.save(context.folder / CANARIES)
    inserted = canaries.documents()
    added = sum(len(text.encode()) for text in inserted)
    context.note(f"{len(inserted)} documents of canaries added ({added / (added + size):.1%} of the training text)")
    return {"inserted": len(inserted), "bytes": added}


def _located(context: StageContext[CorpusStageConfig]) -> tuple[CorpusConfig, Path]:
    """The corpus's config with a path, and the folder that the path starts from."""
    config = context.config.corpus
    if config.curated is None:
        return config, context.base_folder
    return config.model_copy(update={"path": OUTPUT, "text": "text"}), context.inputs["curated"]


def content_of_corpus(config: CorpusConfig, base: Path) -> str:
    """The digest of the file or folder that a corpus is read from.

    Raises:
        DataError: it is missing.
    """
    path = locate(SourceConfig(path=config.path), base=base)
    return sha256_of_tree(path) if path.is_dir() else sha256_of_file(path)


def _documents(config: CorpusConfig, base: Path, counts: dict[str, int]) -> dict[str, str]:
    """Every distinct document, with the text it was first seen in: itself, or what it is a sentence of."""
    texts = _read(config, base, counts)
    if config.documents == "sentence":
        found = [(sentence, text) for text in texts for sentence in sentences(text, str(config.language))]
    else:
        found = [(text, text) for text in texts]
    source_of: dict[str, str] = {}
    for document, text in found:
        source_of.setdefault(document, text)
    counts["duplicate documents"] = len(found) - len(source_of)
    return source_of


def _read(config: CorpusConfig, base: Path, counts: dict[str, int]) -> list[str]:
    """The file's texts: rows of a table, or what one document is in a text file (paragraphs where that is less)."""
    source = SourceConfig(path=config.path)
    path = locate(source, base=base)
    if holds_text(path):
        text = read_text(path, "paragraph" if config.documents == "sentence" else config.documents)
        counts |= {"undecodable lines": text.undecodable, "blank lines": text.blank}
        return text.documents
    table = read_table(source, base=base)
    rows, filtered = filter_rows(table.rows, config.where)
    column = TextColumn(config.text, table.columns)
    texts = [column.of(row).strip() for _, row in rows]
    kept = [text for text in texts if text]
    counts |= {
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


def _check_language(
    documents: Sequence[str], config: CorpusConfig, note: Callable[[str], None], counts: dict[str, int]
) -> dict[str, Any]:
    """Warn of text in another language than the declared one; what was found, for the manifest."""
    if config.language in (None, "any"):
        return {"declared": None}
    try:
        found = check_language(documents, str(config.language))
    except NotChecked as reason:
        note(f"warning: the language of {config.path} was not checked: {reason}")
        return {"declared": config.language, "not_checked": str(reason)}
    counts[f"documents of under {MIN_CHARACTERS} characters, their language not checked"] = found.too_short
    if found.other > WARN_SHARE:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in list(found.languages.items())[:5])
        note(
            f"warning: {found.other:.1%} of {config.path} is not in '{config.language}' ({shares}; by bytes, of "
            f"{found.judged} documents judged): filter it, or set the corpus's `language`, or `language: any`"
        )
    return {
        "declared": config.language,
        "documents_judged": found.judged,
        "other_share": round(found.other, 4),
        "unsure_share": round(found.unsure, 4),
        "other_languages": {name: round(share, 4) for name, share in found.languages.items()},
    }


def _draw(document: str) -> float:
    """A number in [0, 1) that depends on the text alone: adding documents never moves one from train to held-out, but
    for a sentence that an earlier text now has too."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:6], "big") / 2**48


def tasks_among(inputs: Mapping[str, Path]) -> list[Task]:
    """The recipe's task and its further ones, of a stage's inputs."""
    return [load_task(folder / "task") for role, folder in inputs.items() if role == "task" or role.startswith("task:")]


def refuse_leaks(documents: list[str], tasks: Iterable[Task], path: str, *, allow: bool) -> None:
    """Stop if test items of a task stand in a corpus: as a document or line of it, or by n-gram overlap.

    Raises:
        GateError: some do, and neither `allow` nor the task allows it.
    """
    for task in tasks:
        leaks, _ = _leaks_of(documents, task)
        if leaks.items and not allow and not task.config.allow_leak:
            raise GateError(
                f"{len(leaks.items)} of {len(task.test)} test items of {task.name} stand in the corpus {path}",
                hint="take them out (a corpus: `drop_leaks: true`), or set task.allow_leak: true, and every report "
                "will say so",
            )


def _leaks_of(documents: Iterable[str], task: Task) -> tuple[Leaks, set[str]]:
    """What documents share with the task's test items, and those of the documents and of their lines that do."""
    lines = {part for document in documents for part in _parts(document)}
    corpus = [Item(str(i), text, "", f"corpus {i}") for i, text in enumerate(sorted(lines)) if text]
    leaks = find_leaks(corpus, task.test)
    return leaks, {item.text for item in corpus if item.id in leaks.earlier}


def _parts(document: str) -> set[str]:
    """A document and its lines: a test item may be either."""
    return {part.strip() for part in (document, *document.splitlines())}


def _without_leaks(documents: Sequence[str], source_of: Mapping[str, str], tasks: Iterable[Task]) -> list[str]:
    """The documents in which no test item stands, nor in what they are cut from."""
    texts = {*documents, *(source_of[d] for d in documents)}
    guilty = set[str]().union(*(_leaks_of(texts, task)[1] for task in tasks))
    return [d for d in documents if guilty.isdisjoint(_parts(d) | _parts(source_of[d]))]


def corpus_documents(folder: Path, part: str) -> list[str]:
    """The documents of a finished corpus stage; `part` is "train" or "held_out"."""
    return [row["text"] for row in read_jsonl(folder / f"{part}.jsonl")]


def canaries_of(folder: Path) -> Canaries | None:
    """The canaries of a finished corpus stage; None if it has none."""
    return Canaries.load(folder / CANARIES) if (folder / CANARIES).exists() else None


CORPUS = StageKind("corpus", 2, CorpusStageConfig, _run)
