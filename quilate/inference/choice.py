"""Scorers for multiple choice: each gives every option of a question a score.

Shapes: A is the number of options of the longest question asked; shorter ones have -inf in the places they lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from quilate.files import make_folder, write_json
from quilate.inference.calibration import CONTENT_FREE, Calibration, contextual, domain_pmi
from quilate.inference.demonstrations import nearest_to
from quilate.inference.prompts import Demonstration, Format, Layout, Prompt, closing_words, layout_of
from quilate.inference.scorer import ProgressCallback, TfidfScorer, movable, silent
from quilate.inference.scores import LabelScores, Normalization, by_characters
from quilate.models.precision import Precision, compute_dtype
from quilate.tasks.multiple_choice import LETTERS, AnswerForm
from quilate.tasks.templates import PromptTemplate

if TYPE_CHECKING:
    from quilate.inference.prompting import LoadedModel

SMALLEST_SHARE = 1e-12  # log-probabilities stay finite


class Asked(Protocol):
    """A question, from a task's items or a user's rows."""

    @property
    def text(self) -> str: ...

    @property
    def options(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Question:
    """What a scorer is asked."""

    text: str
    options: tuple[str, ...]


class ChoiceScorer(Protocol):
    """Scores every option of every question; higher is likelier."""

    def score(self, questions: Sequence[Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        """`scores` [questions, A]: log-probabilities, up to a constant in each row."""
        ...

    def save(self, folder: Path) -> None: ...


def _in_rows(rows: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """[questions, A] from the scores of each question's options."""
    scores = np.full((len(rows), max(map(len, rows), default=0)), -np.inf)
    for place, row in enumerate(rows):
        scores[place, : len(row)] = row
    return scores


