"""The one interface for anything that labels text: a prompted or tuned model, TF-IDF, the majority class.

A scorer is saved as a folder with `scorer.json` (and arrays in safetensors), and `load_scorer` brings back any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from quilate.errors import DataError
from quilate.files import digest, make_folder, read_json, sha256_of_tree, write_json
from quilate.inference.calibration import CONTENT_FREE, Calibration, contextual, domain_pmi
from quilate.inference.demonstrations import TFIDF, Pool
from quilate.inference.prompts import Demonstration, Format, Layout, closing_words, layout_of
from quilate.inference.scores import LabelScores, Link, Normalization
from quilate.models.precision import Precision, compute_dtype
from quilate.tasks.templates import PromptTemplate

if TYPE_CHECKING:
    from quilate.inference.features import Features, Long, Pooling
    from quilate.inference.prompting import LoadedModel

ProgressCallback = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


class Scorer(Protocol):
    """Scores every label for every text; higher is likelier."""

    labels: list[str]

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> LabelScores:
        """`scores` [texts, labels]: log-probabilities, up to a constant in each row; or log-odds, see `Link`."""
        ...

    def save(self, folder: Path) -> None: ...


class MajorityScorer:
    """The label frequencies of the training rows, whatever the text says."""

    def __init__(self, labels: list[str], frequencies: Sequence[float], *, link: Link = "softmax") -> None:
        self.labels, self.frequencies, self.link = labels, list(frequencies), link

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> LabelScores:
        row = np.log(np.maximum(self.frequencies, 1e-12))
        if self.link == "sigmoid":
            row -= np.log(np.maximum(1 - np.array(self.frequencies), 1e-12))
        on_progress(len(texts), len(texts))
        return LabelScores(np.tile(row, (len(texts), 1)), truncated=0, tokens=0)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved = {"kind": "majority", "labels": self.labels, "frequencies": self.frequencies, "link": self.link}
        write_json(folder / "scorer.json", saved)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> MajorityScorer:
        return cls(saved["labels"], saved["frequencies"], link=saved.get("link", "softmax"))


class TfidfScorer:
    """Logistic regression on TF-IDF features, multinomial or one a label (see `Link`), kept as plain arrays: nothing to
    unpickle.

    Args:
        terms: [F] the vocabulary in column order; idf: [F]; weights: [labels, F]; bias: [labels].
    """

    VECTORIZER: ClassVar[dict[str, Any]] = TFIDF

    def __init__(
        self,
        labels: list[str],
        terms: list[str],
        idf: np.ndarray,
        weights: np.ndarray,
        bias: np.ndarray,
        *,
        link: Link = "softmax",
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.labels, self.terms, self.idf, self.weights, self.bias = labels, terms, idf, weights, bias
        self.link = link
        self._vectorizer = TfidfVectorizer(vocabulary=terms, **self.VECTORIZER)
        self._vectorizer.idf_ = idf

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> LabelScores:
        if not texts:  # scikit-learn refuses an empty list
            return LabelScores(np.empty((0, len(self.labels))), truncated=0, tokens=0)
        logits = self._vectorizer.transform(texts) @ self.weights.T + self.bias
        on_progress(len(texts), len(texts))
        return LabelScores(_linked(logits, self.link), truncated=0, tokens=0)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        save_file({"idf": self.idf, "weights": self.weights, "bias": self.bias}, folder / "arrays.safetensors")
        saved = {"kind": "tfidf", "labels": self.labels, "terms": self.terms, "link": self.link}
        write_json(folder / "scorer.json", saved)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> TfidfScorer:
        arrays = load_file(folder / "arrays.safetensors")
        weights, bias = arrays["weights"], arrays["bias"]
        return cls(saved["labels"], saved["terms"], arrays["idf"], weights, bias, link=saved.get("link", "softmax"))


class PromptScorer:
    """A causal language model, asked with a prompt; prompted and fine-tuned models alike.

    Args:
        model: a model or adapter directory.
        labels, verbalizers: aligned; the verbalizer is what the model is asked to say.
        template: Jinja text of one item; `instruction` and `demonstrations` (text, verbalizer) go before it.
        pool: gives every item its own demonstrations instead.
        style: plain text, or a conversation through the model's chat template.
        normalization, max_prompt_tokens: see `score_answers`; calibration: see quilate.inference.calibration.
        domain_prompt: the premise of `domain_pmi`; the template's closing words if empty.
    """

    def __init__(
        self,
        model: Path,
        labels: list[str],
        verbalizers: list[str],
        *,
        template: str,
        instruction: str = "",
        demonstrations: Sequence[Demonstration] = (),
        pool: Pool | None = None,
        style: Format = "plain",
        normalization: Normalization = "mean",
        calibration: Calibration = "none",
        domain_prompt: str = "",
        max_prompt_tokens: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.model_path, self.labels, self.verbalizers = model, labels, verbalizers
        self.template = PromptTemplate(template, instruction=instruction, verbalizers=verbalizers)
        self.demonstrations = [(text, verbalizer) for text, verbalizer in demonstrations]
        self.pool, self.style = pool, style
        self.calibration, self._domain_prompt = calibration, domain_prompt
        self.normalization, self._precision = normalization, precision
        self._max_prompt_tokens = max_prompt_tokens
        self._loaded: LoadedModel | None = None

    def with_prompt(
        self, *, template: str, demonstrations: Sequence[Demonstration], pool: Pool | None = None
    ) -> PromptScorer:
        """The same model, loaded once, asked with another prompt."""
        other = copy(self)
        other.template = self.template.with_source(template, instruction=self.template.instruction)
        other.demonstrations, other.pool = list(demonstrations), pool
        return other

    def on(self, loaded: LoadedModel) -> PromptScorer:
        """The same prompts, asked of a model that is in memory already."""
        other = copy(self)
        other._loaded = loaded
        return other

    def loaded(self) -> LoadedModel:
        """The model, loaded when it is first needed."""
        # Here, not above: transformers takes seconds to import, and the other scorers do without it.
        from quilate.inference.prompting import LoadedModel

        if self._loaded is None:
            self._loaded = LoadedModel.of(self.model_path, compute_dtype(self._precision))
        return self._loaded

    def _layout(self) -> Layout:
        tokenizer = None
        if self.style == "chat":
            from quilate.models.load import load_tokenizer

            tokenizer = load_tokenizer(self.model_path) if self._loaded is None else self._loaded.tokenizer
        return layout_of(self.template, self.style, tokenizer, model=self.model_path.name)

    def prompts(self, texts: Sequence[str]) -> list[str]:
        """The whole prompt of each text, as the model sees it."""
        layout = self._layout()
        return [str(layout.prompt(shown, text)) for shown, text in zip(self._shown(texts)[0], texts, strict=True)]

    def tokens(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """All that is read to score the texts: the whole prompts, those without content that calibrate them among them,
        and the labels, as tokens; the model is loaded only to choose near examples."""
        from quilate.models.load import load_tokenizer
        from quilate.tokenization.segments import answer_tokens

        layout, tokenizer, shown = self._layout(), load_tokenizer(self.model_path), self._shown(texts)[0]
        asked = [*zip(shown, texts, strict=True)]
        if self.calibration == "contextual" and texts:
            asked += zip(*self._without_content(shown), strict=True)
        prompts = layout.tokens(tokenizer, [str(layout.prompt(before, text)) for before, text in asked])
        return prompts, answer_tokens(tokenizer, self.verbalizers, start=layout.answer_start)

    def show(self, text: str, *, with_text: bool) -> str:
        """The prompt of a text; without `with_text` every text is replaced by its place: `[text 3]`, `[text]`."""
        layout, shown = self._layout(), self._shown([text])[0][0]
        if with_text:
            return str(layout.prompt(shown, text))
        hidden = [(f"[text {number}]", verbalizer) for number, (_, verbalizer) in enumerate(shown, start=1)]
        return str(layout.prompt(hidden, "[text]"))

    def _shown(self, texts: Sequence[str]) -> tuple[list[list[Demonstration]], int]:
        """The demonstrations before each text, and how many texts have fewer than were asked for."""
        if self.pool is None:
            return [self.demonstrations] * len(texts), 0
        return self.loaded().nearest_that_fit(self._layout(), self.pool, texts, self.verbalizers)

    def _without_content(self, shown: Sequence[list[Demonstration]]) -> tuple[list[list[Demonstration]], list[str]]:
        """The demonstrations and texts of the prompts that calibrate: once for all items, or for each with its own."""
        distinct = shown[:1] if self.pool is None else shown
        return [before for before in distinct for _ in CONTENT_FREE], list(CONTENT_FREE) * len(distinct)

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> LabelScores:
        shown, fewer = self._shown(texts)
        ask = self.loaded().asker(self._layout(), self.verbalizers, self.normalization, self._max_prompt_tokens)
        found = ask(shown, texts, on_progress)
        scores, tokens = found.scores, found.tokens
        if self.calibration == "contextual" and texts:
            free = ask(*self._without_content(shown))
            scores = contextual(scores, free.scores.reshape(-1, len(CONTENT_FREE), len(self.labels)))
            tokens += free.tokens
        if self.calibration == "domain_pmi":
            alone = ask.premise(self._domain_prompt or closing_words(self.template))
            scores = domain_pmi(scores, alone.scores[0])
            tokens += alone.tokens
        counts = {} if self.pool is None else {"prompts with fewer demonstrations": fewer}
        return LabelScores(scores, found.truncated, tokens, counts)

    def save(self, folder: Path) -> None:
        make_folder(folder)
        saved: dict[str, Any] = {
            "kind": "prompt",
            "model": movable(self.model_path, folder),
            "labels": self.labels,
            "verbalizers": self.verbalizers,
            "template": self.template.source,
            "instruction": self.template.instruction,
            "demonstrations": [list(d) for d in self.demonstrations],
            "style": self.style,
            "normalization": self.normalization,
            "calibration": self.calibration,
            "domain_prompt": self._domain_prompt,
            "max_prompt_tokens": self._max_prompt_tokens,
            "precision": self._precision,
        }
        if self.pool is not None:
            pool = {k: v for k, v in vars(self.pool).items() if k != "vectors"}
            saved["pool"] = pool | {"examples": [list(e) for e in self.pool.examples]}
            if self.pool.vectors is not None:
                save_file({"vectors": self.pool.vectors}, folder / "pool.safetensors")
        write_json(folder / "scorer.json", saved)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> PromptScorer:
        saved = dict(saved)
        kind, model = saved.pop("kind"), folder / saved.pop("model")
        assert kind == "prompt"
        demonstrations = [(text, verbalizer) for text, verbalizer in saved.pop("demonstrations")]
        pool = None
        if "pool" in saved:
            fields = saved.pop("pool")
            examples = [(text, verbalizer) for text, verbalizer in fields.pop("examples")]
            arrays = folder / "pool.safetensors"
            vectors = load_file(arrays)["vectors"] if arrays.exists() else None
            pool = Pool(examples, vectors=vectors, **fields)
        labels, verbalizers = saved.pop("labels"), saved.pop("verbalizers")
        return cls(model, labels, verbalizers, demonstrations=demonstrations, pool=pool, **saved)


class HeadScorer:
    """A linear head on the pooled hidden states of a frozen model; the head alone is saved, the model is named.

    Args:
        model: a model or adapter directory, causal or masked.
        template: Jinja text of one item, as the model reads it.
        weights: [labels, D]; bias: [labels].
        pooling, max_item_tokens, long: see `encode`.
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
        long: Long = "cut",
        link: Link = "softmax",
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
            "long": long,
            "link": link,
            "precision": precision,
        }
        self._pooling, self._max_item_tokens, self._precision = pooling, max_item_tokens, precision
        self._long, self._link = long, link
        self._loaded: tuple[Any, Any] | None = None

    def encoding(self) -> dict[str, Any]:
        """What the vectors of a text depend on, beside the model."""
        return {key: self._saved[key] for key in ("template", "pooling", "max_item_tokens", "long", "precision")}

    def features(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> Features:
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
            model, tokenizer, prompts, pooling=self._pooling, max_tokens=self._max_item_tokens, long=self._long,
            on_progress=on_progress,
        )  # fmt: skip

    def score(self, texts: Sequence[str], on_progress: ProgressCallback = silent) -> LabelScores:
        features = self.features(texts, on_progress)
        logits = features.vectors.astype(np.float64) @ self.weights.T + self.bias
        return LabelScores(_linked(logits, self._link), features.truncated, features.tokens, features.counts())

    def save(self, folder: Path) -> None:
        make_folder(folder)
        save_file({"weights": self.weights, "bias": self.bias}, folder / "head.safetensors")
        write_json(folder / "scorer.json", self._saved | {"model": movable(self.model_path, folder)})

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> HeadScorer:
        fields = {k: v for k, v in saved.items() if k not in ("kind", "model", "labels")}
        arrays = load_file(folder / "head.safetensors")
        return cls(folder / saved["model"], saved["labels"], arrays["weights"], arrays["bias"], **fields)


