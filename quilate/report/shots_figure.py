"""The k-shot curve as a figure."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.ticker import FuncFormatter

from quilate.evaluation.schema import ArmEvidence
from quilate.report.figures import INK, MUTED, SERIES, STYLE, Width, axes_of, svg_of
from quilate.report.language import Language


def shots_curves(arms: list[ArmEvidence], t: Language, metric: str, width: Width) -> str | None:
    """Score on dev against the number of shots, a colour an arm; None if no arm tried several numbers."""
    curves = [arm for arm in arms if len(arm.shots_curve) > 1]
    if not curves:
        return None
    numbers = sorted({p.shots for arm in curves for p in arm.shots_curve if p.shots != "fit"})
    fits = ["fit"] if any(p.shots == "fit" for arm in curves for p in arm.shots_curve) else []
    place = {shots: index for index, shots in enumerate([*numbers, *fits])}
    with mpl.rc_context(STYLE):
        figure, axes = axes_of(width, (10.6, 3.8), (4.0, 3.8))
        for index, arm in enumerate(curves):
            colour = SERIES[index % len(SERIES)]
            shift = 0.12 * (index - (len(curves) - 1) / 2) / max(1, len(curves) - 1)  # side by side, none hidden
            xs = [place[p.shots] + shift for p in arm.shots_curve]
            axes.plot(xs, [p.score for p in arm.shots_curve], color=colour, marker="o", ms=5, lw=1.4, label=arm.name)
            for x, point in zip(xs, arm.shots_curve, strict=True):
                axes.plot([x, x], [point.lowest, point.highest], color=colour, lw=7, alpha=0.25, solid_capstyle="butt")
                axes.plot([x, x], list(point.ci95), color=colour, lw=1.4, solid_capstyle="round")
        axes.set_xticks(list(place.values()), [t("shots.fit") if n == "fit" else str(n) for n in place])
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda share, _: t.percent(share).replace(".0", "").replace(",0", ""))
        )
        axes.set_xlabel(t("axis.shots"))
        axes.set_title(t(f"short.{metric}"), loc="left", fontsize=10, color=MUTED)
        for text in axes.legend(frameon=False, labelcolor=INK).get_texts():
            text.set_parse_math(False)
        return svg_of(figure, f"shots-{width}", t("shots"))
