"""Write docs/studies/preferences.md: `python -m benchmarks.study_preferences [RUN]`. What is missing was not run.

With the folder of a run of `recipes/preferences.yaml`, finished or not, its cells are first written to
docs/studies/preferences-cells.json, from which the page is made: reward models by set, and policies by judge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from quilate.files import write_json, write_text
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.manifest import read_manifest

PAGE = ROOT / "docs" / "studies" / "preferences.md"
CELLS = PAGE.with_name("preferences-cells.json")
NOT_RUN = "not run"

JUDGES = {"judge": "helpful", "judge-oasst": "oasst"}  # stage -> what it is trained on
SETS = {"helpful": "HH-RLHF, helpful-base", "oasst": "OASST1", "online": "HH-RLHF, helpful-online"}
POLICIES = ("start", "dpo", "dpo-bold", "grpo", "ppo", "ppo-ptx")

Cell = Mapping[str, Any]


def cells_of_run(run: Path) -> list[dict[str, Any]]:
    """Finished reward models with what they measured on every set, and finished assays of policies."""
    cells: list[dict[str, Any]] = []
    for name, stage in run_plan(run)["stages"].items():
        manifest = read_manifest(run / stage["folder"]) if stage["kind"] in ("reward", "assay") else None
        if manifest is None:
            continue
        model, _, seed = name.removesuffix("-assay").rpartition("-s")
        facts = manifest["facts"]
        cell = {"stage": model, "seed": int(seed), "kind": stage["kind"],
                "seconds": round(manifest["cost"]["seconds"], 1),
                "load_average": float(manifest["measured"]["load_average"])}  # fmt: skip
        if stage["kind"] == "reward":
            cell |= {"train_pairs": facts["train_pairs"], "sets": facts["held_out"]}
        else:
            cell |= {key: facts[key] for key in ("prompts", "judges", "kl", "ended", "tokens", "text")}
        cells.append(cell)
    return cells


def page_of(cells: Sequence[Cell]) -> str:
    """The whole page."""
    found = {(cell["kind"], cell["stage"]): cell for cell in cells if cell["seed"] == 0}
    parts = [INTRODUCTION, "## Reward models\n", *_judges(found), "\n## Policies\n", POLICY_WORDS, *_policies(found)]
    return "\n".join(parts) + "\n"


def _judges(found: Mapping[tuple[str, str], Cell]) -> list[str]:
    rows = [
        "| trained on | pairs | asked | pairs (prompts) | accuracy | by length alone | difference | time |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage, trained_on in JUDGES.items():
        cell = found.get(("reward", stage))
        for name, title in SETS.items():
            report = None if cell is None else cell["sets"].get(name)
            if cell is None or report is None:
                rows.append(f"| {SETS[trained_on]} | | {title} | | {NOT_RUN} | | | |")
                continue
            rows.append(
                f"| {SETS[trained_on]} | {cell['train_pairs']} | {title} | {report['pairs']} ({report['groups']}) | "
                f"{_share(report['accuracy'])} | {_share(report['length_only'])} | {_points(report['difference'])} | "
                f"{cell['seconds'] / 60:.1f} min |"
            )
    return rows


def _policies(found: Mapping[tuple[str, str], Cell]) -> list[str]:
    rows = [
        "| policy | prompts | judge's mean score | KL from `start` | ended | tokens | bits per byte, Shakespeare |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in POLICIES:
        cell = found.get(("assay", name))
        if cell is None:
            rows.append(f"| {name} | | {NOT_RUN} | | | | |")
            continue
        kl = "" if cell["kl"] is None else f"{cell['kl']:.2f}"
        rows.append(
            f"| {name} | {cell['prompts']} | {cell['judges']['judge']:.3f} | {kl} | {cell['ended']:.0%} | "
            f"{cell['tokens']:.0f} | {cell['text']['english']['bits']:.3f} |"
        )
    return rows


def _share(numbers: Mapping[str, float]) -> str:
    return f"{numbers['estimate']:.1%} ({numbers['low']:.1%} to {numbers['high']:.1%})"


def _points(numbers: Mapping[str, float]) -> str:
    low, high = 100 * numbers["low"], 100 * numbers["high"]
    verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return f"{100 * numbers['estimate']:+.1f} points ({low:+.1f} to {high:+.1f}), {verdict}"


INTRODUCTION = """# Human preferences: is there anything to learn from some hundred judgements?

Written by `python -m benchmarks.study_preferences` from `docs/studies/preferences-cells.json`; what is asked stands in
`recipes/preferences.yaml`, written before the first run. Reward models are SmolLM2-135M-Instruct after one epoch of SFT
on OASST1, with LoRA and one linear map, trained for one epoch on all pairs of each prompt. HH-RLHF and OASST1 are split
by prompt, prompts that open nearly alike together; what is asked is held out. "By length alone" prefers the longer or
the shorter answer, whichever was preferred more often in the training pairs; a coin is right in 50 %. People agree with
one another in 72 to 77 % (Ouyang et al. 2022). One seed: the intervals (95 %) are over prompts alone.
"""

POLICY_WORDS = """From one SFT start, against no alignment (`start`): DPO on pairs, and GRPO, PPO and PPO-ptx against
the reward model of HH-RLHF, which also judges.
"""


def main() -> None:
    if len(sys.argv) > 1:
        write_json(CELLS, cells_of_run(Path(sys.argv[1])))
    cells = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else []
    write_text(PAGE, page_of(cells))
    print(PAGE)


if __name__ == "__main__":
    main()
