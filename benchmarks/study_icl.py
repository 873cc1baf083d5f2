"""Write docs/studies/icl.md: `python -m benchmarks.study_icl [RUNS [TIMED]]`. What is missing was not run.

RUNS is a folder with runs of `recipes/study-icl.yaml`, finished or not, named as `--commands` names them; their cells
are first added to docs/studies/icl-cells.json, from which page and figure are made. CAUSAL_BASE in a command stands
for the model directory that the stage `causal` of recipes/study-base.yaml left. TIMED is another such folder, whose
runs had the machine to themselves: what things cost is read from them alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.studies import NOT_RUN, OverSeeds, commands, drawing, merged, over_seeds
from quilate.config import load
from quilate.files import write_json, write_text
from quilate.recipe.cells import cells_of
from quilate.recipe.graph import seeds_of
from quilate.recipe.schema import Recipe

RECIPE = ROOT / "recipes" / "study-icl.yaml"
PAGE = ROOT / "docs" / "studies" / "icl.md"
CELLS, FIGURE = PAGE.with_name("icl-cells.json"), PAGE.with_name("icl.svg")
ANALYSIS = PAGE.with_name("icl-analysis.md")  # of `quilate icl analyse`
BUSY = 3.0  # two cores, and a little (guess)
SHOTS = {0: "k0", 1: "k1", 4: "k4", 8: "k8", 16: "k16", 32: "k32"}


def _english(file: str, name: str, template: str, labels: Mapping[str, str]) -> dict[str, Any]:
    split = {"train": 2000, "dev": 100, "test": 300}
    task = {"name": name, "language": "en", "text": "text", "label": "label", "labels": labels, "template": template}
    return {"data": {"all": {"path": f"${{QUILATE_DATA}}/icl_tasks/{file}"}}, "task": task | {"split": split}}


HEADQA: dict[str, Any] = {
    "data": {part: {"path": f"${{QUILATE_DATA}}/headqa/es_{part}.jsonl.gz"} for part in ("train", "dev", "test")},
    "task": {
        "name": "Materia de una pregunta de HEAD-QA", "language": "es", "text": "qtext", "label": "category",
        "split": {"train": 2000, "dev": 100, "test": 300}, "drop_leaks": True,
        "template": "Pregunta: {{ text }}\nMateria:",
        "labels": {
            "biology": "biología", "chemistry": "química", "medicine": "medicina", "nursery": "enfermería",
            "pharmacology": "farmacología", "psychology": "psicología",
        },
    },
}  # fmt: skip

# What each run puts in place of MR: the recipe's keys, as `--set` takes them.
RUNS: dict[str, dict[str, Any]] = {
    "mr": {},
    "sst2": _english("sst2_train.jsonl.gz", "Movie review polarity (SST-2)", "Review: {{ text }}\nSentiment:",
                     {"0": "negative", "1": "positive"}),
    "subj": _english("subj_all.jsonl.gz", "Subjectivity (Subj)", "Input: {{ text }}\nType:",
                     {"0": "subjective", "1": "objective"}),
    "agnews": _english("agnews_test.jsonl.gz", "Topic of a news item (AG News)", "Article: {{ text }}\nTopic:",
                       {"0": "world", "1": "sports", "2": "business", "3": "technology"}),
    "headqa": HEADQA,
    "headqa-11m": HEADQA | {"base": "CAUSAL_BASE"},
}  # fmt: skip

INTRODUCTION = """# Is prompting enough?

