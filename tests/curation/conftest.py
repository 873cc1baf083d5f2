"""Texts to curate: Spanish words in an order of their own, so that no two texts share a run of them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from support import SENTENCES

WORDS = sorted({word.lower() for sentence in SENTENCES for word in re.findall(r"\w+", sentence)} | {"que", "los", "y"})


@pytest.fixture(scope="session")
def made() -> Callable[[int], str]:
    """A text of 70 words by number."""

    def make(number: int) -> str:
        draw = random.Random(number)
        sentences = [" ".join(["la", *draw.choices(WORDS, k=8), "de"]) for _ in range(7)]
        return " ".join(sentence.capitalize() + "." for sentence in sentences)

    return make


@pytest.fixture(scope="session")
def texts(made: Callable[[int], str]) -> list[str]:
    return [made(number) for number in range(12)]
