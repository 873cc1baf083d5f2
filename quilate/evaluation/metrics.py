"""Metrics of one run of a classifier: pure functions on arrays.

`gold` is (items,) integer label indices, `probabilities` is (items, labels). Every function takes the label with the
highest probability as the prediction; a tie goes to the label that comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from quilate.errors import QuilateError

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

CALIBRATION_BINS = 15  # Guo et al. 2017, section 5
_SUM_TOLERANCE = 1e-3  # guess: rows off by more are not probabilities; rows off by less come from half precision
_LARGEST_TEMPERATURE = 100.0  # guess: at this temperature 1,000 labels are practically uniform


@dataclass(frozen=True)
class ClassScore:
    """How one label fares: all in 0..1; `items` are its gold items, `predicted` how often it was answered."""

    precision: float
    recall: float
    f1: float
    items: int
    predicted: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Items of similar confidence: their mean confidence and the share that was right."""

    confidence: float
    accuracy: float
    items: int


@dataclass(frozen=True)
class Calibration:
    """Do the probabilities mean what they say?

    Attributes:
        ece: expected calibration error, in 0..1 (Guo et al. 2017), over bins of equal mass (Nixon et al. 2019).
        brier: mean over items of the squared distance to the one-hot truth, in 0..2 (Brier 1950).
        log_loss: mean negative log-probability of the truth, in nats; probabilities are clipped at 2.2e-16.
        bins: the reliability curve.
    """

    ece: float
    brier: float
    log_loss: float
    bins: list[ReliabilityBin]


def checked_probabilities(probabilities: Floats, items: int, labels: int, *, of: str) -> NDArray[np.float64]:
    """The same probabilities in double precision, rows summing to one.

    Raises:
        QuilateError: not (items, labels), not finite, negative, or a row is off one by more than 0.001.
    """
    array = np.asarray(probabilities, dtype=np.float64)
    if array.shape != (items, labels):
        raise QuilateError(
            f"{of}: probabilities have shape {array.shape}, the rule is (items, labels) = {(items, labels)}"
        )
    if not np.isfinite(array).all() or (array < 0).any():
        rows = int((~np.isfinite(array) | (array < 0)).any(axis=1).sum())
        raise QuilateError(f"{of}: {rows} of {items} items have a probability that is negative or not finite")
    sums = array.sum(axis=1, keepdims=True)
    if items and np.abs(sums - 1).max() > _SUM_TOLERANCE:
        raise QuilateError(
            f"{of}: the probabilities of an item sum to {sums[np.abs(sums - 1).argmax(), 0]:.4f}, not to 1"
        )
    return np.asarray(array / sums)


def predictions(probabilities: Floats) -> NDArray[np.int64]:
    """(items,) index of the most probable label."""
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def accuracy(gold: Ints, probabilities: Floats) -> float:
    """Share of items whose most probable label is the gold one."""
    return float((predictions(probabilities) == gold).mean())


def macro_f1(gold: Ints, probabilities: Floats) -> float:
    """Mean F1 over the labels that have at least one gold item: the same labels for every classifier compared."""
    return float(f1_score(gold, predictions(probabilities), labels=np.unique(gold), average="macro", zero_division=0.0))


def per_class(gold: Ints, probabilities: Floats) -> list[ClassScore]:
    """One entry a label, in label order; what has no item or no prediction scores 0 (`items` tells which)."""
    labels = np.arange(probabilities.shape[1])
    predicted = predictions(probabilities)
    precision, recall, f1, items = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0.0)
    answered = np.bincount(predicted, minlength=len(labels))
    return [
        ClassScore(float(precision[k]), float(recall[k]), float(f1[k]), int(items[k]), int(answered[k])) for k in labels
    ]


def confusion(gold: Ints, probabilities: Floats) -> NDArray[np.int64]:
    """(labels, labels) counts; rows are gold, columns are predicted."""
    labels = np.arange(probabilities.shape[1])
    return np.asarray(confusion_matrix(gold, predictions(probabilities), labels=labels), dtype=np.int64)


def calibration(gold: Ints, probabilities: Floats, bins: int = CALIBRATION_BINS) -> Calibration:
    """Calibration of the most probable label (ECE, curve) and of the whole distribution (Brier, log loss)."""
    labels = probabilities.shape[1]
    curve = reliability(gold, probabilities, bins)
    ece = sum(b.items * abs(b.accuracy - b.confidence) for b in curve) / len(gold)
    brier = ((probabilities - np.eye(labels)[gold]) ** 2).sum(axis=1).mean()
    surprise = log_loss(gold, probabilities, labels=np.arange(labels)) if labels > 1 else 0.0
    return Calibration(float(ece), float(brier), float(surprise), curve)


def reliability(gold: Ints, probabilities: Floats, bins: int = CALIBRATION_BINS) -> list[ReliabilityBin]:
    """The reliability curve over at most `bins` bins of equal mass.

    Items of equal confidence stay in one bin, so that a classifier that always says the same has one bin, not fifteen
    that differ by the order of the items.
    """
    confidence = probabilities.max(axis=1)
    right = predictions(probabilities) == gold
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    index = np.searchsorted(edges, confidence, side="left")
    return [
        ReliabilityBin(float(confidence[index == b].mean()), float(right[index == b].mean()), int((index == b).sum()))
        for b in np.unique(index)
    ]


def fit_temperature(gold: Ints, log_probabilities: Floats) -> float:
    """The temperature T that minimizes the log loss of softmax(log_probabilities / T) (Guo et al. 2017, section 4.2).

    Fit it on dev, never on test. T > 1 means that the model was overconfident. Searched over 0.01..100 on a log
    scale; the loss is convex in 1/T, so there is one minimum. -inf log-probabilities are allowed away from the gold
    labels.

    Raises:
        QuilateError: a gold label has log-probability -inf, or anything is NaN.
    """
    chosen = log_probabilities[np.arange(len(gold)), gold]
    if np.isnan(log_probabilities).any() or not np.isfinite(chosen).all():
        raise QuilateError("temperature: a log-probability is NaN, or a gold label's is -inf")

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((logsumexp(log_probabilities * inverse, axis=1) - chosen * inverse).mean())

    bound = float(np.log(_LARGEST_TEMPERATURE))
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def with_temperature(log_probabilities: Floats, temperature: float) -> NDArray[np.float64]:
    """(items, labels) probabilities: softmax(log_probabilities / temperature)."""
    scaled = np.asarray(log_probabilities, dtype=np.float64) / temperature
    return np.asarray(np.exp(scaled - logsumexp(scaled, axis=1, keepdims=True)))
