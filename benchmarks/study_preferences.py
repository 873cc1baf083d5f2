"""Write docs/studies/preferences.md: `python -m benchmarks.study_preferences [RUN [MEDICAL]]`.

With the folder of a run of `recipes/preferences.yaml`, finished or not, its cells are first written to
docs/studies/preferences-cells.json, from which the page is made: reward models by set, and policies by judge; with that
of a run of `recipes/preferences-medical.yaml`, its own. What is missing was not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.studies import NOT_RUN, Measured, difference, drawing, intervals, share_of
from quilate.evaluation.alignment import parse_alignment
from quilate.evaluation.schema import Range
from quilate.files import read_json, read_jsonl, write_json, write_text
from quilate.phases.align.patterns import extracted
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.manifest import read_manifest

PAGE = ROOT / "docs" / "studies" / "preferences.md"
CELLS, FIGURE = PAGE.with_name("preferences-cells.json"), PAGE.with_name("preferences.svg")

JUDGES = {"judge": "helpful", "judge-oasst": "oasst"}  # stage -> what it is trained on
SETS = {"helpful": "HH-RLHF, helpful-base", "oasst": "OASST1", "online": "HH-RLHF, helpful-online"}
ANSWER = r"Respuesta: (\d)"  # as the medical recipe asks for it
TRAINED = ("dpo", "grpo", "ppo")  # the kinds of stage that make policies
POLICIES = ("start", "dpo", "dpo-bold", "grpo", "ppo", "ppo-ptx")

Cell = Mapping[str, Any]


def cells_of_run(run: Path) -> list[dict[str, Any]]:
    """Finished reward models with what they measured on every set, and finished assays of policies."""
    cells: list[dict[str, Any]] = []
    for name, stage in run_plan(run)["stages"].items():
        compared = run / stage["folder"] / "alignment.json"
        if stage["kind"] == "alignment" and compared.exists():
            found = parse_alignment(read_json(compared))
            cells += [
                {"stage": policy.name, "seed": 0, "kind": "compared", "rewards": _ranges(policy.rewards),
                 "win_rates": _ranges(policy.win_rates)}
                for policy in found.policies
            ]  # fmt: skip
        measures = stage["kind"] in ("reward", "assay", *TRAINED)
        manifest = read_manifest(run / stage["folder"]) if measures else None
        if manifest is None:
            continue
        model, _, seed = name.removesuffix("-assay").rpartition("-s")
        facts = manifest["facts"]
        cell = {"stage": model, "seed": int(seed), "kind": stage["kind"],
                "seconds": round(manifest["cost"]["seconds"], 1),
                "load_average": float(manifest["measured"]["load_average"])}  # fmt: skip
        if stage["kind"] in TRAINED:
            cell |= {"kind": "trained", "steps": facts["steps"]}
            cell |= {key: facts[key] for key in ("train_rows", "train_prompts", "completions") if key in facts}
        elif stage["kind"] == "reward":
            cell |= {"train_pairs": facts["train_pairs"], "sets": facts["held_out"]}
        else:
            cell |= {key: facts[key] for key in ("prompts", "judges", "kl", "ended", "tokens", "text")}
        cells.append(cell)
    return cells


def medical_cells(run: Path) -> list[dict[str, Any]]:
    """Of the medical recipe: how the pairs came about, its reward model, and which exam cases each policy got right,
    by the answers that stand in what it wrote."""
    stages = {name: run / stage["folder"] for name, stage in run_plan(run)["stages"].items()}
    exam = read_jsonl(stages["conversations-exam"] / "held_out.jsonl")
    said = extracted(ANSWER, [row["messages"][-1]["content"] for row in exam])
    gold = {f"exam:{row['id']}": answer for row, answer in zip(exam, said, strict=True)}
    cells: list[dict[str, Any]] = []
    for name, folder in stages.items():
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        facts = manifest["facts"]
        if manifest["kind"] == "derive":
            keys = ("questions", "completions", "reached", "train_pairs", "held_out_pairs")
            cells.append({"kind": "derived", "stage": "pairs"} | {key: facts[key] for key in keys})
        elif manifest["kind"] == "reward":
            cells.append({"kind": "medical judge", "stage": "judge"} | facts["held_out"]["pairs"])
        elif manifest["kind"] == "assay":
            rows = [row for row in read_jsonl(folder / "completions.jsonl") if row["id"] in gold]
            reached = extracted(ANSWER, [row["completion"] for row in rows])
            cells.append(
                {
                    "kind": "medical", "stage": name.removesuffix("-assay").rpartition("-s")[0],
                    "right": {
                        row["id"]: int(answer == gold[row["id"]]) for row, answer in zip(rows, reached, strict=True)
                    },
                    "none": sum(answer is None for answer in reached),
                    "ended": sum(row["ended"] for row in rows) / len(rows),
                    "judge": sum(row["scores"]["judge"] for row in rows) / len(rows), "kl": facts["kl"],
                    "bits": facts["text"]["general"]["bits"],
                }
            )  # fmt: skip
    return [cell | {"seed": 0} for cell in cells]


def _ranges(by_judge: Mapping[str, Range]) -> dict[str, dict[str, float | None]]:
    return {name: {"estimate": r.estimate, "low": r.low, "high": r.high} for name, r in by_judge.items()}


def page_of(cells: Sequence[Cell]) -> str:
    """The whole page."""
    found = {(cell["kind"], cell["stage"]): cell for cell in cells if cell["seed"] == 0}
    parts = [
        INTRODUCTION,
        f"![What the reward models and the policies reach]({FIGURE.name})\n",
        "## Reward models\n",
        *_judges(found),
        "\n## Policies\n",
        POLICY_WORDS,
        *_policies(found),
    ]
    if any(cell["kind"] == "medical" for cell in cells):
        parts += ["\n## The medical question\n", *_medical(found)]
    return "\n".join(parts) + "\n"


def _medical(found: Mapping[tuple[str, str], Cell]) -> list[str]:
    derived, judge = found["derived", "pairs"], found["medical judge", "judge"]
    reached = derived["reached"]
    lines = [
        MEDICAL_WORDS,
        f"Of {derived['completions']} completions of {derived['questions']} cases {reached['right']:.0%} reach the "
        f"right option, {reached['wrong']:.0%} another and {reached['none']:.0%} none, the rest did not end: "
        f"{derived['train_pairs']} pairs to train on, {derived['held_out_pairs']} held out. On those the reward model "
        f"is right in {_share(judge['accuracy'])}, and preferring the {judge['prefers']} one in "
        f"{_share(judge['length_only'])}: what it learned may be length alone.\n",
        "| model | exam cases right | no option named | ended | judge's mean score | KL from SFT | bits per byte, "
        "general |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ("sft", "dpo"):
        cell = found.get(("medical", name))
        if cell is None:
            lines.append(f"| {name} | {NOT_RUN} | | | | | |")
            continue
        share = share_of(cell)
        kl = "" if cell["kl"] is None else f"{cell['kl']:.2f}"
        lines.append(
            f"| {name} | {share.estimate:.1%} ({share.low:.1%} to {share.high:.1%}) of {len(cell['right'])} | "
            f"{cell['none']} | {cell['ended']:.0%} | {cell['judge']:.2f} | {kl} | {cell['bits']:.3f} |"
        )
    if ("medical", "dpo") in found:
        low, high, mean = difference(found["medical", "dpo"], found["medical", "sft"])
        verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
        points = f"{100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        lines.append(f"\ndpo less sft, on the same cases: {points}, {verdict}.")
    return lines


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
        "| policy | learned from | time | prompts | judge's mean score | beats `start` | KL from `start` | ended | "
        "tokens | bits per byte, Shakespeare |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in POLICIES:
        cell = found.get(("assay", name))
        if cell is None:
            rows.append(f"| {name} | {NOT_RUN} | | | | | | | | |")
            continue
        kl = "" if cell["kl"] is None else f"{cell['kl']:.2f}"
        compared = found.get(("compared", name), {"rewards": {}, "win_rates": {}})
        score = compared["rewards"].get("judge")
        wins = compared["win_rates"].get("judge")
        shown = f"{cell['judges']['judge']:.3f}" + (f" ({score['low']:.3f} to {score['high']:.3f})" if score else "")
        rows.append(
            f"| {name} | {_learned(found.get(('trained', name)))} | {cell['prompts']} | {shown} | "
            f"{_share(wins) if wins else ''} | {kl} | {cell['ended']:.0%} | {cell['tokens']:.0f} | "
            f"{cell['text']['english']['bits']:.3f} |"
        )
    return rows


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Reward models beside length, and the policies' wins over their start."""
    found = {(cell["kind"], cell["stage"]): cell for cell in cells if cell["seed"] == 0}
    judged = []
    for stage, trained_on in JUDGES.items():
        for name in ("helpful", "oasst"):
            report = found.get(("reward", stage), {"sets": {}})["sets"].get(name)
            title = f"{SETS[trained_on]},\non {SETS[name]}"
            judged.append(_measured(title, report and report["accuracy"]))
            if stage == list(JUDGES)[-1] or report is None:
                continue
            judged.append(_measured(f"length alone,\non {SETS[name]}", report["length_only"]))
    wins = [
        _measured(name, found.get(("compared", name), {"win_rates": {}})["win_rates"].get("judge"))
        for name in POLICIES
        if name != "start"
    ]
    with drawing(path, 1, 2, figsize=(9.6, 3.8)) as (_, (left, right)):
        intervals(left, judged, reference=50)
        intervals(right, wins, reference=50)
        left.set(xlabel="% of pairs right (95 %; dotted: a coin)", title="Reward models", xlim=(30, 90))
        right.set(xlabel="% of prompts won against `start`\n(95 %; dotted: no better)", title="Policies", xlim=(30, 90))


