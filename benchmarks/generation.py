"""Generation: quilate against `generate` of transformers, at batch 1, 16 and 64. `python -m benchmarks.generation`

SmolLM2-135M-Instruct in bf16; prompts of 64 tokens, all of one length so that nobody pads; 64 new tokens each, the end
of sequence ignored on both sides. The seconds of the prompts' forward pass count. Greedy at every batch size, and
sampled (temperature 1) at the largest. The peer runs as its users run it and under the same preloaded allocator.

That both compute the same is checked twice. In fp32 the greedy tokens must be equal. In bf16 near ties fall either way,
so each side's tokens are judged by the model in fp32: how far the chosen token's logit was below the best one, at most.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
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
    parser,
    run_round,
    summarize,
)
from benchmarks.workloads import REAL_MODEL, benchmark_model, real_documents, texts
from quilate.models.load import load_causal, load_tokenizer

NEW_TOKENS_A_SECOND = Quantity("generation speed, prompts included", "new tokens/s", "higher")
WARMUP_TOKENS = 2
CHECKED_PROMPTS = 4
# A bf16 logit of about 16 is rounded to a multiple of 0.125; two of them, and what the layers before add (guess).
MAX_REGRET = 0.5

Tokens = list[list[int]]
Generate = Callable[[Tokens, int, float], Tokens]


def quilate(settings: dict[str, Any]) -> dict[str, Any]:
    """Every case, with one `Generator` of `quilate.inference.generation`. Settings: `model`, `dtype`."""
    return _measure(_quilate_generate, settings)


def transformers(settings: dict[str, Any]) -> dict[str, Any]:
    """Every case, with `model.generate` and its defaults: sdpa attention, a growing key-value cache."""
    return _measure(_transformers_generate, settings)


def _quilate_generate(settings: dict[str, Any]) -> Generate:
    import torch

    from quilate.inference.generation import Generator
    from quilate.inference.sampling import Sampling

    generator = Generator(load_causal(Path(settings["model"]), dtype=getattr(torch, settings["dtype"])), stop=())

    def run(prompts: Tokens, new_tokens: int, temperature: float) -> Tokens:
        sampling = Sampling(temperature=temperature)
        return generator.generate(prompts, max_new_tokens=new_tokens, sampling=sampling, seed=0)

    return run


def _transformers_generate(settings: dict[str, Any]) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["dtype"])).to(device)
    model.eval()
    model.generation_config.eos_token_id = None  # do not stop; `min_new_tokens` would forbid the token instead
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def run(prompts: Tokens, new_tokens: int, temperature: float) -> Tokens:
        rows = torch.tensor(prompts, device=device)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        torch.manual_seed(0)
        written = model.generate(
            rows, attention_mask=torch.ones_like(rows), max_new_tokens=new_tokens, **({"do_sample": False} | how)
        )
        found: Tokens = written[:, rows.shape[1] :].tolist()
        return found

    return run


def _measure(loaded: Callable[[dict[str, Any]], Generate], settings: dict[str, Any]) -> dict[str, Any]:
    """Loading (ours copies the weights into another layout) is paid once a process: a fact, no part of the speed."""
    began = time.perf_counter()
    generate = loaded(settings)
    loading = round(time.perf_counter() - began, 2)
    answers = {}
    for case in settings["cases"]:
        prompts, temperature, new_tokens = case["prompts"], case["temperature"], case["new_tokens"]
        generate(prompts, WARMUP_TOKENS, temperature)
        began = time.perf_counter()
        written = generate(prompts, new_tokens, temperature)
        seconds = time.perf_counter() - began
        if {len(row) for row in written} != {new_tokens}:
            raise RuntimeError(f"{case['name']}: {sorted({len(r) for r in written})} new tokens, not {new_tokens}")
        facts = {"written": written, "seconds": round(seconds, 3), "loading seconds": loading}
        answers[case["name"]] = {"values": [len(prompts) * new_tokens / seconds], "facts": facts}
    return answers


def largest_regret(settings: dict[str, Any]) -> float:
    """The most that a written token's logit is below the best one, of the model in fp32 reading the same tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    rows = torch.tensor([p + w for p, w in zip(settings["prompts"], settings["written"], strict=True)])
    start = len(settings["prompts"][0])
    with torch.inference_mode():
        logits = model(rows).logits[:, start - 1 : -1]
    chosen = logits.gather(-1, rows[:, start:, None])[..., 0]
    return float((logits.amax(-1) - chosen).max())


