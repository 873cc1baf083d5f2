"""Canaries: made-up secrets put into a corpus on purpose, to see later what a model kept of them (Carlini et al. 2019).

A canary is a sentence with an owner and a secret, both drawn at random; no text of anybody is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quilate.files import read_json, write_json

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OWNER_LETTERS = 6  # 3e8 owners: among a few thousand, two alike are unlikely, and are drawn anew
SECRET_DIGITS = 9  # 30 bits: no model guesses one in any run


@dataclass(frozen=True)
class Canary:
    """`text` is `prefix` and `secret`; it stands in the corpus `repeats` times, as documents of its own."""

    prefix: str
    secret: str
    repeats: int

    @property
    def text(self) -> str:
        return self.prefix + self.secret


@dataclass(frozen=True)
class Canaries:
    """`inserted` has some with 0 repeats, which no model sees; `controls` are never inserted either, and give ranks."""

    inserted: list[Canary]
    controls: list[Canary]

    def documents(self) -> list[str]:
        """The documents that they add to a corpus."""
        return [canary.text for canary in self.inserted for _ in range(canary.repeats)]

    def save(self, path: Path) -> None:
        def rows(canaries: Sequence[Canary]) -> list[list[Any]]:
            return [[c.prefix, c.secret, c.repeats] for c in canaries]

        write_json(path, {"inserted": rows(self.inserted), "controls": rows(self.controls)})

    @classmethod
    def load(cls, path: Path) -> Canaries:
        value = read_json(path)
        inserted, controls = ([Canary(*row) for row in value[part]] for part in ("inserted", "controls"))
        return cls(inserted, controls)


def make_canaries(pattern: str, repeats: Sequence[int], each: int, controls: int, rng: np.random.Generator) -> Canaries:
    """Draw canaries, all from one distribution: before training, any one of them could have been any other.

    Args:
        pattern: with `{owner}`, and `{secret}` at its end.
        repeats: how often to insert; `each` canaries for every number, and for 0.
    """
    owners: dict[str, None] = {}
    wanted = [r for r in (0, *repeats) for _ in range(each)] + [0] * controls
    while len(owners) < len(wanted):
        owners["".join(rng.choice(list(LETTERS), OWNER_LETTERS))] = None
    before = pattern.removesuffix("{secret}")
    made = []
    for owner, number in zip(owners, wanted, strict=True):
        secret = "".join(map(str, rng.integers(0, 10, SECRET_DIGITS)))
        made.append(Canary(before.replace("{owner}", owner), secret, number))
    return Canaries(made[: len(made) - controls], made[len(made) - controls :])
