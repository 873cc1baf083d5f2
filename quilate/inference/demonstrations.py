"""Which solved examples stand in a prompt, and in which order.

A choice is a ranking: where fewer fit than were asked for, the last ones go.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from quilate.errors import DataError
from quilate.rng import derive_seed, numpy_stream
from quilate.tasks.labels import Item

Selection = Literal["balanced", "random", "fixed", "diverse", "nearest"]
Order = Literal["given", "random", "alternating", "nearest_last"]
Similarity = Literal["tfidf", "embedding"]
Matrix = Any  # [rows, D], dense, or sparse as TF-IDF gives it
Embed = Callable[[Sequence[str]], Matrix]

TFIDF: dict[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True}  # as the TF-IDF baseline has it

T = TypeVar("T")


def balanced(items: Sequence[Item], shots: int, *, per_class: bool, seed: int) -> list[Item]:
    """Draw items so that no label appears twice before every label that has items left appears once.

    Args:
        shots: how many in all; with `per_class`, of each label.
    """
    rng = numpy_stream(seed, "demonstrations")
    by_label: dict[str, list[Item]] = {}
    for index in rng.permutation(len(items)):
        by_label.setdefault(items[index].label, []).append(items[index])
    labels = list(rng.permutation(sorted(by_label)))
    rounds = [by_label[label][turn] for turn in range(shots) for label in labels if turn < len(by_label[label])]
    return rounds if per_class else rounds[:shots]


def uniform(items: Sequence[Item], shots: int, *, seed: int) -> list[Item]:
    """Draw items, all equally likely, whatever their labels."""
    return [items[i] for i in numpy_stream(seed, "demonstrations").permutation(len(items))[:shots]]


def named(items: Sequence[Item], rows: Sequence[str]) -> list[Item]:
    """The items with these ids, in this order.

    Raises:
        DataError: a row is not among the training items.
    """
    known = {item.id: item for item in items}
    unknown = [row for row in rows if row not in known]
    if unknown:
        raise DataError(
            f"row '{unknown[0]}' is not among the {len(items)} training items",
            hint="name rows as FILE:NUMBER, such as all:12; those of the dev and test splits cannot be shown",
        )
    return [known[row] for row in rows]


def diverse(items: Sequence[Item], vectors: Matrix, shots: int, *, seed: int) -> list[Item]:
    """One item from each of `shots` clusters, the nearest to its centre; the largest cluster first.

    K-means over the items' vectors (as Zhang et al. 2022 choose for Auto-CoT): together they cover the data.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    shots = min(shots, len({item.text for item in items}))
    if shots == 0:
        return []
    start = derive_seed(seed, "demonstrations") % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct vectors than clusters: some stay empty
        clusters = KMeans(n_clusters=shots, n_init=10, random_state=start).fit(vectors)
    distance = clusters.transform(vectors)
    members = [(cluster, np.flatnonzero(clusters.labels_ == cluster)) for cluster in range(shots)]
    members = sorted(((c, rows) for c, rows in members if len(rows)), key=lambda entry: (-len(entry[1]), entry[1][0]))
    return [items[int(rows[distance[rows, cluster].argmin()])] for cluster, rows in members]


def arrange(ranked: Sequence[T], order: Order, *, label: Callable[[T], Hashable], rng: np.random.Generator) -> list[T]:
    """A ranking put in the order in which the model reads it, the last one beside the item.

    Args:
        order: `given` keeps the ranking; `nearest_last` reverses it; `alternating` takes one example of each label in
            turn; `random` draws a permutation from `rng`.
    """
    match order:
        case "given":
            return list(ranked)
        case "nearest_last":
            return list(reversed(ranked))
        case "random":
            return [ranked[i] for i in rng.permutation(len(ranked))]
    turns: dict[Hashable, int] = {}
    keyed = []
    for example in ranked:
        turn = turns[label(example)] = turns.get(label(example), -1) + 1
        keyed.append((turn, list(turns).index(label(example)), example))
    return [example for *_, example in sorted(keyed, key=lambda entry: entry[:2])]


