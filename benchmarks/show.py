"""A benchmark's result as a table in the terminal, as a table in Markdown, and as a figure; all from its JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from rich.console import Console
from rich.table import Table

from quilate.files import make_folder

OURS, PEER, PRELOADED = "#0b6e69", "#9a9a9a", "#c8b273"


def number(value: float) -> str:
    """Three digits that matter, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio_of(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Ours against this row's side, with the extremes over rounds."""
    found = [r for r in result["ratios"] if r["case"] == row["case"] and r["against"] == row["side"]]
    if not found:
        return "" if not row["ours"] else "1"
    ratio = found[0]
    spread = f" ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio["rounds"] > 1 else ""
    return f"{ratio['ratio']:.2f}{spread}"


def cells(result: dict[str, Any]) -> list[list[str]]:
    """Header and rows of the table that the terminal and the page show."""
    table = [
        ["case", "side", f"median {result['unit']}", "smallest to largest", "rounds x values", "ours is better by"]
    ]
    for row in result["rows"]:
        spread = f"{number(row['low'])} to {number(row['high'])}"
        counts = f"{row['rounds']} x {row['repetitions'] // row['rounds']}"
        table.append([row["case"], row["side"], number(row["median"]), spread, counts, _ratio_of(result, row)])
    return table


def print_result(result: dict[str, Any]) -> None:
    header, *rows = cells(result)
    table = Table(*header, title=result["quantity"]["name"])
    for row in rows:
        table.add_row(*row)
    console = Console(file=sys.stdout, width=140)
    console.print(table)
    if result["machine"]["without fused operations"]:
        console.print(f"quilate ran without its fused operations: {result['machine']['without fused operations']}")
    for check in result["checks"]:
        console.print(f"checked: {check}", highlight=False)
    here = result["machine"]
    console.print(
        f"{here['processor']}, {here['cores']} cores, load {here['load_average']}, {' '.join(here['flags'])}, "
        f"matmul peak (TFLOP/s): {here['matmul_peak_tflops'] or 'not measured'}",
        highlight=False,
    )


def markdown(result: dict[str, Any]) -> str:
    header, *rows = cells(result)
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def write_result(result: dict[str, Any], folder: Path) -> None:
    """`NAME.json` and `NAME.svg`; a result without rows of numbers that a bar can show has its own figure."""
    make_folder(folder)
    text = json.dumps(result, ensure_ascii=False, indent=1)
    (folder / f"{result['name']}.json").write_text(text + "\n", encoding="utf-8")
    figure = lines_over_length(result) if "lengths" in result["facts"] else bars(result)
    metadata = {"Date": None, "Creator": None}
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "quilate"}):
        figure.savefig(folder / f"{result['name']}.svg", metadata=metadata, bbox_inches="tight")


def bars(result: dict[str, Any]) -> Figure:
    """A bar a row with its extremes, a panel a case."""
    cases = list(dict.fromkeys(row["case"] for row in result["rows"]))
    heights = [sum(row["case"] == case for row in result["rows"]) for case in cases]
    figure = Figure(figsize=(7.5, 0.6 + 0.32 * sum(heights) + 0.55 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, case in zip(panels, cases, strict=True):
        rows = [row for row in result["rows"] if row["case"] == case][::-1]
        medians = [row["median"] for row in rows]
        below = [row["median"] - row["low"] for row in rows]
        above = [row["high"] - row["median"] for row in rows]
        colours = [OURS if row["ours"] else PRELOADED if row["stage"] else PEER for row in rows]
        panel.barh([row["side"] for row in rows], medians, xerr=[below, above], color=colours, ecolor="#444", capsize=2)
        panel.set_title(case, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    quantity = result["quantity"]
    panels[-1].set_xlabel(f"{quantity['name']}, {quantity['unit']} ({quantity['better']} is better); lines: extremes")
    return figure


def lines_over_length(result: dict[str, Any]) -> Figure:
    """Time and memory over the length, a column a kind of input (`facts.lengths`: case -> kind and length)."""
    places: dict[str, dict[str, Any]] = result["facts"]["lengths"]
    kinds = list(dict.fromkeys(place["kind"] for place in places.values()))
    figure = Figure(figsize=(3.8 * len(kinds), 5.6), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False, sharex=True, sharey="row")
    for column, kind in enumerate(kinds):
        rows = [row for row in result["rows"] if places[row["case"]]["kind"] == kind]
        for side in dict.fromkeys(row["side"] for row in rows):
            points = [(places[row["case"]]["length"], row) for row in rows if row["side"] == side]
            style = {"marker": "o", "color": OURS if points[0][1]["ours"] else None, "label": side}
            lengths = [length for length, _ in points]
            panels[0, column].plot(lengths, [row["median"] for _, row in points], **style)
            panels[1, column].plot(lengths, [max(1.0, row["facts"]["memory MB"]) for _, row in points], **style)
        panels[0, column].set_title(kind, fontsize=10)
        panels[1, column].set_xlabel("tokens")
    for panel in panels.flat:
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(sorted({place["length"] for place in places.values()}))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("seconds, forward and backward")
    panels[1, 0].set_ylabel("memory, inputs included, MB")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure
