"""Tokens that a text takes: `python -m benchmarks.vocabulary TEXT [--model DIRECTORY --add 4000 --held-out OTHER]`.

TEXT and OTHER are what a recipe's `path` may be. Byte-level BPE and unigram tokenizers of the same sizes are trained on
TEXT and measured on OTHER (by default on every tenth document of TEXT, which is then left out of training); so is the
model's own tokenizer, before and after `extend_vocabulary`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from quilate.data.tables import SourceConfig, read_table
from quilate.data.text import holds_text, read_text
from quilate.models.load import load_tokenizer
from quilate.tokenization.extend import Extension, learn_extension, write_extended
from quilate.tokenization.train import TRAINERS, Fit, measure_fit


def documents(path: Path, column: str) -> list[str]:
    if holds_text(path):
        return read_text(path, "paragraph").documents
    rows = read_table(SourceConfig(path=str(path)), base=Path()).rows
    return [str(row[column]) for row in rows if row[column]]


def show(name: str, size: int, fit: Fit) -> None:
    print(
        f"| {name} | {size:,} | {fit.tokens_per_word:.3f} | {fit.bytes_per_token:.3f} | {fit.unknown:,} | "
        f"{fit.tokens:,} |",
        flush=True,
    )


def show_all(train: Sequence[str], held_out: Sequence[str], sizes: Sequence[int], model: Path | None, add: int) -> None:
    """The table's rows, as they are made."""

    if model is not None:
        base = load_tokenizer(model)
        show(model.name, len(base), measure_fit(base, held_out))
        extension = learn_extension(base, {"text": train}, {"text": 1.0}, add)
        for size in sorted({add // 4, add // 2, add} - {0}):
            part = Extension(extension.first, extension.tokens[:size], extension.merges[:size], extension.pieces[:size])
            with tempfile.TemporaryDirectory() as folder:
                write_extended(base, part, Path(folder))
                extended = load_tokenizer(Path(folder))
            show(f"{model.name}, extended", len(extended), measure_fit(extended, held_out))
    for size in sizes:
        for segmentation, trainer in TRAINERS.items():
            tokenizer = trainer(train, size)
            show(segmentation, len(tokenizer), measure_fit(tokenizer, held_out))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("text", type=Path)
    flags.add_argument("--held-out", type=Path)
    flags.add_argument("--column", default="text")
    flags.add_argument("--sizes", type=int, nargs="*", default=[4096, 8192])
    flags.add_argument("--model", type=Path)
    flags.add_argument("--add", type=int, default=4000)
    arguments = flags.parse_args()
    train = documents(arguments.text, arguments.column)
    if arguments.held_out is None:
        train, held_out = [d for i, d in enumerate(train) if i % 10], train[::10]
    else:
        held_out = documents(arguments.held_out, arguments.column)
    fit_words = sum(len(text.split()) for text in held_out)
    print(f"{len(train):,} documents to learn from, {len(held_out):,} ({fit_words:,} words) to measure\n")
    print("| tokenizer | tokens it has | tokens a word | bytes a token | unknown | tokens in all |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    show_all(train, held_out, arguments.sizes, arguments.model, arguments.add)


if __name__ == "__main__":
    main()