def _measured(name: str, share: Mapping[str, float] | None) -> Measured:
    if share is None:
        return Measured(name, None)
    return Measured(name, 100 * share["estimate"], 100 * share["low"], 100 * share["high"])


def _learned(cell: Cell | None) -> str:
    """What a policy was trained on, and for how long: two columns."""
    if cell is None:
        return " | "
    if "train_rows" in cell:
        what = f"{cell['train_rows']} pairs"
    else:
        what = f"{cell['completions']} completions of {cell['train_prompts']} prompts"
    return f"{what}, {cell['steps']} steps | {cell['seconds'] / 60:.1f} min"


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
the reward model of HH-RLHF, which also judges: that PPO wins by it shows that it learned what it was rewarded for, not
that people would like it better, and the reward model itself is not shown to be better than length (above). One
interval of five beside 50 % is little: PPO-ptx, the same with text beside it, is not clear of it. All of them learned
very little, from prompts of at most 160 tokens and completions of at most 48, three in four cut there. Scores and win
rates have 95 % intervals over prompts; a win rate whose interval holds 50 % is undecided.
"""


MEDICAL_WORDS = """`recipes/preferences-medical.yaml`, one seed: a model tuned for two passes on the doctors'
explanations of 313 CasiMedicos cases (SFT), then DPO on derived pairs: the doctor's explanation over what the model
wrote when it reached a wrong option. Asked are the 117 official test cases; the option that stands in what a model
wrote is held against the right one. (The run's own judge held it against the whole explanation, and found none right;
that is mended, and counted here from what was written.) Always naming the commonest option is right in 32 % of them,
chance in about a quarter.
"""


def main() -> None:
    if len(sys.argv) > 1:
        medical = medical_cells(Path(sys.argv[2])) if len(sys.argv) > 2 else []
        write_json(CELLS, cells_of_run(Path(sys.argv[1])) + medical)
    cells = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else []
    write_text(PAGE, page_of(cells))
    draw(cells, FIGURE)
    print(PAGE)


if __name__ == "__main__":
    main()
