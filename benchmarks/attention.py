"""Attention of one layer, forward and backward, over lengths: quilate's against those of transformers.

`python -m benchmarks.attention`. The shape is SmolLM2-135M's: 9 heads of 64, 3 key heads, bf16. Two kinds of input: one
document, and documents of 20 to 500 tokens in one row that must not see one another. Peers are `eager` and `sdpa` of
transformers under the dense mask that transformers builds for packed rows (`sdpa` needs none for one document). What is
built once for all layers, mask and layout, costs memory here and no time. Memory is the process's largest resident size
above that before the first input; lengths are measured in rising order, so that each sets a new one. A side that would
need more than half of the free memory is not run, and said to be.

Exactness: output and gradients in fp32 and bf16 against dense attention in float64, largest error over the largest
number.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from benchmarks.harness import (
    Disagreement,
    Measurement,
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
    note,
    parser,
    run_round,
    summarize,
)
from benchmarks.trainers import peak_memory

SECONDS = Quantity("attention of one layer, forward and backward", "s", "lower")
HEADS, KEY_HEADS, HEAD_SIZE = 9, 3, 64
SHORT = (412, 57, 230, 500, 20, 341, 128, 96, 267, 173)  # lengths of documents, drawn once
EXACT_LENGTHS = (300, 200, 77, 64, 1)
PATIENCE = 2.0  # seconds of repetitions, at least one and at most five

# Above these, something else than rounding differs. fp32: 2^-24 times the root of some thousand sums; bf16: 2^-9 of the
# output, more in gradients, whose terms cancel (guesses).
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}

IMPLEMENTATIONS = {"quilate": "quilate_packed", "transformers sdpa": "sdpa", "transformers eager": "eager"}


def documents_in(kind: str, length: int) -> list[int]:
    """The lengths of the documents in a row of `length` tokens."""
    if kind == "one document":
        return [length]
    lengths: list[int] = []
    for size in cycle(SHORT):
        left = length - sum(lengths)
        if left == 0:
            return lengths
        lengths.append(min(size, left))
    raise AssertionError("a cycle has no end")


def needed_bytes(implementation: str, kind: str, length: int) -> int:
    """What an implementation needs at least, roughly: the terms quadratic in the length."""
    if implementation == "eager":  # scores, their softmax in fp32 and in bf16, and a gradient
        return length**2 * HEADS * 12
    if implementation == "sdpa" and kind != "one document":  # the mask as booleans and as numbers
        return length**2 * 5
    return 0


def attend(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings: `implementation`. A case has `kind` and `length`; cases come in rising order of length."""
    import torch

    _attention(settings["implementation"], "one document", [64])(*_inputs(64, torch.bfloat16)).sum().backward()
    before = peak_memory()
    answers = {}
    for case in settings["cases"]:
        lengths = documents_in(case["kind"], case["length"])
        attention = _attention(settings["implementation"], case["kind"], lengths)
        inputs = _inputs(case["length"], torch.bfloat16)
        weights = torch.randn_like(attention(*inputs))
        seconds: list[float] = []
        while len(seconds) < 1 or (sum(seconds) < PATIENCE and len(seconds) < 5):
            began = time.perf_counter()
            (attention(*inputs) * weights).sum().backward()
            seconds.append(time.perf_counter() - began)
        facts = {"memory MB": round(peak_memory() - before, 1), "documents": len(lengths)}
        answers[case["name"]] = {"values": seconds, "facts": facts}
    return answers


def _inputs(length: int, dtype: Any) -> list[Any]:
    """query [1, H, T, E], key and value [1, K, T, E], with gradients."""
    import torch

    stream = torch.Generator().manual_seed(length)
    shapes = [(1, heads, length, HEAD_SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, generator=stream).to(dtype).requires_grad_() for shape in shapes]


def _attention(implementation: str, kind: str, lengths: Sequence[int]) -> Callable[..., Any]:
    """A callable (query, key, value) -> [1, T, H, E] of one of transformers' registered attentions."""
    import torch
    from torch import nn
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    import quilate.models.attention as packed

    layer = nn.Module()
    layer.is_causal, layer.num_key_value_groups, layer.layer_idx = True, HEADS // KEY_HEADS, 0
    arguments: dict[str, Any] = {"scaling": 1 / math.sqrt(HEAD_SIZE), "dropout": 0.0}
    mask = None
    if implementation == packed.PACKED_ATTENTION:
        arguments["document_layout"] = packed.DocumentLayout.of(lengths)
    elif implementation == "eager" or kind != "one document":
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        position = torch.arange(len(document))
        mask = ((document[:, None] == document) & (position[:, None] >= position))[None, None]
    registered = eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
    additive: dict[Any, Any] = {}  # eager adds its mask; made once, as a model does, in the format of the inputs

    def attention(query: Any, key: Any, value: Any) -> Any:
        given = mask
        if implementation == "eager" and mask is not None:
            if query.dtype not in additive:
                lowest = torch.finfo(query.dtype).min
                additive[query.dtype] = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, lowest)
            given = additive[query.dtype]
        return registered(layer, query, key, value, given, **arguments)[0]

    return attention


