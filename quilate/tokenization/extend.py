"""More tokens for a byte-level byte-pair tokenizer, learned from a domain's text, that only join what it cuts.

New merges are learned on top of the old ones: a word is first cut by the base, then the pairs of neighbouring pieces
that the domain has most often become tokens, one after another (Sennrich et al. 2016, started from the base's pieces in
place of characters). They rank after every old merge, so the base's cut of any text is only ever joined further: every
new token stands for the base's own pieces (`pieces`), in any text, and writing them out gives the base's tokens back.
Tokens added as plain strings (`add_tokens`) cut a text before any merge and lose that.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from quilate.errors import DataError, ModelError
from quilate.files import read_json, write_json

Pair = tuple[int, int]

MIN_OCCURRENCES = 10  # in the text; a row that is trained on fewer examples stays what its pieces were (guess)
WEIGHT_UNITS = 10**9  # frequencies are counted in whole units of this share: integers add up the same in any order


@dataclass(frozen=True)
class Extension:
    """New tokens in the order of their ids, which follow the base's own.

    Attributes:
        first: id of the first new token.
        tokens: as the base's vocabulary writes them, in the alphabet of bytes.
        merges: for each token, the two that it joins.
        pieces: for each token, the ids of the base's tokens that it stands for.
    """

    first: int
    tokens: list[str]
    merges: list[tuple[str, str]]
    pieces: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        return {"first": self.first, "tokens": self.tokens, "merges": self.merges, "pieces": self.pieces}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Extension:
        return cls(value["first"], value["tokens"], [(a, b) for a, b in value["merges"]], value["pieces"])


def learn_extension(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Iterable[str]], weights: Mapping[str, float], add: int
) -> Extension:
    """Learn `add` tokens that make a mixture of texts short.

    Args:
        tokenizer: the base's; byte-level byte-pair encoding.
        texts: corpus -> its texts; weights: corpus -> its share, whatever its size.

    Raises:
        ModelError: the tokenizer is of another kind.
        DataError: the texts have too few pairs that occur `MIN_OCCURRENCES` times.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    described = json.loads(backend.to_str())
    _refuse_other_kinds(described)
    old = tokenizer.get_vocab()
    words = _weighted_words(backend, texts, weights)
    first = max(old.values()) + 1
    learner = _Learner(old, first, {word: [t.id for t in backend.model.tokenize(word)] for word in words}, words)
    found = learner.learn(add)
    if len(found.tokens) < add:
        raise DataError(
            f"the texts give only {len(found.tokens)} new tokens that occur {MIN_OCCURRENCES} times, {add} were asked "
            "for",
            hint="ask for fewer, or give more text",
        )
    return found


def _refuse_other_kinds(described: dict[str, Any]) -> None:
    """Only where every text has pieces of bytes does every new token stand for pieces of the base."""
    kind = described["model"].get("type")
    before = described["pre_tokenizer"] or {}
    steps = {step["type"] for step in before.get("pretokenizers", [before]) if step}
    if kind != "BPE" or "ByteLevel" not in steps:
        seen = f"{kind} over {' and '.join(sorted(steps)) or 'whole texts'}"
        raise ModelError(
            f"the base's tokenizer is {seen}; only byte-level byte-pair encoding can be extended",
            hint="leave extend_vocabulary out, or pretrain a model with a vocabulary of its own",
        )


@dataclass(frozen=True)
class _Word:
    """How often a word occurs, and what that is worth: its share of the mixture, in `WEIGHT_UNITS`."""

    count: int
    value: int


def _weighted_words(
    backend: Tokenizer, texts: Mapping[str, Iterable[str]], weights: Mapping[str, float]
) -> dict[str, _Word]:
    """What the pre-tokenizer makes of the texts."""
    total = sum(weights.values())
    counts: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for name, documents in texts.items():
        of_corpus: Counter[str] = Counter()
        for text in documents:
            normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
            of_corpus.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
        share = weights[name] / total / max(1, of_corpus.total())
        counts.update(of_corpus)
        values.update({word: round(WEIGHT_UNITS * share * count) for word, count in of_corpus.items()})
    return {word: _Word(counts[word], values[word]) for word in sorted(counts)}


