"""What examinations found, for the report: tables of exposure and attacks, and a figure of exposure against repeats."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.ticker import FixedLocator, NullLocator

from quilate.evaluation.schema import PrivacyEvidence
from quilate.report.figures import INK, MUTED, SERIES, STYLE, Width, axes_of, svg_of
from quilate.report.language import Language

_NEVER = 0.3  # where 0 repeats stand on a logarithmic axis; guess


def exposure_figure(examined: list[PrivacyEvidence], t: Language, width: Width) -> str | None:
    """Mean exposure with its interval against repeats, a line an examined model; the reference's, faint.

    None where no corpus had canaries.
    """
    shown = [one for one in examined if one.exposure]
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = axes_of(width, (7.2, 3.4), (4.0, 3.6))
        repeats = sorted({row.repeats for one in shown for row in one.exposure})
        for index, one in enumerate(shown):
            colour = SERIES[index % len(SERIES)]
            x = [max(row.repeats, _NEVER) for row in one.exposure]
            axes.plot(x, [row.bits_reference.value for row in one.exposure], color=MUTED, lw=1, ls=(0, (4, 3)))
            axes.plot(
                x, [row.bits.value for row in one.exposure], color=colour, lw=1.4, marker="o", ms=6, label=one.model
            )
            for place, row in zip(x, one.exposure, strict=True):
                axes.plot([place, place], [row.bits.low, row.bits.high], color=colour, lw=1.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([max(r, _NEVER) for r in repeats]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([t.count(r) for r in repeats])
        axes.set_ylim(bottom=min(0.0, *(row.bits.low for one in shown for row in one.exposure)))
        axes.set_xlabel(t("axis.repeats"))
        axes.set_title(t("axis.exposure"), loc="left", fontsize=10, color=MUTED)
        if len(shown) > 1:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        return svg_of(figure, f"exposure-{width}", t("figure.exposure"))
