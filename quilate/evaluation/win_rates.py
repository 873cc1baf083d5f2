"""Policies against one another on the same prompts: win rates, and strengths that explain all of them at once.

What a policy wrote after a prompt has a score (a reward model's, or whether the answer is right). It beats another
policy there if its score is higher; equal scores are half a win for each. Intervals come from resampling prompts, whole
groups (conversations, patients) drawn together, the same draw for every policy.

Shapes: N prompts, P policies, R resamples, K any number of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from quilate.errors import QuilateError
from quilate.evaluation.statistics import least_half_width
from quilate.rng import numpy_stream

Array = NDArray[np.float64]

# Wins added to either side of every pair: after a clean sweep the likelihood alone has no largest value (Ford 1957),
# and half a win is what a uniform prior's neighbour, Jeffreys', adds to a rate.
PRIOR_WINS = 0.5
STEPS, TOLERANCE = 500, 1e-9  # of Hunter's algorithm; it gains at every step and is far below 500 in practice
_CHUNK = 4_000_000  # weights held at once: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None where one group is all there is, which says nothing of how groups differ."""

    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Contest:
    """Every pair of policies on the same prompts.

    Attributes:
        rates: [P, P] share of the prompts on which the row beats the column, ties half; 0.5 on the diagonal.
        ties: [P, P] share of the prompts on which both score the same.
        strengths: [P] log-odds to beat the first policy under the Bradley-Terry model.
        prompts, groups: how many stand behind each number.
    """

    rates: list[list[Estimate]]
    ties: Array
    strengths: list[Estimate]
    prompts: int
    groups: int


def contest(scores: Sequence[Array], groups: Sequence[str], *, resamples: int = 10_000, seed: int = 0) -> Contest:
    """Judge policies against one another.

    Args:
        scores: of each policy [runs, N], a row a run (seed). Two policies are compared run by run, every run of one
            with every run of the other: the rate is that of one run drawn from each.
        groups: [N] what is resampled together.

    Raises:
        QuilateError: there are no prompts, or not the same ones for all, or fewer than two policies.
    """
    if not groups or len(scores) < 2 or any(policy.ndim != 2 or policy.shape[1] != len(groups) for policy in scores):
        raise QuilateError(
            f"a contest needs two policies' scores or more, all on the same prompts; seen: "
            f"{[policy.shape for policy in scores]} for {len(groups)} prompts"
        )
    count = len(scores)
    wins = np.stack([[_wins(a, b) for b in scores] for a in scores]).reshape(count * count, -1).T  # [N, P * P]
    drawn = resampled_means(wins, groups, resamples=resamples, seed=seed)
    rates = [interval(wins[:, k].mean(), drawn[:, k], _units(groups), limits=(0.0, 1.0)) for k in range(count**2)]
    shape = (-1, count, count)
    # Of a resample the rates are known, not how many prompts it holds; on average they are as many as there are.
    strength, *_ = bradley_terry_strengths(wins.mean(0).reshape(shape) * len(groups))
    strengths = bradley_terry_strengths(drawn.reshape(shape) * len(groups))
    return Contest(
        rates=[rates[row * count : (row + 1) * count] for row in range(count)],
        ties=np.array([[_ties(a, b) for b in scores] for a in scores]),
        strengths=[interval(strength[p], strengths[:, p], _units(groups)) for p in range(count)],
        prompts=len(groups),
        groups=_units(groups),
    )


def _wins(a: Array, b: Array) -> Array:
    """[N] how often a run of `a` beats a run of `b`."""
    difference = a[:, None] - b[None]
    won: Array = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(0, 1))
    return np.full(a.shape[1], 0.5) if a is b else won


def _ties(a: Array, b: Array) -> float:
    return float((a[:, None] == b[None]).mean())


def bradley_terry_strengths(wins: Array) -> Array:
    """[R, P] maximum-likelihood log strengths s, P(i beats j) = sigmoid(s_i - s_j), the first policy's being 0.

    Hunter's (2004, "MM algorithms for generalized Bradley-Terry models") iteration p_i <- W_i / sum_j n_ij / (p_i +
    p_j), with `PRIOR_WINS` added to every pair.

    Args:
        wins: [R, P, P] how often the row beat the column, ties half; the diagonal is not read.
    """
    count = wins.shape[-1]
    others = ~np.eye(count, dtype=bool)
    counted = np.where(others, wins + PRIOR_WINS, 0.0)
    games, won = counted + counted.swapaxes(-1, -2), counted.sum(-1)
    power = np.ones(won.shape)
    for _ in range(STEPS):
        updated = won / (games / (power[..., :, None] + power[..., None, :])).sum(-1)
        updated /= np.exp(np.log(updated).mean(-1, keepdims=True))  # their scale is free: geometric mean 1
        change = np.abs(np.log(updated / power)).max()
        power = updated
        if change < TOLERANCE:
            break
    strength: Array = np.log(power / power[..., :1])
    return strength


def resampled_means(values: Array, groups: Sequence[str], *, resamples: int = 10_000, seed: int = 0) -> Array:
    """[R, K] means of [N, K] values over prompts drawn again, whole groups together."""
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    units = int(unit.max()) + 1
    sums, sizes = np.zeros((units, values.shape[1])), np.bincount(unit, minlength=units).astype(np.float64)
    np.add.at(sums, unit, values)
    rng = numpy_stream(seed, "bootstrap", "prompts")
    rows = max(1, _CHUNK // units)
    means = []
    for start in range(0, resamples, rows):
        weights = rng.multinomial(units, np.full(units, 1 / units), size=min(rows, resamples - start)).astype(float)
        means.append(weights @ sums / (weights @ sizes)[:, None])
    return np.concatenate(means)


def mean_with_interval(values: Array, groups: Sequence[str], *, resamples: int = 10_000) -> Estimate:
    """The mean of [N] values of any range."""
    drawn = resampled_means(values[:, None], groups, resamples=resamples)[:, 0]
    return interval(float(values.mean()), drawn, _units(groups))


def interval(estimate: float, drawn: Array, units: int, *, limits: tuple[float, float] | None = None) -> Estimate:
    """The 95 % percentile interval of resampled values, widened for few units (Hesterberg 2015, section 4.2); with
    `limits` it is a rate's, never narrower than what so few units could hide (see `least_half_width`)."""
    if units < 2:
        return Estimate(float(estimate), *(limits or (None, None)))
    tail = float(stats.norm.cdf(np.sqrt(units / (units - 1)) * stats.t.ppf(0.025, units - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    if limits is not None:
        floor = least_half_width(units, 0.95)
        low, high = max(limits[0], min(low, estimate - floor)), min(limits[1], max(high, estimate + floor))
    return Estimate(float(estimate), float(low), float(high))


def _units(groups: Sequence[str]) -> int:
    return len(set(groups))