class _Learner:
    """Byte-pair training with an index: a merge touches only the words that hold its pair."""

    def __init__(self, old: Mapping[str, int], first: int, cut: dict[str, list[int]], words: dict[str, _Word]) -> None:
        self._written = {number: token for token, number in old.items()}
        self._known = set(old)
        self._extension = Extension(first, [], [], [])
        self._words = [(cut[word], worth) for word, worth in words.items()]
        self._value: Counter[Pair] = Counter()
        self._holders: defaultdict[Pair, set[int]] = defaultdict(set)
        for index, (pieces, worth) in enumerate(self._words):
            for pair in itertools.pairwise(pieces):
                self._value[pair] += worth.value
                self._holders[pair].add(index)
        self._queue = [(-value, pair) for pair, value in self._value.items()]
        heapq.heapify(self._queue)

    def learn(self, add: int) -> Extension:
        while self._queue and len(self._extension.tokens) < add:
            negative, pair = heapq.heappop(self._queue)
            value = self._value[pair]
            if -negative != value:  # it was merged elsewhere meanwhile
                if value > 0:
                    heapq.heappush(self._queue, (-value, pair))
                continue
            joined = self._written[pair[0]] + self._written[pair[1]]
            # A token that the base already has would be given to it by a merge of ours: its cut would change.
            if value > 0 and joined not in self._known and self._occurrences(pair) >= MIN_OCCURRENCES:
                self._merge(pair, joined)
        return self._extension

    def _occurrences(self, pair: Pair) -> int:
        return sum(self._words[index][1].count for index in self._holders[pair])

    def _merge(self, pair: Pair, joined: str) -> None:
        number = self._extension.first + len(self._extension.tokens)
        self._extension.tokens.append(joined)
        self._extension.merges.append((self._written[pair[0]], self._written[pair[1]]))
        self._extension.pieces.append([*self._pieces_of(pair[0]), *self._pieces_of(pair[1])])
        self._written[number] = joined
        self._known.add(joined)
        touched: set[Pair] = set()
        for index in sorted(self._holders.pop(pair)):
            touched |= self._rewrite(index, pair, number)
        self._value.pop(pair)
        for new in sorted(touched - {pair}):
            heapq.heappush(self._queue, (-self._value[new], new))

    def _pieces_of(self, token: int) -> list[int]:
        own = token - self._extension.first
        return self._extension.pieces[own] if own >= 0 else [token]

    def _rewrite(self, index: int, pair: Pair, number: int) -> set[Pair]:
        """Join every `pair` of a word, from the left; the pairs whose value grew."""
        before, worth = self._words[index]
        after: list[int] = []
        position = 0
        while position < len(before):
            if tuple(before[position : position + 2]) == pair:
                after.append(number)
                position += 2
            else:
                after.append(before[position])
                position += 1
        for old in itertools.pairwise(before):
            if old != pair:
                self._value[old] -= worth.value
                self._holders[old].discard(index)
        grown = set()
        for new in itertools.pairwise(after):
            self._value[new] += worth.value
            self._holders[new].add(index)
            grown.add(new)
        self._words[index] = (after, worth)
        return grown


def write_extended(tokenizer: PreTrainedTokenizerBase, extension: Extension, folder: Path) -> None:
    """Write the base's tokenizer with the new tokens; chat template and special tokens stay."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    described = read_json(path)
    model = described["model"]
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)  # tokenizers before 0.20 wrote "a b"
    for number, (token, merge) in enumerate(zip(extension.tokens, extension.merges, strict=True), extension.first):
        model["vocab"][token] = number
        model["merges"].append(" ".join(merge) if as_text else list(merge))
    write_json(path, described)
