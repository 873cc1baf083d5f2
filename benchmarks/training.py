"""Full fine-tuning: quilate against TRL's SFTTrainer. `python -m benchmarks.training [--corpus FILE]`

SmolLM2-135M-Instruct, two workloads: `4 x 512`, rows of one length, where nothing can be won by packing; and
`documents`, eight real documents a step, of all lengths up to 512 tokens (generated ones without --corpus). TRL runs in
fp32, with autocast to bf16, and with bf16 weights, each as its users run it and under the same preloaded allocator as
quilate. All are measured once; the fastest of either kind goes on to the other rounds. On documents these are tried
with padding and without (one row under a dense mask). Tokens are counted without padding.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.contest import (
    TOKENS_A_SECOND,
    checked_losses,
    checked_trajectory,
    contest,
    headline,
    peer_sides,
    quilate_side,
    share_of_peak,
)
from benchmarks.harness import (
    Disagreement,
    Measurement,
    Result,
    Side,
    best_of,
    command_line,
    compare,
    finish,
    machine,
    parser,
    summarize,
)
from benchmarks.workloads import REAL_MODEL, benchmark_model, documents_of, real_documents, text_rows, tokens_in
from quilate.models.load import load_causal, load_tokenizer
from quilate.models.precision import compute_dtype

WARMUP = 1


def padding_free(side: Side) -> Side:
    return replace(side, name=f"{side.name}, padding-free", settings=side.settings | {"padding_free": True})


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--corpus", type=Path, help="text or table with the column `text`, for real documents")
    flags.add_argument("--steps", type=int, default=2, help="steps that are timed in each round (2), after one more")
    flags.add_argument("--tokens", type=int, default=512, help="tokens of a row; the most of a document (512)")
    arguments = flags.parse_args()
    quick = arguments.quick
    rounds, length = (1, 32) if quick else (arguments.rounds, arguments.tokens)
    steps = WARMUP + arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        model = benchmark_model(arguments.model, Path(folder), quick=quick)
        tokenizer = load_tokenizer(model)
        shared = {"model": str(model), "warmup": WARMUP}
        rows = text_rows(tokenizer, documents_of(arguments.corpus), steps=steps, rows=4, length=length)
        documents = real_documents(
            tokenizer, documents_of(arguments.corpus), steps=steps, documents=8, length=length
        )  # fmt: skip
        ours = quilate_side()
        peers = peer_sides("TRL", "benchmarks.trainers:trl", {"lora": False, "padding_free": False})
        equal_case, documents_case = f"4 x {length}", "documents"
        equal = [shared | {"name": equal_case, "steps": rows}]
        measured, peaks = contest([ours, *peers], equal, rounds=rounds, quick=quick)
        checks = checked_trajectory(measured, equal, lora=False)
        best = best_of(measured, TOKENS_A_SECOND, equal_case)
        on_documents, more_peaks = contest(
            [ours, *best, *map(padding_free, best)], [shared | {"name": documents_case, "steps": documents}],
            rounds=max(1, rounds - 1), quick=quick,
        )  # fmt: skip
        parameters = sum(p.numel() for p in load_causal(model, dtype=compute_dtype("auto")).parameters())
    measured += on_documents
    peaks += more_peaks
    checks += checked_losses(measured)
    finish(_result(measured, peaks, checks, equal_case, parameters, documents, arguments.corpus), arguments)


def _result(
    measured: list[Measurement],
    peaks: list[dict[str, float]],
    checks: list[str],
    equal_case: str,
    parameters: int,
    documents: list[list[list[int]]],
    corpus: Path | None,
) -> Result:
    rows = summarize(measured)
    here = machine(peaks)
    peak = here["matmul_peak_tflops"]["bfloat16"]
    facts = {
        "parameters": parameters,
        "share of the bf16 matmul peak": {
            f"{row.side}, {row.case}": round(share_of_peak(row.median, parameters, peak), 4) for row in rows
        },
        "documents": "generated" if corpus is None else corpus.name,
        "tokens a step in documents": [tokens_in(step) for step in documents],
        "lengths of the first documents": [len(tokens) for tokens in documents[0]],
    }
    return Result(
        "training", TOKENS_A_SECOND, headline(measured, TOKENS_A_SECOND, equal_case), rows,
        compare(measured, TOKENS_A_SECOND), checks, here, facts, command_line(),
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
