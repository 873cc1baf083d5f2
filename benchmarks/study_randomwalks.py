"""Write docs/studies/randomwalks.md: `python -m benchmarks.study_randomwalks [RUN]`. What is missing was not run.

With the folder of a run of `recipes/randomwalks.yaml`, finished or not, its cells are first written to
docs/studies/randomwalks-cells.json, from which page and figure are made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from benchmarks.harness import ROOT
from benchmarks.studies import NOT_RUN, OverSeeds, drawing, over_seeds
from quilate.config import load
from quilate.files import read_jsonl, write_json, write_text
from quilate.recipe.cells import models_of
from quilate.recipe.schema import Recipe
from quilate.tasks.randomwalks import RandomWalks

RECIPE = ROOT / "recipes" / "randomwalks.yaml"
PAGE = ROOT / "docs" / "studies" / "randomwalks.md"
CELLS, FIGURE = PAGE.with_name("randomwalks-cells.json"), PAGE.with_name("randomwalks.svg")
SET = "walks (training)"

# (what it is called, the recipe's stage, the set that it measured)
METHODS = (
    ("cloning", "clone", SET),
    ("cloning, best tenth", "best", SET),
    ("ILQL, beta 0", "ilql", f"{SET}, beta 0"),
    ("ILQL, beta 1", "ilql", f"{SET}, beta 1"),
    ("ILQL, beta 100", "ilql", f"{SET}, beta 100"),
    ("PPO", "ppo", SET),
    ("GRPO", "grpo", SET),
)

Cell = Mapping[str, Any]


def cells_of_run(run: Path) -> list[dict[str, Any]]:
    """The finished stages of a run as cells: `stage` (with its seed), `seconds`, `optimality` by set, and of online
    methods the mean optimality of every iteration's rollouts."""
    cells = []
    for model in models_of(run):
        log = Path(model.folder).parent / "rollouts.jsonl"
        curve = [round(row["score"], 4) for row in read_jsonl(log)] if log.exists() else []
        cells.append({"stage": model.stage, "seconds": round(model.seconds, 1), "optimality": model.after})
        if curve:
            cells[-1]["rollouts"] = curve
    return cells


def page_of(recipe: Recipe, cells: Sequence[Cell]) -> str:
    """The whole page; a cell that the recipe names and `cells` has not prints "not run"."""
    found = {cell["stage"]: cell for cell in cells}
    rows = [
        "| method | optimality, mean over seeds | 95 % interval over seeds | each seed | time a seed |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    rows += [_row(name, stage, found, recipe.seeds, key) for name, stage, key in METHODS]
    done = any(f"{stage}-s{seed}" in found for _, stage, _ in METHODS for seed in recipe.seeds)
    parts = [_introduction(recipe), "## Result\n", *rows]
    if done:
        parts += ["", f"![Optimality by method, and of what PPO and GRPO write while they learn]({FIGURE.name})"]
    return "\n".join(parts) + "\n"


def _introduction(recipe: Recipe) -> str:
    walks = RandomWalks.make()
    scores = walks.optimality(walks.walks)
    best: dict[str, float] = {}
    for walk, score in zip(walks.walks, scores, strict=True):
        best[walk[0]] = max(score, best.get(walk[0], 0.0))
    arrived = mean(walk.endswith("a") for walk in walks.walks)
    return f"""# Random walks: learning from rewards where the optimum is known

Written by `python -m benchmarks.study_randomwalks` from `recipes/randomwalks.yaml` and
`docs/studies/randomwalks-cells.json`. It is trlX's benchmark, drawn as trlX draws it (graph seed 1000): {len(scores):,}
random walks on a graph of 21 nodes, of at most ten nodes each, {arrived:.0%} of which arrive. A walk's optimality is 1
if it is a shortest one and 0 if it does not arrive or leaves the graph. The data's mean is {mean(scores):.3f},
{mean(score == 1 for score in scores):.0%} of its walks are shortest ones; its best walk from each start averages
{mean(best.values()):.3f}, and the optimum is 1.

The model is a GPT-2 of 0.4M parameters with its own tokenizer, a byte a token. Every score is the mean over ten walks
sampled at temperature 1 from each of the 20 starts, which are also those that are trained on: it says what was learned,
not what carries over. Seeds vary initialization, order and sampling; the graph and its walks stay. {len(recipe.seeds)}
seeds are planned; with fewer than two finished no interval is shown. A time is that of the method's own stage on two
shared cores, without what it starts from (`new` for cloning and ILQL, the clone for PPO and GRPO).
"""


def _row(name: str, stage: str, found: Mapping[str, Cell], seeds: Sequence[int], key: str) -> str:
    scores = _optimality(stage, found, seeds, key)
    if scores is None:
        return f"| {name} | {NOT_RUN} | | | |"
    seconds = mean(found[s]["seconds"] for seed in seeds if (s := f"{stage}-s{seed}") in found)
    low, high = interval(scores.known)
    shown = f"{low:.3f} to {high:.3f}" if len(scores.known) > 1 else "one seed"
    return f"| {name} | {scores.shown(3)} | {shown} | {scores.each(3)} | {seconds:,.0f} s |"


def _optimality(stage: str, found: Mapping[str, Cell], seeds: Sequence[int], key: str) -> OverSeeds | None:
    return over_seeds(
        {seed: found[s]["optimality"][key] for seed in seeds if (s := f"{stage}-s{seed}") in found}, seeds
    )


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean over seeds; the mean alone for one seed."""
    half = t.ppf(0.975, len(scores) - 1) * stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    return mean(scores) - half, mean(scores) + half


def draw(recipe: Recipe, cells: Sequence[Cell], path: Path) -> None:
    """The figure: every seed of every method, and the rollouts of the online ones."""
    found = {cell["stage"]: cell for cell in cells}
    with drawing(path, 1, 2, figsize=(10, 3.6), width_ratios=(3, 2)) as (_, (left, right)):
        names = []
        for place, (name, stage, key) in enumerate(METHODS):
            scores = _optimality(stage, found, recipe.seeds, key)
            names.append(f"{name} ({NOT_RUN})" if scores is None else scores.named(name))
            if scores is not None:
                left.barh(place, scores.mean, color="tab:blue", alpha=0.35)
                left.plot(scores.known, [place] * len(scores.known), "o", color="tab:blue", markersize=4)
        left.axvline(mean(RandomWalks.make().optimality(RandomWalks.make().walks)), color="gray", linestyle=":")
        left.set(yticks=range(len(METHODS)), yticklabels=names, xlim=(0, 1.02))
        left.set(xlabel="optimality (dots: seeds; dotted: the data's mean)")
        left.invert_yaxis()
        for stage, colour in (("ppo", "tab:orange"), ("grpo", "tab:green")):
            curves = [found[s]["rollouts"] for s in (f"{stage}-s{seed}" for seed in recipe.seeds) if s in found]
            for number, curve in enumerate(curves):
                right.plot(curve, color=colour, alpha=0.7, label=stage.upper() if number == 0 else None)
        right.set(xlabel="iteration (100 walks each)", ylabel="optimality of rollouts", ylim=(0, 1.02))
        if right.get_legend_handles_labels()[0]:
            right.legend()


def main() -> None:
    if len(sys.argv) > 1:
        write_json(CELLS, cells_of_run(Path(sys.argv[1])))
    recipe = load(Recipe, RECIPE)
    cells = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else []
    write_text(PAGE, page_of(recipe, cells))
    if cells:
        draw(recipe, cells, FIGURE)
    print(PAGE)


if __name__ == "__main__":
    main()
