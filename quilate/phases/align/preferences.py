"""Human judgements, read once: prompts to train on and prompts held out to measure with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from quilate.config import Config
from quilate.data.conversations import Conversation, bare_text
from quilate.data.preferences import JudgedPrompt, Limits, read_preferences
from quilate.data.sampling import draw
from quilate.data.tables import SourceConfig, locate, read_table
from quilate.errors import DataError
from quilate.files import read_jsonl, sha256_of_file, write_jsonl
from quilate.phases.conversations import split_by_group
from quilate.phases.corpus import refuse_leaks, tasks_among
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.columns import Condition, filter_rows


class PreferencesConfig(Config):
    path: str
    """A table of judgements (jsonl, json or parquet), relative to the recipe's folder. Its columns tell the format:
    `prompt` + `chosen` + `rejected`; `prompt` + `completions` + `ranks` (the lowest is the best); `prompt` + `output` +
    `correction`; `prompt` + `completion` + `label` (true or false) or + `reward`; HH-RLHF's `chosen` + `rejected`
    transcripts; OASST1's trees or messages; SHP; items of BIG-bench, `input` + `target_scores` or `targets` (set
    `held_out: 1` to measure with them); or `prompt` alone, to ask in `ppo` and `grpo` stages. A column `group`
    holds together what a split must not divide."""
    where: dict[str, Condition] = Field(default_factory=dict)
    """Conditions on columns; rows that fail one are dropped and counted."""
    language: str | None = Field(default=None, pattern=r"^[a-z]{2,3}$")
    """Of OASST1: take only prompts in this language (ISO 639)."""
    min_ratio: float = Field(default=2.0, ge=1)
    """Of SHP: least ratio of the two comments' scores (its authors advise 2)."""
    max_pairs: int = Field(default=5, ge=1)
    """Of SHP: most pairs a post, the clearest ones (its authors advise 5)."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Use at most so many prompts, drawn by what they say, whatever their order in the file."""
    held_out: float = Field(default=0.1, ge=0, le=1)
    """Share of the prompts that is never trained on and serves to measure with; 1 to measure only, 0 to train on all.
    Whole conversations and posts are held out, and prompts that open nearly alike go together."""
    max_held_out: int = Field(default=500, ge=1)
    """Most held-out prompts to measure with; more would only cost time."""
    derived: bool = False
    """The judgements follow from a rule and nobody made them; reports say so. A column `derived` may tell it by row."""


class PreferencesStageConfig(Config):
    preferences: PreferencesConfig
    allow_leak: bool = False


def _run(context: StageContext[PreferencesStageConfig]) -> StageReport:
    config = context.config.preferences
    table = read_table(SourceConfig(path=config.path), base=context.base_folder)
    rows, filtered = filter_rows(table.rows, config.where)
    limits = Limits(config.min_ratio, config.max_pairs, config.language)
    found = read_preferences([row for _, row in rows], table.columns, limits)
    prompts = [replace(prompt, derived=prompt.derived or config.derived) for prompt in found.prompts]
    counts = found.counts | {
        "filtered rows": sum(filtered.values()),
        "broken records": sum(table.notes["quarantined"].values()),
    }
    if config.max_prompts is not None:
        counts["prompts beyond max_prompts"] = max(0, len(prompts) - config.max_prompts)
        prompts = draw(prompts, config.max_prompts, lambda prompt: bare_text(prompt.prompt))
    texts = list(dict.fromkeys(t for p in prompts for t in (*(m["content"] for m in p.prompt), *p.completions)))
    refuse_leaks(texts, tasks_among(context.inputs), config.path, allow=context.config.allow_leak)
    train, held_out = split_prompts(prompts, config.held_out)
    if not train and config.held_out < 1:
        raise DataError(
            f"{config.path}: its {len(prompts)} prompts are all of one group: none is left to train on",
            hint="give more prompts, or another `group`",
        )
    counts["held out and beyond max_held_out"] = max(0, len(held_out) - config.max_held_out)
    held_out = draw(held_out, config.max_held_out, lambda prompt: bare_text(prompt.prompt))
    for part, content in (("train", train), ("held_out", held_out)):
        write_jsonl(context.folder / f"{part}.jsonl", [prompt.as_json() for prompt in content])
    pairs = {part: sum(len(p.pairs) for p in content) for part, content in (("train", train), ("held_out", held_out))}
    context.note(
        f"{found.format}: {len(train)} prompts ({pairs['train']} pairs) to train on, "
        f"{len(held_out)} ({pairs['held_out']} pairs) to measure with"
    )
    facts = {
        "source": {"path": config.path, "sha256": content_of_preferences(config, context.base_folder)},
        "format": found.format,
        "train_prompts": len(train),
        "train_pairs": pairs["train"],
        "held_out_prompts": len(held_out),
        "held_out_pairs": pairs["held_out"],
        "derived_prompts": sum(prompt.derived for prompt in prompts),
    }
    return StageReport(counts={name: count for name, count in counts.items() if count}, facts=facts)


def split_prompts(prompts: list[JudgedPrompt], held_out: float) -> tuple[list[JudgedPrompt], list[JudgedPrompt]]:
    """Hold out whole groups, as `split_by_group` does: (train, held out)."""
    conversations = [Conversation(p.id, list(p.prompt), group=p.group) for p in prompts]
    train, _ = split_by_group(conversations, held_out)
    kept = {conversation.id for conversation in train}
    return [p for p in prompts if p.id in kept], [p for p in prompts if p.id not in kept]


def content_of_preferences(config: PreferencesConfig, base: Path) -> str:
    """The digest of the file that judgements are read from.

    Raises:
        DataError: it is missing.
    """
    return sha256_of_file(locate(SourceConfig(path=config.path), base=base))


def stored_preferences(folder: Path, part: Literal["train", "held_out"]) -> list[JudgedPrompt]:
    """The prompts of a finished stage."""
    return [JudgedPrompt.of_json(row) for row in read_jsonl(folder / f"{part}.jsonl")]


PREFERENCES = StageKind("preferences", 3, PreferencesStageConfig, _run)
