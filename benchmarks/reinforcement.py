"""Learning from rewards: quilate's GRPO against TRL's. `python -m benchmarks.reinforcement`

SmolLM2-135M-Instruct with LoRA of rank 16 on every linear layer; an optimizer step is 16 completions of at most
48 tokens, 8 for each of 2 prompts of 64 tokens, sampled at temperature 1, with a KL to the model before (beta 0.05) and
the loss of DAPO, which is TRL's default and quilate's. The reward is the share of vowels: it costs nothing. Writing,
scoring and the update count; what comes before the first step (loading, and quilate's measurement on held-out prompts)
and the first step itself do not.

quilate runs as `quilate.align` does by default, in bf16 over an fp32 master of the adapter. TRL runs as its users get
it (the checkpoint's bf16 weights, autocast to bf16, gradient checkpointing), and without checkpointing in bf16 and in
fp32; in bf16 also under the allocator that quilate preloads for its stages. All are measured in the first round, the
fastest of either environment goes on to the others.

What is written is drawn at random on both sides, so it cannot be compared token by token; that the update of given
completions is the same is a test (`tests/equivalence/test_trl_objectives.py`). Checked is that all wrote about as many
tokens.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Disagreement,
    Measurement,
    Quantity,
    Result,
    Side,
    best_of,
    command_line,
    compare,
    finish,
    machine,
    measured_peak,
    parser,
    run_round,
    summarize,
)
from benchmarks.trainers import peak_memory
from benchmarks.workloads import REAL_MODEL, benchmark_model, texts
from quilate.models.load import load_tokenizer

SAMPLES_A_SECOND = Quantity("speed of GRPO, writing and learning", "samples/s", "higher")
SAMPLES, BETA, RANK = 8, 0.05, 16  # the first is the default of both
LEARNING_RATE = 1e-5
PEER = "benchmarks.reinforcement:trl"
PRELOADED = "bf16"  # the configuration that is measured in the environment of our stages too
CONFIGURATIONS = {
    "as it comes": {"weights": "bfloat16", "autocast": True, "checkpointing": True},
    "bf16": {"weights": "bfloat16", "autocast": False, "checkpointing": False},
    "fp32": {"weights": "float32", "autocast": False, "checkpointing": False},
}
HELD_OUT = 0.1
MOST_DIFFERENT = 0.1  # of the tokens written: beyond it one side has less to do (guess)


def vowels(_: list[str], completions: list[str]) -> list[float]:
    """The share of a completion's letters that are vowels."""
    return [sum(letter in "aeiouáéíóú" for letter in text.lower()) / max(1, len(text)) for text in completions]


def quilate(settings: dict[str, Any]) -> dict[str, Any]:
    """`quilate.align`, as a user calls it."""
    return {case["name"]: _quilate(case, settings) for case in settings["cases"]}


def _quilate(case: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from quilate import align
    from quilate.engine.runlog import read_metrics

    samples = case["groups"] * SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        align(
            settings["model"], reward=vowels, prompts=case["prompts"], method="grpo", out=folder, held_out=HELD_OUT,
            note=lambda _: None, format="text", prompts_per_iteration=case["groups"], completions_per_prompt=SAMPLES,
            batch_size=samples, max_new_tokens=case["new"], beta=BETA, lora={"rank": RANK, "alpha": 2 * RANK},
            lr=LEARNING_RATE, missing_end=None,
        )  # fmt: skip
        ends = [row["seconds"] for row in read_metrics(Path(folder) / "policy" / "timing.jsonl")]
        written = [row["tokens"] for row in read_metrics(Path(folder) / "policy" / "rollouts.jsonl")]
    return _measurement(samples, [b - a for a, b in pairwise(ends)][: case["steps"] - 1], sum(written) / len(written))


def trl(settings: dict[str, Any]) -> dict[str, Any]:
    """GRPOTrainer, with the generation of transformers. Settings: `weights` ("float32", "bfloat16"), `autocast` and
    `checkpointing`."""
    return {case["name"]: _trl(case, settings) for case in settings["cases"]}


def _trl(case: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    samples = case["groups"] * SAMPLES
    ends = [time.perf_counter()]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    written: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        written.extend(map(len, completion_ids))
        return vowels([], completions)

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["weights"])),
            processing_class=load_tokenizer(Path(settings["model"])),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder, per_device_train_batch_size=samples, num_generations=SAMPLES, beta=BETA,
                max_completion_length=case["new"], max_steps=case["steps"], learning_rate=LEARNING_RATE,
                temperature=1.0, bf16=settings["autocast"], use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=settings["checkpointing"], report_to=[], save_strategy="no", disable_tqdm=True,
                logging_steps=1,
            ),
            train_dataset=Dataset.from_dict({"prompt": case["prompts"]}),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    return _measurement(samples, [b - a for a, b in pairwise(ends)][1:], sum(written) / len(written))


