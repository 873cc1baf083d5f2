"""Answers to questions by writing: greedily, and where they are to be stretches of the context, under a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quilate.errors import DataError, ModelError
from quilate.files import make_folder, write_json
from quilate.inference.demonstrations import nearest_to
from quilate.inference.prompts import Format, Layout, Prompt, layout_of
from quilate.inference.scorer import ProgressCallback, movable, silent
from quilate.models.precision import Precision, compute_dtype
from quilate.tasks.records import stretch_grammar
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.segments import KEPT_END, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from quilate.inference.generation import Generator


class Asked(Protocol):
    """A question, from a task's items or a user's rows."""

    @property
    def text(self) -> str: ...

    @property
    def context(self) -> str: ...


@dataclass(frozen=True)
class Posed:
    """What a writer is asked."""

    text: str
    context: str


@dataclass(frozen=True)
class WrittenAnswers:
    """`answers` in the order of the questions; `truncated` prompts were cut; `unfinished` answers did not end by
    themselves; `tokens` were read and written; `counts` is what else befell them, `cost` what an endpoint charged."""

    answers: list[str]
    truncated: int
    unfinished: int
    tokens: int
    counts: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0


class AnswerWriter:
    """A causal model that writes one line after a prompt; prompted and fine-tuned models alike.

    Args:
        model: a model or adapter directory.
        template: Jinja text of one question; `instruction` and `demonstrations` (question, context, answer) go before.
        nearest: show each question so many of the demonstrations, those most like it, and fewer where they do not fit.
        style: plain text, or a conversation through the model's chat template.
        extractive: allow stretches of the context alone.
        max_new_tokens: an answer also ends after so many, and is counted.
        max_prompt_tokens: prompts longer than that are cut in the question's middle, as in training; by default those
            that leave an answer no place in the model's context.
    """

    def __init__(
        self,
        model: Path,
        *,
        template: str,
        instruction: str = "",
        demonstrations: Sequence[tuple[str, str, str]] = (),
        nearest: int | None = None,
        style: Format = "plain",
        extractive: bool,
        max_new_tokens: int,
        max_prompt_tokens: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.model_path = model
        self._template = PromptTemplate(template, instruction=instruction, names=("text", "context"))
        self._demonstrations = [(text, context, answer) for text, context, answer in demonstrations]
        self._nearest, self._style = nearest, style
        self._settings = {
            "template": template,
            "instruction": instruction,
            "nearest": nearest,
            "style": style,
            "extractive": extractive,
            "max_new_tokens": max_new_tokens,
            "max_prompt_tokens": max_prompt_tokens,
            "precision": precision,
        }
        self._max_prompt_tokens = max_prompt_tokens
        self._extractive, self._max_new_tokens, self._precision = extractive, max_new_tokens, precision
        self._loaded: tuple[PreTrainedTokenizerBase, Generator, int] | None = None

    def with_prompt(
        self, *, template: str, demonstrations: Sequence[tuple[str, str, str]], nearest: int | None = None
    ) -> AnswerWriter:
        """The same model, loaded once, asked with another prompt."""
        other = copy(self)
        other._template = self._template.with_source(template, instruction=self._template.instruction)
        other._demonstrations, other._nearest = list(demonstrations), nearest
        other._settings = self._settings | {"template": template, "nearest": nearest}
        return other

    def prompts(self, questions: Sequence[Asked]) -> list[str]:
        """The whole prompt of each question, as the model sees it."""
        from quilate.models.load import context_of_directory, load_tokenizer

        tokenizer = load_tokenizer(self.model_path)
        room = self._room(context_of_directory(self.model_path))
        return [str(prompt) for prompt in self._prompts(self._layout(tokenizer), tokenizer, questions, room)[0]]

    def _layout(self, tokenizer: PreTrainedTokenizerBase) -> Layout:
        return layout_of(self._template, self._style, tokenizer, model=self.model_path.name)

    def _prompts(
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Asked], room: int
    ) -> tuple[list[Prompt], int]:
        """The prompts, and how many show fewer demonstrations than were asked for."""
        asked = [self._template.prompt(question.text, context=question.context) for question in questions]
        if self._nearest is None:
            solved = list(map(self._solved, self._demonstrations))
            return [layout.write(solved, question) for question in asked], 0
        from quilate.inference.prompting import nearest_that_fit

        near = nearest_to(
            self._demonstrations, lambda d: d[0], [question.text for question in questions], self._nearest
        )
        found = [
            nearest_that_fit(layout, tokenizer, list(map(self._solved, own)), question, room)
            for own, question in zip(near, asked, strict=True)
        ]
        prompts = [layout.write(own, question) for own, question in zip(found, asked, strict=True)]
        return prompts, sum(len(kept) < len(own) for kept, own in zip(found, near, strict=True))

    def _solved(self, shown: tuple[str, str, str]) -> tuple[str, str]:
        text, context, answer = shown
        return self._template.prompt(text, context=context), answer

    def _room(self, context: int) -> int:
        """Tokens that a prompt may have.

        Raises:
            DataError: the answer leaves none.
        """
        room = context - self._max_new_tokens
        if room < 1:
            raise DataError(
                f"max_new_tokens: {self._max_new_tokens} leave no room for a question in a context of {context} tokens",
                hint="lower it",
            )
        return room if self._max_prompt_tokens is None else min(room, self._max_prompt_tokens)

    def write(self, questions: Sequence[Asked], on_progress: ProgressCallback = silent) -> WrittenAnswers:
        """The answers: each the first line that the model writes.

        Raises:
            MachineError, ModelError: see `GrammarTokens`.
            DataError: an answer, or a question after the demonstrations, has no room in the model's context.
        """
        tokenizer, generator, vocabulary = self.loaded()
        layout, room = self._layout(tokenizer), self._room(generator.context)
        prompts, fewer = self._prompts(layout, tokenizer, questions, room)
        cut = self._fitting(layout, tokenizer, prompts, room)
        written = generator.generate(
            [tokens for tokens, _ in cut],
            max_new_tokens=self._max_new_tokens,
            constraints=self._constraints(layout, tokenizer, vocabulary, questions) if self._extractive else None,
            on_progress=on_progress,
        )
        answers = [
            tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            for tokens in written
        ]
        return WrittenAnswers(
            [answer.partition("\n")[0].strip() for answer in answers],
            truncated=sum(was_cut for _, was_cut in cut),
            unfinished=sum(not (tokens and tokens[-1] in generator.stop) for tokens in written),
            tokens=sum(len(tokens) for tokens, _ in cut) + sum(map(len, written)),
            counts={} if self._nearest is None else {"prompts with fewer demonstrations": fewer},
        )

    def _fitting(
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], room: int
    ) -> list[tuple[list[int], bool]]:
        """The prompts' tokens; of one that is too long the question is cut, and not the demonstrations before it."""
        whole = layout.tokens(tokenizer, [str(prompt) for prompt in prompts])
        heads = list({prompt.head for prompt in prompts if prompt.head})
        lengths = {"": 0} | dict(zip(heads, map(len, layout.tokens(tokenizer, heads)), strict=True))
        cut = []
        for tokens, prompt in zip(whole, prompts, strict=True):
            before = lengths[prompt.head]
            if len(tokens) > room and room - before < 2 * KEPT_END:
                raise DataError(
                    f"{len(self._demonstrations)} demonstrations take {before} of the {room} tokens that a prompt may "
                    "have, which leaves no room for a question",
                    hint="show fewer or shorter ones, or lower max_new_tokens",
                )
            kept, was_cut = shorten(tokens[before:], room - before)
            cut.append((tokens[:before] + kept, was_cut))
        return cut

    def loaded(self) -> tuple[PreTrainedTokenizerBase, Generator, int]:
        """The tokenizer, the model and the size of its vocabulary, loaded when they are first needed."""
        # Here, not above: transformers takes seconds to import, and a scorer may be loaded and not asked.
        from quilate.inference.generation import Generator
        from quilate.models.load import load_causal, load_tokenizer

        if self._loaded is None:
            tokenizer = load_tokenizer(self.model_path)
            if tokenizer.eos_token_id is None:
                raise ModelError(f"{self.model_path} has no token that ends a text", hint="use another model")
            model = load_causal(self.model_path, dtype=compute_dtype(self._precision))
            generator = Generator(model, stop={int(tokenizer.eos_token_id)})
            self._loaded = tokenizer, generator, int(model.config.vocab_size)
        return self._loaded

    def _constraints(
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase, vocabulary: int, questions: Sequence[Asked]
    ) -> list[Any]:
        from quilate.inference.grammar import GrammarConstraint, GrammarTokens

        tokens = GrammarTokens(tokenizer, vocabulary)
        return [
            GrammarConstraint(tokens, stretch_grammar(question.context, start=layout.answer_start))
            for question in questions
        ]

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved = {"kind": "answers", "model": movable(self.model_path, folder), "demonstrations": self._demonstrations}
        write_json(folder / "scorer.json", saved | self._settings)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> AnswerWriter:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model", "demonstrations")}
        shown = [(text, context, answer) for text, context, answer in saved["demonstrations"]]
        return cls(folder / saved["model"], demonstrations=shown, **fields)