Written by `python -m benchmarks.study_icl` from `recipes/study-icl.yaml` and `docs/studies/icl-cells.json`.
SmolLM2-135M-Instruct is asked about 300 test items of five tasks with k examples in the prompt, drawn evenly over the
classes anew for every seed; against what the same 16 examples, or 2,000 rows, teach by training, and against TF-IDF.
The cells were listed before they were run. Accuracy in per cent: the mean over seeds (each seed's, or the lowest and
highest); what was run with fewer than its seeds says so, and no parentheses stand where there is but one seed, for
nothing is drawn.
Of 300 items a 95 % interval reaches 5.7 points to either side of 50 %, and 4.5 of 80 %; seeds draw examples and orders,
the items stay. An arm with "-16" is trained on the very examples that `k16` shows.
"""

Cell = Mapping[str, Any]


def with_runs(known: Mapping[str, Sequence[Cell]], runs: Path) -> dict[str, list[dict[str, Any]]]:
    """The cells of every task: those that are known, and those of the runs that are there."""
    new = {run: list(map(asdict, cells_of(runs / run))) for run in RUNS if (runs / run / "run.json").exists()}
    return {run: merged(known.get(run, ()), new.get(run, ())) for run in RUNS if run in known or run in new}


def _of(found: Mapping[str, Sequence[Cell]], run: str, arm: str) -> list[Cell]:
    return [cell for cell in found.get(run, ()) if cell["arm"] == arm]


def page_of(recipe: Recipe, found: Mapping[str, Sequence[Cell]], timed: Mapping[str, Sequence[Cell]]) -> str:
    """The whole page; a cell that the recipe names and `found` has not prints "not run"."""
    lines = ["## Scores\n", f"| arm | {' | '.join(RUNS)} |", "| --- |" + " ---: |" * len(RUNS)]
    for arm in recipe.arms:
        scores = [_scores(recipe, found, run, arm) for run in RUNS]
        lines.append(f"| {arm} | {' | '.join(NOT_RUN if one is None else one.together(1) for one in scores)} |")
    lines += [
        "",
        "`headqa-11m` is HEAD-QA with the 11M base of [study-base](study-base.md), which has read Spanish only. LoRA "
        "and full tuning have their default rates there too, which are meant for larger models: full tuning at 5e-4 "
        "has learned from 1,000 rows in [adaptation](adaptation.md).",
    ]
    if any(_of(found, run, arm) for run in RUNS for arm in SHOTS.values()):
        lines += ["", f"![Accuracy by the number of examples]({FIGURE.name})"]
    lines += _orders(found) + _costs(timed)
    if ANALYSIS.exists():
        lines += ["", f"Whether it is implicit fine-tuning: [{ANALYSIS.stem}]({ANALYSIS.name})."]
    return "\n".join([INTRODUCTION, *lines]) + "\n"


def _scores(recipe: Recipe, found: Mapping[str, Sequence[Cell]], run: str, arm: str) -> OverSeeds | None:
    """Accuracy in per cent."""
    by_seed = {cell["seed"]: 100 * cell["score"] for cell in _of(found, run, arm)}
    return over_seeds(by_seed, seeds_of(recipe, recipe.arms[arm]))


def _orders(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    """What the order of one and the same 16 examples does, on development items."""
    rows = [
        f"| {run} | {cell['seed']} | {len(cell['tried'])} | {100 * min(cell['tried']):.0f} to "
        f"{100 * max(cell['tried']):.0f} | {100 * cell['score']:.1f} |"
        for run in RUNS
        for cell in _of(found, run, "k16-orders")
        if cell["tried"]
    ]
    if not rows:
        return []
    return [
        "\n## How much is the order?\n",
        "The same 16 examples in other orders, each on the 100 development items; the best one is asked about the test "
        "items. The spread is what a single order hides.\n",
        "| task | seed | orders | accuracy on dev, worst to best | of the best on test |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def _costs(timed: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Seconds, and from how many predictions on training is cheaper than a prompt of 16 examples."""
    rows = []
    for run in RUNS:
        prompted = _mean(_alone(_of(timed, run, "k16")), "seconds_per_1000")
        for arm in ("k0", "k16", "k16-nearest", "k32", "frozen-16", "lora-16", "full-16", "frozen", "lora", "tfidf"):
            cells = _alone(_of(timed, run, arm))
            asked, made = _mean(cells, "seconds_per_1000"), _mean(cells, "seconds_to_make")
            if asked is None or made is None:
                continue
            even = ""
            if prompted is not None and not arm.startswith("k"):
                saved = (prompted - asked) / 1000
                even = f"{made / saved:,.0f}" if saved > 0 else "never"
            rows.append(f"| {run} | {arm} | {made:,.1f} | {asked:,.1f} | {even} |")
    if not rows:
        return []
    return [
        "\n## What it costs\n",
        "Seconds on two cores with nothing else running: to make the arm, and for 1,000 predictions, of one seed, "
        f"timed apart from the scores above (a load above {BUSY} leaves a cell out). Break-even: from how many "
        "predictions on the arm is cheaper than a prompt of 16 examples.\n",
        "| task | arm | to make | per 1,000 predictions | break-even with k16 |",
        "| --- | --- | ---: | ---: | ---: |",
        *rows,
    ]


