"""Training with quilate, TRL and the Trainer of transformers, on the same weights, tokens and hyper-parameters.

Each function runs in a process of its own (see `benchmarks.harness`) and trains once for every case. A case has `name`,
`model` (a directory), `steps` (documents of tokens for every optimizer step) and `warmup` (steps that are not counted).
All clip the gradient at 1, decay the rate linearly, use AdamW without weight decay and no gradient checkpointing, and
log every step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Steps, tokens_in

LEARNING_RATE = 2e-5  # TRL's default; LoRA too, for the work is the same at any rate
CLIP_NORM = 1.0
LORA = {"rank": 16, "alpha": 32}


class FixedBatches:
    """Batches of quilate's loop from given documents; packed at every visit, as the phases do it."""

    fingerprint = "fixed"

    def __init__(self, steps: Steps, micro_batch_tokens: int) -> None:
        self.steps, self.micro_batch_tokens = steps, micro_batch_tokens

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Sequence[Any]:
        from quilate.data.packing import Example, pack, split_by_tokens

        examples = [
            Example(f"{step}:{n}", np.array(tokens, dtype=np.int64), np.ones(len(tokens), dtype=bool))
            for n, tokens in enumerate(self.steps[step])
        ]
        return [pack(part) for part in split_by_tokens(examples, self.micro_batch_tokens)]


def quilate(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings: `precision` ("auto", "bf16", "fp32"), `lora` (whether an adapter is trained instead of all weights)."""
    return {case["name"]: _train_quilate(case, settings) for case in settings["cases"]}


def _train_quilate(case: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What a stage that fine-tunes does between reading its items and saving its model."""
    from quilate.engine.interrupts import StopRequest
    from quilate.engine.runlog import read_metrics
    from quilate.models.load import load_causal
    from quilate.models.precision import compute_dtype
    from quilate.models.tuning.lora import LoraConfig, add_lora
    from quilate.phases.example_training import ExampleTraining, train_on_examples
    from quilate.phases.stage import StageContext
    from quilate.rng import Streams

    streams = Streams(0)
    config = ExampleTraining(
        warmup=0.0, decay="linear", weight_decay=0.0, clip_norm=CLIP_NORM, precision=settings["precision"]
    )
    model = load_causal(Path(case["model"]), dtype=compute_dtype(config.precision))
    if settings["lora"]:
        model = add_lora(model, LoraConfig(**LORA), base=Path(case["model"]))
    batches: Any = FixedBatches(case["steps"], config.micro_batch_tokens)
    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(
            config=config, inputs={}, folder=Path(folder), seed=0, base_folder=Path(folder),
            listener=lambda _: ticks.append(time.perf_counter()), note=print, stop=StopRequest(),
        )  # fmt: skip
        ticks = [time.perf_counter()]
        train_on_examples(context, model, batches, streams, rate=LEARNING_RATE)
        losses = [row["loss"] for row in read_metrics(Path(folder) / "metrics.jsonl")]
    return _measurement(case, ticks, losses)


def trl(settings: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer. Settings: `weights` ("float32", "bfloat16"), `autocast`, `lora`, and `padding_free`: documents in one
    row under a dense mask of blocks, instead of one row each."""
    return {case["name"]: _train_trl(case, settings) for case in settings["cases"]}


def _train_trl(case: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    model, tokenizer = _model_of(case, settings)
    adapter = LoraConfig(
        r=LORA["rank"], lora_alpha=LORA["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as folder:
        padding_free = settings["padding_free"]
        lengths = {"padding_free": True, "max_length": None} if padding_free else {"max_length": 1 << 20}
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**_arguments(case, settings, folder), **lengths),
            train_dataset=Dataset.from_dict({"input_ids": [tokens for step in case["steps"] for tokens in step]}),
            processing_class=tokenizer,
            peft_config=adapter if settings["lora"] else None,
        )
        return _run(trainer, case)


def transformers_trainer(settings: dict[str, Any]) -> dict[str, Any]:
    """Trainer of transformers, for documents of equal lengths. Settings: `weights`, `autocast`."""
    return {case["name"]: _train_transformers(case, settings) for case in settings["cases"]}


def _train_transformers(case: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments, default_data_collator

    model, _ = _model_of(case, settings)
    rows = [{"input_ids": tokens, "labels": tokens} for step in case["steps"] for tokens in step]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**_arguments(case, settings, folder)),
            train_dataset=rows,  # type: ignore[arg-type]  # any sequence serves
            data_collator=default_data_collator,
        )
        return _run(trainer, case)


def _model_of(case: dict[str, Any], settings: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=getattr(torch, settings["weights"]))
    return model, AutoTokenizer.from_pretrained(case["model"])


def _arguments(case: dict[str, Any], settings: dict[str, Any], folder: str) -> dict[str, Any]:
    import torch

    (documents,) = {len(step) for step in case["steps"]}  # a Trainer has one batch size
    return {
        "output_dir": folder,
        "per_device_train_batch_size": documents,
        "max_steps": len(case["steps"]),
        "train_sampling_strategy": "sequential",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "max_grad_norm": CLIP_NORM,
        "bf16": settings["autocast"],
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _run(trainer: Any, case: dict[str, Any]) -> dict[str, Any]:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks.append(time.perf_counter())

    trainer.add_callback(Clock())
    ticks = [time.perf_counter()]
    trainer.train()
    return _measurement(case, ticks, [row["loss"] for row in trainer.state.log_history if "loss" in row])


def _measurement(case: dict[str, Any], ticks: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """Tokens a second of every step after the first ones, from one step's end to the next: loading counts too."""
    tokens = [tokens_in(step) for step in case["steps"]]
    assert len(ticks) == len(tokens) + 1 == len(losses) + 1, (len(ticks), len(tokens), len(losses))
    seconds = [later - earlier for earlier, later in pairwise(ticks)]
    return {
        "values": [n / s for n, s in zip(tokens, seconds, strict=True)][case["warmup"] :],
        "facts": {
            "losses": list(losses),
            "first loss": losses[0],
            "first step seconds": round(seconds[0], 2),
            "peak memory MB": peak_memory(),
        },
    }


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB (10^6 bytes); 0 where /proc does not say.

    Not `ru_maxrss`: a process inherits that of the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6
