"""Which domains use the same words: the table of Gururangan et al. (2020, figure 2) for a recipe's own texts."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from quilate.evaluation.schema import DomainsEvidence
from quilate.report.figures import ACCENT, INK, PAPER, STYLE, svg_of
from quilate.report.language import Language

_DARK = 0.55  # a share from which the number is written in the paper's colour


def overlap_figure(domains: DomainsEvidence, t: Language) -> str:
    """Shares of common words, in per cent, every domain against every other."""
    size, longest = len(domains.names), min(max(map(len, domains.names)), 30)
    cell = 0.52
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(size * cell + longest * 0.085 + 0.4, size * cell * 0.8 + 0.6), layout="constrained")
        axes = figure.add_subplot()
        for row, shares in enumerate(domains.overlap):
            for column, share in enumerate(shares):
                place = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(place, 1, 1, fc=ACCENT, alpha=0.08 + 0.92 * share, lw=0))
                ink = PAPER if share > _DARK else INK
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9, color=ink)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        names = [name if len(name) <= longest else name[: longest - 1] + "…" for name in domains.names]
        axes.set_yticks(range(size), [f"{n}  {k}" for k, n in enumerate(names, 1)], fontsize=9, parse_math=False)
        axes.set_xticks(range(size), [str(k) for k in range(1, size + 1)], fontsize=9)
        axes.tick_params(length=0, labelcolor=INK)
        axes.xaxis.tick_top()
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg_of(figure, "overlap", t("domains"))
