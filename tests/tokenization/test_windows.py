"""Windows cover every token, own each once, and give it the context they promise."""

from __future__ import annotations

import itertools

import pytest

from quilate.tokenization.windows import windows


@pytest.mark.parametrize("both_sides", [True, False])
@pytest.mark.parametrize(("length", "size"), [(1, 8), (8, 8), (9, 8), (100, 8), (101, 16), (7, 1), (50, 3)])
def test_every_token_is_owned_once_by_a_window_that_reads_it(length: int, size: int, both_sides: bool) -> None:
    found = windows(length, size, both_sides=both_sides)
    owned = [token for window in found for token in range(window.own_start, window.own_stop)]
    assert owned == list(range(length))
    assert all(w.start <= w.own_start < w.own_stop <= w.stop <= length for w in found)
    assert all(w.stop - w.start == min(size, length) for w in found)
    for before, after in itertools.pairwise(found):
        assert before.stop - after.start >= size // 4  # the promised overlap


def test_a_shared_token_goes_where_its_context_is_largest() -> None:
    for both_sides in (True, False):
        found = windows(100, 20, both_sides=both_sides)
        for window in found:
            for token in range(window.own_start, window.own_stop):
                mine = context(token, window.start, window.stop, both_sides)
                others = [context(token, w.start, w.stop, both_sides) for w in found if w.start <= token < w.stop]
                assert mine >= max(others) - 1  # the middle of an odd overlap is a tie but for one


def context(token: int, start: int, stop: int, both_sides: bool) -> int:
    """Tokens shown on the poorer side; a causal model sees the left only."""
    left, right = token - start, stop - 1 - token
    if not both_sides:
        return left
    return min(left if start else 10**6, right if stop < 100 else 10**6)
