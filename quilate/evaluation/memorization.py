"""What a model kept of single texts it was trained on: the exposure of canaries, and whether membership can be told.

Sources: Carlini et al. 2019, "The Secret Sharer" (exposure, by sampling); Yeom et al. 2018 (loss attack); Carlini et
al. 2021 (zlib), 2022, "Membership Inference Attacks From First Principles" (the true-positive rate at few false
positives); Watson et al. 2022 (calibration by a reference model); Shi et al. 2024 (Min-K%).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import PreTrainedModel

from quilate.data.packing import Example, pack, split_by_tokens
from quilate.evaluation.bits_per_byte import BATCH_TOKENS
from quilate.evaluation.statistics import least_half_width
from quilate.models.encoder import DocumentEncoder
from quilate.objectives.cross_entropy import linear_token_log_probs
from quilate.rng import numpy_stream

Array = NDArray[np.float64]

CONFIDENCE = 0.95
FALSE_POSITIVES = 0.01  # an attacker who is right in one case of a hundred accusations proves nothing (Carlini 2022)
LOWEST_SHARE = 0.2  # of a text's tokens, in Min-K% (Shi et al. 2024, who find 20 % best)
RESAMPLES = 2000  # an interval's ends then move by a tenth of its width at most; each sorts all documents


@torch.no_grad()
def token_log_probs(
    model: PreTrainedModel, examples: Sequence[Example], check_stop: Callable[[], None] = lambda: None
) -> dict[str, Array]:
    """log p of every supervised token of a causal model's examples, by the example's id, in the order of the text."""
    encoder = DocumentEncoder(model)
    training = model.training
    model.eval()
    sizes = {example.id: example.supervised_tokens for example in examples}
    found: dict[str, Array] = {}
    for part in split_by_tokens(examples, BATCH_TOKENS):
        check_stop()
        batch = pack(part).to(encoder.device)
        hidden = encoder(batch.input_ids, batch.position_ids, batch.lengths)[batch.source_positions]
        head = encoder.divided.head
        values = linear_token_log_probs(encoder.divided.transform(hidden), head.weight, head.bias, batch.targets)
        ends = np.cumsum([sizes[name] for name in batch.ids])[:-1]
        found |= dict(zip(batch.ids, np.split(values.double().cpu().numpy(), ends), strict=True))
    model.train(training)
    return found


def exposures(losses: Array, controls: Array) -> Array:
    """[N] in bits: log2(C + 1) - log2(rank), the rank of each loss among C losses of texts never trained on.

    One that was not trained on either has any rank with the same chance: 1.44 bits (1 / ln 2) on average, for large C.
    A rank of 1, log2(C + 1) bits, is the most that C controls can show; equal losses count half.
    """
    ordered = np.sort(controls)
    below = np.searchsorted(ordered, losses, side="left")
    up_to = np.searchsorted(ordered, losses, side="right")
    return np.asarray(math.log2(len(controls) + 1) - np.log2(1 + (below + up_to) / 2))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_of(values: Array) -> Estimate:
    """The mean with Student's interval; of one value, nothing is known of its spread: the interval is unbounded."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


def share_of(hits: int, trials: int) -> Estimate:
    """A share with Clopper & Pearson's (1934) interval."""
    interval = stats.binomtest(hits, trials).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(hits / trials, float(interval.low), float(interval.high))


def attack_scores(log_probs: Sequence[Array], reference: Sequence[Array], texts: Sequence[str]) -> Mapping[str, Array]:
    """[documents] by attack, higher for a text that looks as if it had been trained on.

    Args:
        log_probs: of each document's tokens under the model; reference: the same under a model that never saw them,
            whose tokens may be others.
        texts: what was judged, for its size in bytes and compressed.
    """
    nats = np.array([-values.sum() for values in log_probs])
    nats_reference = np.array([-values.sum() for values in reference])
    sizes = np.array([len(text.encode()) for text in texts])
    compressed = np.array([len(zlib.compress(text.encode())) for text in texts])
    return {
        "loss": np.array([values.mean() for values in log_probs]),
        "reference": (nats_reference - nats) / sizes,
        "zlib": -nats / compressed,
        "min_k": np.array([_lowest_mean(values) for values in log_probs]),
    }


def _lowest_mean(values: Array) -> float:
    count = max(1, math.floor(LOWEST_SHARE * len(values)))
    return float(np.partition(values, count - 1)[:count].mean())


@dataclass(frozen=True)
class AttackPower:
    """How well one score tells members from others of the same distribution: by chance an AUC of 0.5, and as many true
    positives as false ones."""

    auc: Estimate
    true_positives: Estimate


def attack_power(members: Array, others: Array, *, seed: int = 0, resamples: int = RESAMPLES) -> AttackPower:
    """AUC, and the true-positive rate at 1 % false positives; members and others are resampled apart.

    Where the bootstrap sees no variation (all or none found), the interval is as wide as so few documents allow.
    """
    rng = numpy_stream(seed, "bootstrap", "attack")
    drawn = np.array(
        [_power(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(resamples)]
    )
    tails = (1 - CONFIDENCE) / 2
    floor = least_half_width(min(len(members), len(others)), CONFIDENCE)
    ends = np.quantile(drawn, [tails, 1 - tails], axis=0)
    estimates = [
        Estimate(value, max(0.0, min(low, value - floor)), min(1.0, max(high, value + floor)))
        for value, low, high in zip(_power(members, others), *ends.tolist(), strict=True)
    ]
    return AttackPower(*estimates)


def _power(members: Array, others: Array) -> tuple[float, float]:
    """AUC by ranks, equal scores counting half; true positives above the threshold that 1 % of the others exceed."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left") + np.searchsorted(ordered, members, side="right")
    threshold = ordered[len(ordered) - 1 - math.floor(FALSE_POSITIVES * len(ordered))]
    return float(below.mean() / 2 / len(ordered)), float((members > threshold).mean())
