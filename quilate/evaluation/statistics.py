"""How sure can we be? Paired bootstrap over items (or groups of items) and seeds, McNemar, Holm, power.

One joint bootstrap serves all arms: in every resample all arms are scored on the same drawn items, so that the
difference of two columns is a paired difference.

Sources: Efron & Tibshirani 1993 (bootstrap); Field & Welsh 2007 (resampling whole clusters); Hesterberg 2015, "What
teachers should know about the bootstrap", American Statistician 69 (expanded percentile interval); Satterthwaite 1946
(degrees of freedom of a sum of variances); McNemar 1947; Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from quilate.errors import QuilateError
from quilate.evaluation.spans import EXACT, GOLD, PARTIAL, PARTIAL_CREDIT, PREDICTED, f1
from quilate.rng import numpy_stream
from quilate.tasks.task import LabelMetric, LabelSetMetric, Metric, SpanMetric

Over = Literal["items", "items and seeds"]
Array = NDArray[np.float64]
Ints = NDArray[np.integer]

MIN_SEEDS_FOR_INTERVAL = 5  # fewer runs say too little about the spread between runs (Dodge et al. 2020)
EXACT_BELOW = 25  # disagreements under which McNemar's chi-square is too rough (the usual rule, e.g. Fleiss 1981)
POWER = 0.8  # the field's convention (Cohen 1988)
_CHUNK = 4_000_000  # weights held at once: 16 MB


@dataclass(frozen=True)
class Interval:
    """A score or a difference of scores with what is known about its uncertainty.

    Attributes:
        estimate, low, high: in 0..1 (a difference: -1..1).
        p: two-sided, of "the true value is 0", from the same resamples as the interval.
        over: what was resampled.
        variance_items, variance_seeds: of `estimate`; the first shrinks with more items, the second with more seeds.
        floor: the half-width that the interval has at least (see `least_half_width`).
    """

    estimate: float
    low: float
    high: float
    p: float
    over: Over
    variance_items: float
    variance_seeds: float
    floor: float


@dataclass(frozen=True)
class Bootstrap:
    """The resampled scores of all arms.

    Attributes:
        scores: (arms,) mean over the arm's runs on the real items.
        over_items: (resamples, arms) items resampled, runs averaged.
        over_both: (resamples, arms) items and runs resampled; equal to `over_items` where runs are not resampled.
        runs: (arms,) number of runs; 0 where one run stands for every seed.
        variance_seeds: (arms,) variance of `scores` that is due to the runs; 0 where runs are not resampled.
        units: how many independent units were resampled: items, or groups of them.
        items: how many items.
    """

    scores: Array
    over_items: Array
    over_both: Array
    runs: NDArray[np.int64]
    variance_seeds: Array
    units: int
    items: int

    def score(self, arm: int, confidence: float = 0.95) -> Interval:
        """The arm's score with its interval, clipped to 0..1."""
        return self._interval({arm: 1.0}, confidence, limits=(0.0, 1.0))

    def difference(self, a: int, b: int, confidence: float = 0.95) -> Interval:
        """score(a) - score(b), paired, clipped to -1..1."""
        return self._interval({a: 1.0, b: -1.0}, confidence, limits=(-1.0, 1.0))

    def _interval(self, signs: dict[int, float], confidence: float, limits: tuple[float, float]) -> Interval:
        arms = list(signs)
        sign = np.array(list(signs.values()))
        varying = self.runs[arms] > 0
        two_level = bool(varying.any() and (self.runs[arms][varying] >= MIN_SEEDS_FOR_INTERVAL).all())
        draws = (self.over_both if two_level else self.over_items)[:, arms] @ sign
        estimate = float(self.scores[arms] @ sign)
        variance_items = float((self.over_items[:, arms] @ sign).var())
        seed_terms = [
            (float(self.variance_seeds[a]), int(self.runs[a]) - 1) for a in arms if two_level and self.runs[a]
        ]
        freedom = _degrees_of_freedom([(variance_items, self.units - 1), *seed_terms])
        shrunk = math.sqrt(self.units / max(self.units - 1, 1))  # a bootstrap over n units is too narrow by this factor
        tail = float(stats.norm.cdf(shrunk * stats.t.ppf((1 - confidence) / 2, freedom)))
        low, high = np.quantile(draws, [tail, 1 - tail])
        floor = least_half_width(self.units, confidence)
        p_percentile = 2 * (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (len(draws) + 1)
        p = 2 * stats.t.cdf(stats.norm.ppf(min(p_percentile, 1.0) / 2) / shrunk, freedom)
        return Interval(
            estimate=estimate,
            low=max(limits[0], min(float(low), estimate - floor)),
            high=min(limits[1], max(float(high), estimate + floor)),
            p=float(p),
            over="items and seeds" if two_level else "items",
            variance_items=variance_items,
            variance_seeds=sum(variance for variance, _ in seed_terms),
            floor=floor,
        )


def _degrees_of_freedom(terms: list[tuple[float, int]]) -> float:
    """Satterthwaite's for a sum of variances, each a (variance, its degrees of freedom)."""
    total = sum(variance for variance, _ in terms)
    if total <= 0:
        return max(terms[0][1], 1)
    return total**2 / sum(variance**2 / max(freedom, 1) for variance, freedom in terms)


def least_half_width(units: int, confidence: float) -> float:
    """The rate that `units` independent observations, none of which shows an event, cannot rule out.

    The bootstrap cannot draw what it never saw: two arms that agree on all of 20 items would get the interval [0, 0].
    Clopper & Pearson's (1934) bound for zero events keeps it honest; it is the "rule of three", two-sided.
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / units))


@dataclass(frozen=True)
class _Statistic:
    """A metric as a function of sums over items, so that a resample is one matrix product.

    `features(gold, predicted, labels)` is (items, features); `score` maps summed features (..., features) to (...).
    """

    features: Callable[[Ints, Ints, int], NDArray[np.float32]]
    score: Callable[[Array], Array]


def _accuracy_features(gold: Ints, predicted: Ints, labels: int) -> NDArray[np.float32]:
    return np.stack([gold == predicted, np.ones(len(gold))], axis=1).astype(np.float32)


def mean_score(sums: Array) -> Array:
    """A mean from the sums (..., 2) of scores and of ones."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def _macro_f1_features(gold: Ints, predicted: Ints, labels: int) -> NDArray[np.float32]:
    one_hot = np.eye(labels, dtype=np.float32)
    hits = one_hot[gold] * (gold == predicted)[:, None]
    return np.concatenate([hits, one_hot[predicted], one_hot[gold]], axis=1)


def _macro_f1_score(sums: Array) -> Array:
    hits, predicted, gold = np.split(sums, 3, axis=-1)
    f1 = 2 * hits / np.maximum(predicted + gold, 1)  # 0 where a label is neither gold nor predicted: not averaged then
    return np.asarray(f1.sum(axis=-1, where=gold > 0) / (gold > 0).sum(axis=-1))


def span_score(sums: Array, *, partial_credit: float) -> Array:
    """Micro-F1 from summed counts (..., 4), see evaluation.spans: a ratio of sums over documents, not a mean of ratios.

    Documents of many spans weigh more, in the score and in every resample alike.
    """
    found = sums[..., EXACT] + partial_credit * sums[..., PARTIAL]
    return f1(found, sums[..., PREDICTED], sums[..., GOLD])


def mean_label_score(sums: Array) -> Array:
    """Macro-F1 from summed counts (..., labels x 4): the mean over the labels that are to be found at all."""
    counts = sums.reshape(*sums.shape[:-1], -1, 4)
    own = f1(counts[..., EXACT], counts[..., PREDICTED], counts[..., GOLD])
    there = counts[..., GOLD] > 0
    return np.asarray(own.sum(axis=-1, where=there) / np.maximum(there.sum(axis=-1), 1))


@dataclass(frozen=True)
class CountScore:
    """A metric of answers that are sets (spans of a document, labels of a text), of counts (items, labels, 4).

    `by_label`: the score needs each label's sums apart; else their total.
    """

    score: Callable[[Array], Array]
    by_label: bool = False

    def features(self, counts: Ints) -> NDArray[np.float32]:
        """(items, features), for `resample` with the score."""
        summed = counts.reshape(len(counts), -1) if self.by_label else counts.sum(axis=1)
        return np.asarray(summed, dtype=np.float32)

    def of(self, counts: Ints) -> float:
        """The score of one run."""
        return float(self.score(self.features(counts).sum(axis=0, dtype=np.float64)))


SPAN_METRICS: tuple[SpanMetric, ...] = ("span_f1", "span_f1_partial")
LABEL_SET_METRICS: tuple[LabelSetMetric, ...] = ("micro_f1", "macro_f1")

_MICRO_F1 = CountScore(partial(span_score, partial_credit=0.0))
COUNT_SCORES: dict[Metric, CountScore] = {
    "span_f1": _MICRO_F1,
    "span_f1_partial": CountScore(partial(span_score, partial_credit=PARTIAL_CREDIT)),
    "micro_f1": _MICRO_F1,
    "macro_f1": CountScore(mean_label_score, by_label=True),
}

STATISTICS: dict[LabelMetric, _Statistic] = {
    "accuracy": _Statistic(_accuracy_features, mean_score),
    "macro_f1": _Statistic(_macro_f1_features, _macro_f1_score),
}


def bootstrap(
    gold: Ints,
    predicted: Sequence[Sequence[Ints]],
    labels: int,
    *,
    metric: LabelMetric = "accuracy",
    groups: Sequence[str] | None = None,
    seed_independent: Sequence[bool] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Score every classifier on the same resampled items.

    Args:
        gold: (items,) label indices.
        predicted: for every arm, for every run (seed) of it: (items,) label indices.
        labels: how many labels there are.
        others: as in `resample`.
    """
    return resample(
        [[label_features(metric, gold, run, labels) for run in runs] for runs in predicted],
        STATISTICS[metric].score,
        groups=groups,
        seed_independent=seed_independent,
        resamples=resamples,
        seed=seed,
    )


def label_features(metric: LabelMetric, gold: Ints, predicted: Ints, labels: int) -> NDArray[np.float32]:
    """(items, features) of one run, for `resample` with the metric's score."""
    return STATISTICS[metric].features(gold, predicted, labels)


def resample(
    features: Sequence[Sequence[NDArray[np.float32]]],
    score: Callable[[Array], Array],
    *,
    groups: Sequence[str] | None = None,
    seed_independent: Sequence[bool] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Score every arm on the same resampled items, by any metric that is a function of sums over items.

    Args:
        features: for every arm, for every run (seed) of it: (items, features).
        score: summed features (..., features) to scores (...).
        groups: (items,) the cluster of each item; whole clusters are drawn: items inside one are not independent.
        seed_independent: arms whose single run would come out the same with any seed.
        resamples: at least 10,000 for reported intervals.
        seed: of the named stream that draws.

    Memory stays bounded by resamples x (2 x arms + runs of the widest arm) numbers plus one 16 MB chunk of weights.
    """
    items = len(features[0][0]) if features else 0
    if items == 0:
        raise QuilateError("bootstrap: there are no items")
    fixed = list(seed_independent) if seed_independent is not None else [False] * len(features)
    unit = np.arange(items) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = int(unit.max()) + 1
    by_unit = [np.stack([_sum_by_unit(run, unit, units) for run in runs]) for runs in features]
    real = [score(arm.sum(axis=1, dtype=np.float64)) for arm in by_unit]  # (runs,) each
    drawn = [np.empty((resamples, len(runs))) for runs in features]
    start = 0
    for weights in _unit_weights(units, resamples, numpy_stream(seed, "bootstrap", "items")):
        for arm, scores in zip(by_unit, drawn, strict=True):
            for run, run_features in enumerate(arm):
                sums = (weights @ run_features).astype(np.float64)
                scores[start : start + len(weights), run] = score(sums)
        start += len(weights)
    over_items = np.stack([scores.mean(axis=1) for scores in drawn], axis=1)
    runs = np.array([0 if one else len(arm) for arm, one in zip(features, fixed, strict=True)])
    variance_seeds = np.zeros(len(features))
    over_both = over_items.copy()
    seeds_rng = numpy_stream(seed, "bootstrap", "seeds")
    for index in np.flatnonzero(runs >= MIN_SEEDS_FOR_INTERVAL):
        variance_seeds[index], deviations = _draw_runs(real[index], drawn[index], seeds_rng)
        over_both[:, index] += deviations
    return Bootstrap(
        scores=np.array([run_scores.mean() for run_scores in real]),
        over_items=over_items,
        over_both=over_both,
        runs=runs,
        variance_seeds=variance_seeds,
        units=units,
        items=items,
    )


def _sum_by_unit(features: NDArray[np.float32], unit: Ints, units: int) -> NDArray[np.float32]:
    """(items, features) -> (units, features). Counts stay exact in float32 up to 16 million items."""
    if units == len(unit):
        return features
    sums = np.zeros((units, features.shape[1]), dtype=np.float32)
    np.add.at(sums, unit, features)
    return sums


def _unit_weights(units: int, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """How often each unit was drawn: (some resamples, units) at a time, multinomial."""
    rows = max(1, _CHUNK // units)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        picks = rng.integers(0, units, size=(count, units)) + np.arange(count)[:, None] * units
        yield np.bincount(picks.ravel(), minlength=count * units).reshape(count, units).astype(np.float32)


def _draw_runs(real: Array, drawn: Array, rng: np.random.Generator) -> tuple[float, Array]:
    """The variance of an arm's mean score that is due to its runs, and (resamples,) random deviations of that size.

    Args:
        real: (runs,) scores on the real items.
        drawn: (resamples, runs) scores on resampled items.

    The spread of `real` has two sources: the runs differ in truth, and each errs on other items. The second is in the
    resampled items already; counted twice, nominal 95 % would cover 98 %. It is estimated from how the runs' scores
    move apart when items are resampled, and subtracted (method of moments for two-way random effects). What is left
    is drawn by resampling the runs, stretched by sqrt(S / (S - 1)), as a bootstrap over S runs is too narrow by that.
    """
    runs = len(real)
    spread = float(real.var(ddof=1))
    on_other_items = float((drawn - drawn.mean(axis=1, keepdims=True)).var(axis=0).mean()) * runs / (runs - 1)
    own = max(spread - on_other_items, 0.0)
    stretch = math.sqrt(own / spread * runs / (runs - 1)) if spread > 0 else 0.0
    weights = rng.multinomial(runs, np.full(runs, 1 / runs), size=len(drawn)) / runs
    return own / runs, stretch * (weights @ real - real.mean())


@dataclass(frozen=True)
class McNemar:
    """`only_a`, `only_b`: items that only a (only b) got right; `p`: two-sided; `exact`: binomial, else chi-square."""

    only_a: int
    only_b: int
    p: float
    exact: bool


def mcnemar(a_right: NDArray[np.bool_], b_right: NDArray[np.bool_]) -> McNemar:
    """McNemar's test on two (items,) arrays of right and wrong; items must be independent of one another.

    Exact binomial below 25 disagreements, else chi-square with one degree of freedom and Edwards' (1948) continuity
    correction.
    """
    only_a, only_b = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
    disagreements = only_a + only_b
    if disagreements < EXACT_BELOW:
        p = 1.0 if disagreements == 0 else float(stats.binomtest(only_a, disagreements, 0.5).pvalue)
        return McNemar(only_a, only_b, p, exact=True)
    chi2 = max(abs(only_a - only_b) - 1, 0) ** 2 / disagreements
    return McNemar(only_a, only_b, float(stats.chi2.sf(chi2, 1)), exact=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given: reject where an adjusted one is <= 0.05."""
    order = np.argsort(np.asarray(p_values), kind="stable")
    adjusted = [0.0] * len(order)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def items_to_bound(
    interval: Interval, items: int, units: int, margin: float, *, confidence: float = 0.95, power: float = POWER
) -> float:
    """How many items bring the upper bound of a difference below `margin` with probability `power`.

    Assumes that the true difference is the observed one, or 0 where that is negative, and that its variance shrinks as
    1/items: (z_confidence + z_power) x standard error = margin - difference. A lead over a rival that could not be
    ruled out is mostly luck (the winner's curse): counting on it would promise a decision from far too few items.
    Infinite where the observed difference is not below the margin, or where the seeds alone vary too much for any
    number of items.
    """
    room = margin - max(interval.estimate, 0.0)
    if room <= 0:
        return math.inf
    z = float(stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power))
    variance_left = (room / z) ** 2 - interval.variance_seeds
    if variance_left <= 0:
        return math.inf
    by_variance = items * interval.variance_items / variance_left
    by_floor = math.log((1 - confidence) / 2) / math.log1p(-min(room, 0.999)) * items / units
    return max(by_variance, by_floor)
