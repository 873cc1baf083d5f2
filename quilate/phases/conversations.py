"""Conversations, read once: those to train on and those held out to measure with."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from quilate.config import Config
from quilate.data.conversations import Conversation, Converted, convert, sniff_layout
from quilate.data.sampling import draw
from quilate.data.tables import SourceConfig, locate, read_table
from quilate.errors import DataError
from quilate.files import read_jsonl, sha256_of_file, write_jsonl
from quilate.phases.corpus import refuse_leaks, tasks_among
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.columns import Condition, TextColumn, columns_of, filter_rows
from quilate.tasks.labels import Item
from quilate.tasks.splits import tie_duplicates


class ConversationsConfig(Config):
    path: str
    """A table of conversations (jsonl, json, parquet; csv with `prompt` and `completion`), relative to the recipe's
    folder."""
    layout: Literal["auto", "messages", "prompt-completion", "sharegpt", "alpaca", "oasst-messages", "oasst-trees"] = (
        "auto"
    )
    """How a row holds a conversation. `auto` goes by the columns: `messages`; `prompt` and `completion` (texts or
    messages; only the completion is learned); `conversations` (ShareGPT); `instruction`, `input`, `output` (Alpaca);
    OASST's own messages or trees, of which the best-ranked path is taken."""
    prompt: str | None = None
    """Of any other table: the column with what is asked, or a Jinja template over the columns."""
    completion: str | None = None
    """And the column, or template, with what is to be answered."""
    system: str | None = None
    """The column, or template, with the system's message; `{{ 'Sé breve.' }}` is the same one for all."""
    language: str | None = Field(default=None, pattern=r"^[a-z]{2,3}$")
    """Keep only rows, or messages of a tree, whose column `lang` is this (ISO 639)."""
    group: str | None = None
    """Column whose equal values are held out together: the patient, the document. Trees are, and conversations that
    open with the same or nearly the same question, in any case."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """Conditions on columns; rows that fail one are dropped and counted."""
    max_conversations: int | None = Field(default=None, ge=1)
    """Use at most so many conversations, drawn by their first question, whatever their order in the file."""
    held_out: float = Field(default=0.05, gt=0, le=1)
    """Share of the conversations that is never trained on and serves to measure with; 1 to measure only."""
    max_held_out: int = Field(default=200, ge=1)
    """Most held-out conversations to measure with; more would only cost time."""

    @model_validator(mode="after")
    def _question_and_answer(self) -> ConversationsConfig:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` go together")
        if self.prompt is not None and self.layout not in ("auto", "prompt-completion"):
            raise ValueError(f"`prompt` and `completion` make conversations; `layout: {self.layout}` finds them")
        if self.system is not None and self.prompt is None:
            raise ValueError("`system` goes with `prompt` and `completion`")
        return self


class ConversationsStageConfig(Config):
    conversations: ConversationsConfig
    allow_leak: bool = False


def load_conversations(config: ConversationsConfig, base: Path) -> Converted:
    """Read a file of conversations; what is dropped is counted.

    Raises:
        DataError: the file is missing or broken, of no known layout, or none of its conversations can be used.
        ConfigError: a template is not usable.
    """
    table = read_table(SourceConfig(path=config.path), base=base)
    numbered, filtered = filter_rows(table.rows, config.where)
    rows: Sequence[Mapping[str, Any]] = [row for _, row in numbered]
    if config.prompt is not None and config.completion is not None:
        rows = _composed(rows, table.columns, config.prompt, config.completion, config.system)
    layout = sniff_layout(columns_of(rows)) if config.layout == "auto" else config.layout
    found = convert(rows, layout, language=config.language, group=config.group)
    found.counts += Counter(
        {"filtered rows": sum(filtered.values()), "broken records": sum(table.notes["quarantined"].values())}
    )
    if config.max_conversations is not None:
        found.counts["beyond max_conversations"] = max(0, len(found.conversations) - config.max_conversations)
        found.conversations = draw(found.conversations, config.max_conversations, attrgetter("question"))
    found.counts = Counter({reason: count for reason, count in found.counts.items() if count})
    if not found.conversations:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.counts.most_common())
        raise DataError(
            f"{config.path}: not one of {len(table.rows)} rows gives a conversation ({reasons or 'no rows'})",
            hint="check `layout`, `language` and `where`; `quilate data preview` shows what is found",
        )
    return found


def _composed(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], prompt: str, completion: str, system: str | None
) -> list[dict[str, Any]]:
    """Rows with the prompt and completion that columns or templates give."""
    parts = {"prompt": prompt, "completion": completion} | ({} if system is None else {"system": system})
    readers = {name: TextColumn(source, columns) for name, source in parts.items()}
    return [{**row, **{name: reader.of(row) for name, reader in readers.items()}} for row in rows]


def split_by_group(
    conversations: Sequence[Conversation], held_out: float
) -> tuple[list[Conversation], list[Conversation]]:
    """Hold out whole groups until `held_out` of the conversations is reached: (train, held out).

    A group is what shares a given group, or an opening question (see `tie_duplicates`). Which are held out is drawn
    from their content, not from their order in the file.
    """
    items = [
        Item(c.id, c.question, "", f"text {c.question}" if c.group is None else f"group {c.group}")
        for c in conversations
    ]
    group_of = {item.id: item.group for item in tie_duplicates(items).items}
    sizes = Counter(group_of.values())
    chosen: set[str] = set()
    wanted, taken = held_out * len(conversations), 0
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if taken >= wanted:
            break
        chosen.add(group)
        taken += sizes[group]
    return (
        [c for c in conversations if group_of[c.id] not in chosen],
        [c for c in conversations if group_of[c.id] in chosen],
    )


def _run(context: StageContext[ConversationsStageConfig]) -> StageReport:
    config = context.config.conversations
    found = load_conversations(config, context.base_folder)
    counts = dict(found.counts)
    texts = list(dict.fromkeys(m["content"] for c in found.conversations for m in c.messages))
    refuse_leaks(texts, tasks_among(context.inputs), config.path, allow=context.config.allow_leak)
    train, held_out = split_by_group(found.conversations, config.held_out)
    if not train and config.held_out < 1:
        raise DataError(
            f"{config.path}: its {len(held_out)} conversations are all alike or of one group: none is left to train on",
            hint="give more conversations, or another `group`",
        )
    measured = draw(held_out, config.max_held_out, attrgetter("question"))
    counts["held out and beyond max_held_out"] = len(held_out) - len(measured)
    write_jsonl(context.folder / "train.jsonl", [c.as_row() for c in train])
    write_jsonl(context.folder / "held_out.jsonl", [c.as_row() for c in measured])
    dropped = ", ".join(f"{count} {reason}" for reason, count in found.counts.items())
    context.note(f"{len(train)} conversations to train on, {len(measured)} to measure with ({found.layout})")
    if dropped:
        context.note(f"{config.path}: {dropped}")
    facts = {
        "source": {"path": config.path, "sha256": content_of_conversations(config, context.base_folder)},
        "layout": found.layout,
        "train_conversations": len(train),
        "held_out_conversations": len(measured),
    }
    return StageReport(counts={k: v for k, v in counts.items() if v}, facts=facts)


def content_of_conversations(config: ConversationsConfig, base: Path) -> str:
    """The digest of the file that conversations are read from.

    Raises:
        DataError: it is missing.
    """
    return sha256_of_file(locate(SourceConfig(path=config.path), base=base))


def stored_conversations(folder: Path, part: Literal["train", "held_out"]) -> list[Conversation]:
    """The conversations of a finished stage."""
    return [Conversation(**row) for row in read_jsonl(folder / f"{part}.jsonl")]


CONVERSATIONS = StageKind("conversations", 2, ConversationsStageConfig, _run)