def _alone(cells: Sequence[Cell]) -> list[Cell]:
    """Those whose times say something."""
    return [cell for cell in cells if cell["load_average"] <= BUSY]


def _mean(cells: Sequence[Cell], key: str) -> float | None:
    return mean(cell[key] for cell in cells) if cells else None


LINES = (
    ("majority", "gray", ":"),
    ("tfidf", "tab:green", "--"),
    ("frozen", "tab:purple", "--"),
    ("lora", "tab:red", "-."),
    ("lora-16", "tab:orange", "-."),
)

NAMES = {
    "tfidf": "TF-IDF, 2,000 rows",
    "frozen": "head, 2,000 rows",
    "lora": "LoRA, 2,000 rows",
    "lora-16": "LoRA, 16 rows",
}


def draw(recipe: Recipe, found: Mapping[str, Sequence[Cell]], path: Path) -> None:
    """Accuracy by the number of examples, one panel a task, with TF-IDF and what was trained as lines; a mean of fewer
    seeds than were planned is named so."""
    runs = [run for run in RUNS if any(_of(found, run, arm) for arm in SHOTS.values())]
    size = (2.6 * len(runs), 3.0)
    with drawing(path, 1, len(runs), figsize=size, sharey=True, squeeze=False) as (figure, panels):
        for panel, run in zip(panels[0], runs, strict=True):
            scores = [_scores(recipe, found, run, arm) for arm in SHOTS.values()]
            there = [(place, one) for place, one in enumerate(scores) if one is not None]
            panel.plot([place for place, _ in there], [one.mean for _, one in there], "-", color="tab:blue",
                       label="prompted")  # fmt: skip
            for place, one in there:
                panel.plot([place] * len(one.known), one.known, "o", color="tab:blue", markersize=3)
            for arm, colour, style in LINES:
                if trained := _scores(recipe, found, run, arm):
                    panel.axhline(trained.mean, color=colour, linestyle=style, label=trained.named(NAMES.get(arm, arm)))
            part = "\n(seeds run, of those planned)" if any(one.of for _, one in there) else ""
            panel.set(title=run, xticks=range(len(SHOTS)), xticklabels=list(map(_tick, SHOTS, scores)))
            panel.set(xlabel=f"examples{part}")
        panels[0][0].set(ylabel="accuracy, %")
        handles = {label: handle for panel in panels[0] for handle, label in zip(*panel.get_legend_handles_labels(),
                                                                                strict=True)}  # fmt: skip
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)


def _tick(shots: int, scores: OverSeeds | None) -> str:
    """The number of examples, and under it "1/3" where the point is of one seed of three."""
    return f"{shots}\n{len(scores.known)}/{len(scores.values)}" if scores is not None and scores.of else f"{shots}"


def main() -> None:
    if sys.argv[1:] == ["--commands"]:
        print("\n".join(commands(RECIPE, RUNS, "runs/icl")))
        return
    cells = json.loads(CELLS.read_text(encoding="utf-8"))
    for part, folder in zip(("cells", "timed"), sys.argv[1:], strict=False):
        cells[part] = with_runs(cells[part], Path(folder))
        write_json(CELLS, cells)
    recipe, found = load(Recipe, RECIPE), cells["cells"]
    write_text(PAGE, page_of(recipe, found, cells["timed"]))
    if any(cell["arm"] in SHOTS.values() for cells in found.values() for cell in cells):
        draw(recipe, found, FIGURE)
    print(PAGE)


if __name__ == "__main__":
    main()
