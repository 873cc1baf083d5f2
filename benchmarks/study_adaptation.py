"""Write docs/studies/adaptation.md: `python -m benchmarks.study_adaptation [RUNS]`. What is missing was not run.

RUNS is a folder with the runs `headqa`, `codiesp` and `icd10` of `recipes/study-adaptation.yaml`, finished or not;
their cells are first added to docs/studies/adaptation-cells.json, from which the page is made. `--commands` prints
the three commands that make them.
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
from benchmarks.studies import NOT_RUN, commands, merged, over_seeds
from quilate.config import load
from quilate.files import write_json, write_text
from quilate.recipe.cells import cells_of, models_of
from quilate.recipe.graph import seeds_of
from quilate.recipe.schema import Recipe

RECIPE = ROOT / "recipes" / "study-adaptation.yaml"
PAGE = ROOT / "docs" / "studies" / "adaptation.md"
CELLS = PAGE.with_name("adaptation-cells.json")

# What the other tasks put in place of HEAD-QA: the recipe's keys, as `--set` takes them.
TASKS: dict[str, dict[str, Any]] = {
    "headqa": {},
    "codiesp": {
        "data": {
            "train": {"path": "${QUILATE_DATA}/codiesp/train_mention_chapter.jsonl.gz"},
            "test": {"path": "${QUILATE_DATA}/codiesp/dev_mention_chapter.jsonl.gz"},
        },
        "task": {
            "name": "Capítulo CIE-10 de una mención en un caso clínico", "language": "es",
            "text": "{{ mention }}. {{ sentence }}", "label": "chapter", "group": "id", "drop_leaks": True,
            "split": {"train": 1000, "dev": 100, "test": 600},
        },
        "corpora.curated.path": "${QUILATE_DATA}/cie10_es/cie10_es.jsonl.gz",
        "corpora.curated.text": "description",
    },
    "icd10": {
        "data": {"all": {"path": "${QUILATE_DATA}/cie10_es/cie10_es.jsonl.gz"}},
        "task": {
            "name": "Capítulo CIE-10 de un diagnóstico", "language": "es", "text": "description", "label": "chapter",
            "where": {"level": {"min": 2}}, "split": {"train": 1000, "dev": 100, "test": 600},
        },
        "corpora.curated.path": "${QUILATE_DATA}/codiesp/train_mention_chapter.jsonl.gz",
        "corpora.curated.text": "mention",
    },
}  # fmt: skip

INTRODUCTION = """# Does adapting to clinical Spanish pay?

Written by `python -m benchmarks.study_adaptation` from `recipes/study-adaptation.yaml` and
`docs/studies/adaptation-cells.json`. An 11M causal base and its masked twin, pretrained on 2M tokens of general
Spanish, are adapted in the ways of Gururangan et al. (2020) and then tuned on 1,000 labelled rows of three tasks, with
three seeds: the causal one in full, of the masked one a head. The cells were listed before they were run, but for the
two on a larger model. Scores are shares of right answers on 600 test items: the mean over seeds, and each seed's.
"""

# Arms that are compared with the larger model, and the stages that made what they are tuned from.
COMPARED: dict[str, list[str]] = {
    "unadapted": ["causal"],
    "with-dapt": ["causal", "dapt"],
    "with-dapt-tapt": ["causal", "dapt", "dapt-tapt"],
    "larger-head": [],
    "larger-lora": [],
}
LARGER = "135M"

Cell = Mapping[str, Any]


def with_runs(known: Mapping[str, Mapping[str, Sequence[Cell]]], runs: Path) -> dict[str, dict[str, list[Any]]]:
    """task -> its arms' cells, and the models made from text: those that are known, and those of the runs there."""
    found: dict[str, dict[str, list[Any]]] = {}
    for task in TASKS:
        old = known.get(task, {"arms": [], "models": []})
        there = (runs / task / "run.json").exists()
        models = [
            {
                "stage": m.stage,
                "tokens": m.train_tokens,
                "flops": m.flops,
                "parameters": m.parameters,
                "measure": m.measure,
                "before": m.before,
                "after": m.after,
            }
            for m in (models_of(runs / task) if there else ())
        ]
        found[task] = {
            "arms": merged(old["arms"], list(map(asdict, cells_of(runs / task))) if there else []),
            "models": list({model["stage"]: model for model in (*old["models"], *models)}.values()),
        }
    return {task: value for task, value in found.items() if value["arms"] or value["models"]}


