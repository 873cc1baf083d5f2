"""Entities by writing: a causal model is shown a document and writes its records, under a grammar that allows nothing
else. Documents longer than the room for them are shown in overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from quilate.errors import DataError
from quilate.files import make_folder, write_json
from quilate.inference.prompts import Format, layout_of
from quilate.inference.scorer import ProgressCallback, movable, silent
from quilate.inference.spans import Found
from quilate.models.precision import Precision, compute_dtype
from quilate.tasks.extraction import Span
from quilate.tasks.records import Parsed, locate, parse_records, record_grammar
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.segments import prompt_tokens
from quilate.tokenization.windows import placed_tokens, windows

if TYPE_CHECKING:
    from quilate.inference.generation import Generator
    from quilate.inference.grammar import GrammarTokens

SLACK = 16  # tokens that a window may have more when it is tokenized by itself (guess)
FEWEST = 16  # a window smaller than this shows no entity whole (guess)


@dataclass(frozen=True)
class Part:
    """`text` begins at character `start` of its document; what begins in [own_start, own_stop) there is this part's."""

    text: str
    start: int
    own_start: int
    own_stop: int

    def owns(self, span: Span) -> bool:
        """Whether a span of the document begins in this part's own, and the part shows it whole."""
        shown = self.start <= span.start and span.end <= self.start + len(self.text)
        return shown and self.own_start <= span.start < self.own_stop

    def to_document(self, span: Span) -> Span:
        return Span(span.start + self.start, span.end + self.start, span.label)

    def to_part(self, span: Span) -> Span:
        return Span(span.start - self.start, span.end - self.start, span.label)


