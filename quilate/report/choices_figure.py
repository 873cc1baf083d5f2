"""What was tried on the development items, as figures: numbers of solved examples, ranks, learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import FuncFormatter

from quilate.evaluation.schema import ArmEvidence, SearchedValue, ShotsEvidence
from quilate.report.figures import INK, MUTED, SERIES, STYLE, Width, axes_of, svg_of
from quilate.report.language import Language

Curve = Sequence[tuple[Any, ShotsEvidence | SearchedValue]]


def shots_curves(arms: list[ArmEvidence], t: Language, metric: str, width: Width) -> str | None:
    """Score on dev against the number of shots, a colour an arm; None if no arm tried several numbers."""
    curves = {arm.name: [(p.shots, p) for p in arm.shots_curve] for arm in arms if len(arm.shots_curve) > 1}
    if not curves:
        return None
    tried = {place for curve in curves.values() for place, _ in curve}
    ticks = {n: str(n) for n in sorted(n for n in tried if n != "fit")} | {
        n: t("shots.fit") for n in tried if n == "fit"
    }
    return _curves(curves, ticks, t, metric, width, name="shots", axis=t("axis.shots"), title=t("shots"))


def searched_keys(arms: list[ArmEvidence]) -> list[str]:
    """The settings of which some arm tried several numbers."""
    return list(
        dict.fromkeys(
            search.key
            for arm in arms
            for search in arm.search
            if len(search.points) > 1 and not any(isinstance(p.value, bool | str) for p in search.points)
        )
    )


def search_curves(arms: list[ArmEvidence], key: str, t: Language, metric: str, width: Width) -> str:
    """Score on dev against a setting, a colour an arm; one of `searched_keys`."""
    curves = {
        arm.name: [(p.value, p) for p in search.points] for arm in arms for search in arm.search if search.key == key
    }
    values = sorted({value for curve in curves.values() for value, _ in curve})
    ticks = {value: f"{value:g}" for value in values}
    name = f"search-{key.replace('.', '-').replace('_', '-')}"
    return _curves(curves, ticks, t, metric, width, name=name, axis=t.known("axis.search", key), title=t("search"))


def _curves(
    curves: Mapping[str, Curve],
    ticks: Mapping[Any, str],
    t: Language,
    metric: str,
    width: Width,
    *,
    name: str,
    axis: str,
    title: str,
) -> str:
    """Points with their intervals and, pale, their spread; what was tried stands side by side, evenly apart."""
    place = {value: index for index, value in enumerate(ticks)}
    with mpl.rc_context(STYLE):
        figure, axes = axes_of(width, (10.6, 3.8), (4.0, 3.8))
        for index, (arm, curve) in enumerate(curves.items()):
            colour = SERIES[index % len(SERIES)]
            shift = 0.12 * (index - (len(curves) - 1) / 2) / max(1, len(curves) - 1)  # side by side, none hidden
            xs = [place[value] + shift for value, _ in curve]
            axes.plot(xs, [p.score for _, p in curve], color=colour, marker="o", ms=5, lw=1.4, label=arm)
            for x, (_, point) in zip(xs, curve, strict=True):
                axes.plot([x, x], [point.lowest, point.highest], color=colour, lw=7, alpha=0.25, solid_capstyle="butt")
                axes.plot([x, x], list(point.ci95), color=colour, lw=1.4, solid_capstyle="round")
        axes.set_xticks(list(place.values()), list(ticks.values()))
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda share, _: t.percent(share).replace(".0", "").replace(",0", ""))
        )
        axes.set_xlabel(axis)
        axes.set_title(t(f"short.{metric}"), loc="left", fontsize=10, color=MUTED)
        for text in axes.legend(frameon=False, labelcolor=INK).get_texts():
            text.set_parse_math(False)
        return svg_of(figure, f"{name}-{width}", title)
