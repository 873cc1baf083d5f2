"""Implicit language Q-learning (Snell et al. 2022): values of tokens learned from a fixed, reward-labelled dataset.

Two Q heads, one V head and the language model share a body; every token of a completion is an action.

Shapes: S actions (completion tokens of all samples), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class IlqlLosses(NamedTuple):
    """Sums over the actions. The whole loss is q + value + cql x `cql` + awac x `awac`, over the step's actions."""

    q: Tensor
    value: Tensor
    cql: Tensor
    awac: Tensor


def ilql_losses(
    logits: Tensor,
    qs: Sequence[Tensor],
    target_qs: Sequence[Tensor],
    values: Tensor,
    next_values: Tensor,
    actions: Tensor,
    rewards: Tensor,
    *,
    gamma: float = 0.99,
    tau: float = 0.7,
    awac_temperature: float = 0.0,
) -> IlqlLosses:
    """The four terms.

    - q: (Q_i(s, a) - r - gamma V(s'))^2 for each head i, V(s') without a gradient.
    - value: the expectile |tau - 1[q < V]| (q - V)^2 of q = min_i targetQ_i(s, a), without a gradient: for tau near 1,
      V is what the best actions *in the data* reach: nothing unseen is ever asked for (Kostrikov et al. 2021, eq. 5).
    - cql: cross-entropy of the action under softmax(Q_i), which holds down the Q of other tokens (Kumar et al. 2020).
    - awac: cross-entropy of the action under the language model, weighted by exp(awac_temperature (q - V)); at 0 it is
      behaviour cloning.

    Args:
        logits: [S, V] of the language model.
        qs, target_qs: one [S, V] a head; targets come from the Polyak averages of `sync_target`.
        values: [S] V before each action; next_values: [S] after it, **0 where the sample ends**.
        actions: [S] int64; rewards: [S], usually 0 but at each sample's last action (see `standardized_returns`).
    """
    taken = [q.gather(1, actions[:, None])[:, 0] for q in qs]
    with torch.no_grad():
        goal = rewards + gamma * next_values
        target = torch.stack([q.gather(1, actions[:, None])[:, 0] for q in target_qs]).amin(0)
        weight = torch.exp(awac_temperature * (target - values))
    error = target - values
    expectile = torch.where(error < 0, 1 - tau, tau)
    return IlqlLosses(
        q=torch.stack([(q - goal).square().sum() for q in taken]).sum(),
        value=(expectile * error.square()).sum(),
        cql=torch.stack([F.cross_entropy(q.float(), actions, reduction="sum") for q in qs]).sum(),
        awac=(weight * F.cross_entropy(logits.float(), actions, reduction="none")).sum(),
    )


@torch.no_grad()
def sync_target(targets: Iterable[Tensor], sources: Iterable[Tensor], *, rate: float = 1.0) -> None:
    """target <- rate x source + (1 - rate) x target, in place (Polyak averaging; a `rate` of 1 copies)."""
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source.to(target.dtype), rate)


def standardized_returns(returns: Tensor) -> Tensor:
    """[samples] to mean 0 and deviation 1 over the whole dataset; all equal returns become 0."""
    centred = returns - returns.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 0 else centred


def guided_log_probs(logits: Tensor, qs: Sequence[Tensor], values: Tensor, *, beta: float) -> Tensor:
    """[S, V] what to sample from, up to a constant a row: log softmax(logits) + beta (min_i Q_i - V).

    Snell et al. 2022, section 4.3. `beta` 0 is the language model alone.
    """
    advantage = torch.stack(list(qs)).amin(0) - values[:, None]
    return torch.log_softmax(logits.float(), -1) + beta * advantage