def errors(settings: dict[str, Any]) -> dict[str, float]:
    """The largest error of output and gradients against float64, over the largest number of each."""
    import torch

    lengths = settings["lengths"]
    dtype = getattr(torch, settings["dtype"])
    inputs = _inputs(sum(lengths), dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    weights = torch.randn(1, sum(lengths), HEADS, HEAD_SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = _attention(settings["implementation"], "documents", lengths)(*inputs)
    (found * weights).sum().backward()
    expected = _dense(*exact, lengths)
    (expected * weights.double()).sum().backward()
    pairs = {"output": (found, expected)}
    pairs |= {
        f"gradient of {name}": (a.grad, b.grad)
        for name, a, b in zip(("query", "key", "value"), inputs, exact, strict=True)
    }
    return {name: float((a.double() - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


def _dense(query: Any, key: Any, value: Any, lengths: Sequence[int]) -> Any:
    """The definition, a document at a time: softmax(q k / sqrt(E)) v over the tokens before. -> [1, T, H, E]"""
    import torch

    outputs, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        q, k, v = (t[0, :, part] for t in (query, key, value))
        k, v = (t.repeat_interleave(HEADS // KEY_HEADS, dim=0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(HEAD_SIZE)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        outputs.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v)
        start += length
    return torch.cat(outputs, dim=1).transpose(0, 1)[None]


def all_errors(settings: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """`errors` of every implementation in every number format: {format: {implementation: errors}}."""
    return {
        dtype: {
            name: errors(settings | {"implementation": how, "dtype": dtype}) for name, how in IMPLEMENTATIONS.items()
        }
        for dtype in TOLERANCE
    }


def check_exactness() -> list[str]:
    """Every implementation against float64.

    Raises:
        Disagreement: quilate's error is above the tolerance.
    """
    judge = Side("float64", "benchmarks.attention:all_errors", stage=True)
    checks = []
    for dtype, by_name in call(judge, {"lengths": EXACT_LENGTHS}).items():
        for name, found in by_name.items():
            words = ", ".join(f"{what} {error:.1e}" for what, error in found.items())
            checks.append(f"{name} in {dtype} against float64: {words}")
            if name == "quilate" and not all(error <= TOLERANCE[dtype] for error in found.values()):
                raise Disagreement(f"{checks[-1]}; the tolerance is {TOLERANCE[dtype]}")
    return checks


def available_bytes() -> int:
    with open("/proc/meminfo") as file:  # noqa: PTH123 (a kernel file)
        (line,) = (line for line in file if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def measure(lengths: Sequence[int], rounds: int, not_run: list[str]) -> list[Measurement]:
    """All implementations, kinds and lengths that fit into memory; the others are named in `not_run`."""
    measured: list[Measurement] = []
    for number in range(rounds):
        for kind in ("one document", "packed documents"):
            sides = [
                Side(name, "benchmarks.attention:attend", {"implementation": how}, stage=True, ours=name == "quilate")
                for name, how in IMPLEMENTATIONS.items()
            ]
            for side in sides if number % 2 == 0 else reversed(sides):
                how = side.settings["implementation"]
                fits = [n for n in lengths if needed_bytes(how, kind, n) <= available_bytes() / 2]
                for length in set(lengths) - set(fits):
                    gigabytes = needed_bytes(how, kind, length) / 1e9
                    not_run.append(f"{side.name}, {kind}, {length} tokens: needs over {gigabytes:.0f} GB")
                cases = [{"name": f"{kind}, {n}", "kind": kind, "length": n} for n in sorted(fits)]
                measured += run_round(number, [side], cases)
    return measured


def main() -> None:
    flags = parser(__doc__)
    flags.set_defaults(rounds=1)  # the long rows take minutes; the short ones are repeated within the round
    flags.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192, 32768])
    arguments = flags.parse_args()
    lengths = [64, 256] if arguments.quick else arguments.lengths
    rounds = 1 if arguments.quick else arguments.rounds
    checks = check_exactness()
    peak = measured_peak(quick=arguments.quick)
    not_run: list[str] = []
    measured = measure(lengths, rounds, not_run)
    for line in not_run:
        note(f"not run: {line}")
    rows, ratios = summarize(measured), compare(measured, SECONDS)
    case = max((row for row in rows if row.case.startswith("packed")), key=lambda r: int(r.case.split()[-1])).case
    best = best_of(measured, SECONDS, case)[0]
    places = {
        f"{kind}, {n}": {"kind": kind, "length": n} for kind in ("one document", "packed documents") for n in lengths
    }
    facts = {"lengths": places, "not run": not_run, "heads": HEADS, "key heads": KEY_HEADS, "head size": HEAD_SIZE}
    result = Result(
        "attention", SECONDS, next(r for r in ratios if r.case == case and r.against == best.name), rows, ratios,
        checks, machine([peak]), facts, command_line(),
    )  # fmt: skip
    finish(result, arguments)


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
