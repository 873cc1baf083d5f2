"""LoRA of rank 16 on every linear layer: quilate against TRL's SFTTrainer. `python -m benchmarks.lora`

SmolLM2-135M-Instruct, rows of 4 x 512 tokens. TRL runs in fp32, with autocast to bf16, and with bf16 weights (its
adapter is then kept in fp32 by peft, its default; quilate's is bf16 with an fp32 master), each as its users run it and
under the same preloaded allocator. All are measured once; the fastest of either kind goes on to the other rounds.
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
from benchmarks.trainers import LORA
from benchmarks.workloads import REAL_MODEL, benchmark_model, documents_of, text_rows
from quilate.models.load import load_tokenizer

WARMUP = 1


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--steps", type=int, default=2, help="steps that are timed in each round (2), after one more")
    flags.add_argument("--tokens", type=int, default=512, help="tokens of a row (512)")
    arguments = flags.parse_args()
    rounds, length = (1, 32) if arguments.quick else (arguments.rounds, arguments.tokens)
    with tempfile.TemporaryDirectory() as folder:
        model = benchmark_model(arguments.model, Path(folder), quick=arguments.quick)
        steps = text_rows(
            load_tokenizer(model), documents_of(None), steps=WARMUP + arguments.steps, rows=4, length=length
        )
        case = {"name": f"4 x {length}", "model": str(model), "warmup": WARMUP, "steps": steps}
        peers = peer_sides("TRL", "benchmarks.trainers:trl", {"lora": True, "padding_free": False})
        measured, peaks = contest([quilate_side(lora=True), *peers], [case], rounds=rounds, quick=arguments.quick)
        checks = checked_trajectory(measured, [case], lora=True) + checked_losses(measured)
    result = Result(
        "lora", TOKENS_A_SECOND, headline(measured, TOKENS_A_SECOND, case["name"]), summarize(measured),
        compare(measured, TOKENS_A_SECOND), checks, machine(peaks), {"adapter": LORA}, command_line(),
    )  # fmt: skip
    finish(result, arguments)


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
