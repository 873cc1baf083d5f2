"""Choosing the next token: greedy, or drawn from the softmax at a temperature, optionally from its nucleus.

Drawing reads the vocabulary twice and sorts nothing: `torch.multinomial` draws a random number for every token of the
vocabulary, which costs more than the model itself when 64 sequences of a small model are generated on a CPU.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BIN = 256  # tokens whose weights are summed first; about the square root of a vocabulary is least work
NUCLEUS_TOKENS = 512  # sorted first; a nucleus that holds more has the whole vocabulary sorted (guess)


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draw from the fewest likeliest tokens whose probability reaches it (Holtzman et al. 2020).
    """

    temperature: float = 0.0
    top_p: float = 1.0


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each sequence: [B] int64.

    Args:
        logits: [B, V].
        uniforms: [B] in [0, 1), fp64: one random number a sequence, so a draw does not depend on the batch around it.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return draw(logits, uniforms, sampling)[0]


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """As `choose` at a temperature above 0, and beside each token the log of its probability of being drawn: [B] fp64.

    The sum of all weights is known once a token is drawn, so this costs nothing.
    """
    exact = logits.float()
    weights = (exact - exact.amax(-1, keepdim=True)).div_(sampling.temperature).exp_()
    weights = weights if sampling.top_p >= 1 else _nucleus(weights, sampling.top_p)
    tokens, total = _draw(weights, uniforms)
    return tokens, weights.gather(-1, tokens[:, None])[:, 0].double().log() - total.log()


def _draw(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-transform sampling in two steps: a bin of neighbouring tokens by its sum, then a token in it. Also the
    sum of all weights, [B]."""
    batch, vocabulary = weights.shape
    bins = -(-vocabulary // BIN)
    padded = weights if bins * BIN == vocabulary else torch.nn.functional.pad(weights, (0, bins * BIN - vocabulary))
    table = padded.view(batch, bins, BIN)
    edges = table.sum(-1).double().cumsum(-1)
    chosen = _inverse(edges, uniforms)[:, None]
    below = torch.where(chosen > 0, edges.gather(-1, (chosen - 1).clamp(min=0)), 0.0)
    inside = table.gather(1, chosen[:, :, None].expand(-1, -1, BIN))[:, 0].double().cumsum(-1)
    share = (uniforms[:, None] * edges[:, -1:] - below) / inside[:, -1:]
    return (chosen * BIN)[:, 0] + _inverse(inside, share[:, 0].clamp(0, 1)), edges[:, -1]


def _inverse(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """The first place whose cumulative weight exceeds its row's uniform share; never one of no weight."""
    total = cumulative[:, -1:].contiguous()
    place = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the first place that reaches the total: the last with any weight
    return torch.minimum(place, last)[:, 0]


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The weights of the nucleus in their places, 0 elsewhere; tokens that tie with its last are in it."""
    goal = top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    count = min(NUCLEUS_TOKENS, weights.shape[1])
    while True:
        largest = weights.topk(count, dim=-1).values
        reached = largest.double().cumsum(-1)
        if count == weights.shape[1] or bool((reached[:, -1:] >= goal).all()):
            last = (reached < goal).sum(-1, keepdim=True).clamp(max=count - 1)
            return torch.where(weights >= largest.gather(-1, last), weights, 0.0)
        count = weights.shape[1]