class PositionScorer:
    """How often each place held the right option in training, whatever the question says."""

    def __init__(self, frequencies: Sequence[float]) -> None:
        self.frequencies = list(frequencies)

    def score(self, questions: Sequence[Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        known = np.log(np.maximum(self.frequencies, SMALLEST_SHARE))
        unknown = np.full(len(LETTERS), np.log(SMALLEST_SHARE))
        row = np.concatenate([known, unknown])
        on_progress(len(questions), len(questions))
        return LabelScores(_in_rows([row[: len(q.options)] for q in questions]), truncated=0, tokens=0)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        write_json(folder / "scorer.json", {"kind": "position", "frequencies": self.frequencies})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> PositionScorer:
        return cls(saved["frequencies"])


class LongestScorer:
    """The longest option: who writes an exam takes care that the right one is right, which takes words (the length
    effect of exam folklore). Its share of a question's characters stands for its probability."""

    def score(self, questions: Sequence[Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        on_progress(len(questions), len(questions))
        rows = [np.log([max(len(option), 1) for option in question.options]) for question in questions]
        return LabelScores(_in_rows(rows), truncated=0, tokens=0)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        write_json(folder / "scorer.json", {"kind": "longest"})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> LongestScorer:
        return cls()


class OverlapScorer:
    """The option whose TF-IDF vector is nearest to the question's (cosine), kept as plain arrays.

    Vilares & Gómez-Rodríguez 2019 (HEAD-QA) have a like baseline, with retrieved documents for the question.

    Args:
        terms: [F] the vocabulary in column order; idf: [F].
    """

    def __init__(self, terms: list[str], idf: np.ndarray) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.terms, self.idf = terms, idf
        self._vectorizer = TfidfVectorizer(vocabulary=terms, **TfidfScorer.VECTORIZER)
        self._vectorizer.idf_ = idf

    def score(self, questions: Sequence[Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        rows = []
        for question in questions:
            vectors = self._vectorizer.transform([question.text, *question.options])  # rows have length 1 or 0
            rows.append((vectors[1:] @ vectors[0].T).toarray()[:, 0])
        on_progress(len(questions), len(questions))
        return LabelScores(_in_rows(rows), truncated=0, tokens=0)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        save_file({"idf": self.idf}, folder / "arrays.safetensors")
        write_json(folder / "scorer.json", {"kind": "overlap", "terms": self.terms})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> OverlapScorer:
        return cls(saved["terms"], load_file(folder / "arrays.safetensors")["idf"])


class ChoicePromptScorer:
    """A causal language model, asked with a prompt; prompted and fine-tuned models alike.

    Args:
        model: a model or adapter directory.
        form: whether it is asked for an option's `text` or its `letter`.
        template: Jinja text of one question; `instruction` and `demonstrations` (question, right place) go before it.
        nearest: show each question so many of the demonstrations, those most like it, and fewer where they do not fit.
        style: plain text, or a conversation through the model's chat template.
        normalization, max_prompt_tokens: see `score_answers`.
        calibration: see quilate.inference.calibration. An empty question keeps its options where the model is asked for
            their texts, whose own likelihoods are what is taken off; where it is asked for letters they are empty too.
        domain_prompt: the premise of `domain_pmi`; the template's closing words if empty.
    """

    def __init__(
        self,
        model: Path,
        *,
        form: AnswerForm,
        template: str,
        instruction: str = "",
        demonstrations: Sequence[tuple[Asked, int]] = (),
        nearest: int | None = None,
        style: Format = "plain",
        normalization: Normalization = "mean",
        calibration: Calibration = "none",
        domain_prompt: str = "",
        max_prompt_tokens: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.model_path, self.form, self.style = model, form, style
        self.template = PromptTemplate(template, instruction=instruction, names=("text", "options"))
        self.demonstrations, self._nearest = list(demonstrations), nearest
        self._settings = {
            "form": form,
            "template": template,
            "instruction": instruction,
            "nearest": nearest,
            "style": style,
            "normalization": normalization,
            "calibration": calibration,
            "domain_prompt": domain_prompt,
            "max_prompt_tokens": max_prompt_tokens,
            "precision": precision,
        }
        self.normalization, self._max_prompt_tokens = normalization, max_prompt_tokens
        self.calibration, self._domain_prompt = calibration, domain_prompt
        self._precision = precision
        self._loaded: LoadedModel | None = None

    def with_prompt(
        self, *, template: str, demonstrations: Sequence[tuple[Asked, int]], nearest: int | None = None
    ) -> ChoicePromptScorer:
        """The same model, loaded once, asked with another prompt."""
        other = copy(self)
        other.template = self.template.with_source(template, instruction=self.template.instruction)
        other.demonstrations, other._nearest = list(demonstrations), nearest
        other._settings = self._settings | {"template": template, "nearest": nearest}
        return other

    def loaded(self) -> LoadedModel:
        """The model, loaded when it is first needed."""
        # Here, not above: transformers takes seconds to import, and the other scorers do without it.
        from quilate.inference.prompting import LoadedModel

        if self._loaded is None:
            self._loaded = LoadedModel.of(self.model_path, compute_dtype(self._precision))
        return self._loaded

    def prompts(self, questions: Sequence[Asked]) -> list[str]:
        """The whole prompt of each question, as the model sees it."""
        layout = self._layout()
        before = self._before(layout, questions)[0]
        return [str(layout.write(own, self._shown(q))) for own, q in zip(before, questions, strict=True)]

    def _layout(self) -> Layout:
        from quilate.models.load import load_tokenizer

        tokenizer = load_tokenizer(self.model_path) if self.style == "chat" else None
        return layout_of(self.template, self.style, tokenizer, model=self.model_path.name)

    def _before(self, layout: Layout, questions: Sequence[Asked]) -> tuple[list[list[Demonstration]], int]:
        """What stands solved before each question, and how many have fewer than were asked for."""
        if self._nearest is None:
            return [[self._solved(*shown) for shown in self.demonstrations]] * len(questions), 0
        from quilate.inference.prompting import nearest_that_fit
        from quilate.models.load import context_of_directory, load_tokenizer
        from quilate.tokenization.segments import answer_tokens

        tokenizer, context = load_tokenizer(self.model_path), context_of_directory(self.model_path)
        near = nearest_to(self.demonstrations, lambda d: d[0].text, [q.text for q in questions], self._nearest)
        found = []
        for question, own in zip(questions, near, strict=True):
            longest = max(map(len, answer_tokens(tokenizer, said_answers(question, self.form))))
            solved = [self._solved(*shown) for shown in own]
            found.append(nearest_that_fit(layout, tokenizer, solved, self._shown(question), context - longest))
        return found, sum(len(kept) < len(own) for kept, own in zip(found, near, strict=True))

    def _shown(self, question: Asked) -> str:
        return self.template.prompt(question.text, shown_options(question, self.form))

    def _solved(self, question: Asked, right: int) -> Demonstration:
        return self._shown(question), said_answers(question, self.form)[right]

    def score(self, questions: Sequence[Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        layout = self._layout()
        before, fewer = self._before(layout, questions)
        said = [said_answers(question, self.form) for question in questions]
        asked = [layout.write(own, self._shown(question)) for own, question in zip(before, questions, strict=True)]
        found = self._ask(layout, asked, said, on_progress)
        scores, tokens = found.scores, found.tokens
        if self.calibration == "contextual" and questions:
            empty = [
                (layout.write(own, self._shown(self._without_content(question, words))), answers)
                for own, question, answers in zip(before, questions, said, strict=True)
                for words in CONTENT_FREE
            ]
            free, read = self._ask_once(layout, empty)
            scores = contextual(scores, free.reshape(len(questions), len(CONTENT_FREE), -1))
            tokens += read
        if self.calibration == "domain_pmi" and questions:
            premise = layout.premise(self._domain_prompt or closing_words(self.template))
            alone, read = self._ask_once(layout, [(premise, answers) for answers in said])
            scores = domain_pmi(scores, alone)
            tokens += read
        counts = {} if self._nearest is None else {"prompts with fewer demonstrations": fewer}
        return replace(found, scores=scores, tokens=tokens, counts=found.counts | counts)

    def _without_content(self, question: Asked, words: str) -> Question:
        """`words` in the question's place; where letters are asked for, in the place of every option too."""
        return Question(words, question.options if self.form == "text" else (words,) * len(question.options))

    def _ask_once(self, layout: Layout, asked: Sequence[tuple[Prompt, tuple[str, ...]]]) -> tuple[np.ndarray, int]:
        """[asked, A] the scores of answers after prompts, equal ones computed once; and the tokens that took."""
        places = {(str(prompt), answers): (prompt, answers) for prompt, answers in asked}
        found = self._ask(layout, [p for p, _ in places.values()], [a for _, a in places.values()])
        rows = dict(zip(places, found.scores, strict=True))
        return np.stack([rows[str(prompt), answers] for prompt, answers in asked]), found.tokens

    def _ask(
        self,
        layout: Layout,
        prompts: Sequence[Prompt],
        said: Sequence[tuple[str, ...]],
        on_progress: ProgressCallback = silent,
    ) -> LabelScores:
        """The scores of each prompt's own answers."""
        from quilate.inference.likelihood import score_answers
        from quilate.tokenization.segments import answer_tokens

        model, tokenizer = self.loaded().model, self.loaded().tokenizer
        whole = layout.tokens(tokenizer, [str(prompt) for prompt in prompts])
        heads = list({prompt.head for prompt in prompts})
        before = dict(zip(heads, map(len, layout.tokens(tokenizer, heads)), strict=True))
        found = score_answers(
            model,
            whole,
            [answer_tokens(tokenizer, answers, start=layout.answer_start) for answers in said],
            item_lengths=[len(tokens) - before[p.head] for tokens, p in zip(whole, prompts, strict=True)],
            max_prompt_tokens=self._max_prompt_tokens,
            normalization=self.normalization,
            on_progress=on_progress,
        )
        return by_characters(found, said) if self.normalization == "characters" else found

    def save(self, folder: Path) -> None:
        make_folder(folder)
        shown = [{"text": q.text, "options": list(q.options), "right": right} for q, right in self.demonstrations]
        saved = {"kind": "choice prompt", "model": movable(self.model_path, folder), "demonstrations": shown}
        write_json(folder / "scorer.json", saved | self._settings)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> ChoicePromptScorer:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model", "demonstrations")}
        shown = [(Question(d["text"], tuple(d["options"])), d["right"]) for d in saved["demonstrations"]]
        return cls(folder / saved["model"], demonstrations=shown, **fields)


def said_answers(question: Asked, form: AnswerForm) -> tuple[str, ...]:
    """What a model writes for each option."""
    return question.options if form == "text" else tuple(LETTERS[: len(question.options)])


def shown_options(question: Asked, form: AnswerForm) -> list[str]:
    """The options as the prompt's `{{ options }}`."""
    if form == "text":
        return list(question.options)
    return [f"{letter}) {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
