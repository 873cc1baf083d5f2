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
from benchmarks.studies import NOT_RUN, OverSeeds, drawing, over_seeds
from quilate.config import load
from quilate.files import write_json, write_text
from quilate.optim.choice import DEFAULTS
from quilate.recipe.cells import models_of
from quilate.recipe.schema import Recipe

RECIPE = ROOT / "recipes" / "study-optimizers.yaml"
PAGE = ROOT / "docs" / "studies" / "optimizers.md"
CELLS, FIGURE = PAGE.with_name("optimizers-cells.json"), PAGE.with_name("optimizers.svg")
CHOOSE_ON, COMPARE_ON = "quijote", "handbook"  # the rate is chosen on one held-out text and judged on another

INTRODUCTION = f"""# Optimizers at equal compute

Written by `python -m benchmarks.study_optimizers` from `recipes/study-optimizers.yaml` and
`docs/studies/optimizers-cells.json`. A GPT-2 of 3M parameters learns Spanish from at most 2M tokens of real text with
each optimizer, at the compute of AdamW's 2M: curvature estimates and orthogonalization are paid for in tokens, as the
recipe explains. Each optimizer sweeps its own learning rates with the first seed; the best on the held-out text of
`{CHOOSE_ON}` is trained with two more seeds and compared on that of `{COMPARE_ON}`. All losses are bits per byte at the
end of the schedule; lower is better. Nothing is compared before an optimizer's whole sweep is there; a mean of fewer
seeds than were planned says so. Times were taken beside other work and compare nothing.
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
    found = {cell["stage"]: cell for cell in cells}
    with drawing(path, 1, 2, figsize=(8.4, 3.2)) as (figure, (left, right)):
        names: list[str] = []
        for place, optimizer in enumerate(DEFAULTS):
            rates = rates_of(recipe, optimizer)
            swept = _swept(rates, found, recipe.seeds)
            names.append(f"{optimizer}\n{NOT_RUN}")
            if not swept:
                continue
            part = "" if len(swept) == len(rates) else f" ({len(swept)} of {len(rates)} rates)"
            left.plot([rates[name] for name in swept], list(swept.values()), "o-", color=f"C{place}",
                      label=f"{optimizer}{part}")  # fmt: skip
            if (best := _best(rates, swept)) is None:
                continue
            losses = _losses(best, found, recipe.seeds)
            names[-1] = f"{optimizer}\n{losses.of}"
            right.plot([place] * len(losses.known), losses.known, "o", color=f"C{place}")
            right.plot([place - 0.2, place + 0.2], [losses.mean] * 2, color=f"C{place}")
        left.set(
            xscale="log", xlabel="learning rate", ylabel="bits per byte", title=f"{CHOOSE_ON}: first seed's sweeps"
        )
        ticks = [2.5e-4 * 4**power for power in range(4)]
        left.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        left.minorticks_off()
        right.set(title=f"{COMPARE_ON}: best rates, seeds and mean", xticks=range(len(DEFAULTS)))
        right.set_xticklabels(names)
        figure.legend(loc="outside lower center", ncols=len(DEFAULTS), frameon=False)


def _sweep_row(optimizer: str, rate: float, cell: Cell | None, recipe: Recipe) -> str:
    if cell is None:
        return f"| {optimizer} | {rate:g} | {NOT_RUN} | " + " |" * (1 + len(recipe.corpora))
    losses = " | ".join(f"{cell['loss'][corpus]:.4f}" for corpus in recipe.corpora)
    return f"| {optimizer} | {rate:g} | {cell['tokens']:,} | {cell['seconds']:,.0f} s | {losses} |"


def _result_row(optimizer: str, rates: Mapping[str, float], found: Mapping[str, Cell], seeds: Sequence[int]) -> str:
    best = _best(rates, _swept(rates, found, seeds))
    if best is None:
        return f"| {optimizer} | {NOT_RUN} | | | |"
    edge = " (an end of its sweep)" if rates[best] in (min(rates.values()), max(rates.values())) else ""
    losses = _losses(best, found, seeds)
    seconds = mean(found[key]["seconds"] for seed in seeds if (key := f"{best}-s{seed}") in found)
    return f"| {optimizer} | {rates[best]:g}{edge} | {losses.shown(4)} | {losses.each(4)} | {seconds:,.0f} s |"


def _swept(rates: Mapping[str, float], found: Mapping[str, Cell], seeds: Sequence[int]) -> dict[str, float]:
    """Stage -> its loss on the text that rates are chosen on, of what was run of an optimizer's sweep."""
    return {name: found[key]["loss"][CHOOSE_ON] for name in rates if (key := f"{name}-s{seeds[0]}") in found}


def _best(rates: Mapping[str, float], swept: Mapping[str, float]) -> str | None:
    """The stage of the best rate; None before the optimizer's whole sweep is there: nothing is compared yet."""
    return min(swept, key=lambda name: swept[name]) if len(swept) == len(rates) else None


def _losses(stage: str, found: Mapping[str, Cell], seeds: Sequence[int]) -> OverSeeds:
    """On the text that is compared on."""
    by_seed = {seed: found[key]["loss"][COMPARE_ON] for seed in seeds if (key := f"{stage}-s{seed}") in found}
    losses = over_seeds(by_seed, seeds)
    assert losses is not None  # the sweep was run with the first seed
    return losses


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