class RecordPrompts:
    """How documents are shown to a model that writes records, the same in training and in use.

    Args:
        template: of one document, with its instruction; `demonstrations` are solved ones, (text, answer).
        style: plain text, or a conversation through the model's chat template.
        size: the most tokens of a document that are shown at once; fewer where `context` has no room for so many and
            `max_new_tokens`.

    Raises:
        DataError: what stands before the documents leaves no room for one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        demonstrations: Sequence[tuple[str, str]],
        *,
        style: Format = "plain",
        size: int,
        max_new_tokens: int,
        context: int,
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self.layout, self._demonstrations = layout_of(template, style, tokenizer), list(demonstrations)
        around = len(self.layout.tokens(tokenizer, [str(self.layout.prompt(self._demonstrations, ""))])[0])
        room = context - around - max_new_tokens - SLACK
        if room < FEWEST:
            raise DataError(
                f"{around} tokens of instruction, examples and template and {max_new_tokens} of answer leave no room "
                f"for a document in the model's context of {context} tokens",
                hint="show fewer examples, or lower max_new_tokens",
            )
        self._size = min(size, room)

    def parts(self, text: str) -> list[Part]:
        """The windows of a document; none if it has no words."""
        placed = placed_tokens(self._tokenizer, text)
        found = []
        for window in windows(len(placed), self._size, both_sides=True) if len(placed) else []:
            start, stop = int(placed.starts[window.start]), int(placed.ends[window.stop - 1])
            own_start = 0 if window.own_start == 0 else int(placed.starts[window.own_start])
            own_stop = len(text) if window.own_stop == len(placed) else int(placed.starts[window.own_stop])
            if text[start:stop].strip():
                found.append(Part(text[start:stop], start, own_start, own_stop))
        return found

    def prompt(self, part: Part) -> str:
        """The whole prompt of a part."""
        return str(self.layout.prompt(self._demonstrations, part.text))


class RecordTagger:
    """A causal model that writes records; prompted and fine-tuned models alike.

    Args:
        model: a model or adapter directory.
        labels: those that records may have.
        template: Jinja text of one document; `instruction` and `demonstrations` (text, answer) go before it.
        style, max_item_tokens, max_new_tokens: see `RecordPrompts`. An answer that is longer is cut, and counted.
    """

    def __init__(
        self,
        model: Path,
        labels: list[str],
        *,
        template: str,
        instruction: str = "",
        demonstrations: Sequence[tuple[str, str]] = (),
        style: Format = "plain",
        max_item_tokens: int,
        max_new_tokens: int,
        precision: Precision = "auto",
    ) -> None:
        self.model_path, self.labels = model, labels
        self._template = PromptTemplate(template, instruction=instruction, verbalizers=labels)
        self._demonstrations = [(text, answer) for text, answer in demonstrations]
        self._settings = {
            "labels": labels,
            "template": template,
            "instruction": instruction,
            "style": style,
            "max_item_tokens": max_item_tokens,
            "max_new_tokens": max_new_tokens,
            "precision": precision,
        }
        self._style = style
        self._size, self._max_new_tokens, self._precision = max_item_tokens, max_new_tokens, precision
        self._loaded: tuple[PreTrainedTokenizerBase, Generator, GrammarTokens] | None = None

    def _load(self) -> tuple[PreTrainedTokenizerBase, Generator, GrammarTokens]:
        # Here, not above: transformers takes seconds to import, and a scorer may be loaded and not asked.
        from quilate.inference.generation import Generator
        from quilate.inference.grammar import GrammarTokens
        from quilate.models.load import load_causal, load_tokenizer

        if self._loaded is None:
            tokenizer = load_tokenizer(self.model_path)
            model = load_causal(self.model_path, dtype=compute_dtype(self._precision))
            tokens = GrammarTokens(tokenizer, int(model.config.vocab_size))
            assert tokenizer.eos_token_id is not None  # else it was refused
            self._loaded = tokenizer, Generator(model, stop={int(tokenizer.eos_token_id)}), tokens
        return self._loaded

    def answers(self, parts: Sequence[Part], on_progress: ProgressCallback = silent) -> list[str]:
        """What the model writes about each part, greedily, under the grammar."""
        from quilate.inference.grammar import GrammarConstraint

        tokenizer, generator, tokens = self._load()
        prompts = self._prompts(tokenizer, generator.context)
        written = generator.generate(
            prompts.layout.tokens(tokenizer, [prompts.prompt(part) for part in parts]),
            max_new_tokens=self._max_new_tokens,
            constraints=[
                GrammarConstraint(tokens, record_grammar(self.labels, part.text, start=prompts.layout.answer_start))
                for part in parts
            ],
            on_progress=on_progress,
        )
        return [
            tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            for answer in written
        ]

    def _prompts(self, tokenizer: PreTrainedTokenizerBase, context: int) -> RecordPrompts:
        return RecordPrompts(
            tokenizer, self._template, self._demonstrations, style=self._style, size=self._size,
            max_new_tokens=self._max_new_tokens, context=context,
        )  # fmt: skip

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found:
        tokenizer, generator, _ = self._load()
        prompts = self._prompts(tokenizer, generator.context)
        parts = [prompts.parts(text) for text in texts]
        flat = [part for found in parts for part in found]
        answers = self.answers(flat, lambda done, total: on_progress(len(texts) * done // max(total, 1), len(texts)))
        parsed = iter([parse_records(answer) for answer in answers])
        spans, counts = [], {"answers cut short": 0, "answers that are no records": 0, "records that stand nowhere": 0}
        for found in parts:
            own: set[Span] = set()
            for part in found:
                own |= _spans(next(parsed), part, counts)
            spans.append(tuple(sorted(own)))
        read = sum(map(len, prompts.layout.tokens(tokenizer, [prompts.prompt(part) for part in flat])))
        read += sum(map(len, prompt_tokens(tokenizer, answers)))
        return Found(spans, windowed=sum(len(found) > 1 for found in parts), tokens=read, counts=counts)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved = {"kind": "records", "model": movable(self.model_path, folder), "demonstrations": self._demonstrations}
        write_json(folder / "scorer.json", saved | self._settings)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> RecordTagger:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model", "demonstrations")}
        return cls(folder / saved["model"], demonstrations=[(t, a) for t, a in saved["demonstrations"]], **fields)


def _spans(parsed: Parsed, part: Part, counts: dict[str, int]) -> set[Span]:
    """The spans of the document that a part's answer names and the part owns."""
    found, lost = locate(parsed.records, part.text)
    counts["answers cut short"] += parsed.cut
    counts["answers that are no records"] += not parsed.valid
    counts["records that stand nowhere"] += lost
    return {span for span in map(part.to_document, found) if part.owns(span)}
