"""Time that something took, on the clock and of the processors."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Took:
    """`seconds` on the clock; `cpu_seconds` of all of this process's threads, which other work on the machine disturbs
    far less."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def so_far(cls) -> Took:
        """To be subtracted from a later one."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Took) -> Took:
        return Took(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Took) -> Took:
        return Took(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)

    def beyond(self, other: Took) -> Took:
        """What this takes longer than another, never less than nothing."""
        more = self - other
        return Took(max(0.0, more.seconds), max(0.0, more.cpu_seconds))

    def __mul__(self, factor: float) -> Took:
        return Took(self.seconds * factor, self.cpu_seconds * factor)


def longest(times: Iterable[Took]) -> Took:
    return max(times, key=lambda took: took.seconds, default=Took())
