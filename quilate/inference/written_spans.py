"""Entities as a causal model writes them after a document: a list of labels and words, read back into spans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quilate.files import make_folder, write_json
from quilate.inference.scorer import ProgressCallback, movable, silent
from quilate.inference.spans import Found
from quilate.models.precision import Precision, compute_dtype
from quilate.tasks.extraction import Span, without_overlaps

if TYPE_CHECKING:
    from quilate.inference.generation import Generator

TEMPLATES = {"es": "Texto: {text}\nEntidades:", "en": "Text: {text}\nEntities:"}
NOTHING = {"es": "ninguna", "en": "none"}
BETWEEN, AFTER_LABEL = " | ", ": "


def prompt_of(text: str, language: str) -> str:
    """What stands before the list."""
    return TEMPLATES.get(language, TEMPLATES["en"]).format(text=text)


def written(text: str, spans: Sequence[Span], language: str) -> str:
    """The list of a document's spans, in the order of the text; of overlapping ones the longest."""
    said = [
        f"{span.label}{AFTER_LABEL}{' '.join(text[span.start : span.end].split())}" for span in without_overlaps(spans)
    ]
    return BETWEEN.join(said) or NOTHING.get(language, NOTHING["en"])


def read_back(answer: str, text: str, labels: Sequence[str], language: str) -> tuple[tuple[Span, ...], int]:
    """The spans that a list means, and how many of its entries mean none: an unknown label, or words that do not stand
    in the text.

    Entries come in the order of the text, so each is looked for after the one before it, then from the start.
    """
    found: list[Span] = []
    lost = place = 0
    if answer.strip() == NOTHING.get(language, NOTHING["en"]):
        return (), 0
    for entry in answer.strip().split(BETWEEN):
        label, colon, words = entry.partition(AFTER_LABEL)
        start = text.find(words, place) if words else -1
        start = text.find(words) if start < 0 and words else start
        if not colon or label not in labels or start < 0:
            lost += 1
            continue
        place = start + len(words)
        found.append(Span(start, place, label))
    return without_overlaps(set(found)), lost


class WrittenTagger:
    """A causal model asked to write a document's entities.

    Args:
        model: a model or adapter directory.
        labels: those it may write.
        language: of the prompt's words.
        max_new_tokens: where its list ends at the latest.
        max_item_tokens: longer documents are cut in the middle, and counted.
    """

    def __init__(
        self,
        model: Path,
        labels: list[str],
        *,
        language: str,
        max_new_tokens: int,
        max_item_tokens: int,
        precision: Precision = "auto",
    ) -> None:
        self.model_path, self.labels = model, labels
        self._settings: dict[str, Any] = {
            "labels": labels, "language": language, "max_new_tokens": max_new_tokens,
            "max_item_tokens": max_item_tokens, "precision": precision,
        }  # fmt: skip
        self._loaded: tuple[Generator, Any] | None = None

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found:
        # Here, not above: transformers takes seconds to import.
        from quilate.inference.generation import Generator
        from quilate.models.load import load_causal, load_tokenizer
        from quilate.tokenization.segments import prompt_tokens, shorten

        if self._loaded is None:
            tokenizer = load_tokenizer(self.model_path)
            model = load_causal(self.model_path, dtype=compute_dtype(self._settings["precision"]))
            self._loaded = Generator(model, stop=[int(tokenizer.eos_token_id)]), tokenizer
        generator, tokenizer = self._loaded
        language, new = self._settings["language"], min(self._settings["max_new_tokens"], generator.context // 2)
        limit = min(self._settings["max_item_tokens"], generator.context - new)
        prompts = [shorten(t, limit) for t in prompt_tokens(tokenizer, [prompt_of(text, language) for text in texts])]
        answers = generator.generate([tokens for tokens, _ in prompts], max_new_tokens=new, on_progress=on_progress)
        lists = tokenizer.batch_decode(answers, skip_special_tokens=True)
        read = [read_back(said, text, self.labels, language) for said, text in zip(lists, texts, strict=True)]
        return Found(
            [spans for spans, _ in read],
            windowed=0,
            tokens=sum(len(tokens) for tokens, _ in prompts) + sum(map(len, answers)),
            counts={
                "documents cut": sum(was_cut for _, was_cut in prompts),
                "written entries that mean no span": sum(lost for _, lost in read),
                "lists not ended": sum(len(answer) == new for answer in answers),
            },
        )

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved = {"kind": "written tagger", "model": movable(self.model_path, folder)}
        write_json(folder / "scorer.json", saved | self._settings)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> WrittenTagger:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model")}
        return cls(folder / saved["model"], **fields)
