"""Figures as inline SVG whose colours are CSS variables, so that one figure serves light, dark and print.

matplotlib draws with marker colours that no one would choose (`INK`, ...); in the finished SVG each becomes
`var(--...)`. Text stays text: it can be read aloud, searched and copied, in the page's own font.
"""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from quilate.evaluation.schema import ArmEvidence, CalibrationEvidence
from quilate.report.language import Language

Width = Literal["wide", "narrow"]

INK, MUTED, _LINE, ACCENT, PAPER = "#010203", "#020304", "#030405", "#040506", "#050607"
SERIES = ("#060708", "#07080a", "#08090b", "#090a0c", "#0a0b0d", "#0b0c0e")
_VARIABLES = {INK: "--ink", MUTED: "--muted", _LINE: "--line", ACCENT: "--accent", PAPER: "--paper"}
_VARIABLES |= {marker: f"--series-{index}" for index, marker in enumerate(SERIES)}
_SECONDS = (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36_000, 86_400, 864_000)  # readable ticks of a time axis
_CHEAPEST = 0.001  # seconds; a logarithmic axis has no zero
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quilate",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def svg_of(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element without prolog, metadata, namespaces or fixed size."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = (
        re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", text[: text.index(">")])
        + text[text.index(">") :]
    )
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)  # several figures share one page
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, f"var({variable})")
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def standalone(svg: str) -> str:
    """A figure as a file of its own: with the page's light colours, on white."""
    sheet = Path(__file__).with_name("templates").joinpath("style.css").read_text(encoding="utf-8")
    light = sheet[: sheet.index("@media")]
    colours = dict(re.findall(r"(--[\w-]+):\s*(#\w+)", light))
    svg = re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], svg)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg.replace("<svg", f'<svg {names} style="background: {colours["--card"]}; font-family: sans-serif"', 1)


def axes_of(width: Width, wide: tuple[float, float], narrow: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=wide if width == "wide" else narrow, layout="constrained")
    return figure, figure.add_subplot()


def cost_and_score(arms: list[ArmEvidence], highlighted: str | None, t: Language, metric: str, width: Width) -> str:
    """Arms against cost: points with intervals, the Pareto front as a line, the recommended arm in colour.

    Wide figures name the points; narrow ones, where names would not fit, number them in the order of `arms`.
    """
    with mpl.rc_context(STYLE):
        figure, axes = axes_of(width, (10.6, 4.2), (4.0, 4.4))
        seconds = {arm.name: max(arm.cost.seconds, _CHEAPEST) for arm in arms}
        front = sorted((arm for arm in arms if arm.on_pareto_front), key=lambda arm: arm.cost.seconds)
        axes.plot(
            [seconds[a.name] for a in front], [a.score for a in front], color=MUTED, lw=1, ls=(0, (4, 3)), zorder=2
        )
        for arm in arms:
            colour = ACCENT if arm.name == highlighted else INK
            x, (low, high) = seconds[arm.name], arm.ci95
            axes.plot([x, x], [low, high], color=colour, lw=1.6, zorder=3, solid_capstyle="round")
            face = colour if arm.on_pareto_front else PAPER
            axes.plot([x], [arm.score], ls="", marker="o", ms=7, mfc=face, mec=colour, mew=1.6, zorder=4)
        low_x, high_x = min(seconds.values()), max(seconds.values())
        axes.set_xscale("log")
        axes.set_xlim(low_x / 3, high_x * (high_x / low_x) ** (0.1 if width == "wide" else 0.2) * 3)
        axes.set_ylim(0, min(1.0, max(arm.ci95[1] for arm in arms) * 1.12 + 0.02))
        ticks = [s for s in _SECONDS if low_x / 3 <= s <= axes.get_xlim()[1]]
        axes.xaxis.set_major_locator(FixedLocator(ticks[:: 2 if width == "narrow" and len(ticks) > 4 else 1]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: _tick(s, t)))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda share, _: t.percent(share).replace(".0", "").replace(",0", ""))
        )
        axes.set_xlabel(t("axis.cost"))
        axes.set_title(t(f"short.{metric}"), loc="left", fontsize=10, color=MUTED)
        texts = [arm.name if width == "wide" else str(number) for number, arm in enumerate(arms, start=1)]
        _name_points(figure, axes, arms, texts, seconds, front, highlighted)
        return svg_of(figure, f"cost-{width}", t("figure.cost"))


def _tick(seconds: float, t: Language) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (0.001, "ms")):
        if seconds >= size:
            return f"{t.count(seconds / size)} {unit}"
    return t.duration(seconds)


