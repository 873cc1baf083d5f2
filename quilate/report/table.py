"""The table of arms for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quilate.evaluation.evidence import parse
from quilate.evaluation.schema import ArmEvidence, Evidence
from quilate.report.language import Language


def print_table(evidence: dict[str, Any], console: Console, lang: str = "en") -> None:
    """Print the arms, the recommendation and the warnings.

    Args:
        evidence: the content of `evidence.json`.
        console: where to.
        lang: "en" or "es".
    """
    found, t = parse(evidence), Language(lang)
    confidence = f"{100 * found.rules.confidence:g}"
    table = Table(title=escape(t("title", task=found.task.name)), title_justify="left", box=None, pad_edge=False)
    table.add_column(t("arm"), overflow="fold")
    table.add_column(t("phase"))
    table.add_column(t(f"short.{found.metric}"), justify="right")
    table.add_column(t("interval", confidence=confidence), justify="right")
    table.add_column(t("seeds"), justify="right")
    table.add_column(t("cost"), justify="right")
    table.add_column(t("verdict"))
    for arm in found.arms:
        badge = badge_of(arm, found)
        chosen = badge == "recommended"
        table.add_row(
            escape(arm.name),
            t.known("phase", arm.phase),
            t.percent(arm.score),
            f"{t.percent(arm.ci95[0])} – {t.percent(arm.ci95[1])}",
            t.count(arm.seeds or 1),
            t.duration(arm.cost.seconds),
            t(f"badge.{badge}") if badge else "",
            style="bold green" if chosen else "",
        )
    console.print(table)
    values = {"metric": t(f"metric.{found.metric}"), "items": found.items, "base": found.base.name}
    console.print(escape(t("standing", **values)), style="dim")
    console.print()
    console.print(escape(t.say(found.recommendation.headline_notice)), style="bold")
    console.print(escape(" ".join(t.say(reason) for reason in found.recommendation.reasons)))
    for notice in found.notices:
        console.print(escape(f"! {t.say(notice)}"), style="yellow")


def badge_of(arm: ArmEvidence, evidence: Evidence) -> str:
    """Which of the `badge.*` strings the arm wears; empty if none."""
    if arm.leaked:
        return "leaked"
    if not arm.within_budget:
        return "over_budget"
    if arm.name == evidence.recommendation.arm:
        return "recommended"
    if arm.name in evidence.recommendation.ruled_out:
        return "ruled_out"
    return "contender" if arm.name in evidence.recommendation.contenders else ""
