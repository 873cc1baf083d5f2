"""Write docs/studies/optimizers.md: `python -m benchmarks.study_optimizers [RUN]`. What is missing was not run.

With the folder of a run of `recipes/study-optimizers.yaml`, finished or not, its cells are first written to
docs/studies/optimizers-cells.json, from which the page is made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import ROOT
from quilate.config import load
from quilate.files import write_json, write_text
from quilate.optim.choice import DEFAULTS
from quilate.recipe.cells import models_of
from quilate.recipe.schema import Recipe

RECIPE = ROOT / "recipes" / "study-optimizers.yaml"
PAGE = ROOT / "docs" / "studies" / "optimizers.md"
CELLS, FIGURE = PAGE.with_name("optimizers-cells.json"), PAGE.with_name("optimizers.svg")
CHOOSE_ON, COMPARE_ON = "quijote", "handbook"  # the rate is chosen on one held-out text and judged on another
NOT_RUN = "not run"

INTRODUCTION = f"""# Optimizers at equal compute

Written by `python -m benchmarks.study_optimizers` from `recipes/study-optimizers.yaml` and
`docs/studies/optimizers-cells.json`. A GPT-2 of 3M parameters learns Spanish from at most 2M tokens of real text with
each optimizer, at the compute of AdamW's 2M: curvature estimates and orthogonalization are paid for in tokens, as the
recipe explains. Each optimizer sweeps its own learning rates with the first seed; the best on the held-out text of
`{CHOOSE_ON}` is trained with two more seeds and compared on that of `{COMPARE_ON}`. All losses are bits per byte at the
end of the schedule; lower is better.
"""

Cell = Mapping[str, Any]


def cells_of_run(run: Path) -> list[dict[str, Any]]:
    """The finished models of a run as cells: `stage` (with its seed), `tokens`, `seconds` and `loss` by corpus."""
    return [
        {"stage": m.stage, "tokens": m.train_tokens, "seconds": round(m.seconds, 1), "loss": m.after}
        for m in models_of(run)
    ]


def page_of(recipe: Recipe, cells: Sequence[Cell]) -> str:
    """The whole page; a cell that the recipe names and `cells` has not prints "not run"."""
    found = {cell["stage"]: cell for cell in cells}
    sweep = [
        "| optimizer | learning rate | tokens | time | " + " | ".join(recipe.corpora) + " |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(recipe.corpora),
    ]
    result = [
        f"| optimizer | best rate | {COMPARE_ON}, mean | each seed | time, mean |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for optimizer in DEFAULTS:
        rates = rates_of(recipe, optimizer)
        sweep += [
            _sweep_row(optimizer, rate, found.get(f"{name}-s{recipe.seeds[0]}"), recipe) for name, rate in rates.items()
        ]
        result.append(_result_row(optimizer, rates, found, recipe.seeds))
    figure = [f"\n![Loss by learning rate, and at each optimizer's best]({FIGURE.name})"] if cells else []
    parts = [INTRODUCTION, "## Result\n", *result, *figure, "\n## Sweeps, first seed\n", *sweep]
    return "\n".join(parts) + "\n"


def rates_of(recipe: Recipe, optimizer: str) -> dict[str, float]:
    """Stage -> its learning rate, of one optimizer's sweep."""
    return {name: stage.lr for name, stage in recipe.stages.items() if stage.optimizer == optimizer}


def draw(recipe: Recipe, cells: Sequence[Cell], path: Path) -> None:
    """The sweeps on the text that rates are chosen on, and every seed at the best rate on the other."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "quilate"  # the same figure, the same bytes
    from matplotlib import pyplot

    found = {cell["stage"]: cell for cell in cells}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for place, optimizer in enumerate(DEFAULTS):
        rates = rates_of(recipe, optimizer)
        swept = {name: found[f"{name}-s{recipe.seeds[0]}"] for name in rates if f"{name}-s{recipe.seeds[0]}" in found}
        if not swept:
            continue
        losses = {name: cell["loss"][CHOOSE_ON] for name, cell in swept.items()}
        left.plot([rates[name] for name in swept], list(losses.values()), "o-", color=f"C{place}", label=optimizer)
        best = min(losses, key=lambda name: losses[name])
        seeds = [found[key]["loss"][COMPARE_ON] for seed in recipe.seeds if (key := f"{best}-s{seed}") in found]
        right.plot([place] * len(seeds), seeds, "o", color=f"C{place}")
        right.plot([place - 0.2, place + 0.2], [mean(seeds)] * 2, color=f"C{place}")
    left.set(xscale="log", xlabel="learning rate", ylabel="bits per byte", title=f"Sweeps on {CHOOSE_ON}, first seed")
    left.legend(frameon=False)
    right.set(title=f"Best rates on {COMPARE_ON}, each seed and the mean", xticks=range(len(DEFAULTS)))
    right.set_xticklabels(list(DEFAULTS))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _sweep_row(optimizer: str, rate: float, cell: Cell | None, recipe: Recipe) -> str:
    if cell is None:
        return f"| {optimizer} | {rate:g} | {NOT_RUN} | " + " |" * (1 + len(recipe.corpora))
    losses = " | ".join(f"{cell['loss'][corpus]:.4f}" for corpus in recipe.corpora)
    return f"| {optimizer} | {rate:g} | {cell['tokens']:,} | {cell['seconds']:,.0f} s | {losses} |"


def _result_row(optimizer: str, rates: Mapping[str, float], found: Mapping[str, Cell], seeds: Sequence[int]) -> str:
    """Nothing is compared before the optimizer's whole sweep is there, and no mean shown before all seeds are."""
    swept = {name: found[f"{name}-s{seeds[0]}"] for name in rates if f"{name}-s{seeds[0]}" in found}
    if len(swept) < len(rates):
        return f"| {optimizer} | {NOT_RUN} | | | |"
    best = min(swept, key=lambda name: swept[name]["loss"][CHOOSE_ON])
    edge = " (an end of its sweep)" if rates[best] in (min(rates.values()), max(rates.values())) else ""
    runs = [found.get(f"{best}-s{seed}") for seed in seeds]
    done = [run for run in runs if run is not None]
    each = ", ".join(NOT_RUN if run is None else f"{run['loss'][COMPARE_ON]:.4f}" for run in runs)
    average = f"{mean(r['loss'][COMPARE_ON] for r in done):.4f}" if len(done) == len(runs) else NOT_RUN
    return f"| {optimizer} | {rates[best]:g}{edge} | {average} | {each} | {mean(r['seconds'] for r in done):,.0f} s |"


def main() -> None:
    if len(sys.argv) > 1:
        write_json(CELLS, cells_of_run(Path(sys.argv[1])))
    cells = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else []
    recipe = load(Recipe, RECIPE)
    if cells:
        draw(recipe, cells, FIGURE)
    write_text(PAGE, page_of(recipe, cells))
    print(PAGE)


if __name__ == "__main__":
    main()
