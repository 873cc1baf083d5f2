"""Labels by prompting with examples: quilate against lm-evaluation-harness. `python -m benchmarks.in_context`

SmolLM2-135M-Instruct in bf16, 16 solved examples in the prompt, generated Spanish texts and four labels. Two cases: all
items share their examples, or each item has its own nearest ones. The harness scores the task that
`quilate export lm-eval` writes, the prompts therefore being the same to the letter, with its own `hf` model, batch size
1 and 8. Loading the model and a first item are left out on both sides.

That both compute the same is checked on the items in fp32: the predictions must be equal. In bf16 near ties may fall
either way; the share of equal predictions is a fact of the table.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Disagreement,
    Quantity,
    Result,
    Side,
    best_of,
    call,
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

ITEMS_A_SECOND = Quantity("speed of prompting with 16 examples", "items/s", "higher")
LABELS = ["respiratorio", "digestivo", "dermatológico", "cardiológico"]
TEMPLATE = "Nota: {{ text }}\nServicio:"
POOL = 64  # examples from which the nearest are taken


def quilate(settings: dict[str, Any]) -> dict[str, Any]:
    """Every case with one loaded model. Settings: `model`, `dtype`."""
    answers = {}
    for case in settings["cases"]:
        scorer = _scorer(settings["model"], case, settings["dtype"])
        scorer.score(case["items"][:1])  # loads the model
        began = time.perf_counter()
        found = scorer.score(case["items"])
        answers[case["name"]] = _measurement(case, time.perf_counter() - began, found.scores.argmax(axis=1).tolist())
    return answers


def lm_eval(settings: dict[str, Any]) -> dict[str, Any]:
    """Every case with one loaded model. Settings: `model`, `dtype`, `batch`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from quilate.inference.lm_eval import write_lm_eval
    from quilate.tasks.labels import Item

    answers = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        model = HFLM(settings["model"], dtype=settings["dtype"], device="cpu", batch_size=settings["batch"])
        for case in settings["cases"]:
            scorer = _scorer(settings["model"], case, settings["dtype"])
            items = [Item(str(n), text, LABELS[0], str(n)) for n, text in enumerate(case["items"])]
            path = write_lm_eval(scorer, case["name"], items, Path(folder) / case["name"])
            tasks = TaskManager(include_path=str(path.parent), include_defaults=False)
            evaluate = partial(
                lm_eval.simple_evaluate, model=model, tasks=[path.stem], task_manager=tasks, bootstrap_iters=0
            )
            evaluate(limit=1)
            began = time.perf_counter()
            found = evaluate(log_samples=True)
            seconds = time.perf_counter() - began
            samples = sorted(found["samples"][path.stem], key=lambda sample: sample["doc_id"])
            scores = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
            answers[case["name"]] = _measurement(case, seconds, [row.index(max(row)) for row in scores])
    return answers


def _scorer(model: str, case: dict[str, Any], dtype: str) -> Any:
    from quilate.inference.demonstrations import Pool
    from quilate.inference.scorer import PromptScorer

    examples = [(text, label) for text, label in case["examples"]]
    pool = Pool(examples, shots=case["shots"], order="nearest_last", seed=0) if case["own"] else None
    return PromptScorer(
        Path(model), LABELS, LABELS, template=TEMPLATE, demonstrations=[] if case["own"] else examples[: case["shots"]],
        pool=pool, normalization="sum", precision="bf16" if dtype == "bfloat16" else "fp32",
    )  # fmt: skip


def _measurement(case: dict[str, Any], seconds: float, predictions: list[int]) -> dict[str, Any]:
    facts = {"predictions": predictions, "seconds": round(seconds, 3)}
    return {"values": [len(case["items"]) / seconds], "facts": facts}


def check_equal(sides: list[Side], cases: list[dict[str, Any]], items: int) -> list[str]:
    """In fp32, the same predictions.

    Raises:
        Disagreement: they differ.
    """
    few = [case | {"items": case["items"][:items]} for case in cases]
    ours, theirs = (call(side, side.settings | {"dtype": "float32", "cases": few}) for side in sides)
    for case in few:
        found, wanted = (answer[case["name"]]["facts"]["predictions"] for answer in (ours, theirs))
        if found != wanted:
            raise Disagreement(f"{case['name']}: the predictions in fp32 differ: {found}, {wanted}")
    return [f"in fp32 the predictions of {items} items are equal, in every case"]


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--items", type=int, default=16, help="items to label (16)")
    flags.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="batch sizes of lm-eval (1 8)")
    flags.add_argument("--shots", type=int, default=16, help="examples in the prompt (16)")
    flags.add_argument("--words", type=int, default=20, help="words of a text, about (20)")
    arguments = flags.parse_args()
    quick = arguments.quick
    rounds, count, shots, words = (1, 3, 2, 4) if quick else (
        arguments.rounds, arguments.items, arguments.shots, arguments.words
    )  # fmt: skip
    drawn = list(islice(texts(5, words=words), POOL + count))
    examples = [(text, LABELS[number % len(LABELS)]) for number, text in enumerate(drawn[count:])]
    shared = {"items": drawn[:count], "examples": examples, "shots": shots}
    cases = [{"name": "shared examples", "own": False} | shared, {"name": "own examples", "own": True} | shared]
    with tempfile.TemporaryDirectory() as folder:
        model = str(benchmark_model(arguments.model, Path(folder), quick=quick))
        settings = {"model": model, "dtype": "bfloat16"}
        ours = Side("quilate", "benchmarks.in_context:quilate", settings, stage=True, ours=True)
        peer = "benchmarks.in_context:lm_eval"
        peers = [
            Side(f"lm-eval, batch {batch}{note}", peer, settings | {"batch": batch}, stage=stage)
            for batch in arguments.batches
            for stage, note in ((False, ""), (True, ", mimalloc"))
        ]
        checks = check_equal([ours, peers[0]], cases, items=min(count, 2))
        peaks, measured = [], []
        for number in range(rounds):
            peaks.append(measured_peak(quick=quick))
            measured += run_round(number, [ours, *peers], cases)
            if number == 0:  # of either kind only the best goes on
                best = [side for case in cases for side in best_of(measured, ITEMS_A_SECOND, str(case["name"]))]
                peers = [side for side in peers if side in best]
    finish(_result(measured, peaks, checks, shots), arguments)


def _result(measured: list[Any], peaks: list[dict[str, float]], checks: list[str], shots: int) -> Result:
    ratios = compare(measured, ITEMS_A_SECOND)
    first = "shared examples"
    best = best_of(measured, ITEMS_A_SECOND, first)[0]
    reference = {m.case: m.facts["predictions"] for m in measured if m.side.ours}
    for m in measured:
        found = m.facts.pop("predictions")
        m.facts["predictions as ours"] = sum(a == b for a, b in zip(found, reference[m.case], strict=True)) / len(found)
    return Result(
        "in_context", ITEMS_A_SECOND, next(r for r in ratios if r.case == first and r.against == best.name),
        summarize(measured), ratios, checks, machine(peaks), {"examples": shots}, command_line(),
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
