"""Write docs/benchmarks.md from the JSON files beside it: `python -m benchmarks.page`. What is missing was not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT
from benchmarks.show import markdown, number

PAGE = ROOT / "docs" / "benchmarks.md"

# In the page's order: name -> title, and what the reader must know to read the table.
SECTIONS = {
    "training": (
        "Full fine-tuning",
        "Tokens a second, padding not counted, of SmolLM2-135M on rows of one length and on documents of all lengths. "
        "quilate trains in bf16 over an fp32 master with stochastic rounding; TRL's bf16 weights have no master and do "
        "less work for it.",
    ),
    "lora": ("LoRA", "Rank 16 on every linear layer of SmolLM2-135M."),
    "small_models": (
        "Small models",
        "Models of 3 to 30 million parameters with an 8k vocabulary, from random weights.",
    ),
    "generation": (
        "Generation",
        "New tokens a second with SmolLM2-135M in bf16, the seconds of reading the prompts included.",
    ),
    "in_context": (
        "Prompting",
        "Labels by prompting SmolLM2-135M with 16 solved examples, bf16. lm-eval reads the examples again for every "
        "item and label; quilate reads shared ones once, and an item's own ones once for all labels.",
    ),
    "attention": (
        "Attention",
        "One layer of SmolLM2's shape in bf16, forward and backward. The peers' time leaves out building the dense "
        "mask, which a model does once for all its layers; their memory has it.",
    ),
    "memory": (
        "Memory",
        "Peak resident size of a process that trains SmolLM2-135M, imports included. TRL's bf16 weights keep their "
        "optimizer state in bf16 too; quilate's is fp32.",
    ),
    "reinforcement": (
        "Learning from rewards",
        "GRPO on SmolLM2-135M with LoRA of rank 16: completions that are written, judged and learned from, a second. "
        "Both write 8 completions of at most 48 tokens for each of the prompts of 64 tokens, both learn from all of "
        "them in one step, with the same loss, KL and adapter. TRL runs as its users get it (bf16 weights, autocast, "
        "gradient checkpointing), and without checkpointing in bf16. quilate reads a prompt once for all "
        "its completions, in writing and in learning; TRL reads it once for each.",
    ),
    "alignment_memory": (
        "Memory of learning from rewards",
        "Peak resident size of a stage that trains SmolLM2-135M with LoRA of rank 16. PPO has "
        "policy, reference, value and reward model; all stand on one base. The peers are quilate's own stages: LoRA "
        "SFT on as many tokens, and GRPO.",
    ),
    "tokenization": (
        "Tokenization",
        "From lines of text to a token shard with digests, against the `tokenizers` library that encodes and writes "
        "nothing.",
    ),
    "curation": (
        "Curation",
        "Language, repetition, quality, lines, near-duplicates and personal data, by the same functions on both sides: "
        "what differs is reading, sharing the work and keeping what is between two steps.",
    ),
}

INTRODUCTION = """# Benchmarks

This page is written by `python -m benchmarks.page` from the JSON files in `docs/benchmarks/`; a benchmark without a
file prints "not run". What each measures, and how both sides are kept equal, is in
[their README](../benchmarks/README.md).

A side is measured in processes of its own, in turn with the others. The median is over all values of all rounds, beside
it the smallest and the largest. The last column is ours against that row by medians, in brackets the extremes over
rounds; above 1 ours is better. "mimalloc" means that the peer ran under the preloaded allocator that quilate gives its
own stages; without it, as its users run it. A configuration measured in one round only was not the fastest of its kind
in the first round.
"""


def render(folder: Path) -> str:
    """The page for the results in a folder."""
    parts = [INTRODUCTION]
    for name, (title, words) in SECTIONS.items():
        file = folder / f"{name}.json"
        body = section(json.loads(file.read_text(encoding="utf-8")), folder) if file.exists() else "Not run."
        parts.append(f"## {title}\n\n{words}\n\n{body}\n")
    return "\n".join(parts)


def section(result: dict[str, Any], folder: Path) -> str:
    here = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    peaks = ", ".join(f"{kind} {value}" for kind, value in here["matmul_peak_tflops"].items())
    lines = [headline(result), markdown(result)]
    figure = f"{result['name']}.svg"
    if (folder / figure).exists():
        lines.append(f"![{result['quantity']['name']}: the table above as a figure]({folder.name}/{figure})")
    if shares := result["facts"].get("share of the bf16 matmul peak"):
        ours = [f"{share:.0%} ({name})" for name, share in shares.items() if name.startswith("quilate")]
        lines.append(
            f"quilate's share of the measured bf16 matmul peak, at 6 operations a parameter: {', '.join(ours)}."
        )
    notes = [f"- Checked: {check}." for check in result["checks"]]
    notes += [f"- Not run: {line}." for line in result["facts"].get("not run", [])]
    notes += [
        f"- Machine: {here['device'] or here['processor']}, {here['cores']} cores ({', '.join(here['flags'])}), "
        f"{here['memory_gb']} GB, load {here['load_average']} at the end"
        + (f"; matmul peak in the same run, TFLOP/s: {peaks}." if peaks else "."),
        f"- Versions: {packages}; Python {here['python']}.",
        f"- Command: `{result['command']}`.",
    ]
    if here["without fused operations"]:
        notes.append(f"- quilate ran without its fused operations: {here['without fused operations']}.")
    lines.append("\n".join(notes))
    return "\n\n".join(lines)


def headline(result: dict[str, Any]) -> str:
    best = result["headline"]
    ratio = best["ratio"]
    verdict = f"{ratio:.2f} times better" if ratio >= 1 else f"{1 / ratio:.2f} times worse"
    alike = [r for r in result["ratios"] if r["case"] == best["case"] and "mimalloc" in r["against"]]
    nearest = min(alike, key=lambda r: float(r["ratio"]), default=None)
    beside = "" if nearest is None else f"; {nearest['ratio']:.2f} times {nearest['against']}"
    rounds = "one round" if best["rounds"] == 1 else f"{best['rounds']} rounds"
    return (
        f"**{verdict}** than {best['against']} ({best['case']}): {number(result['ours'])} against "
        f"{number(result['peer'])} {result['unit']}{beside}; {rounds}."
    )


if __name__ == "__main__":
    PAGE.write_text(render(RESULTS), encoding="utf-8")
