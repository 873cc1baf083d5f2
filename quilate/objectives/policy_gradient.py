"""Learning from rewards: PPO's parts, and the advantages of GRPO and RLOO. All are functions of padded tensors.

Shapes: B completions, T the longest one's tokens; prompts P with G completions each. `mask` [B, T] is True on a
completion's tokens, its end included; what stands under a False influences nothing, NaN included.

Every log-probability, old, new or the reference's, must be taken at the temperature that sampled (logits divided by it
before the softmax) and with dropout off; else the first ratio is not 1 (Huang et al. 2024, "The N+ implementation
details of RLHF with PPO").
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean where `mask` is True; 0 where it never is."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Values to variance 1 over the masked tokens, and to mean 0 or, without `shift_mean`, to their own mean.

    Variance over the population, as in Ziegler et al.'s code (TRL divides by one token less). Padding must not count:
    trlX counts it. 0 outside the mask.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def token_kl(log_probs: Tensor, reference: Tensor, estimator: Literal["k1", "k3"]) -> Tensor:
    """An estimate of KL(pi || pi_ref) from tokens that pi sampled, of the arguments' shape (Schulman 2020,
    "Approximating KL divergence").

    `k1`, log pi - log pi_ref, is unbiased and may be negative: it goes into rewards (PPO, RLOO), detached. `k3`,
    exp(-k1) - 1 + k1, is unbiased too, never negative and varies less: GRPO's loss differentiates it. Sum it over the
    completion's tokens only: over the prompt's it is not the policy's doing.
    """
    k1 = log_probs - reference
    return k1 if estimator == "k1" else torch.expm1(-k1) + k1


def penalize_missing_end(scores: Tensor, ended: Tensor, *, penalty: float = -1.0, replace: bool = True) -> Tensor:
    """[B] scores in which completions that never ended get `penalty` instead (Huang et al. 2024), or, without
    `replace`, on top (TRL, which subtracts its positive number).

    Args:
        scores: [B]; ended: [B] bool.
    """
    return torch.where(ended, scores, penalty if replace else scores + penalty)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """[B, T] PPO's rewards: -beta KL at every token, and the completion's score at its last.

    The score goes to the end token itself, the action that earned it; Huang et al. (2024) put it in the slot after,
    where one is left.

    Args:
        scores: [B]; kl: [B, T] of `token_kl`, k1. Every completion has at least one token.
    """
    rewards = torch.where(mask, -beta * kl, 0.0)
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1, keepdim=True)
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


class Advantages(NamedTuple):
    """`advantages` and `returns`, [B, T], 0 outside the mask."""

    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, V and A being 0 after the last token: a
    completion cut for length counts as ended there. Returns are A + V.

    Args:
        rewards, values: [B, T]; `values[t]` is of the state before token t. `mask` is contiguous from the left.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    following_value = following_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = torch.where(mask[:, t], delta + gamma * lam * following_advantage, 0.0)
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return Advantages(advantages, torch.where(mask, advantages + values, 0.0))


class ClippedLoss(NamedTuple):
    """`losses`, and `clipped`, where the clipped term was the larger one and so stopped the gradient.

    Both have the arguments' shape and are 0 (False) outside the mask. The clip fraction is clipped / mask tokens.
    """

    losses: Tensor
    clipped: Tensor


def ppo_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> ClippedLoss:
    """max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)) with rho = pi / pi_old (Schulman et al. 2017, eq. 7).

    The same for GRPO, whose advantage is one number a completion. Two bounds: DAPO (Yu et al. 2025) raises the upper.
    """
    # Outside the mask the difference is 0 before exp: an overflow there would make the gradient NaN.
    ratio = torch.where(mask, log_probs - old_log_probs, 0.0).exp()
    safe = torch.where(mask, advantages, 0.0)
    plain = -safe * ratio
    held = -safe * ratio.clamp(1 - clip_low, 1 + clip_high)
    return ClippedLoss(torch.maximum(plain, held), held > plain)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2
) -> ClippedLoss:
    """1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2): no gain from moving a value further (Huang et al. 2024)."""
    values, old_values, returns = (torch.where(mask, t, 0.0) for t in (values, old_values, returns))
    plain = (values - returns).square()
    held = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    return ClippedLoss(0.5 * torch.maximum(plain, held), held > plain)


def adapted_beta(beta: float, kl: float, *, target: float, samples: int, horizon: int) -> float:
    """beta (1 + clip(KL / target - 1, +-0.2) samples / horizon): the controller of Ziegler et al. 2019, section 2.2.

    Args:
        kl: mean over completions of the KL summed over their own tokens, without the prompt's (trlX adds those).
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)


def grpo_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """[P, G] (r - mean) / std over each prompt's completions (Shao et al. 2024, "DeepSeekMath", section 4.1.2).

    Without `scale`, r - mean (Liu et al. 2025, "Dr. GRPO": dividing favours prompts that are nearly solved or
    hopeless). A group whose rewards are all equal teaches nothing: its advantages are exactly 0.

    Args:
        rewards: [P, G], G >= 2.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if not scale:
        return torch.where(has_spread(rewards)[:, None], centred, 0.0)
    return torch.where(has_spread(rewards)[:, None], centred / (rewards.std(1, keepdim=True) + 1e-4), 0.0)


def has_spread(rewards: Tensor) -> Tensor:
    """[P] whether a prompt's completions got different rewards. Watch the share that did not: it is wasted work."""
    return rewards.amax(1) > rewards.amin(1)


def rloo_advantages(rewards: Tensor) -> Tensor:
    """[P, G] each reward less the mean of the others' (Kool et al. 2019; Ahmadian et al. 2024, eq. 8).

    Args:
        rewards: [P, G], G >= 2, each with its completion's -beta KL (k1) already in it, detached.
    """
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others
