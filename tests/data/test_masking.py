"""Masks: the shares of the papers, nothing special hidden, the same stream the same mask."""

from __future__ import annotations

import numpy as np
import pytest

from quilate.data.masking import mask_tokens
from quilate.data.packing import pack

MASK, SPECIAL = 2, frozenset({0, 1, 2})


def masked(tokens: np.ndarray, seed: int = 0):  # type: ignore[no-untyped-def]
    return mask_tokens("d", tokens, np.random.default_rng(seed), mask_token=MASK, vocabulary=1000, keep=SPECIAL)


def test_shares_are_those_of_the_paper() -> None:
    tokens = np.random.default_rng(1).integers(3, 1000, 100_000)
    example = masked(tokens)
    assert example.supervised.mean() == pytest.approx(0.15, abs=1e-4)
    hidden = example.tokens[example.supervised]
    as_mask, unchanged = (hidden == MASK).mean(), (hidden == tokens[example.supervised]).mean()
    assert as_mask == pytest.approx(0.8, abs=0.01)
    assert unchanged == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(example.tokens[~example.supervised], tokens[~example.supervised])


def test_special_tokens_are_never_hidden_and_never_drawn() -> None:
    tokens = np.array([0, 5, 1, 6, 0] * 2000)
    example = masked(tokens)
    assert not example.supervised[np.isin(tokens, list(SPECIAL))].any()
    changed = example.tokens[(example.tokens != tokens) & (example.tokens != MASK)]
    assert len(changed) > 50 and not np.isin(changed, list(SPECIAL)).any()


def test_one_token_at_least_and_the_answers_are_what_stood_there() -> None:
    tokens = np.array([7, 8])
    example = masked(tokens)
    assert example.supervised_tokens == 1
    batch = pack([example])
    assert batch.targets.tolist() == tokens[batch.source_positions.numpy()].tolist()


def test_masks_differ_between_visits_and_repeat_with_the_stream() -> None:
    tokens = np.arange(3, 300)
    assert np.array_equal(masked(tokens, 1).tokens, masked(tokens, 1).tokens)
    assert not np.array_equal(masked(tokens, 1).supervised, masked(tokens, 2).supervised)
