"""Regular expressions that users give: whether they can be used, what they find, and when they have taken too long."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quilate.errors import DataError
from quilate.phases.align.functions import OutOfTimeError, time_limit

# A pattern that takes longer for a batch of completions backtracks without end (guess: real ones take milliseconds).
PATTERN_SECONDS = 20.0


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises:
    ValueError: it is no regular expression.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}") from error


def with_one_group(pattern: str) -> str:
    """The pattern, if it has one group, which holds an answer.

    Raises:
        ValueError: it has not, or is no regular expression.
    """
    if compiled(pattern).groups != 1:
        raise ValueError(f"'{pattern}' must have exactly one group, which holds the answer")
    return pattern


def extracted(pattern: str, texts: Sequence[str]) -> list[str | None]:
    """The answer that each text reaches: what the pattern's group finds last, or None.

    Raises:
        DataError: it backtracks without end.
    """
    with pattern_limit(pattern):
        return [next(iter(re.findall(pattern, text)[-1:]), None) for text in texts]


def same_answer(given: str | None, right: str | None) -> bool:
    """Whether both are one answer, but for case and white space."""
    if given is None or right is None:
        return False
    return given.casefold().split() == right.casefold().split()


@contextmanager
def pattern_limit(pattern: str) -> Iterator[None]:
    """Python's own matching can take exponential time.

    Raises:
        DataError: it took longer than `PATTERN_SECONDS`.
    """
    try:
        with time_limit(PATTERN_SECONDS):
            yield
    except OutOfTimeError as error:
        raise DataError(
            f"the pattern '{pattern}' did not finish within {PATTERN_SECONDS:.0f} s",
            hint="nested repetitions such as (a+)+ backtrack without end: rewrite it",
        ) from error