def _measurement(samples: int, seconds: list[float], tokens: float) -> dict[str, Any]:
    facts = {
        "tokens a completion": round(tokens, 1),
        "seconds a step": round(sum(seconds) / len(seconds), 2),
        "peak memory MB": peak_memory(),
    }
    return {"values": [samples / each for each in seconds], "facts": facts}


def check_length(measured: Sequence[Measurement]) -> str:
    """About as many tokens were written by all.

    Raises:
        Disagreement: one side wrote fewer.
    """
    lengths = {f"{m.case}, {m.side.name}": m.facts["tokens a completion"] for m in measured}
    if min(lengths.values()) < (1 - MOST_DIFFERENT) * max(lengths.values()):
        raise Disagreement(f"tokens a completion: {lengths}")
    return f"tokens a completion: {min(lengths.values())} to {max(lengths.values())}"


def sides_on(model: Path, peers: Sequence[str]) -> list[Side]:
    """Ours, and TRL in three configurations as its users run it; the one without needless work also in the environment
    of our stages."""
    sides = [Side("quilate", "benchmarks.reinforcement:quilate", {"model": str(model)}, stage=True, ours=True)]
    for name in peers:
        for stage in (False, True) if name == PRELOADED else (False,):
            settings = {"model": str(model)} | CONFIGURATIONS[name]
            sides.append(Side(f"TRL, {name}{', mimalloc' if stage else ''}", PEER, settings, stage=stage))
    return sides


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--steps", type=int, default=3, help="steps, the first of which is not timed (3)")
    flags.add_argument(
        "--peers",
        nargs="+",
        choices=list(CONFIGURATIONS),
        default=list(CONFIGURATIONS),
        help="TRL's configurations (all)",
    )
    flags.add_argument("--groups", nargs="+", type=int, default=[2], help="prompts a step, of 8 completions each (2)")
    arguments = flags.parse_args()
    quick = arguments.quick
    rounds, steps, new = (1, 2, 4) if quick else (arguments.rounds, arguments.steps, 48)
    with tempfile.TemporaryDirectory() as folder:
        model = benchmark_model(arguments.model, Path(folder), quick=quick)
        cases = [_case(model, groups, steps, new, 8 if quick else 64) for groups in arguments.groups]
        running, peaks, measured = sides_on(model, arguments.peers), [], []
        for number in range(rounds):
            peaks.append(measured_peak(quick=quick))
            measured += run_round(number, running, cases)
            best = [side for case in cases for side in best_of(measured, SAMPLES_A_SECOND, case["name"])]
            running = [side for side in running if side.ours or side in best]
    ratios, first = compare(measured, SAMPLES_A_SECOND), cases[0]["name"]
    best_peer = best_of(measured, SAMPLES_A_SECOND, first)[0].name
    result = Result(
        "reinforcement", SAMPLES_A_SECOND, next(r for r in ratios if (r.case, r.against) == (first, best_peer)),
        summarize(measured), ratios, [check_length(measured)], machine(peaks),
        {"completions a prompt": SAMPLES, "new tokens": new, "adapter rank": RANK, "beta": BETA}, command_line(),
    )  # fmt: skip
    finish(result, arguments)


def _case(model: Path, groups: int, steps: int, new: int, length: int) -> dict[str, Any]:
    prompts = _prompts(model, math.ceil(groups * steps / (1 - HELD_OUT)) + 1, length)
    name = f"{groups} x {SAMPLES} completions of {new} tokens"
    return {"name": name, "groups": groups, "prompts": prompts, "new": new, "steps": steps}


def _prompts(model: Path, count: int, tokens: int) -> list[str]:
    """Different texts of about so many tokens."""
    tokenizer = load_tokenizer(model)
    long = (text for text in texts(7, words=2 * tokens) if len(text.split()) > tokens)
    ids = [tokenizer(text, add_special_tokens=False).input_ids[:tokens] for text in islice(long, count)]
    return [str(tokenizer.decode(each)) for each in ids]


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