_KINDS = {
    "majority": "quilate.inference.scorer:MajorityScorer",
    "tfidf": "quilate.inference.scorer:TfidfScorer",
    "prompt": "quilate.inference.scorer:PromptScorer",
    "head": "quilate.inference.scorer:HeadScorer",
    "label sets": "quilate.inference.label_sets:LabelSetScorer",
    "position": "quilate.inference.choice:PositionScorer",
    "longest": "quilate.inference.choice:LongestScorer",
    "overlap": "quilate.inference.choice:OverlapScorer",
    "choice prompt": "quilate.inference.choice:ChoicePromptScorer",
    "gazetteer": "quilate.inference.spans:GazetteerTagger",
    "tagger": "quilate.inference.spans:ModelTagger",
    "written tagger": "quilate.inference.written_spans:WrittenTagger",
    "answers": "quilate.inference.answers:AnswerWriter",
    "records": "quilate.inference.records:RecordTagger",
    "api": "quilate.inference.api_scorer:ApiScorer",
    "api choices": "quilate.inference.api_kinds:ApiChoiceScorer",
    "api records": "quilate.inference.api_kinds:ApiTagger",
    "api answers": "quilate.inference.api_kinds:ApiAnswerWriter",
}


def load_scorer(folder: Path) -> Any:
    """Bring back what an arm saved: a `Scorer`, a `ChoiceScorer` or a `Tagger`, as its task's kind wants.

    Raises:
        DataError: the folder holds none, or it was altered.
    """
    saved = read_json(folder / "scorer.json")
    try:
        module, _, name = _KINDS[saved["kind"]].partition(":")
        return getattr(import_module(module), name).load(folder, saved)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        problem = f"{folder / 'scorer.json'} is not a scorer quilate wrote: {error}"
        raise DataError(problem, hint="run the recipe again") from error


def folder_of_arm(place: str, base: Path) -> Path:
    """The folder of a finished arm, as a recipe names it.

    Raises:
        DataError: it is none.
    """
    folder = base / place
    if not (folder / "scorer" / "scorer.json").exists():
        raise DataError(
            f"{folder} is not the folder of a finished arm",
            hint="give the arm's folder below its run's `stages`; it holds `scorer/scorer.json`",
        )
    return folder


def content_of_arm(folder: Path) -> str:
    """The digest of a finished arm's scorer and of the model it uses."""
    scorer = folder / "scorer"
    model = read_json(scorer / "scorer.json").get("model")
    return digest([sha256_of_tree(part) for part in (scorer, *([scorer / model] if model else []))])


def movable(model: Path, folder: Path) -> str:
    """How a scorer in `folder` names its model: one beside it relative to it, so that a run directory may be moved."""
    near = model.is_relative_to(folder.parent)
    return str(Path("..") / model.relative_to(folder.parent) if near else model)


def _linked(logits: np.ndarray, link: Link) -> np.ndarray:
    return logits - _log_sum_exp(logits) if link == "softmax" else logits


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - highest).sum(axis=1, keepdims=True)
    result: np.ndarray = highest + np.log(total)
    return result
