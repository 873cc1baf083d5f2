"""Which examples are chosen, in which order, and how many fit; nearest neighbours against scikit-learn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors
from support import SENTENCES

from quilate.errors import DataError
from quilate.inference import demonstrations as d
from quilate.tasks.labels import Item

ITEMS = [Item(f"i{n}", f"texto {n}", "aaaabbc"[n], f"g{n}") for n in range(7)]


def test_balanced_ones_cover_the_labels_and_are_drawn_by_the_seed() -> None:
    per_class = d.balanced(ITEMS, 2, per_class=True, seed=0)
    assert sorted(item.label for item in per_class) == ["a", "a", "b", "b", "c"]
    in_all = d.balanced(ITEMS, 3, per_class=False, seed=0)
    assert sorted(item.label for item in in_all) == ["a", "b", "c"]
    assert len({item.id for item in d.balanced(ITEMS, 7, per_class=False, seed=0)}) == 7
    assert d.balanced(ITEMS, 3, per_class=False, seed=0) == in_all
    assert len({tuple(i.id for i in d.balanced(ITEMS, 3, per_class=False, seed=s)) for s in range(9)}) > 3
    assert d.balanced(ITEMS, 0, per_class=True, seed=0) == []


@pytest.mark.parametrize("choose", [lambda n: d.balanced(ITEMS, n, per_class=False, seed=5),
                                    lambda n: d.uniform(ITEMS, n, seed=5)])  # fmt: skip
def test_more_shots_add_to_fewer(choose) -> None:  # type: ignore[no-untyped-def]
    """A k-shot curve is one of nested prompts: what changes with k is k."""
    for fewer, more in pairwise(choose(n) for n in range(8)):
        assert more[: len(fewer)] == fewer
        assert len(more) == len(fewer) + 1


def test_uniform_ones_are_equally_likely() -> None:
    firsts = [d.uniform(ITEMS, 1, seed=seed)[0].id for seed in range(1400)]
    counts = np.array([firsts.count(item.id) for item in ITEMS])
    assert ((counts - 200) ** 2 / 200).sum() < 22.5  # chi-square, 6 degrees of freedom, p = 0.001


def test_named_ones_must_be_training_rows() -> None:
    assert [item.id for item in d.named(ITEMS, ["i5", "i0"])] == ["i5", "i0"]
    with pytest.raises(DataError, match="row 'i9' is not among the 7 training items"):
        d.named(ITEMS, ["i0", "i9"])


def test_diverse_ones_come_from_every_cluster() -> None:
    rng = np.random.default_rng(0)
    sizes, centres = [9, 5, 3], np.eye(3) * 10
    vectors = np.concatenate([c + 0.1 * rng.standard_normal((n, 3)) for n, c in zip(sizes, centres, strict=True)])
    items = [Item(f"{k}-{n}", f"t{k}{n}", "x", "g") for k, size in enumerate(sizes) for n in range(size)]
    chosen = d.diverse(items, vectors, 3, seed=1)
    assert [item.id[0] for item in chosen] == ["0", "1", "2"]  # the largest cluster first
    for k, item in enumerate(chosen):
        mine = [i for i, other in enumerate(items) if other.id[0] == str(k)]
        to_centre = np.linalg.norm(vectors[mine] - vectors[mine].mean(axis=0), axis=1)
        assert items[mine[to_centre.argmin()]] == item


def test_diverse_ones_of_fewer_texts_than_clusters() -> None:
    twins = [Item(f"i{n}", "igual" if n else "otro", "x", "g") for n in range(6)]
    vectors = np.array([[1.0, 0.0]] + [[0.0, 1.0]] * 5)
    assert {item.text for item in d.diverse(twins, vectors, 5, seed=0)} == {"igual", "otro"}
    assert d.diverse([], np.empty((0, 2)), 3, seed=0) == []


def test_orders() -> None:
    def arranged(order: d.Order, seed: int = 0) -> str:
        return "".join(d.arrange("AabBcDA", order, label=str.lower, rng=np.random.default_rng(seed)))

    assert arranged("given") == "AabBcDA"
    assert arranged("nearest_last") == "ADcBbaA"
    assert arranged("alternating") == "AbcDaBA"
    assert sorted(arranged("random")) == sorted("AabBcDA")
    assert len({arranged("random", seed) for seed in range(9)}) > 5


@given(st.lists(st.sampled_from("abc"), max_size=9))
def test_alternating_keeps_the_ranking_within_a_label(labels: list[str]) -> None:
    ranked = list(enumerate(labels))
    arranged = d.arrange(ranked, "alternating", label=lambda e: e[1], rng=np.random.default_rng(0))
    assert sorted(arranged) == ranked
    for label in "abc":
        mine = [number for number, own in arranged if own == label]
        assert mine == sorted(mine)
    counts = {label: labels.count(label) for label in set(labels)}
    for turn in range(max(counts.values(), default=0)):
        start = sum(min(count, turn) for count in counts.values())
        this_turn = [label for _, label in arranged[start : start + sum(c > turn for c in counts.values())]]
        assert len(set(this_turn)) == len(this_turn)


def test_tfidf_neighbours_are_scikit_learns() -> None:
    queries = ["fractura del fémur en la montaña", "dolor de oído: otitis", "cefalea y náuseas"]
    pool = d.Pool([(text, "x") for text in SENTENCES], 3, "nearest_last", seed=0)
    ranking = pool.rank(queries, embed=lambda _: pytest.fail("no hidden states are asked for"))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(SENTENCES)
    oracle = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectorizer.transform(SENTENCES))
    assert ranking[:, 0].tolist() == oracle.kneighbors(vectorizer.transform(queries))[1][:, 0].tolist() == [3, 9, 0]
    similar = 1 - oracle.kneighbors(vectorizer.transform(queries), n_neighbors=12)[0]
    ours = (vectorizer.transform(queries) @ vectorizer.transform(SENTENCES).T).toarray()
    np.testing.assert_allclose(np.take_along_axis(ours, ranking, axis=1), similar, atol=1e-6)
    assert [text for text, _ in pool.arranged(ranking[0][:3], queries[0])][-1] == SENTENCES[3]


def test_embedded_neighbours_are_by_cosine_around_the_mean() -> None:
    rng = np.random.default_rng(1)
    common = 100 * rng.standard_normal(8)  # what all hidden states share would make all cosines 1
    vectors, queries = common + rng.standard_normal((20, 8)), common + rng.standard_normal((4, 8))
    pool = d.Pool([(str(n), "x") for n in range(20)], 2, "given", seed=0, vectors=vectors)
    ranking = pool.rank(["a"] * 4, embed=lambda _: queries)
    a, b = queries - vectors.mean(0), vectors - vectors.mean(0)
    for row in range(4):
        cosines = [a[row] @ other / np.linalg.norm(a[row]) / np.linalg.norm(other) for other in b]
        assert ranking[row].tolist() == np.argsort(cosines)[::-1].tolist()


def test_equal_neighbours_keep_the_pools_order_and_texts_without_words_have_an_order_too() -> None:
    pool = d.Pool([("uno dos", "x"), ("uno dos", "y"), ("tres", "z")], 2, "given", seed=0)
    assert pool.rank(["dos", "¡!"], embed=lambda _: None).tolist() == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(DataError, match="no words"):
        d.Pool([("¡!", "x")], 1, "given", seed=0).rank(["a"], embed=lambda _: None)


@given(st.lists(st.integers(0, 9), max_size=90), st.integers(0, 300), st.integers(0, 90))
def test_as_many_as_fit(sizes: list[int], limit: int, wanted: int) -> None:
    wanted = min(wanted, len(sizes))
    cost = lambda count: sum(sizes[:count])  # noqa: E731
    assert d.most_that_fit(cost, limit, wanted) == max(n for n in range(wanted + 1) if cost(n) <= limit)
