"""Scorers for multiple choice: each gives every option of a question a score.

Shapes: A is the number of options of the longest question asked; shorter ones have -inf in the places they lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from quilate.files import make_folder, write_json
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
        normalization, max_prompt_tokens: see `score_answers`.
    """

    def __init__(
        self,
        model: Path,
        *,
        form: AnswerForm,
        template: str,
        instruction: str = "",
        demonstrations: Sequence[tuple[Asked, int]] = (),
        normalization: Normalization = "mean",
        max_prompt_tokens: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.model_path, self.form = model, form
        self.template = PromptTemplate(template, instruction=instruction, names=("text", "options"))
        self.demonstrations = list(demonstrations)
        self._settings = {
            "form": form,
            "template": template,
            "instruction": instruction,
            "normalization": normalization,
            "max_prompt_tokens": max_prompt_tokens,
            "precision": precision,
        }
        self.normalization, self._max_prompt_tokens = normalization, max_prompt_tokens
        self._precision = precision
        self._loaded: LoadedModel | None = None

    def prompts(self, questions: Sequence[Asked]) -> list[str]:
        """The whole prompt of each question, as the model sees it."""
        head = self._head()
        return [head + self.template.prompt(q.text, shown_options(q, self.form)) for q in questions]

    def _head(self) -> str:
        """What stands before every question."""
        solved = (
            self.template.demonstration(q.text, said_answers(q, self.form)[right], shown_options(q, self.form))
            for q, right in self.demonstrations
        )
        return self.template.prefix() + "".join(solved)

    def score(self, questions: Sequence[Asked], on_progress: ProgressCallback = silent) -> LabelScores:
        # Here, not above: transformers takes seconds to import, and the other scorers do without it.
        from quilate.inference.likelihood import score_answers
        from quilate.inference.prompting import LoadedModel
        from quilate.tokenization.segments import answer_tokens, prompt_tokens

        if self._loaded is None:
            self._loaded = LoadedModel.of(self.model_path, compute_dtype(self._precision))
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        prompts = prompt_tokens(tokenizer, self.prompts(questions))
        before = len(prompt_tokens(tokenizer, [self._head()])[0])
        said = [said_answers(question, self.form) for question in questions]
        found = score_answers(
            model,
            prompts,
            [answer_tokens(tokenizer, answers) for answers in said],
            item_lengths=[len(tokens) - before for tokens in prompts],
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
