"""Pretraining small models: quilate against the Trainer of transformers. `python -m benchmarks.small_models`

Llama shapes of 3M, 11M and 30M parameters with random weights, rows of 8 x 256 tokens. The Trainer runs in fp32, with
autocast to bf16, and with bf16 weights, each as its users run it and under the same preloaded allocator as quilate. All
are measured once; the fastest of either kind at some size goes on to the other rounds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.contest import (
    TOKENS_A_SECOND,
    checked_losses,
    checked_trajectory,
    contest,
    headline,
    peer_sides,
    quilate_side,
)
from benchmarks.harness import Disagreement, Result, command_line, compare, finish, machine, parser, summarize
from benchmarks.workloads import equal_rows, new_model
from quilate.models.create import Size

WARMUP = 2
VOCABULARY = 8192  # quilate's default for a tokenizer of one's own


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--sizes", nargs="+", default=["3M", "11M", "30M"])
    flags.add_argument("--steps", type=int, default=6, help="steps that are timed in each round (6), after two more")
    arguments = flags.parse_args()
    sizes: list[Size] = ["tiny"] if arguments.quick else arguments.sizes
    rounds, length = (1, 32) if arguments.quick else (arguments.rounds, 256)
    with tempfile.TemporaryDirectory() as folder:
        steps = equal_rows(VOCABULARY, steps=WARMUP + arguments.steps, rows=8, length=length)
        models = {size: new_model(Path(folder) / size, size, vocabulary=VOCABULARY, context=length) for size in sizes}
        cases = [
            {"name": f"{size}, 8 x {length}", "model": str(model), "warmup": WARMUP, "steps": steps}
            for size, model in models.items()
        ]
        peers = peer_sides("Trainer", "benchmarks.trainers:transformers_trainer", {})
        measured, peaks = contest([quilate_side(), *peers], cases, rounds=rounds, quick=arguments.quick)
        checks = checked_trajectory(measured, cases, lora=False) + checked_losses(measured)
    middle = cases[len(cases) // 2]["name"]
    result = Result(
        "small_models", TOKENS_A_SECOND, headline(measured, TOKENS_A_SECOND, str(middle)), summarize(measured),
        compare(measured, TOKENS_A_SECOND), checks, machine(peaks), {}, command_line(),
    )  # fmt: skip
    finish(result, arguments)


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
