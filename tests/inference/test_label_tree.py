"""The tree of all labels' tokens, by hand and against a naive reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quilate.errors import DataError
from quilate.inference.label_tree import PROMPT_END, LabelTree


def test_shared_beginnings_are_shared() -> None:
    """A = 7 8 9, B = 7 8 5, C = 4, D = 7 (a prefix of A): nodes are 7 and 7-8; C and D need none of their own."""
    tree = LabelTree.of([[7, 8, 9], [7, 8, 5], [4], [7]])
    assert len(tree) == 2
    assert tree.tokens.tolist() == [7, 8]
    assert tree.depths.tolist() == [0, 1]
    assert tree.sees.tolist() == [[True, False], [True, True]]
    assert tree.lengths.tolist() == [3, 3, 1, 1]
    readings = list(
        zip(tree.reading_label.tolist(), tree.reading_source.tolist(), tree.reading_token.tolist(), strict=True)
    )
    assert readings == [
        (0, PROMPT_END, 7), (0, 0, 8), (0, 1, 9),
        (1, PROMPT_END, 7), (1, 0, 8), (1, 1, 5),
        (2, PROMPT_END, 4), (3, PROMPT_END, 7),
    ]  # fmt: skip


def test_labels_of_one_token_need_no_node() -> None:
    tree = LabelTree.of([[3], [5]])
    assert len(tree) == 0
    assert tree.sees.shape == (0, 0)
    assert tree.reading_source.tolist() == [PROMPT_END, PROMPT_END]


labels = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=8, unique=True)


@given(labels)
def test_every_label_is_read_along_its_own_path(paths: list[tuple[int, ...]]) -> None:
    tree = LabelTree.of(paths)
    for index, path in enumerate(paths):
        mine = (tree.reading_label == index).nonzero().view(-1)
        assert tree.reading_token[mine].tolist() == list(path)
        for position, source in enumerate(tree.reading_source[mine].tolist()):
            seen = [] if source == PROMPT_END else tree.tokens[tree.sees[source]].tolist()
            assert seen == list(path[:position])
            assert source == PROMPT_END or int(tree.depths[source]) == position - 1
    assert len(tree) == len({path[:end] for path in paths for end in range(1, len(path))})


@pytest.mark.parametrize("labels", [[[1, 2], [3], [1, 2]], [[1], []]])
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[list[int]]) -> None:
    with pytest.raises(DataError, match="same tokens, or one is empty") as caught:
        LabelTree.of(labels)
    assert caught.value.exit_code == 3
