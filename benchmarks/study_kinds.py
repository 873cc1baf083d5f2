"""Write docs/studies/kinds.md: `python -m benchmarks.study_kinds [RUNS]`, of every finished run in the folder RUNS.

Their arms are first written to docs/studies/kinds-cells.json, beside those that are there already; the page is made
from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from quilate.files import read_json, write_json, write_text

PAGE = ROOT / "docs" / "studies" / "kinds.md"
CELLS = PAGE.with_name("kinds-cells.json")

Cell = Mapping[str, Any]

INTRODUCTION = """# Every kind of task on real data

Written by `python -m benchmarks.study_kinds` from `docs/studies/kinds-cells.json`. The recipes of docs/tasks.md, each
run whole, one seed, to see that every kind works on the files as they are published: not what the best model reaches.
The model is the 11M base of [adaptation](adaptation.md), which has read two million tokens of Spanish and no English,
so that all of them end within minutes on one core; the recipes themselves name a base of 135M. What a recipe's arms and
rows were replaced by stands below its table. Intervals (95 %) are over test items alone.
"""


def cell_of(recipe: str, evidence: Mapping[str, Any], overrides: str) -> dict[str, Any]:
    """What the page tells of a run."""
    task = {key: evidence["task"][key] for key in ("name", "kind", "language", "train", "test")}
    arms = [
        {
            "name": arm["name"], "method": arm["method"], "score": arm["score"], "ci95": arm["ci95"],
            "seconds": arm["cost"]["seconds"], "counts": arm["counts"],
        }
        for arm in evidence["arms"]
    ]  # fmt: skip
    return {"recipe": recipe, "task": task, "metric": evidence["metric"], "arms": arms,
            "overrides": overrides}  # fmt: skip


def page_of(cells: Sequence[Cell]) -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(line for cell in cells for line in _section(cell))])


def _section(cell: Cell) -> list[str]:
    task = cell["task"]
    lines = [
        f"## `{cell['recipe']}.yaml`: {task['name']}\n",
        f"{task['kind']}, {task['language']}; {task['train']} rows to train on, {task['test']} tested.\n",
        f"| arm | {cell['metric']} | 95 % | seconds | counted |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for arm in cell["arms"]:
        low, high = arm["ci95"]
        counted = ", ".join(f"{n} {what}" for what, n in arm["counts"].items() if n)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append(f"| {arm['name']} | {100 * arm['score']:.1f} | {interval} | {arm['seconds']:.0f} | {counted} |")
    return [*lines, "", f"Run with {cell['overrides']}.\n"]


def main() -> None:
    cells = {cell["recipe"]: cell for cell in json.loads(CELLS.read_text(encoding="utf-8"))} if CELLS.exists() else {}
    for run in sorted(Path(sys.argv[1]).iterdir()) if len(sys.argv) > 1 else ():
        if (run / "evidence.json").exists():
            evidence = read_json(run / "evidence.json")
            task = read_json(run / "run.json")["recipe"]["task"]
            whole = task.get("split", {})
            rows = ", ".join(f"{part} {whole[part]}" for part in ("train", "dev", "test") if whole.get(part))
            arms = ", ".join(arm["name"] for arm in evidence["arms"])
            overrides = f"`split`: {rows or 'the official one'}; arms {arms}"
            cells[run.name] = cell_of(run.name, evidence, overrides)
    write_json(CELLS, list(cells.values()))
    write_text(PAGE, page_of(list(cells.values())))
    print(PAGE)


if __name__ == "__main__":
    main()
