"""One self-contained HTML file: no script, no request, readable from file://, on paper and in the dark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from quilate.evaluation.evidence import parse
from quilate.evaluation.schema import ArmEvidence, Evidence, LanguageModelling, TaskEffect, TaskScore
from quilate.report import figures
from quilate.report.alignment import frontiers
from quilate.report.choices_figure import search_curves, searched_keys, shots_curves
from quilate.report.language import Language
from quilate.report.overlap_figure import overlap_figure
from quilate.report.privacy import exposure_figure
from quilate.report.table import badge_of


def render_html(evidence: dict[str, Any], lang: str = "en") -> str:
    """The report of an evidence.

    Args:
        evidence: the content of `evidence.json`.
        lang: "en" or "es".

    Raises:
        DataError: `evidence` is not evidence of this version.
        UsageError: there is no such language.
    """
    found, t = parse(evidence), Language(lang)
    environment = Environment(
        loader=PackageLoader("quilate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(environment.get_template("style.css").render())  # noqa: S704 - our own file
    shown = _shown_arm(found)
    return environment.get_template("evidence.html.jinja").render(
        e=found,
        t=t,
        lang=lang,
        style=style,
        shown=shown,
        badges={arm.name: badge_of(arm, found) for arm in found.arms},
        figure=_figures(found, shown, t),
        searched=_searched(found, t),
        matrix=task_matrix(found),
        confidence=f"{100 * found.rules.confidence:g}",
        bits=by_model_and_corpus(found.language_modelling),
        budget=_budget(found, t),
        a=found.alignment,
        frontier=frontiers(found.alignment, t),
        sources={link.id: link.stage for link in found.lineage},
    )


def _shown_arm(evidence: Evidence) -> ArmEvidence:
    """The arm whose details are shown: the recommended one, else the one with the highest score."""
    named = [arm for arm in evidence.arms if arm.name == evidence.recommendation.arm]
    return named[0] if named else max(evidence.arms, key=lambda arm: arm.score)


def _figures(evidence: Evidence, shown: ArmEvidence, t: Language) -> dict[str, Markup | None]:
    """The figures by name; those that carry wide text come in two widths, of which CSS shows one."""
    arms, chosen, metric = evidence.arms, evidence.recommendation.arm, evidence.metric
    drawn = {
        "cost_wide": figures.cost_and_score(arms, chosen, t, metric, "wide"),
        "cost_narrow": figures.cost_and_score(arms, chosen, t, metric, "narrow"),
        "curves_wide": figures.learning_curves(arms, t, "wide"),
        "curves_narrow": figures.learning_curves(arms, t, "narrow"),
        "shots_wide": shots_curves(arms, t, metric, "wide"),
        "shots_narrow": shots_curves(arms, t, metric, "narrow"),
        "confusion": None if shown.confusion is None else figures.confusion(shown.confusion, evidence.labels, t),
        "reliability": None if shown.calibration is None else figures.reliability(shown.calibration, t),
        "overlap": None if evidence.domains is None else overlap_figure(evidence.domains, t),
        "exposure_wide": exposure_figure(evidence.privacy, t, "wide"),
        "exposure_narrow": exposure_figure(evidence.privacy, t, "narrow"),
    }
    return {name: None if svg is None else Markup(svg) for name, svg in drawn.items()}  # noqa: S704 - escaped by matplotlib


def _searched(evidence: Evidence, t: Language) -> list[dict[str, Any]]:
    """The settings that were searched: of each its name, its figure in two widths, and what sufficed by arm."""
    shown = []
    for key in searched_keys(evidence.arms):
        drawn = {w: Markup(search_curves(evidence.arms, key, t, evidence.metric, w)) for w in ("wide", "narrow")}  # noqa: S704
        enough = {arm.name: s.enough for arm in evidence.arms for s in arm.search if s.key == key}
        shown.append({"key": key, **drawn, "enough": {n: f"{v:g}" for n, v in enough.items() if v is not None}})
    return shown


@dataclass(frozen=True)
class TaskMatrix:
    """`rows[model][task]` is a model's score and, where it was trained from another, what that step gained or lost."""

    tasks: list[str]
    rows: dict[str, dict[str, tuple[TaskScore, TaskEffect | None]]]


def task_matrix(evidence: Evidence) -> TaskMatrix:
    """The scores of several tasks as a table: a row a model, in the order of training, a column a task."""
    steps = {(e.model, e.task): e for e in evidence.task_effects if e.kind == "step"}
    rows: dict[str, dict[str, tuple[TaskScore, TaskEffect | None]]] = {}
    for score in evidence.task_scores:
        rows.setdefault(score.model, {})[score.task] = score, steps.get((score.model, score.task))
    return TaskMatrix(list(dict.fromkeys(score.task for score in evidence.task_scores)), rows)


def _budget(evidence: Evidence, t: Language) -> str | None:
    parts = []
    if evidence.rules.budget_seconds is not None:
        parts.append(t.duration(evidence.rules.budget_seconds))
    if evidence.rules.budget_tokens is not None:
        parts.append(t("method.budget.tokens", tokens=evidence.rules.budget_tokens))
    return t.names(parts) if parts else None


@dataclass(frozen=True)
class BitsTable:
    """Bits per byte, `rows[model][corpus]`; `corpora` in the order in which they first occur."""

    corpora: list[str]
    rows: dict[str, dict[str, float]]


def by_model_and_corpus(measured: list[LanguageModelling]) -> BitsTable:
    """The measurements as a table: a row a model, a column a corpus."""
    rows: dict[str, dict[str, float]] = {}
    for row in measured:
        rows.setdefault(row.model, {})[row.corpus] = row.bits_per_byte
    return BitsTable(list(dict.fromkeys(row.corpus for row in measured)), rows)
