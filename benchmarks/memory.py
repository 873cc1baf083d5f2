"""Peak memory of training: quilate against TRL's SFTTrainer. `python -m benchmarks.memory`

The largest resident size of a process that loads SmolLM2-135M-Instruct and trains all its weights on rows of 4 x 512
tokens, from its first import to its last step. TRL runs in fp32, with autocast to bf16, and with bf16 weights (whose
optimizer state is then bf16 too: less memory than quilate's fp32 master and moments, and less exact). Each as its users
run it; TRL under the preloaded allocator is a row more, for an allocator that keeps its pages also needs more of them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.contest import checked_losses, headline, peer_sides, quilate_side
from benchmarks.harness import (
    Disagreement,
    Measurement,
    Quantity,
    Result,
    command_line,
    compare,
    finish,
    machine,
    parser,
    run_round,
    summarize,
)
from benchmarks.workloads import REAL_MODEL, benchmark_model, documents_of, text_rows
from quilate.models.load import load_tokenizer

PEAK_MEMORY = Quantity("peak memory of a training run", "MB", "lower")


def main() -> None:
    flags = parser(__doc__)
    flags.set_defaults(rounds=1)  # it hardly varies
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--steps", type=int, default=2, help="steps (2): from the second on there is optimizer state")
    flags.add_argument("--tokens", type=int, default=512, help="tokens of a row (512)")
    arguments = flags.parse_args()
    length = 32 if arguments.quick else arguments.tokens
    with tempfile.TemporaryDirectory() as folder:
        model = benchmark_model(arguments.model, Path(folder), quick=arguments.quick)
        steps = text_rows(load_tokenizer(model), documents_of(None), steps=arguments.steps, rows=4, length=length)
        case = {"name": f"4 x {length}", "model": str(model), "warmup": 0, "steps": steps}
        peers = peer_sides("TRL", "benchmarks.trainers:trl", {"lora": False, "padding_free": False})
        plain = [side for side in peers if not side.stage]
        preloaded = [side for side in peers if side.stage and side.settings["weights"] == "bfloat16"]
        sides = [quilate_side(), *plain, *preloaded]
        timed = [m for number in range(arguments.rounds) for m in run_round(number, sides, [case])]
    measured = [Measurement(m.side, m.case, m.round, [m.facts["peak memory MB"]], m.facts) for m in timed]
    result = Result(
        "memory", PEAK_MEMORY, headline(measured, PEAK_MEMORY, str(case["name"])), summarize(measured),
        compare(measured, PEAK_MEMORY), checked_losses(measured), machine([]), {}, command_line(),
    )  # fmt: skip
    finish(result, arguments)


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