@dataclass(frozen=True)
class Pool:
    """Solved examples from which every item gets its own nearest ones.

    Attributes:
        examples: (text, verbalizer).
        shots: how many an item gets; None is as many as fit.
        order: how they stand; `random` draws from `seed` and the item's text.
        vectors: [examples, D] hidden states, for `embedding`; None for TF-IDF, which is fitted when it is needed.
    """

    examples: list[tuple[str, str]]
    shots: int | None
    order: Order
    seed: int
    vectors: NDArray[np.floating] | None = None

    def rank(self, texts: Sequence[str], embed: Embed) -> NDArray[np.int64]:
        """[texts, examples] the examples' indices, nearest first; `embed` is for pools that have vectors."""
        if self.vectors is None:
            tfidf = tfidf_embedder([text for text, _ in self.examples])
            return nearest(tfidf(texts), tfidf([text for text, _ in self.examples]))
        mean = self.vectors.mean(axis=0)
        return nearest(centred(embed(texts), mean), centred(self.vectors, mean))

    def arranged(self, indices: Sequence[int], text: str) -> list[tuple[str, str]]:
        """The examples in the order in which they stand before `text`."""
        ranked = [self.examples[i] for i in indices]
        rng = numpy_stream(self.seed, "order", text)
        return arrange(ranked, self.order, label=lambda example: example[1], rng=rng)


def nearest_to(examples: Sequence[T], text_of: Callable[[T], str], texts: Sequence[str], shots: int) -> list[list[T]]:
    """For every text the examples that are most like it by TF-IDF, the most alike first.

    Raises:
        DataError: the examples have no words.
    """
    if not texts or not examples or shots == 0:
        return [[] for _ in texts]
    known = [text_of(example) for example in examples]
    tfidf = tfidf_embedder(known)
    return [[examples[i] for i in row[:shots]] for row in nearest(tfidf(texts), tfidf(known)).tolist()]


def most_that_fit(cost: Callable[[int], int], limit: int, wanted: int) -> int:
    """The largest number up to `wanted` whose cost is at most `limit`; `cost` never falls. 0 even if that costs more.

    Looks at few numbers: `wanted` itself, then 1, 2, 4, ... and bisection.
    """
    if wanted == 0 or (wanted <= 64 and cost(wanted) <= limit):  # guess: more are seldom asked for and fit
        return wanted
    low, high = 0, 1
    while high <= wanted and cost(high) <= limit:
        low, high = high, 2 * high
    high = min(high, wanted + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def tfidf_embedder(texts: Sequence[str]) -> Embed:
    """TF-IDF of words and pairs of words, fitted on `texts`, as sparse unit vectors.

    Raises:
        DataError: the texts have no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**TFIDF)
    try:
        vectorizer.fit(texts)
    except ValueError as error:
        raise DataError(f"the training texts have no words: {error}", hint="use similarity: embedding") from error
    transform: Embed = vectorizer.transform
    return transform


def centred(vectors: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.floating]:
    """Unit vectors after the mean is taken away: hidden states of language models share a large common part, beside
    which cosines differ little (Mu & Viswanath 2018)."""
    moved = (vectors - mean).astype(np.float64)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    result: NDArray[np.floating] = np.divide(moved, norms, out=np.zeros_like(moved), where=norms > 0)
    return result


def nearest(queries: Matrix, pool: Matrix) -> NDArray[np.int64]:
    """[queries, pool] rows of the pool by decreasing cosine to each query (KATE, Liu et al. 2022); both are unit
    vectors. Equal ones keep the pool's order."""
    product = queries @ pool.T
    similarity = np.asarray(product.toarray() if hasattr(product, "toarray") else product)
    rounded = np.round(similarity, 6)  # rounding noise must not decide between equals
    return np.argsort(-rounded, axis=1, kind="stable").astype(np.int64)
