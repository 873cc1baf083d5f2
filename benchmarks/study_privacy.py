"""Write docs/studies/privacy.md: `python -m benchmarks.study_privacy [RUN]`. What is missing was not run.

With the folder of a run of `recipes/study-privacy.yaml`, finished or not, its findings are first written to
docs/studies/privacy-cells.json, from which the page is made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from quilate.config import load
from quilate.files import write_json, write_text
from quilate.phases.privacy import PrivacyConfig
from quilate.recipe.cells import examinations_of, models_of
from quilate.recipe.schema import Recipe

RECIPE = ROOT / "recipes" / "study-privacy.yaml"
PAGE = ROOT / "docs" / "studies" / "privacy.md"
CELLS = PAGE.with_name("privacy-cells.json")
NOT_RUN = "not run"

INTRODUCTION = """# What a small model keeps of clinical text

Written by `python -m benchmarks.study_privacy` from `recipes/study-privacy.yaml` and `docs/studies/privacy-cells.json`.
Models of 3M parameters, one seed each. `once` and `often` read the same Spanish clinical cases, with made-up canaries
among them; `other`, the reference, read a handbook. Intervals are 95 %; what each number means is in
[privacy.md](../privacy.md).
"""

Found = Mapping[str, Any]


def page_of(recipe: Recipe, cells: Mapping[str, Sequence[Found]]) -> str:
    """The whole page; an examination that the recipe names and `cells` has not prints "not run"."""
    found = {one["stage"].rpartition("-s")[0]: one for one in cells.get("examinations", [])}
    parts = [INTRODUCTION]
    if cells.get("models"):
        corpora = list(recipe.corpora)
        parts += [
            "| model | tokens | time | " + " | ".join(f"{c}, bits per byte" for c in corpora) + " |",
            "| --- | ---: | ---: |" + " ---: |" * len(corpora),
            *(
                f"| {m['stage']} | {m['tokens']:,} | {m['seconds']:,.0f} s | "
                + " | ".join(f"{m['loss'][c]:.3f}" for c in corpora)
                + " |"
                for m in cells["models"]
            ),
        ]
    for name, stage in recipe.stages.items():
        if isinstance(stage, PrivacyConfig):
            parts += [f"\n## {name}\n", *(_section(found[name]) if name in found else [NOT_RUN])]
    return "\n".join(parts) + "\n"


def _section(one: Found) -> list[str]:
    """Every number of one examination."""
    extraction = one["extraction"]
    return [
        f"{one['model']} read the text {one['epochs']:.2f} times. {one['members']} documents of it, {one['others']} "
        f"held out, {one['controls']} canaries as controls.\n",
        "| times in the text | canaries | exposure, bits | interval | of the reference | written out (reference) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {r['repeats']} | {r['canaries']} | {r['bits']['value']:.2f} | {_range(r['bits'], 2)} | "
            f"{r['bits_reference']['value']:.2f} | {r['written']} ({r['written_reference']}) |"
            for r in one["exposure"]
        ),
        "",
        "| attack | AUC | interval | true positives at 1 % false | interval |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {a['name']} | {a['auc']['value']:.3f} | {_range(a['auc'], 3)} | {a['true_positives']['value']:.3f} | "
            f"{_range(a['true_positives'], 3)} |"
            for a in one["attacks"]
        ),
        "",
        f"Continued word for word: {extraction['model']} of {extraction['asked']} training documents by the model, "
        f"{extraction['reference']} by the reference, {extraction['alone']} by the model alone; "
        f"{extraction['held_out']} of {extraction['held_out_asked']} documents held out.\n",
        "| limit on | limit | may be as high as | |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {g['name']} | {g['limit']:g} | {g['seen']:.3f} | {'passed' if g['passed'] else 'not passed'} |"
            for g in one["gates"]
        ),
    ]


def _range(estimate: Mapping[str, float], decimals: int) -> str:
    return f"{estimate['low']:.{decimals}f} to {estimate['high']:.{decimals}f}"


def main() -> None:
    if len(sys.argv) > 1:
        run = Path(sys.argv[1])
        models = [
            {"stage": m.stage, "tokens": m.train_tokens, "seconds": m.seconds, "loss": m.after} for m in models_of(run)
        ]
        write_json(CELLS, {"models": models, "examinations": examinations_of(run)})
    cells = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else {}
    write_text(PAGE, page_of(load(Recipe, RECIPE), cells))
    print(PAGE)


if __name__ == "__main__":
    main()
