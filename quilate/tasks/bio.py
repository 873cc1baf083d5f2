"""Spans as tags of tokens and back (IOB2: Tjong Kim Sang & Veenstra 1999): B- begins an entity, I- goes on, O is none.

Offsets are those of `quilate.tokenization.windows`: a token that is white space alone has none of its own, gets no tag
and interrupts no entity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quilate.tasks.extraction import Span, without_overlaps

OUTSIDE = 0


def tag_names(labels: Sequence[str]) -> list[str]:
    """The tags in the order of their numbers."""
    return ["O", *(f"{place}-{label}" for label in labels for place in "BI")]


def tags_of(spans: Sequence[Span], starts: np.ndarray, ends: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """[T] the tag of each token: a span's are those that share a character with it.

    Of overlapping spans one is kept (see `without_overlaps`); a token that two neighbouring spans share is the earlier
    one's; spans of labels that are not in `labels` get no tag.
    """
    tags = np.full(len(starts), OUTSIDE)
    for span in without_overlaps(span for span in spans if span.label in labels):
        inside = (starts < span.end) & (ends > span.start) & (starts < ends) & (tags == OUTSIDE)
        begin = 1 + 2 * labels.index(span.label)
        tags[inside] = begin + 1
        tags[np.flatnonzero(inside)[:1]] = begin
    return tags


def spans_of(tags: np.ndarray, starts: np.ndarray, ends: np.ndarray, labels: Sequence[str]) -> tuple[Span, ...]:
    """The spans that tags say. An I- that continues nothing, or something of another label, begins an entity."""
    spans: list[Span] = []
    open_span: Span | None = None
    for tag, start, end in zip(tags.tolist(), starts.tolist(), ends.tolist(), strict=True):
        if start == end:
            continue
        label = None if tag == OUTSIDE else labels[(tag - 1) // 2]
        begins = tag % 2 == 1
        if open_span is not None and label == open_span.label and not begins:
            open_span = Span(open_span.start, max(end, open_span.end), open_span.label)
            continue
        if open_span is not None:
            spans.append(open_span)
        open_span = None if label is None else Span(start, end, label)
    return tuple(spans if open_span is None else [*spans, open_span])
