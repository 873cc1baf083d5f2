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
CELLS = PAGE.with_name("optimizers-cells.json")
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
        rates = {name: stage.lr for name, stage in recipe.stages.items() if stage.optimizer == optimizer}
        sweep += [
            _sweep_row(optimizer, rate, found.get(f"{name}-s{recipe.seeds[0]}"), recipe) for name, rate in rates.items()
        ]
        result.append(_result_row(optimizer, rates, found, recipe.seeds))
    parts = [INTRODUCTION, "## Result\n", *result, "\n## Sweeps, first seed\n", *sweep]
    return "\n".join(parts) + "\n"


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
    write_text(PAGE, page_of(load(Recipe, RECIPE), cells))
    print(PAGE)


if __name__ == "__main__":
    main()
