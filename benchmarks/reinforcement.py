"""Learning from rewards: quilate's GRPO against TRL's. `python -m benchmarks.reinforcement`

SmolLM2-135M-Instruct in bf16 with LoRA of rank 16 on every linear layer; an optimizer step is 64 completions of at
most 48 tokens, 8 for each of 8 prompts of 64 tokens, sampled at temperature 1, with a KL to the model before (beta
0.05). The reward is the share of vowels: it costs nothing. Writing, scoring and the update count; what comes before the
first step (loading, and quilate's measurement on held-out prompts) and the first step itself do not.

What is written is drawn at random on both sides, so it cannot be compared token by token; that the update of given
completions is the same is a test (`tests/objectives`). Checked is that both wrote about as many tokens.
"""

from __future__ import annotations

import sys
import tempfile
import time
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
from benchmarks.workloads import REAL_MODEL, benchmark_model, texts
from quilate.models.load import load_tokenizer

SAMPLES_A_SECOND = Quantity("speed of GRPO, writing and learning", "samples/s", "higher")
PROMPTS, SAMPLES, BETA, RANK = 8, 8, 0.05, 16  # the first two are the defaults of a `grpo` stage
LEARNING_RATE = 1e-5
HELD_OUT = 0.1
MOST_DIFFERENT = 0.1  # of the tokens written: beyond it one side has less to do (guess)


def vowels(_: list[str], completions: list[str]) -> list[float]:
    """The share of a completion's letters that are vowels."""
    return [sum(letter in "aeiouáéíóú" for letter in text.lower()) / max(1, len(text)) for text in completions]


def quilate(settings: dict[str, Any]) -> dict[str, Any]:
    """`quilate.align`, as a user calls it."""
    from quilate import align
    from quilate.engine.runlog import read_metrics

    (case,) = settings["cases"]
    with tempfile.TemporaryDirectory() as folder:
        align(
            settings["model"], reward=vowels, prompts=case["prompts"], method="grpo", out=folder, held_out=HELD_OUT,
            note=lambda _: None, format="text", batch_size=PROMPTS * SAMPLES, max_new_tokens=case["new"], beta=BETA,
            lora={"rank": RANK, "alpha": 2 * RANK}, lr=LEARNING_RATE,
        )  # fmt: skip
        ends = [row["seconds"] for row in read_metrics(Path(folder) / "policy" / "timing.jsonl")]
        written = [row["tokens"] for row in read_metrics(Path(folder) / "policy" / "rollouts.jsonl")]
    return {case["name"]: _measurement([b - a for a, b in pairwise(ends)], sum(written) / len(written))}


def trl(settings: dict[str, Any]) -> dict[str, Any]:
    """GRPOTrainer, with the generation of transformers."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    (case,) = settings["cases"]
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
            model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16),
            processing_class=load_tokenizer(Path(settings["model"])),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder, per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES, beta=BETA,
                max_completion_length=case["new"], max_steps=case["steps"], learning_rate=LEARNING_RATE,
                temperature=1.0, bf16=False, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False,
                report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
            ),
            train_dataset=Dataset.from_dict({"prompt": case["prompts"]}),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    return {case["name"]: _measurement([b - a for a, b in pairwise(ends)][1:], sum(written) / len(written))}


def _measurement(seconds: list[float], tokens: float) -> dict[str, Any]:
    facts = {"tokens a completion": round(tokens, 1), "seconds a step": round(sum(seconds) / len(seconds), 2)}
    return {"values": [PROMPTS * SAMPLES / each for each in seconds], "facts": facts}


def check_length(measured: list[Measurement]) -> str:
    """About as many tokens were written by all.

    Raises:
        Disagreement: one side wrote fewer.
    """
    lengths = {m.side.name: m.facts["tokens a completion"] for m in measured}
    if min(lengths.values()) < (1 - MOST_DIFFERENT) * max(lengths.values()):
        raise Disagreement(f"tokens a completion: {lengths}")
    return f"tokens a completion: {min(lengths.values())} to {max(lengths.values())}"


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--steps", type=int, default=3, help="steps, the first of which is not timed (3)")
    arguments = flags.parse_args()
    quick = arguments.quick
    rounds, steps, new = (1, 2, 4) if quick else (arguments.rounds, arguments.steps, 48)
    with tempfile.TemporaryDirectory() as folder:
        model = benchmark_model(arguments.model, Path(folder), quick=quick)
        prompts = _prompts(model, -(-PROMPTS * steps // (1 - HELD_OUT)), 8 if quick else 64)
        settings = {"model": str(model)}
        peer = "benchmarks.reinforcement:trl"
        sides = [
            Side("quilate", "benchmarks.reinforcement:quilate", settings, stage=True, ours=True),
            Side("TRL", peer, settings),
            Side("TRL, mimalloc", peer, settings, stage=True),
        ]
        name = f"{PROMPTS} x {SAMPLES} x {new}"
        peaks, measured = [], []
        for number in range(rounds):
            peaks.append(measured_peak(quick=quick))
            measured += run_round(number, sides, [{"name": name, "prompts": prompts, "new": new, "steps": steps}])
    ratios = compare(measured, SAMPLES_A_SECOND)
    best = best_of(measured, SAMPLES_A_SECOND, name)[0]
    result = Result(
        "reinforcement", SAMPLES_A_SECOND, next(r for r in ratios if r.against == best.name), summarize(measured),
        ratios, [check_length(measured)], machine(peaks), {"prompts": PROMPTS, "samples": SAMPLES, "new tokens": new},
        command_line(),
    )  # fmt: skip
    finish(result, arguments)


def _prompts(model: Path, count: float, tokens: int) -> list[str]:
    """Different texts of about so many tokens."""
    tokenizer = load_tokenizer(model)
    long = (text for text in texts(7, words=2 * tokens) if len(text.split()) > tokens)
    ids = [tokenizer(text, add_special_tokens=False).input_ids[:tokens] for text in islice(long, round(count))]
    return [str(tokenizer.decode(each)) for each in ids]


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
