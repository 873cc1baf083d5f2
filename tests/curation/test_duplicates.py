"""Near-duplicates against exact Jaccard similarity, repeated passages against a search of every substring."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from quilate.curation import words
from quilate.curation.decontaminate import HeldOutItems
from quilate.curation.hashing import hash_of, run_hashes
from quilate.curation.minhash import MinHashConfig, MinHasher, first_of_each_group, shingles
from quilate.curation.substrings import RepeatedRuns, cut
from quilate.tasks.labels import Item
from quilate.tasks.leaks import find_leaks

VOCABULARY = [f"palabra{i}ñ" for i in range(5_000)]


def variants(similarity: float, pairs: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of texts of about 200 words, the second with words replaced at random places."""
    draw = random.Random(seed)
    result = []
    for _ in range(pairs):
        first = draw.choices(VOCABULARY, k=200)
        # A replaced word changes five runs of 196; Jaccard = (196 - x) / (196 + x) for x runs changed.
        changed = round(196 * (1 - similarity) / (1 + similarity) / 5)
        second = list(first)
        for place in draw.sample(range(0, 200, 5), changed):
            second[place + 2 if place + 2 < 200 else place] = "otra" + str(draw.random())[2:]
        result.append((" ".join(first), " ".join(second)))
    return result


def jaccard(one: str, other: str) -> float:
    def runs(text: str) -> set[tuple[str, ...]]:
        found = text.split()
        return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}

    a, b = runs(one), runs(other)
    return len(a & b) / len(a | b)


def test_signatures_estimate_the_exact_similarity() -> None:
    hasher = MinHasher(MinHashConfig(bands=16, rows=16))  # 256 hashes: the standard error is at most 0.031
    errors = []
    for similarity in (0.2, 0.5, 0.8, 0.95):
        for one, other in variants(similarity, 10, seed=1):
            estimate = float(np.mean(hasher.signature(one) == hasher.signature(other)))
            errors.append(estimate - jaccard(one, other))
    assert max(map(abs, errors)) < 0.125  # four standard errors
    assert abs(float(np.mean(errors))) < 0.02  # and no bias


@pytest.mark.parametrize("similarity", [0.4, 0.72, 0.9])
def test_pairs_are_found_as_often_as_theory_says(similarity: float) -> None:
    hasher = MinHasher(MinHashConfig())
    pairs = variants(similarity, 80, seed=2)
    expected = [1 - (1 - jaccard(*pair) ** 8) ** 14 for pair in pairs]
    bands = np.array([hasher.bands(text) for pair in pairs for text in pair])
    first = first_of_each_group(bands)
    found = sum(first[2 * i + 1] == 2 * i for i in range(len(pairs)))
    spread = sum(p * (1 - p) for p in expected) ** 0.5
    assert abs(found - sum(expected)) <= 4 * spread + 1e-9
    assert all(first[2 * i] == 2 * i for i in range(len(pairs)))  # the first of a pair always stays


def test_what_near_duplicates_ignore_and_what_not() -> None:
    text = "El día 12 de mayo, la niña —de 7 años— ingresó: tos, fiebre y dolor"
    same = "el DÍA 3 de mayo la niña de 81 años ingresó tos fiebre y dolor!"
    assert set(shingles(text, 5)) == set(shingles(same, 5))
    shared = set(shingles("la nina de la mano del padre", 5)) & set(shingles("la niña de la mano del padre", 5))
    assert len(shared) == 1  # «de la mano del padre»
    assert shingles("Sí.", 5).tolist() == shingles("sí", 5).tolist() != shingles("no", 5).tolist()


def test_groups_are_joined_through_common_members() -> None:
    bands = np.array([[1, 9], [2, 8], [3, 8], [1, 8], [5, 7]], np.uint64)  # 0-3 by 1, 1-2-3 by 8
    assert first_of_each_group(bands).tolist() == [0, 0, 0, 0, 4]


def test_run_hashes_are_those_of_the_definition() -> None:
    sequence = ["la", "niña", "de", "la", "niña", "de", "la", "mano"]
    base, modulus = 0x9E3779B97F4A7C15, 2**64
    expected = [
        sum(hash_of(word) * pow(base, j, modulus) for j, word in enumerate(sequence[i : i + 3])) % modulus
        for i in range(len(sequence) - 2)
    ]
    assert run_hashes(sequence, 3).tolist() == expected
    assert expected[0] == expected[3]  # «la niña de»
    assert run_hashes(sequence, 9).tolist() == []


def repeated_by_search(documents: list[list[str]], length: int) -> list[bool]:
    """For every token whether the run that begins there stands earlier: by comparing words, not hashes."""
    seen: set[tuple[str, ...]] = set()
    result = []
    for tokens in documents:
        for i in range(len(tokens)):
            run = tuple(tokens[i : i + length])
            result.append(len(run) == length and run in seen)
            if len(run) == length:
                seen.add(run)
    return result


def test_repeated_runs_are_all_and_only_those_that_stand_earlier(tmp_path: Path) -> None:
    draw = random.Random(3)
    passages = [" ".join(draw.choices(VOCABULARY, k=draw.randint(8, 40))) for _ in range(5)]
    documents = [
        " ".join(draw.choice([*passages, " ".join(draw.choices(VOCABULARY, k=20))]) for _ in range(6))
        for _ in range(60)
    ]
    index = RepeatedRuns(tmp_path / "runs", 12)
    for document in documents:
        index.add(document)
    found = index.repeated()
    assert found.tolist() == repeated_by_search([words.tokens(d) for d in documents], 12)
    assert 0 < found.sum() < len(found)
    assert not (tmp_path / "runs").exists()


def test_passages_are_cut_and_the_rest_stays_as_it_is(tmp_path: Path) -> None:
    notice = "Este sitio usa cookies propias, y de terceros; si sigue navegando, acepta su uso (más información)."
    texts = [f"Ingresó por tos.\n\n{notice}\nAlta: 3/5.", f"{notice} El niño, «Íñigo»,  mejoró.", notice]
    index = RepeatedRuns(tmp_path / "runs", 10)
    for text in texts:
        index.add(text)
    flags = index.repeated()
    cuts, position = [], 0
    for text in texts:
        end = position + len(words.tokens(text))
        cuts.append(cut(text, flags[position:end], 10))
        position = end
    assert cuts == [(texts[0], 0), ("El niño, «Íñigo»,  mejoró.", 1), ("", 1)]


def test_items_are_found_as_the_leak_check_finds_them() -> None:
    draw = random.Random(5)
    items = [" ".join(draw.choices(VOCABULARY, k=n)) for n in (1, 3, 12, 13, 14, 30, 60)]
    background = " ".join(draw.choices(VOCABULARY, k=40))
    documents = [background]
    for item in items:
        own = item.split()
        documents += [item, item.upper() + "!", f"{background}\n{item}\n{background}", f"{background} {item}"]
        documents += [" ".join([*own[: round(len(own) * share)], "fin"]) for share in (0.5, 0.8, 0.95)]
    held_out = HeldOutItems(items)
    test = [Item(str(i), text, "", str(i)) for i, text in enumerate(items)]
    for document in documents:
        units = [Item(str(n), unit, "", f"d{n}") for n, unit in enumerate({document, *document.split("\n")})]
        assert (held_out.broken(document) is not None) == bool(find_leaks(units, test).items), document
    assert held_out.broken(background) is None
    assert held_out.broken(f"{background}\n{items[0]}") == "item"
    assert held_out.broken(f"{background} {items[5]}") == "overlap"