def _name_points(
    figure: Figure,
    axes: Axes,
    arms: list[ArmEvidence],
    texts: list[str],
    seconds: dict[str, float],
    front: list[ArmEvidence],
    highlighted: str | None,
) -> None:
    """Write each arm's text beside its point, moved up or down until it covers no other text, point, bar or line."""
    figure.draw_without_rendering()  # fixes the layout, so that data coordinates have places
    to_pixels = axes.transData.transform
    scale = figure.dpi / 72
    taken = []
    for arm in arms:
        (x, low), (_, high) = to_pixels([(seconds[arm.name], arm.ci95[0]), (seconds[arm.name], arm.ci95[1])])
        taken.append((x - 5 * scale, min(low, high) - 2, x + 5 * scale, max(low, high) + 2))
    corners = to_pixels([(seconds[arm.name], arm.score) for arm in front])
    for start, end in itertools.pairwise(corners):
        for part in np.linspace(0, 1, max(2, int(abs(end - start).max() / 4))):
            x, y = start + part * (end - start)
            taken.append((x - 1, y - 1, x + 1, y + 1))
    frame = axes.bbox
    for arm, text in sorted(
        zip(arms, texts, strict=True), key=lambda pair: (pair[0].name != highlighted, -pair[0].score)
    ):
        x, y = to_pixels((seconds[arm.name], arm.score))
        wide, tall, gap = len(text) * 6 * scale, 13 * scale, 9 * scale
        centred = min(max(x - wide / 2, frame.x0), frame.x1 - wide)
        boxes = [
            (left, y + shift * scale - tall / 2, left + wide, y + shift * scale + tall / 2)
            for shift in sorted(range(-70, 71, 7), key=abs)
            for left in (x + gap, x - gap - wide, centred)
        ]
        free = [
            box
            for box in boxes
            if frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1 + tall
            if not any(_overlap(box, other) for other in taken)
        ]
        box = (free or boxes)[0]
        taken.append(box)
        leftwards = box[2] < x
        axes.annotate(
            text,
            (seconds[arm.name], arm.score),
            xytext=((box[2 if leftwards else 0] - x) / scale, ((box[1] + box[3]) / 2 - y) / scale),
            textcoords="offset points",
            ha="right" if leftwards else "left",
            va="center",
            color=ACCENT if arm.name == highlighted else INK,
            fontweight="bold" if arm.name == highlighted else "normal",
            parse_math=False,
        ).set_in_layout(False)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def learning_curves(arms: list[ArmEvidence], t: Language, width: Width) -> str | None:
    """Training loss by step, a colour an arm, a line a seed; None if nothing was trained."""
    trained = [arm for arm in arms if any(_points(curve) for curve in arm.learning_curves)]
    if not trained:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = axes_of(width, (10.6, 3.6), (4.0, 3.6))
        for index, arm in enumerate(trained):
            colour = SERIES[index % len(SERIES)]
            for run, curve in enumerate(arm.learning_curves):
                steps, losses = zip(*_points(curve), strict=True) if _points(curve) else ((), ())
                style = ("-", (0, (5, 2)), (0, (1, 1.5)))[run % 3]
                axes.plot(steps, losses, color=colour, lw=0.7, alpha=0.3)
                axes.plot(steps, _smoothed(losses), color=colour, lw=1.6, ls=style, label=None if run else arm.name)
        axes.set_xlabel(t("axis.step"))
        axes.set_title(t("axis.loss"), loc="left", fontsize=10, color=MUTED)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: t.decimal(value, 1)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: t.count(value)))
        for text in axes.legend(frameon=False, labelcolor=INK).get_texts():
            text.set_parse_math(False)
        return svg_of(figure, f"curves-{width}", t("curves"))


def _points(curve: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(row["step"], row["loss"]) for row in curve if isinstance(row.get("loss"), (int, float))]


def _smoothed(losses: tuple[float, ...], memory: float = 0.8) -> list[float]:
    """Exponential moving average, started at the first value with its bias removed."""
    smooth, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = memory * total + (1 - memory) * loss, memory * weight + (1 - memory)
        smooth.append(total / weight)
    return smooth


def confusion(counts_by_row: list[list[int]], labels: list[str], t: Language) -> str:
    """The confusion matrix, rows normalized; labels are written once and numbered, so that long names fit."""
    size = len(labels)
    cell = 0.30
    longest = min(max(map(len, labels)), 44)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        width = max(size * cell + longest * 0.083 + 0.8, 4.6)  # the words below want this much, however few the labels
        figure = Figure(figsize=(width, size * cell + 0.9), layout="constrained")
        axes = figure.add_subplot()
        for row, counts in enumerate(counts_by_row):
            total = sum(counts)
            for column, count in enumerate(counts):
                share = count / total if total else 0.0
                if not count:
                    continue
                colour = ACCENT if row == column else SERIES[1]
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=colour, alpha=0.12 + 0.88 * share, lw=0))
                if share >= 0.005:
                    ink = PAPER if share > 0.45 else INK
                    axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(size), [str(k + 1) for k in range(size)], fontsize=8)
        names = [label if len(label) <= longest else label[: longest - 1] + "…" for label in labels]
        axes.set_yticks(
            range(size), [f"{name}  {k + 1}" for k, name in enumerate(names)], fontsize=8.5, parse_math=False
        )
        axes.tick_params(length=0, labelcolor=INK)
        axes.xaxis.tick_top()
        axes.set_xlabel(t("axis.given"))
        for spine in axes.spines.values():
            spine.set_visible(False)
        for edge in range(size + 1):
            axes.plot([-0.5, size - 0.5], [edge - 0.5, edge - 0.5], color=_LINE, lw=0.5, zorder=0)
            axes.plot([edge - 0.5, edge - 0.5], [-0.5, size - 0.5], color=_LINE, lw=0.5, zorder=0)
        return svg_of(figure, "confusion", t("confusion"))


def reliability(calibration: CalibrationEvidence, t: Language) -> str:
    """The reliability diagram; a point's area is the number of items in its bin."""
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("wide", (4.0, 3.8), (4.0, 3.8))
        bins = calibration.bins
        largest = max(b.items for b in bins)
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], color=ACCENT, lw=1.2)
        sizes = [12 + 28 * b.items / largest for b in bins]
        axes.scatter([b.confidence for b in bins], [b.accuracy for b in bins], s=sizes, color=ACCENT, zorder=3)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_aspect("equal")
        plain = FuncFormatter(lambda share, _: t.percent(share).replace(".0", "").replace(",0", ""))
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
        axes.set_xlabel(t("axis.confidence"))
        axes.set_title(t("axis.right"), loc="left", fontsize=10, color=MUTED)
        return svg_of(figure, "reliability", t("calibration"))
