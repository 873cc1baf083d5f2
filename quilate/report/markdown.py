"""The evidence as a Markdown page with a figure beside it, for a repository or a wiki."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from quilate.evaluation.evidence import parse
from quilate.files import write_text
from quilate.report import figures
from quilate.report.language import Language
from quilate.report.table import badge_of


def write_markdown(
    evidence: dict[str, Any], models: Sequence[Mapping[str, Any]], page: Path, lang: str = "en"
) -> list[Path]:
    """Write `page` and, beside it, its figure as `STEM-cost.svg`.

    Args:
        evidence: the content of `evidence.json`.
        models: those that the run made from text: `stage`, `parameters`, `train_tokens`, `seconds`, `measure`, and
            `before` and `after` by corpus.
        page: where to; its folder must exist.
        lang: "en" or "es".

    Returns:
        The files written.

    Raises:
        DataError: `evidence` is not evidence of this version.
        UsageError: there is no such language.
    """
    found, t = parse(evidence), Language(lang)
    environment = Environment(  # noqa: S701 - Markdown, not HTML; cells are escaped by `cell`
        loader=PackageLoader("quilate.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    drawn = figures.cost_and_score(found.arms, found.recommendation.arm, t, found.metric, "wide")
    figure = page.with_name(f"{page.stem}-cost.svg")
    write_text(figure, figures.standalone(drawn))
    text = environment.get_template("evidence.md.jinja").render(
        e=found,
        t=t,
        figure=figure.name,
        badges={arm.name: badge_of(arm, found) for arm in found.arms},
        confidence=f"{100 * found.rules.confidence:g}",
        models=models,
        corpora=list(dict.fromkeys(corpus for model in models for corpus in model["after"])),
    )
    write_text(page, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    return [page, figure]


def write_unfinished(task: str, cells: Sequence[Mapping[str, Any]], page: Path, lang: str = "en") -> list[Path]:
    """Write `page` for a study that is not finished: its cells so far, and which were not run. No verdict.

    Args:
        cells: `arm`, `seed`, `score` (None if not run), `items` and `seconds` of each.
    """
    t = Language(lang)
    done = [c for c in cells if c["score"] is not None]
    lines = [
        f"# {cell(t('title', task=task))}",
        "",
        t("cells.note", done=len(done), all=len(cells), items=max((c["items"] for c in done), default=0)),
        "",
        f"| {t('arm')} | {t('seed')} | {t('score')} | {t('time')} |",
        "| --- | ---: | ---: | ---: |",
    ]
    for c in cells:
        score = t("cells.not_run") if c["score"] is None else t.percent(c["score"])
        seconds = "" if c["seconds"] is None else t.duration(c["seconds"])
        lines.append(f"| {cell(c['arm'])} | {c['seed']} | {score} | {seconds} |")
    write_text(page, "\n".join(lines) + "\n")
    return [page]


def cell(text: str) -> str:
    """Text for a table's cell: a user's own words stay words."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))
