"""`quilate pretrain CORPUS`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def pretrain(
    corpus: Path,
    *,
    shape: Literal["llama", "gpt2", "falcon", "roberta"] = "llama",
    size: Literal["tiny", "3M", "11M", "30M"] = "3M",
    vocabulary: int = 8192,
    tokens: int = 1_000_000,
    lr: float = 1e-3,
    text: str = "text",
    documents: Literal["file", "paragraph", "line", "sentence"] = "paragraph",
    language: str = "es",
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Train a new model on raw text, with a tokenizer of its own, and measure it on text held out.

    Parameters
    ----------
    corpus
        A text file, a folder or .zip of text files, or a table.
    shape
        llama, gpt2 and falcon predict the next token, roberta masked ones.
    size
        Parameters of the new model.
    vocabulary
        Tokens of its tokenizer.
    tokens
        Training tokens in all.
    lr
        Peak learning rate.
    text
        For a table: the column with the text, or a Jinja template over the columns.
    documents
        What one document is in a text file.
    language
        Language of the text (ISO code), or any.
    seed
        Varies initialization and order.
    out
        The run's folder; runs/CORPUS-pretrain by default.
    json
        Print what was measured as JSON, and no progress.
    """
    from quilate.cli.single import TextFlags, run_single_stage, text_recipe

    stage = {"kind": "pretrain", "shape": shape, "size": size, "vocabulary": vocabulary, "tokens": tokens, "lr": lr}
    flags = TextFlags(corpus, text, documents, language, None, 0.0)
    value = text_recipe("pretrain", stage, flags, base=None, seed=seed)
    run_single_stage("pretrain", value, out=out, json=json)
