"""Entities by writing: a causal model is shown a document and writes its records, under a grammar that allows nothing
else. Documents longer than the room for them are shown in overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from quilate.errors import DataError
from quilate.files import make_folder, write_json
from quilate.inference.demonstrations import most_that_fit, nearest_to
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
        nearest: show each document so many of the demonstrations, those most like it, and fewer where they do not fit.
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
        nearest: int | None = None,
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
            "nearest": nearest,
            "style": style,
            "max_item_tokens": max_item_tokens,
            "max_new_tokens": max_new_tokens,
            "precision": precision,
        }
        self._nearest, self._style = nearest, style
        self._size, self._max_new_tokens, self._precision = max_item_tokens, max_new_tokens, precision
        self._loaded: tuple[PreTrainedTokenizerBase, Generator, GrammarTokens] | None = None

    def with_prompt(
        self, *, template: str, demonstrations: Sequence[tuple[str, str]], nearest: int | None = None
    ) -> RecordTagger:
        """The same model, loaded once, asked with another prompt."""
        other = copy(self)
        other._template = self._template.with_source(template, instruction=self._template.instruction)
        other._demonstrations, other._nearest = list(demonstrations), nearest
        other._settings = self._settings | {"template": template, "nearest": nearest}
        return other

    def loaded(self) -> tuple[PreTrainedTokenizerBase, Generator, GrammarTokens]:
        """The tokenizer, the model and its tokens as a grammar reads them, loaded when they are first needed."""
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

    def answers(self, asked: Sequence[tuple[RecordPrompts, Part]], on_progress: ProgressCallback = silent) -> list[str]:
        """What the model writes about each part after its own prompt, greedily, under the grammar."""
        from quilate.inference.grammar import GrammarConstraint

        tokenizer, generator, tokens = self.loaded()
        written = generator.generate(
            _read(tokenizer, asked),
            max_new_tokens=self._max_new_tokens,
            constraints=[
                GrammarConstraint(tokens, record_grammar(self.labels, part.text, start=prompts.layout.answer_start))
                for prompts, part in asked
            ],
            on_progress=on_progress,
        )
        return [
            tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            for answer in written
        ]

    def prompts(self, texts: Sequence[str]) -> tuple[list[RecordPrompts], int]:
        """How each document is shown, and how many have fewer demonstrations than were asked for."""
        tokenizer, generator, _ = self.loaded()
        if self._nearest is None:
            return [self._showing(tokenizer, generator.context, self._demonstrations)] * len(texts), 0
        near = nearest_to(self._demonstrations, lambda shown: shown[0], texts, self._nearest)
        kept = [self._fitting(tokenizer, generator.context, own) for own in near]
        fewer = sum(len(some) < len(own) for some, own in zip(kept, near, strict=True))
        return [self._showing(tokenizer, generator.context, own[::-1]) for own in kept], fewer

    def _fitting(
        self, tokenizer: PreTrainedTokenizerBase, context: int, ranked: Sequence[tuple[str, str]]
    ) -> Sequence[tuple[str, str]]:
        """As many demonstrations as leave a document its room, up to half of what the answer leaves."""
        layout = layout_of(self._template, self._style, tokenizer)
        limit = context - self._max_new_tokens - SLACK
        room = limit - min(self._size, limit // 2)

        def cost(count: int) -> int:
            return len(layout.tokens(tokenizer, [str(layout.prompt(ranked[:count][::-1], ""))])[0])

        return ranked[: most_that_fit(cost, room, len(ranked))]

    def _showing(
        self, tokenizer: PreTrainedTokenizerBase, context: int, demonstrations: Sequence[tuple[str, str]]
    ) -> RecordPrompts:
        return RecordPrompts(
            tokenizer, self._template, demonstrations, style=self._style, size=self._size,
            max_new_tokens=self._max_new_tokens, context=context,
        )  # fmt: skip

    def find(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Found:
        tokenizer = self.loaded()[0]
        shown, fewer = self.prompts(texts)
        parts = [prompts.parts(text) for prompts, text in zip(shown, texts, strict=True)]
        asked = [(prompts, part) for prompts, own in zip(shown, parts, strict=True) for part in own]
        answers = self.answers(asked, lambda done, total: on_progress(len(texts) * done // max(total, 1), len(texts)))
        parsed = iter([parse_records(answer) for answer in answers])
        spans: list[tuple[Span, ...]] = []
        counts = {"answers cut short": 0, "answers that are no records": 0, "records that stand nowhere": 0}
        for found in parts:
            named: set[Span] = set()
            for part in found:
                named |= _spans(next(parsed), part, counts)
            spans.append(tuple(sorted(named)))
        if self._nearest is not None:
            counts["prompts with fewer demonstrations"] = fewer
        read = sum(map(len, _read(tokenizer, asked))) + sum(map(len, prompt_tokens(tokenizer, answers)))
        return Found(spans, windowed=sum(len(found) > 1 for found in parts), tokens=read, counts=counts)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved = {"kind": "records", "model": movable(self.model_path, folder), "demonstrations": self._demonstrations}
        write_json(folder / "scorer.json", saved | self._settings)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> RecordTagger:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model", "demonstrations")}
        return cls(folder / saved["model"], demonstrations=[(t, a) for t, a in saved["demonstrations"]], **fields)


def _read(tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[RecordPrompts, Part]]) -> list[list[int]]:
    """The prompts as tokens; all are laid out alike."""
    return asked[0][0].layout.tokens(tokenizer, [prompts.prompt(part) for prompts, part in asked]) if asked else []


def _spans(parsed: Parsed, part: Part, counts: dict[str, int]) -> set[Span]:
    """The spans of the document that a part's answer names and the part owns."""
    found, lost = locate(parsed.records, part.text)
    counts["answers cut short"] += parsed.cut
    counts["answers that are no records"] += not parsed.valid
    counts["records that stand nowhere"] += lost
    return {span for span in map(part.to_document, found) if part.owns(span)}