def page_of(recipe: Recipe, found: Mapping[str, Mapping[str, Sequence[Cell]]]) -> str:
    """The whole page; a cell that the recipe names and `found` has not prints "not run"."""
    lines = ["## Scores\n", f"| arm | {' | '.join(TASKS)} |", "| --- |" + " ---: |" * len(TASKS)]
    for arm in recipe.arms:
        seeds = seeds_of(recipe, recipe.arms[arm])
        shown = [_score([c for c in found.get(task, {}).get("arms", []) if c["arm"] == arm], seeds) for task in TASKS]
        lines.append(f"| {arm} | {' | '.join(shown)} |")
    lines += _against_a_larger_one(recipe, found)
    made = next((value["models"] for value in found.values() if value["models"]), [])
    corpora = list(recipe.corpora)
    lines += [
        "\n## What the models predict\n",
        "On held-out text, after training: bits per byte for causal models, nats per masked token for masked ones; "
        "lower is better. `handbook` and `quijote` show what was forgotten. From the first task's run.\n",
        f"| model | tokens | {' | '.join(corpora)} |",
        "| --- | ---: |" + " ---: |" * len(corpora),
    ]
    by_stage = {model["stage"].rpartition("-s")[0]: model for model in made}
    for stage in recipe.stages:
        model = by_stage.get(stage)
        values = [f"{model['after'][c]:.3f}" if model and c in model["after"] else "" for c in corpora]
        tokens = f"{model['tokens']:,}" if model else NOT_RUN
        lines.append(f"| {stage} | {tokens} | {' | '.join(values)} |")
    return "\n".join([INTRODUCTION, *lines]) + "\n"


def _against_a_larger_one(recipe: Recipe, found: Mapping[str, Mapping[str, Sequence[Cell]]]) -> list[str]:
    """A small adapted model beside a larger one, by what they score and what they cost."""
    lines: list[str] = []
    for task, value in found.items():
        made = {model["stage"].rpartition("-s")[0]: model for model in value["models"] if "flops" in model}
        for arm, rows in COMPARED.items():
            cells = [c for c in value["arms"] if c["arm"] == arm]
            counted = [c for c in cells if c.get("flops") is not None]  # older cells do not say
            if not counted or any(stage not in made for stage in rows):
                continue
            before = sum(made[stage]["flops"] for stage in rows)
            score = _score(cells, seeds_of(recipe, recipe.arms[arm]))
            size = f"{made[rows[-1]]['parameters'] / 1e6:.0f}M" if rows else LARGER
            spent = [f"{flops / 1e12:,.0f}" for flops in (before, mean(c["flops"] for c in counted))]
            seconds = f"{mean(c['seconds_per_1000'] for c in counted):,.0f}"
            lines.append(f"| {task} | {arm} | {size} | {score} | {' | '.join(spent)} | {seconds} |")
    if not lines:
        return []
    return [
        "\n## A smaller adapted model against a larger one that was not\n",
        "SmolLM2-135M has read 2T tokens, mostly English, at somebody else's cost; the small models have read what "
        "stands below. Trillions of floating-point operations spent here, and seconds for 1,000 predictions on one "
        "core with other work beside it: to be compared with one another only.\n",
        "| task | arm | parameters | score | to pretrain and adapt | to fine-tune | 1,000 predictions |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ]


def _score(cells: Sequence[Cell], seeds: Sequence[int]) -> str:
    scores = over_seeds({cell["seed"]: 100 * cell["score"] for cell in cells if cell["score"] is not None}, seeds)
    return NOT_RUN if scores is None else scores.together(1)


def main() -> None:
    if sys.argv[1:] == ["--commands"]:
        print("\n".join(commands(RECIPE, TASKS, "runs/adaptation")))
        return
    found = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else {}
    if len(sys.argv) > 1:
        found = with_runs(found, Path(sys.argv[1]))
        write_json(CELLS, found)
    write_text(PAGE, page_of(load(Recipe, RECIPE), found))
    print(PAGE)


if __name__ == "__main__":
    main()