def check_exact(sides: Sequence[Side], case: dict[str, Any]) -> str:
    """In fp32, the same greedy tokens.

    Raises:
        Disagreement: they differ.
    """
    few = case | {"prompts": case["prompts"][:CHECKED_PROMPTS]}
    written = {}
    for side in sides:
        answer = call(side, side.settings | {"dtype": "float32", "cases": [few]})
        written[side.name] = answer[case["name"]]["facts"]["written"]
    first, *others = written.values()
    if any(other != first for other in others):
        raise Disagreement(f"the greedy tokens in fp32 differ: {written}")
    return f"in fp32 the {sum(map(len, first))} greedy tokens of {len(first)} prompts are equal"


def check_greedy(measured: Sequence[Measurement], case: dict[str, Any], model: Path) -> list[str]:
    """In bf16, tokens that are among the best ones as far as bf16 can tell.

    Raises:
        Disagreement: ours are further from the best than rounding explains.
    """
    checks = []
    for m in (m for m in measured if m.case == case["name"] and m.round == 0):
        settings = {"model": str(model), "prompts": case["prompts"], "written": m.facts["written"]}
        regret = call(Side("judge", "benchmarks.generation:largest_regret"), settings)
        checks.append(f"{case['name']}, {m.side.name}: no token's fp32 logit is over {regret:.3f} below the best")
        if m.side.ours and not regret <= MAX_REGRET:
            raise Disagreement(f"{checks[-1]}; the tolerance is {MAX_REGRET}")
    return checks


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", default=REAL_MODEL)
    flags.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    flags.add_argument("--prompt", type=int, default=64, help="tokens of a prompt (64)")
    flags.add_argument("--new", type=int, default=64, help="tokens to write (64)")
    arguments = flags.parse_args()
    quick = arguments.quick
    batches = [1, 3] if quick else arguments.batches
    rounds, prompt, new = (1, 12, 6) if quick else (arguments.rounds, arguments.prompt, arguments.new)
    with tempfile.TemporaryDirectory() as folder:
        model = benchmark_model(arguments.model, Path(folder), quick=quick)
        source = (text for text in texts(2, words=12 * prompt) if len(text.split()) > prompt)
        (prompts,) = real_documents(
            load_tokenizer(model), source, steps=1, documents=max(batches), length=prompt
        )  # fmt: skip
        settings = {"model": str(model), "dtype": "bfloat16"}
        peer = "benchmarks.generation:transformers"
        sides = [
            Side("quilate", "benchmarks.generation:quilate", settings, stage=True, ours=True),
            Side("transformers", peer, settings),
            Side("transformers, mimalloc", peer, settings, stage=True),
        ]
        greedy = [_case(f"greedy, batch {size}", prompts[:size], new, 0.0) for size in batches]
        sampled = _case(f"sampled, batch {max(batches)}", prompts[: max(batches)], new, 1.0)
        checks = [check_exact(sides[:2], greedy[-1])]
        peaks, measured = [], []
        for number in range(rounds):
            peaks.append(measured_peak(quick=quick))
            measured += run_round(number, sides, [*greedy, sampled])
            if number == 0:
                checks += check_greedy(measured, greedy[len(greedy) // 2], model)
    finish(_result(measured, peaks, checks, str(greedy[-1]["name"]), prompt, new), arguments)


def _case(name: str, prompts: Tokens, new_tokens: int, temperature: float) -> dict[str, Any]:
    return {"name": name, "prompts": prompts, "new_tokens": new_tokens, "temperature": temperature}


def _result(
    measured: list[Measurement], peaks: list[dict[str, float]], checks: list[str], case: str, prompt: int, new: int
) -> Result:
    best = best_of(measured, NEW_TOKENS_A_SECOND, case)[0]
    ratios = compare(measured, NEW_TOKENS_A_SECOND)
    for m in measured:
        del m.facts["written"]  # thousands of numbers that nobody reads
    return Result(
        "generation", NEW_TOKENS_A_SECOND, next(r for r in ratios if r.case == case and r.against == best.name),
        summarize(measured), ratios, checks, machine(peaks), {"prompt tokens": prompt, "new tokens": new},
        command_line(),
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except Disagreement as error:
        sys.exit(f"not the same computation: {error}")
