"""Learning from comparisons: losses of rewards, and of log-probabilities under a policy and its reference.

None of them knows a model. A loss comes back unreduced, one value a ranking, pair or completion; the caller sums and
divides by the whole step's count, so that any division into micro-batches gives the same gradient.

Shapes: N completions, P pairs, R rankings (prompts).

A *log-ratio* is log pi(y|x) - log pi_ref(y|x), summed over the completion's tokens, its end included, the prompt's not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_over_rankings(pair_losses: Tensor, ranking: Tensor, rankings: int) -> Tensor:
    """[R] the mean over each ranking's own pairs, so that a ranking of nine weighs as much as one of two.

    Args:
        pair_losses: [P].
        ranking: [P] int64, the ranking each pair is of; each ranking has at least one pair.
        rankings: R.
    """
    counts = torch.zeros(rankings, dtype=pair_losses.dtype, device=pair_losses.device)
    counts.index_add_(0, ranking, torch.ones_like(pair_losses))
    totals = torch.zeros_like(counts).index_add(0, ranking, pair_losses)
    return totals / counts


def bradley_terry(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(r_better - r_worse), a pair each: [P].

    Averaged by `mean_over_rankings` over the C(K, 2) pairs of each ranking in one batch element, this is eq. 1 of
    InstructGPT (Ouyang et al. 2022, section 3.5): pairs of one prompt that are shuffled into different batches let the
    model overfit in a single pass, for each completion is then seen K-1 times. Tied completions make no pair.

    Args:
        better, worse: [P] rewards.
    """
    return -F.logsigmoid(better - worse)


def dpo(better: Tensor, worse: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log sigmoid(beta d) - e log sigmoid(-beta d) with d = better - worse: [P].

    Direct preference optimization (Rafailov et al. 2023, eq. 7); with `label_smoothing` e, the probability that a label
    is wrong, conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3).

    Args:
        better, worse: [P] log-ratios.
    """
    margin = beta * (better - worse)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(better: Tensor, worse: Tensor, *, beta: float = 0.1) -> Tensor:
    """(better - worse - 1 / (2 beta))^2: [P]. Azar et al. 2023, eq. 17, whose tau is `beta`.

    Args:
        better, worse: [P] log-ratios, each divided by its completion's number of tokens: with sums the fixed target
            1 / (2 beta) would mean something else for every length, and the paper's authors average.
    """
    return (better - worse - 1 / (2 * beta)).square()


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """max(0, mean log-ratio) of completions after prompts that are not their own: the scalar z_0, without a gradient.

    An estimate of KL(pi || pi_ref) that is biased and cheap (Ethayarajh et al. 2024, section 3.3).

    Args:
        mismatched: [N] log-ratios of those.
    """
    return mismatched.detach().mean().clamp(min=0)


def kto(
    log_ratios: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w (1 - sigmoid(+-beta (log-ratio - z_0))), plus for a desirable completion, minus for an undesirable one: [N].

    Kahneman-Tversky optimization (Ethayarajh et al. 2024, eq. 8), for completions that were judged one at a time.

    Args:
        log_ratios: [N].
        desirable: [N] bool.
        reference_point: the scalar of `kto_reference_point`, over the whole optimizer step.
        desirable_weight, undesirable_weight: w; the paper keeps (desirable_weight x desirable completions) between 1
            and 4/3 of (undesirable_weight x undesirable ones).
    """
    sign = log_ratios.new_tensor([-1.0, 1.0])[desirable.long()]
    weight = log_ratios.new_tensor([undesirable_weight, desirable_weight])[desirable.long()]
    return weight * (1 - torch.sigmoid(sign * beta * (log_ratios - reference_point)))


def orpo(better: Tensor, worse: Tensor, *, weight: float = 0.1) -> Tensor:
    """-better - weight log sigmoid(log odds(better) - log odds(worse)): [P], without any reference.

    Hong et al. 2024, eq. 6 and 7: the likelihood of the better completion, and its odds against the worse one, where
    odds(p) = p / (1 - p). The likelihood is the completion's alone; the authors' code adds the prompt's.

    Args:
        better, worse: [P] mean log-probabilities over the completion's tokens: below zero, or log odds are infinite.
    """
    return -better - weight * F.logsigmoid(_log_odds(better) - _log_odds(worse))


def _log_odds(log_probability: Tensor) -> Tensor:
    """log p - log(1 - p) from log p, exact near p = 0 and near p = 1 (Maechler 2012, "Accurately computing
    log(1 - exp(-|a|))"). A p of exactly 1 counts as the largest number under 1."""
    x = log_probability.clamp(max=-torch.finfo(log_probability.dtype).eps)
    near_one = x > -math.log(2)
    # Each branch sees only numbers that it can differentiate: a NaN in the one not taken would reach the gradient.
    complement = torch.where(
        near_one,
        torch.log(-torch.expm1(torch.where(near_one, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near_one, -1.0, x))),
    )
    return x - complement
