"""The one interface for anything that labels text: a prompted or tuned model, TF-IDF, the majority class.

A scorer is saved as a folder with `scorer.json` (and arrays in safetensors), and `load_scorer` brings back any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from quilate.errors import DataError
from quilate.files import make_folder, read_json, write_json
from quilate.inference.scores import LabelScores, Normalization
from quilate.models.precision import Precision, compute_dtype
from quilate.tasks.templates import PromptTemplate

if TYPE_CHECKING:
    from quilate.inference.features import Features, Pooling

ProgressCallback = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


class Scorer(Protocol):
    """Scores every label for every text; higher is likelier."""

    labels: list[str]

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = _silent) -> LabelScores:
        """`scores` [texts, labels]: log-probabilities, up to a constant in each row."""
        ...

    def save(self, folder: Path) -> None: ...


class MajorityScorer:
    """The label frequencies of the training rows, whatever the text says."""

    def __init__(self, labels: list[str], frequencies: Sequence[float]) -> None:
        self.labels, self.frequencies = labels, list(frequencies)

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = _silent) -> LabelScores:
        row = np.log(np.maximum(self.frequencies, 1e-12))
        on_progress(len(texts), len(texts))
        return LabelScores(np.tile(row, (len(texts), 1)), truncated=0, tokens=0)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        write_json(folder / "scorer.json", {"kind": "majority", "labels": self.labels, "frequencies": self.frequencies})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> MajorityScorer:
        return cls(saved["labels"], saved["frequencies"])


class TfidfScorer:
    """Multinomial logistic regression on TF-IDF features, kept as plain arrays: nothing to unpickle.

    Args:
        terms: [F] the vocabulary in column order; idf: [F]; weights: [labels, F]; bias: [labels].
    """

    VECTORIZER: ClassVar[dict[str, Any]] = {"ngram_range": (1, 2), "sublinear_tf": True}

    def __init__(
        self, labels: list[str], terms: list[str], idf: np.ndarray, weights: np.ndarray, bias: np.ndarray
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.labels, self.terms, self.idf, self.weights, self.bias = labels, terms, idf, weights, bias
        self._vectorizer = TfidfVectorizer(vocabulary=terms, **self.VECTORIZER)
        self._vectorizer.idf_ = idf

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = _silent) -> LabelScores:
        if not texts:  # scikit-learn refuses an empty list
            return LabelScores(np.empty((0, len(self.labels))), truncated=0, tokens=0)
        logits = self._vectorizer.transform(texts) @ self.weights.T + self.bias
        on_progress(len(texts), len(texts))
        return LabelScores(logits - _log_sum_exp(logits), truncated=0, tokens=0)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        save_file({"idf": self.idf, "weights": self.weights, "bias": self.bias}, folder / "arrays.safetensors")
        write_json(folder / "scorer.json", {"kind": "tfidf", "labels": self.labels, "terms": self.terms})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> TfidfScorer:
        arrays = load_file(folder / "arrays.safetensors")
        return cls(saved["labels"], saved["terms"], arrays["idf"], arrays["weights"], arrays["bias"])


class PromptScorer:
    """A causal language model, asked with a prompt; prompted and fine-tuned models alike.

    Args:
        model: a model or adapter directory.
        labels, verbalizers: aligned; the verbalizer is what the model is asked to say.
        template: Jinja text of one item; `instruction` and `demonstrations` (text, verbalizer) go before it.
        normalization: see `score_labels`.
    """

    def __init__(
        self,
        model: Path,
        labels: list[str],
        verbalizers: list[str],
        *,
        template: str,
        instruction: str = "",
        demonstrations: Sequence[tuple[str, str]] = (),
        normalization: Normalization = "mean",
        precision: Precision = "auto",
    ) -> None:
        self.model_path, self.labels, self.verbalizers = model, labels, verbalizers
        self.template = PromptTemplate(template, instruction=instruction, verbalizers=verbalizers)
        self.demonstrations = [(text, verbalizer) for text, verbalizer in demonstrations]
        self._saved = {
            "kind": "prompt",
            "model": str(model),
            "labels": labels,
            "verbalizers": verbalizers,
            "template": template,
            "instruction": instruction,
            "demonstrations": [list(d) for d in self.demonstrations],
            "normalization": normalization,
            "precision": precision,
        }
        self._normalization, self._precision = normalization, precision
        self._loaded: tuple[Any, Any] | None = None

    def prompts(self, texts: Sequence[str]) -> list[str]:
        """The whole prompt of each text, as the model sees it."""
        prefix = self.template.prefix(self.demonstrations)
        return [prefix + self.template.prompt(text) for text in texts]

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = _silent) -> LabelScores:
        # Here, not above: transformers takes seconds to import, and the other scorers do without it.
        from quilate.inference.likelihood import score_labels
        from quilate.models.load import load_causal, load_tokenizer

        if self._loaded is None:
            model = load_causal(self.model_path, dtype=compute_dtype(self._precision))
            self._loaded = model, load_tokenizer(self.model_path)
        model, tokenizer = self._loaded
        return score_labels(
            model,
            tokenizer,
            self.prompts(texts),
            self.verbalizers,
            normalization=self._normalization,
            on_progress=on_progress,
        )

    def save(self, folder: Path) -> None:
        make_folder(folder)
        write_json(folder / "scorer.json", self._saved | {"model": _movable(self.model_path, folder)})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> PromptScorer:
        fields = {
            k: v for k, v in saved.items() if k not in ("kind", "model", "labels", "verbalizers", "demonstrations")
        }
        demonstrations = [(text, verbalizer) for text, verbalizer in saved["demonstrations"]]
        model = folder / saved["model"]
        return cls(model, saved["labels"], saved["verbalizers"], demonstrations=demonstrations, **fields)


class HeadScorer:
    """A linear head on the pooled hidden states of a frozen model; the head alone is saved, the model is named.

    Args:
        model: a model or adapter directory, causal or masked.
        template: Jinja text of one item, as the model reads it.
        weights: [labels, D]; bias: [labels].
        pooling, max_item_tokens: see `encode`.
    """

    def __init__(
        self,
        model: Path,
        labels: list[str],
        weights: np.ndarray,
        bias: np.ndarray,
        *,
        template: str,
        pooling: Pooling,
        max_item_tokens: int,
        precision: Precision = "auto",
    ) -> None:
        self.model_path, self.labels, self.weights, self.bias = model, labels, weights, bias
        self.template = PromptTemplate(template, instruction="", verbalizers=labels)
        self._saved = {
            "kind": "head",
            "model": str(model),
            "labels": labels,
            "template": template,
            "pooling": pooling,
            "max_item_tokens": max_item_tokens,
            "precision": precision,
        }
        self._pooling, self._max_item_tokens, self._precision = pooling, max_item_tokens, precision
        self._loaded: tuple[Any, Any] | None = None

    def features(self, texts: Sequence[str], on_progress: ProgressCallback = _silent) -> Features:
        """The vectors [texts, D] that the head multiplies."""
        # Here, not above: transformers takes seconds to import, and the other scorers do without it.
        from quilate.inference.features import encode
        from quilate.models.load import load_language_model, load_tokenizer

        if self._loaded is None:
            model = load_language_model(self.model_path, dtype=compute_dtype(self._precision))
            self._loaded = model, load_tokenizer(self.model_path)
        prompts = [self.template.prompt(text) for text in texts]
        model, tokenizer = self._loaded
        return encode(
            model, tokenizer, prompts, pooling=self._pooling, max_tokens=self._max_item_tokens, on_progress=on_progress
        )

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = _silent) -> LabelScores:
        features = self.features(texts, on_progress)
        logits = features.vectors.astype(np.float64) @ self.weights.T + self.bias
        return LabelScores(logits - _log_sum_exp(logits), features.truncated, features.tokens)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        save_file({"weights": self.weights, "bias": self.bias}, folder / "head.safetensors")
        write_json(folder / "scorer.json", self._saved | {"model": _movable(self.model_path, folder)})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> HeadScorer:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model", "labels")}
        arrays = load_file(folder / "head.safetensors")
        return cls(folder / saved["model"], saved["labels"], arrays["weights"], arrays["bias"], **fields)


_LOADERS: dict[str, Callable[[Path, dict[str, Any]], Scorer]] = {
    "majority": MajorityScorer.load,
    "tfidf": TfidfScorer.load,
    "prompt": PromptScorer.load,
    "head": HeadScorer.load,
}


def load_scorer(folder: Path) -> Scorer:
    """Bring back a saved scorer.

    Raises:
        DataError: the folder holds none, or it was altered.
    """
    saved = read_json(folder / "scorer.json")
    try:
        return _LOADERS[saved["kind"]](folder, saved)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        problem = f"{folder / 'scorer.json'} is not a scorer quilate wrote: {error}"
        raise DataError(problem, hint="run the recipe again") from error


def _movable(model: Path, folder: Path) -> str:
    """A model beside the scorer is named relative to it: a run directory may be moved as a whole."""
    near = model.is_relative_to(folder.parent)
    return str(Path("..") / model.relative_to(folder.parent) if near else model)


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - highest).sum(axis=1, keepdims=True)
    result: np.ndarray = highest + np.log(total)
    return result
