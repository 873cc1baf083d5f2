"""What needs no language model: the commonest answer, TF-IDF, the longest option, a dictionary of phrases."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Literal

from quilate.errors import DataError
from quilate.inference.choice import ChoiceScorer, LongestScorer, OverlapScorer, PositionScorer
from quilate.inference.scorer import MajorityScorer, Scorer, TfidfScorer
from quilate.inference.scores import Link
from quilate.inference.spans import GazetteerTagger, Phrase, Tagger, words_of
from quilate.phases.inputs import LearningConfig
from quilate.phases.logistic import fit_labels
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.classification import ClassificationTask
from quilate.tasks.extraction import ExtractionTask
from quilate.tasks.kinds import load_task
from quilate.tasks.multi_label import MultiLabelTask
from quilate.tasks.multiple_choice import ChoiceTask
from quilate.tasks.task import Task


class BaselineConfig(LearningConfig):
    kind: Literal["baseline"]
    """What needs no language model."""
    method: Literal["majority", "tfidf", "longest", "gazetteer"]
    """`majority` always gives the commonest training label or, in multiple choice, place; where a text may have several
    labels, those that are common enough. `tfidf` is TF-IDF with logistic regression, one a label where a text may have
    several; in multiple choice it picks the option nearest to the question. `longest` picks the longest option.
    `gazetteer`, for extraction, finds the phrases that are spans of the training documents."""
    regularization: float = 10.0
    """Inverse strength C of the logistic regression's L2 penalty. 10 suits TF-IDF on a few hundred rows (guess)."""


def train_majority(task: ClassificationTask | MultiLabelTask) -> MajorityScorer:
    """The label frequencies of the training rows."""
    labels, link = _learned(task)
    counts = [sum(label in item.labels for item in task.train) for label in labels]
    return MajorityScorer(labels, [count / len(task.train) for count in counts], link=link)


def _learned(task: ClassificationTask | MultiLabelTask) -> tuple[list[str], Link]:
    """The labels that training rows teach, and how scores of them are to be read."""
    return (task.trained_labels, "sigmoid") if isinstance(task, MultiLabelTask) else (list(task.labels), "softmax")


def train_tfidf(task: ClassificationTask | MultiLabelTask, regularization: float) -> tuple[TfidfScorer, dict[str, int]]:
    """Fit TF-IDF (words and pairs of words, sublinear counts) and logistic regression, multinomial or one a label.

    Returns:
        The scorer, and counts: the solver's iterations and the features.

    Raises:
        DataError: fewer than two labels in the training rows, or no word in them.
    """
    vectorizer, features = _fitted_vectorizer([item.text for item in task.train])
    labels, link = _learned(task)
    fitted = fit_labels(task, task.train, labels, features, regularization=regularization)
    terms = list(vectorizer.get_feature_names_out())
    scorer = TfidfScorer(labels, terms, vectorizer.idf_, fitted.weights, fitted.bias, link=link)
    return scorer, {"solver_iterations": fitted.iterations, "features": len(scorer.terms)}


def _fitted_vectorizer(texts: list[str]) -> tuple[Any, Any]:
    """A TF-IDF vectorizer fitted on the texts, and their features."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**TfidfScorer.VECTORIZER)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError as error:
        raise DataError(f"the training texts have no words: {error}", hint="check the text column") from error


def place_frequencies(task: ChoiceTask) -> PositionScorer:
    """Smoothed frequencies of the right option's place in the training questions."""
    counts = Counter(item.right for item in task.train)
    return PositionScorer([counts[place] / len(task.train) for place in range(max(counts) + 1)])


def train_overlap(task: ChoiceTask) -> OverlapScorer:
    """Learn how telling each word is from the training questions and options.

    Raises:
        DataError: there is no word in them.
    """
    vectorizer = _fitted_vectorizer([text for item in task.train for text in (item.text, *item.options)])[0]
    return OverlapScorer(list(vectorizer.get_feature_names_out()), vectorizer.idf_)


# A phrase of the dictionary must be a span at least as often as it is none (guess): below, it costs F1 more than it
# brings.
LEAST_PRECISION = 0.5


def train_gazetteer(task: ExtractionTask) -> tuple[GazetteerTagger, dict[str, int]]:
    """The spans of the training documents as phrases, each with its commonest label, if it mostly is such a span.

    Returns:
        The tagger, and counts: phrases dropped for being something else too often.
    """
    labels_of: dict[Phrase, Counter[str]] = defaultdict(Counter)
    for document in task.train:
        for span in document.spans:
            phrase = tuple(word.text for word in words_of(document.text[span.start : span.end]))
            if phrase:
                labels_of[phrase][span.label] += 1
    # The alphabet decides between labels that are equally common, so that equal data give equal dictionaries.
    likeliest = {p: min(found, key=lambda label: (-found[label], label)) for p, found in labels_of.items()}
    occurrences = _occurrences(likeliest.keys(), [document.text for document in task.train])
    kept = {p: label for p, label in likeliest.items() if labels_of[p][label] >= LEAST_PRECISION * occurrences[p]}
    return GazetteerTagger(task.trained_labels, kept), {"phrases": len(kept), "ambiguous": len(likeliest) - len(kept)}


def _occurrences(phrases: Collection[Phrase], texts: Sequence[str]) -> Counter[Phrase]:
    """How often each phrase stands in the texts, inside longer ones too."""
    sizes = sorted({len(phrase) for phrase in phrases})
    found: Counter[Phrase] = Counter()
    for text in texts:
        words = [word.text for word in words_of(text)]
        for size in sizes:
            grams = (tuple(words[place : place + size]) for place in range(len(words) - size + 1))
            found.update(gram for gram in grams if gram in phrases)
    return found


def _run(context: StageContext[BaselineConfig]) -> StageReport:
    task = context.config.what_is_learned(load_task(context.inputs["task"] / "task"), context.seed)
    scorer, facts = _trained(task, context.config)
    scorer.save(context.folder / "scorer")
    return StageReport(facts={"train_rows": len(task.train)} | facts)


def _trained(task: Task, config: BaselineConfig) -> tuple[Scorer | ChoiceScorer | Tagger, dict[str, int]]:
    match task, config.method:
        case ClassificationTask() | MultiLabelTask(), "majority":
            return train_majority(task), {}
        case ClassificationTask() | MultiLabelTask(), "tfidf":
            return train_tfidf(task, config.regularization)
        case ChoiceTask(), "majority":
            return place_frequencies(task), {}
        case ChoiceTask(), "tfidf":
            return train_overlap(task), {}
        case ChoiceTask(), "longest":
            return LongestScorer(), {}
        case ExtractionTask(), "gazetteer":
            return train_gazetteer(task)
    raise AssertionError(f"{config.method} does not solve {task.config.kind}")


BASELINE = StageKind("baseline", 1, BaselineConfig, _run)
