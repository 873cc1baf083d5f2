"""Which texts are the same for a test: equal after normalization, or long and overlapping.

Short texts are compared whole. Texts of at least 13 words are also compared by their 13-word n-grams (Brown et al.
2020, appendix C). A single shared n-gram is only counted: as Brown et al. report, it is mostly a quotation or a
formula of the trade. Two texts overlap when 70 % of the shorter one's n-grams occur in the other (the share of
Chowdhery et al. 2022, section 8, there with 8-grams).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quilate.tasks.labels import Item

NGRAM_WORDS = 13
OVERLAP_SHARE = 0.7

_WORD = re.compile(r"\w+")


def normalize(text: str) -> str:
    """Casefolded words with single spaces: case, punctuation and spacing do not make a text another text.

    Accents are kept, composed: in Spanish they carry meaning (`año`, `ano`). A text without any word keeps its marks.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def ngrams(normalized: str) -> frozenset[int]:
    """Hashes of a normalized text's 13-word n-grams; none if it is shorter. Hashes differ between processes."""
    words = normalized.split()
    return frozenset(hash(tuple(words[i : i + NGRAM_WORDS])) for i in range(len(words) - NGRAM_WORDS + 1))


def overlapping_pairs(grams: Sequence[frozenset[int]]) -> Iterator[tuple[int, int]]:
    """Yield (shorter, other) for the texts that overlap, given each text's n-grams.

    Exact, yet not quadratic: if `need` of a text's n-grams occur in another, then at least one of any
    `len - need + 1` does, so only the texts that share one of its rarest are compared (the prefix filter of
    Chaudhuri et al. 2006).
    """
    frequency = Counter(gram for own in grams for gram in own)
    holders: dict[int, list[int]] = defaultdict(list)
    for index, own in enumerate(grams):
        for gram in own:
            if frequency[gram] > 1:
                holders[gram].append(index)
    for index, own in enumerate(grams):
        need = math.ceil(OVERLAP_SHARE * len(own))
        rarest = sorted(own, key=frequency.__getitem__)[: len(own) - need + 1]
        candidates = {other for gram in rarest for other in holders.get(gram, ())} - {index}
        for other in sorted(candidates):
            if len(own) <= len(grams[other]) and len(own & grams[other]) >= need:
                yield index, other


@dataclass(frozen=True)
class Leaks:
    """What an earlier split (train) shares with a later one (test).

    `earlier` holds the ids to remove to end the leak. `exact`, `overlap` and `group` hold the ids of the later
    split's items by kind; an item can be in several. `any_ngram` counts its items that share at least one n-gram.
    """

    earlier: frozenset[str]
    exact: frozenset[str]
    overlap: frozenset[str]
    group: frozenset[str]
    any_ngram: int
    of: int

    @property
    def items(self) -> frozenset[str]:
        """The later split's leaked items."""
        return self.exact | self.overlap | self.group

    def counts(self) -> dict[str, int]:
        """For the report."""
        return {
            "items": len(self.items),
            "exact": len(self.exact),
            "overlap": len(self.overlap),
            "group": len(self.group),
            "any_ngram": self.any_ngram,
            "of": self.of,
        }


def find_leaks(earlier: Sequence[Item], later: Sequence[Item]) -> Leaks:
    """Compare two splits by text and by group."""
    guilty: set[str] = set()
    kinds: dict[str, set[str]] = {"exact": set(), "group": set(), "overlap": set()}
    texts = [[normalize(item.content) for item in split] for split in (earlier, later)]
    for kind, keys in (("exact", texts), ("group", [[item.group for item in split] for split in (earlier, later)])):
        shared = set(keys[0]) & set(keys[1])
        guilty |= {item.id for item, key in zip(earlier, keys[0], strict=True) if key in shared}
        kinds[kind] |= {item.id for item, key in zip(later, keys[1], strict=True) if key in shared}
    grams = [[ngrams(text) for text in split] for split in texts]
    for first, second in overlapping_pairs(grams[0] + grams[1]):
        low, high = sorted((first, second))
        if low < len(earlier) <= high and texts[0][low] != texts[1][high - len(earlier)]:
            guilty.add(earlier[low].id)
            kinds["overlap"].add(later[high - len(earlier)].id)
    seen = frozenset().union(*grams[0])
    return Leaks(
        earlier=frozenset(guilty),
        exact=frozenset(kinds["exact"]),
        overlap=frozenset(kinds["overlap"]),
        group=frozenset(kinds["group"]),
        any_ngram=sum(not own.isdisjoint(seen) for own in grams[1]),
        of=len(later),
    )
