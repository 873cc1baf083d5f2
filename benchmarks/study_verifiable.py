"""Write docs/studies/verifiable.md: `python -m benchmarks.study_verifiable [RUN ...]`. What is missing was not run.

With the folders of runs of `recipes/verifiable.yaml`, `verifiable-few-shot.yaml` and `verifiable-headqa.yaml`,
finished or not, their cells are first written to docs/studies/verifiable-cells.json, beside those of other recipes that
are there already. The page is made from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.studies import NOT_RUN, Measured, difference, drawing, intervals, share_of
from quilate.files import read_jsonl, write_json, write_text
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.manifest import read_manifest

PAGE = ROOT / "docs" / "studies" / "verifiable.md"
CELLS, FIGURE = PAGE.with_name("verifiable-cells.json"), PAGE.with_name("verifiable.svg")

# (what it is called, the recipe, the policy); the first rows of a recipe are what the others are compared with.
ICD = (
    ("base, no examples", "verifiable", "base"),
    ("base, one example of each chapter", "verifiable-few-shot", "base"),
    ("SFT", "verifiable", "start"),
    ("SFT, then SFT again", "verifiable", "more"),
    ("SFT, then GRPO", "verifiable", "grpo"),
    ("SFT, then PPO", "verifiable", "ppo"),
)
HEADQA = (
    ("base", "verifiable-headqa", "base"),
    ("SFT", "verifiable-headqa", "start"),
    ("SFT, then GRPO", "verifiable-headqa", "grpo"),
)
COMPARED = (("grpo", "start"), ("ppo", "start"), ("more", "start"), ("grpo", "more"), ("ppo", "more"))

Cell = Mapping[str, Any]


def cells_of_run(run: Path) -> list[dict[str, Any]]:
    """The policies of a run that were assayed: which items each got right, by the items' groups, and its cost."""
    plan = run_plan(run)
    cells = []
    for name, stage in plan["stages"].items():
        manifest = read_manifest(run / stage["folder"]) if stage["kind"] == "assay" else None
        if manifest is None:
            continue
        model = name.removesuffix("-assay")
        made = read_manifest(run / plan["stages"][model]["folder"])
        assert made is not None  # what an assay stands on is finished
        policy, _, seed = model.rpartition("-s") if model != "base" else ("base", "", "0")
        rows = read_jsonl(run / stage["folder"] / "completions.jsonl")
        facts = manifest["facts"]
        cells.append(
            {
                "recipe": plan["recipe"]["recipe"], "policy": policy, "seed": int(seed),
                "right": {row["group"]: int(row["scores"]["right"]) for row in rows}, "items": len(rows),
                "kl": facts["kl"], "ended": facts["ended"], "seconds": round(made["cost"]["seconds"], 1),
                "train_tokens": made["cost"]["train_tokens"],
                "load_average": float(made["measured"]["load_average"]),
            }
        )  # fmt: skip
    return cells


def page_of(cells: Sequence[Cell]) -> str:
    """The whole page."""
    found = {(cell["recipe"], cell["policy"]): cell for cell in cells if cell["seed"] == 0}
    parts = [
        INTRODUCTION,
        f"![Shares of right answers]({FIGURE.name})\n",
        "## ICD-10 chapters\n",
        *_table(ICD, found),
        "",
    ]
    parts += _differences(ICD[0][1], found)
    parts += ["\n## The negative control: answers to exam questions\n", CONTROL, *_table(HEADQA, found), ""]
    parts += _differences(HEADQA[0][1], found)
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: Sequence[tuple[str, str, str]], found: Mapping[tuple[str, str], Cell]) -> list[str]:
    lines = [
        "| model | right | 95 % interval over items | items | KL from its start | ended | time of its stage |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, recipe, policy in rows:
        cell = found.get((recipe, policy))
        if cell is None:
            lines.append(f"| {name} | {NOT_RUN} | | | | | |")
            continue
        mean = share_of(cell)
        kl = "" if cell["kl"] is None else f"{cell['kl']:.2f}"
        minutes = "" if policy == "base" else f"{cell['seconds'] / 60:.1f} min"
        lines.append(
            f"| {name} | {mean.estimate:.1%} | {mean.low:.1%} to {mean.high:.1%} | {cell['items']} | {kl} | "
            f"{cell['ended']:.0%} | {minutes} |"
        )
    return lines


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Right answers of every policy, of both tasks."""
    found = {(cell["recipe"], cell["policy"]): cell for cell in cells if cell["seed"] == 0}
    with drawing(path, 1, 2, figsize=(9.6, 2.8)) as (_, panels):
        for panel, rows, title in zip(panels, (ICD, HEADQA), ("ICD-10 chapters", "HEAD-QA, control"), strict=True):
            measured = []
            for name, recipe, policy in rows:
                cell = found.get((recipe, policy))
                share = None if cell is None else share_of(cell)
                measured.append(
                    Measured(name, None)
                    if share is None
                    else Measured(name, *(100 * (end or 0) for end in (share.estimate, share.low, share.high)))
                )
            intervals(panel, measured)
            panel.set(title=title, xlabel="right answers, % (95 % over items)", xlim=(-2, 50))


def _differences(recipe: str, found: Mapping[tuple[str, str], Cell]) -> list[str]:
    lines = []
    for one, other in COMPARED:
        cells = found.get((recipe, one)), found.get((recipe, other))
        if cells[0] is None or cells[1] is None:
            continue
        low, high, mean = difference(cells[0], cells[1])
        verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
        lines.append(
            f"- {one} less {other}: {100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), {verdict}."
        )
    return ["Paired differences on the same items, with 95 % intervals over items:\n", *lines] if lines else []


INTRODUCTION = """# Verifiable rewards: does a checked answer teach more than a shown one?

Written by `python -m benchmarks.study_verifiable` from `docs/studies/verifiable-cells.json`; what is asked, and what
was expected, stands in `recipes/verifiable.yaml`, written before the first run. SmolLM2-135M-Instruct writes the ICD-10
chapter of a Spanish diagnosis as one word, one of 21. SFT (LoRA) learns from half of 1,307 labelled diagnoses; GRPO and
PPO go on from it with a reward of 1 for the right word and 0 for any other, on prompts from the same 1,307; the fair
rival is as much SFT again. Everybody is asked the same 327 diagnoses, three-character categories that nothing is
trained on, and answers nearly greedily (temperature 0.1). The commonest chapter is the right one of 14.4 %.

One seed of each: the intervals are over items alone, and the spread between runs is not in them. Rates and sizes are
guesses, fixed beforehand; nothing was searched. Times were taken beside other work, with pauses, and compare nothing.
"""

CONTROL = """The same model, SFT and GRPO on HEAD-QA's development questions, whose answers a 135M model does not know
(334 held-out questions with four or five options, of which those that fit in 256 tokens are asked: chance is 20 to
25 %). A method that "learns" here learns something else.
"""


def main() -> None:
    cells: list[Cell] = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else []
    for run in map(Path, sys.argv[1:]):
        new = cells_of_run(run)
        renewed = {cell["recipe"] for cell in new}
        cells = [*(cell for cell in cells if cell["recipe"] not in renewed), *new]
    if sys.argv[1:]:
        write_json(CELLS, cells)
    write_text(PAGE, page_of(cells))
    draw(cells, FIGURE)
    print(PAGE)


if __name__ == "__main__":
    main()
