"""`quilate curate SOURCES`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from quilate.recipe.graph import Node


def curate(
    *sources: Path,
    language: str = "es",
    documents: Literal["file", "paragraph", "line"] = "file",
    text: str = "text",
    licence: str | None = None,
    personal: Literal["redact", "mask", "drop", "keep"] = "redact",
    tagger: Path | None = None,
    against: list[Path] | None = None,
    lang: Literal["en", "es"] = "en",
    with_text: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Make raw sources into a clean corpus, without a recipe; and a data card that says what was done to them.

    Parameters
    ----------
    sources
        Files or folders: text, tables, HTML, WARC, PDF, docx, archives.
    language
        Language to keep (ISO code), or any.
    documents
        What one document is in a text file.
    text
        For tables: the column with the text, or a Jinja template over the columns.
    licence
        The sources' licence, for the data card.
    personal
        What becomes of personal data: redact, mask, drop its document, or keep it.
    tagger
        Folder of a finished arm that learned to find personal data, to stand beside the rules.
    against
        Tables of dev or test items that no document may hold (may be repeated).
    lang
        Language of the data card.
    with_text
        Show the beginnings of dropped documents in the data card.
    out
        The run's folder; runs/SOURCE-curate by default.
    json
        Print the data card as JSON, and no progress.
    """
    import json as json_module

    from quilate import config
    from quilate.cli.display import RunDisplay
    from quilate.cli.single import recipe_name
    from quilate.engine.interrupts import stop_on_signals
    from quilate.errors import UsageError
    from quilate.recipe.run import run_recipe
    from quilate.recipe.schema import Recipe

    if not sources:
        raise UsageError("no source is named", hint="quilate curate FILE_OR_FOLDER ...")
    shared = {"documents": documents, "text": text, "licence": licence}
    names = {path: f"{number}-{recipe_name(path, 'source')}" for number, path in enumerate(sources, start=1)}
    found = {"tagger": {"path": str(tagger.resolve())}} if tagger is not None else {}
    curated: dict[str, Any] = {
        "sources": {names[path]: {"path": str(path.resolve())} | shared for path in sources},
        "language": None if language == "any" else {"accept": [language]},
        "personal_data": None if personal == "keep" else {"action": personal} | found,
        "decontaminate": {"against": [{"path": str(path.resolve()), "text": text} for path in against or []]},
    }
    name = recipe_name(sources[0], "curate")
    recipe = config.validate(Recipe, {"recipe": name, "curated": {"text": curated}}, source="quilate curate")
    folder = out or Path("runs") / name
    display = RunDisplay(quiet=json)
    try:
        with stop_on_signals() as stop:
            graph = run_recipe(recipe, base_folder=Path.cwd(), out=folder, listener=display, stop=stop)
    finally:
        display.close()
    card = _write_card(graph.nodes["curated-text"], folder, lang, with_text=with_text)
    if json:
        print(json_module.dumps(card, ensure_ascii=False, indent=2))
    else:
        _show(card, graph.nodes["curated-text"].folder(folder), folder)


def _write_card(node: Node, run: Path, lang: str, *, with_text: bool) -> dict[str, Any]:
    """The card of a finished curation, written again in the language and with the texts asked for."""
    from quilate.curation.card import render_card
    from quilate.files import read_json, write_text

    stage = node.folder(run)
    card: dict[str, Any] = read_json(stage / "data-card.json")
    examples = read_json(stage / "examples.json") if with_text else None
    write_text(run / f"{node.name}-card.html", render_card(card, examples, lang))
    return card


def _show(card: dict[str, Any], stage: Path, run: Path) -> None:
    from rich.table import Table

    from quilate.cli.display import result_console

    table = Table("step", "documents in", "out", "MB in", "out", "most dropped by", box=None, header_style="bold")
    for step in card["steps"]:
        if not step["on"] or not step["documents_in"]:
            continue
        most = ", ".join(f"{rule} {lost['documents']:,}" for rule, lost in list(step["dropped"].items())[:2])
        counts = [f"{step['documents_in']:,}", f"{step['documents_out']:,}"]
        sizes = [f"{step['bytes_in'] / 1e6:.2f}", f"{step['bytes_out'] / 1e6:.2f}"]
        table.add_row(step["name"], *counts, *sizes, most)
    console = result_console()
    console.print(table)
    aside = ", ".join(f"{reason} {n:,}" for reason, n in card["set_aside"].items())
    console.print(f"set aside: {aside or 'nothing'}", markup=False)
    found = ", ".join(f"{type_} {n:,}" for type_, n in card["personal_data"].items())
    console.print(f"personal data: {found or 'none found'}", markup=False)
    console.print(f"{stage / card['output']['file']}\n{run / 'curated-text-card.html'}", markup=False)
