"""What needs no language model: the majority class, and TF-IDF with logistic regression."""

from __future__ import annotations

from typing import Literal

from quilate.config import Config
from quilate.errors import DataError
from quilate.inference.scorer import MajorityScorer, Scorer, TfidfScorer
from quilate.phases.logistic import fit_logistic
from quilate.phases.stage import StageContext, StageKind, StageReport
from quilate.tasks.classification import Task


class BaselineConfig(Config):
    kind: Literal["baseline"]
    """What needs no language model."""
    method: Literal["majority", "tfidf"]
    """`majority` always says the commonest training label; `tfidf` is TF-IDF with logistic regression."""
    regularization: float = 10.0
    """Inverse strength C of the logistic regression's L2 penalty. 10 suits TF-IDF on a few hundred rows (guess)."""


def train_majority(task: Task) -> MajorityScorer:
    """Smoothed label frequencies of the training rows."""
    counts = [sum(item.label == label for item in task.train) for label in task.labels]
    return MajorityScorer(list(task.labels), [count / len(task.train) for count in counts])


def train_tfidf(task: Task, regularization: float) -> tuple[TfidfScorer, dict[str, int]]:
    """Fit TF-IDF (words and pairs of words, sublinear counts) and multinomial logistic regression.

    Returns:
        The scorer, and counts: the solver's iterations and the features.

    Raises:
        DataError: fewer than two labels in the training rows, or no word in them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**TfidfScorer.VECTORIZER)
    try:
        features = vectorizer.fit_transform([item.text for item in task.train])
    except ValueError as error:
        raise DataError(f"the training texts have no words: {error}", hint="check the text column") from error
    fitted = fit_logistic(features, [item.label for item in task.train], task.labels, regularization=regularization)
    scorer = TfidfScorer(
        list(task.labels),
        list(vectorizer.get_feature_names_out()),
        vectorizer.idf_,
        fitted.weights,
        fitted.bias,
    )
    return scorer, {"solver_iterations": fitted.iterations, "features": len(scorer.terms)}


def _run(context: StageContext[BaselineConfig]) -> StageReport:
    task = Task.load(context.inputs["task"] / "task")
    scorer: Scorer
    facts: dict[str, int] = {}
    if context.config.method == "majority":
        scorer = train_majority(task)
    else:
        scorer, facts = train_tfidf(task, context.config.regularization)
    scorer.save(context.folder / "scorer")
    return StageReport(facts={"train_rows": len(task.train)} | facts)


BASELINE = StageKind("baseline", 1, BaselineConfig, _run)
