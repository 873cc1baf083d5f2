"""Peak memory of learning from rewards against LoRA SFT of the same model. `python -m benchmarks.alignment_memory`

SmolLM2-135M-Instruct, an adapter of rank 16 on every linear layer, steps of 32 prompts of 64 tokens with 64 tokens to
learn: 4,096 tokens, and as many in memory at once (`--step` makes fewer). PPO has policy, reference, value and reward
model on one base, and writes its completions itself; GRPO has no value model and writes 8 completions a prompt, judged
by rules. Each is a stage of a recipe, run by `quilate run` in a process of its own; what is shown is the largest
resident size of that process, imports, writing, measuring and saving included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    ROOT,
    Disagreement,
    Measurement,
    Quantity,
    Result,
    Side,
    command_line,
    compare,
    finish,
    machine,
    note,
    parser,
    summarize,
)
from benchmarks.workloads import REAL_MODEL, benchmark_model, texts
from quilate.files import make_folder, write_json, write_jsonl, write_text
from quilate.models.load import load_tokenizer
from quilate.recipe.evidence_stage import run_plan
from quilate.recipe.manifest import finished_manifest

PEAK_MEMORY = Quantity("peak memory of a stage", "MB", "lower")
MOST = 1.5  # times LoRA SFT, for PPO with its four models

SFT, GRPO, PPO = "LoRA SFT", "GRPO", "PPO"
SIDES = {"sft": Side(SFT, ""), "grpo": Side(GRPO, ""), "ppo": Side(PPO, "", ours=True)}


def recipe(model: Path, tokens: int, prompts: int) -> dict[str, Any]:
    """The stages, as a user writes them.

    Args:
        tokens: of a prompt, and of a completion; prompts: of a step.
    """
    step = {"length": max(64, 4 * tokens), "batch_size": prompts, "epochs": 2, "lora": {"rank": 16, "alpha": 32}}
    online = {
        "preferences": ["judged"], "batch_size": prompts, "epochs": 0.95, "max_new_tokens": tokens, "missing_end": None,
        "lora": step["lora"],
    }  # fmt: skip
    by_model, by_rules = {"judge": {"kind": "stage", "on": "judge"}}, {"rules": {"kind": "rules", "path": "rules.yaml"}}
    groups = {"prompts_per_iteration": prompts // 8, "completions_per_prompt": 8, "epochs": 0.25}
    return {
        "recipe": "memory",
        "base": str(model),
        "conversations": {"talk": {"path": "talk.jsonl", "held_out": 0.05, "max_held_out": 4}},
        "preferences": {"judged": {"path": "judged.jsonl", "held_out": 0.05, "max_held_out": 4}},
        "stages": {
            "sft": {"kind": "sft", "conversations": ["talk"]} | step,
            "judge": {"kind": "reward", "preferences": ["judged"], "batch_size": 8} | {"length": step["length"]},
            "grpo": {"kind": "grpo", "rewards": by_rules} | online | groups,
            "ppo": {"kind": "ppo", "rewards": by_model, "prompts_per_iteration": prompts, "passes": 2} | online,
        },
        "seeds": [0],
    }


def prepare(model: Path, folder: Path, tokens: int, prompts: int) -> None:
    """Write the recipe and its files: prompts, and texts to learn, for one step and a little."""
    tokenizer = load_tokenizer(model)
    long = (text for text in texts(9, words=2 * tokens) if len(text.split()) > tokens)
    pieces = [
        str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids[:tokens]))
        for text in islice(long, 3 * (prompts + 4))
    ]
    rows = list(zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True))
    write_jsonl(folder / "talk.jsonl", [{"prompt": p, "completion": a} for p, a, _ in rows])
    write_jsonl(folder / "judged.jsonl", [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in rows])
    write_text(folder / "rules.yaml", "rules:\n  - {name: vocal, pattern: '[aeiou]{2}', score: 1.0}\n")
    write_json(folder / "recipe.yaml", recipe(model, tokens, prompts))  # JSON is YAML


def run(folder: Path, case: str) -> list[Measurement]:
    """Run the recipe; the peak of each stage, and what it trained on."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))}
    command = [sys.executable, "-m", "quilate", "run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-20:]))
    stages = run_plan(folder / "run")["stages"]
    measured = []
    for stage, side in SIDES.items():
        manifest = finished_manifest(folder / "run" / stages[f"{stage}-s0"]["folder"])
        cost, facts = manifest["cost"], manifest["facts"]
        note(f"{side.name}: {cost['seconds']:.0f} s")
        seen = {
            "tokens": cost["train_tokens"],
            "steps": facts["steps"],
            "on one base": facts.get("rewards_on_the_policys_base"),
        }
        measured.append(Measurement(side, case, 0, [cost["peak_memory_bytes"] / 1e6], seen))
    return measured


def check(measured: list[Measurement]) -> list[str]:
    """That PPO's reward model stood on the policy's base.

    Raises:
        Disagreement: it was a second model, or nothing was trained.
    """
    by_name = {m.side.name: m for m in measured}
    if by_name[PPO].facts["on one base"] != ["judge"] or any(m.facts["steps"] < 1 for m in measured):
        raise Disagreement(f"PPO's models are not on one base: {[m.facts for m in measured]}")
    ratio = by_name[PPO].values[0] / by_name[SFT].values[0]
    verdict = "within" if ratio <= MOST else "above"
    steps = ", ".join(f"{m.side.name} {m.facts['steps']}" for m in measured)
    return [f"PPO's four models stand on one base, and it took {ratio:.2f} times the memory of LoRA SFT, {verdict} the "
            f"{MOST} that are allowed", f"optimizer steps: {steps}"]  # fmt: skip


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--step", type=int, default=32, help="prompts a step, a multiple of 8 (32)")
    flags.add_argument("--folder", type=Path, help="keep the run here; one that was interrupted goes on")
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = make_folder(arguments.folder or Path(name)).resolve()
        model = benchmark_model(arguments.model, folder, quick=arguments.quick)
        tokens = 8 if arguments.quick else 64
        prepare(model, folder, tokens, arguments.step)
        measured = run(folder, f"{arguments.step} x ({tokens} + {tokens}) tokens a step")
    ratios = compare(measured, PEAK_MEMORY)
    against_sft = next(ratio for ratio in ratios if ratio.against == SFT)
    result = Result(
        "alignment_memory", PEAK_MEMORY, against_sft, summarize(measured), ratios, check(measured), machine([]), {},
        command_line(),
    )  # fmt: skip
    finish(result, arguments)


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
