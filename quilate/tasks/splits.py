"""Group-aware, stratified splits of the exact sizes asked for.

The outcome depends on the content of the rows and the seed, not on the order of the rows on disk.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from quilate.config import Config
from quilate.errors import DataError
from quilate.tasks.labels import Item
from quilate.tasks.leaks import ngrams, normalize, overlapping_pairs

_ABUNDANCE = 2  # guess: slack for taking whole groups without missing a label's share


class SplitConfig(Config):
    """How many rows go where."""

    train: int | None = Field(default=None, ge=1)
    """Training rows; null takes all that remain. If there are fewer, those are used and a warning is recorded."""
    dev: int = Field(default=200, ge=0)
    """Rows on which choices are made; 0 for none."""
    test: int = Field(default=500, ge=1)
    """Rows on which the chosen arms are confirmed."""
    stratify: bool = True
    """Keep each label's share the same in every split, as far as the groups allow."""
    seed: int = 13
    """Draws the split; apart from the training seeds, so that every seed trains on the same rows."""


@dataclass(frozen=True)
class Ties:
    """Items whose groups are merged so that equal texts share one, with counts of the items so tied."""

    items: list[Item]
    equal: int
    overlapping: int


def tie_duplicates(items: Sequence[Item]) -> Ties:
    """Merge the groups of items whose texts are the same (see `leaks`); a merged group has its smallest name.

    `equal` counts items whose text another item also has; `overlapping` those tied by n-grams, each text once.
    """
    by_text: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_text[normalize(item.content)].append(item)
    forest = _Forest()
    for same in by_text.values():
        for item in same[1:]:
            forest.union(same[0].group, item.group)
    texts = list(by_text)
    overlapping: set[int] = set()
    for first, second in overlapping_pairs([ngrams(text) for text in texts]):
        forest.union(by_text[texts[first]][0].group, by_text[texts[second]][0].group)
        overlapping |= {first, second}
    return Ties(
        items=[replace(item, group=forest.find(item.group)) for item in items],
        equal=sum(len(same) for same in by_text.values() if len(same) > 1),
        overlapping=len(overlapping),
    )


class _Forest:
    """Union-find over names; the smallest name of a set is its root."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while name != root:  # path compression
            self._parent[name], name = root, self._parent.get(name, name)
        return root

    def union(self, first: str, second: str) -> None:
        low, high = sorted((self.find(first), self.find(second)))
        if low != high:
            self._parent[high] = low


def apportion(
    size: int, available: Mapping[str, int], *, weights: Mapping[str, int] | None = None, at_least: int = 0
) -> dict[str, int]:
    """Share `size` among labels by largest remainders (Hamilton's method), none above what is available.

    Args:
        weights: the labels' proportions; by default what is available.
        at_least: what every label gets first, where it has that many and `size` suffices.
    """
    if size >= sum(available.values()):
        return dict(available)
    weights = weights or available
    total = sum(weights[label] for label in available)
    exact = {label: size * weights[label] / total for label in available}
    floor = at_least if at_least * len(available) <= size else 0
    quota = {label: min(available[label], max(floor, math.floor(exact[label]))) for label in sorted(available)}
    while (short := size - sum(quota.values())) != 0:
        step = 1 if short > 0 else -1
        open_labels = [
            label for label in quota if (quota[label] < available[label] if step > 0 else quota[label] > floor)
        ]
        chosen = max(open_labels, key=lambda label: (step * (exact[label] - quota[label]), label))
        quota[chosen] += step
    return quota


def sample(
    items: Sequence[Item],
    size: int,
    config: SplitConfig,
    *,
    weights: Mapping[str, int] | None = None,
    at_least: int = 0,
) -> list[Item]:
    """At most `size` items, stratified by label if `config` says so, in an order drawn by the seed."""
    ordered = sorted(items, key=lambda item: _draw(config.seed, item))
    if len(ordered) <= size:
        return ordered
    counts = _strata(ordered, config)
    return _choose(ordered, size, apportion(size, counts, weights=weights, at_least=at_least), config)


def split(items: Sequence[Item], config: SplitConfig) -> dict[str, list[Item]]:
    """Split items into train, dev and test; groups stay whole, except that surplus members go unused.

    With `train` limited, surplus rows of large groups go unused first, so that more groups are represented.
    Of every label, at least one group stays in train, so a label with a single group is never tested.

    Raises:
        DataError: dev or test cannot have the size asked for.
    """
    weights = _strata(items, config)
    pool = _groups(_thinned(items, config), config.seed)
    result: dict[str, list[Item]] = {}
    for name, size in (("test", config.test), ("dev", config.dev)):
        result[name], pool = _carve(pool, size, config, weights)
        if len(result[name]) < size:
            raise DataError(
                f"{name}: {size} rows are asked for, and only {len(result[name])} of the {len(items)} usable rows can "
                "be spared while one group of every label stays in train",
                hint="ask for smaller splits (split.test, split.dev), or label more rows",
            )
    rest = [item for group in pool for item in group.items]
    size = len(rest) if config.train is None else config.train
    result["train"] = sample(rest, size, config, weights=weights, at_least=1)
    return {name: result[name] for name in ("train", "dev", "test")}


def carve_dev(items: Sequence[Item], config: SplitConfig) -> tuple[list[Item], list[Item]]:
    """Take dev out of a given train by group: (train, dev). Dev may come out smaller than asked."""
    dev, pool = _carve(_groups(items, config.seed), config.dev, config, _strata(items, config))
    return [item for group in pool for item in group.items], dev


def _thinned(items: Sequence[Item], config: SplitConfig) -> list[Item]:
    """Where rows abound, keep few of each group, so that the splits span many groups.

    Rows of one group are alike: 500 test rows from 80 groups carry far less evidence than from 300. Per stratum, the
    rows kept of a group are the fewest that leave `_ABUNDANCE` times what the three splits need.
    """
    if config.train is None:
        return list(items)
    needed = apportion(config.train + config.dev + config.test, _strata(items, config))
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        sizes[_stratum(item, config)][item.group] += 1
    limit = {
        stratum: _smallest_cap(list(groups.values()), _ABUNDANCE * needed[stratum]) for stratum, groups in sizes.items()
    }
    kept: list[Item] = []
    seen: Counter[tuple[str, str]] = Counter()
    for item in sorted(items, key=lambda item: _draw(config.seed, item)):
        key = _stratum(item, config), item.group
        seen[key] += 1
        if seen[key] <= limit[key[0]]:
            kept.append(item)
    return kept


def _smallest_cap(sizes: Sequence[int], wanted: int) -> int:
    """The smallest cap under which capped sizes sum to `wanted`, or the largest size if none does."""
    low, high = 1, max(sizes)
    while low < high:
        middle = (low + high) // 2
        if sum(min(size, middle) for size in sizes) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True)
class _Group:
    items: tuple[Item, ...]

    @property
    def labels(self) -> set[str]:
        return {item.label for item in self.items}


def _carve(
    pool: Sequence[_Group], size: int, config: SplitConfig, weights: Mapping[str, int]
) -> tuple[list[Item], list[_Group]]:
    """Take whole groups from `pool` until `size` rows can be had: (rows, the groups left)."""
    left = Counter(label for group in pool for label in group.labels)
    spare_rows = _strata([item for group in pool for item in group.items if left[item.label] > 1], config)
    quota = apportion(size, spare_rows, weights=weights)
    need = Counter(quota)
    taken: dict[int, _Group] = {}

    def take(index: int, group: _Group) -> None:
        taken[index] = group
        need.subtract(_strata(group.items, config))
        left.subtract(group.labels)

    def spared(index: int, group: _Group) -> bool:
        return index not in taken and all(left[label] > 1 for label in group.labels)

    for index, group in enumerate(pool):  # first what fits without surplus
        counts = _strata(group.items, config)
        if spared(index, group) and all(count <= need[stratum] for stratum, count in counts.items()):
            take(index, group)
    by_size = sorted(enumerate(pool), key=lambda entry: len(entry[1].items))  # then what wastes least
    for index, group in by_size:
        if spared(index, group) and any(need[stratum] > 0 for stratum in _strata(group.items, config)):
            take(index, group)
    rows = sum(len(group.items) for group in taken.values())
    for index, group in by_size:  # then, shares aside, whatever fills the size
        if rows < size and spared(index, group):
            take(index, group)
            rows += len(group.items)
    ordered = sorted((i for group in taken.values() for i in group.items), key=lambda item: _draw(config.seed, item))
    return _choose(ordered, size, quota, config), [group for i, group in enumerate(pool) if i not in taken]


def _choose(ordered: Sequence[Item], size: int, quota: Mapping[str, int], config: SplitConfig) -> list[Item]:
    """The first `quota` items of each stratum, then the first others, `size` in all, in the order given."""
    open_places = Counter(quota)
    chosen: set[str] = set()
    for item in ordered:
        if open_places[_stratum(item, config)] > 0:
            open_places[_stratum(item, config)] -= 1
            chosen.add(item.id)
    for item in ordered:
        if len(chosen) >= size:
            break
        chosen.add(item.id)
    return [item for item in ordered if item.id in chosen]


def _groups(items: Iterable[Item], seed: int) -> list[_Group]:
    """The groups in an order drawn by the seed from their content."""
    members: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        members[item.group].append(item)
    keys = {name: min(_draw(seed, item) for item in group) for name, group in members.items()}
    return [_Group(tuple(members[name])) for name in sorted(members, key=keys.__getitem__)]


def _stratum(item: Item, config: SplitConfig) -> str:
    return item.label if config.stratify else ""


def _strata(items: Iterable[Item], config: SplitConfig) -> Counter[str]:
    return Counter(_stratum(item, config) for item in items)


def _draw(seed: int, item: Item) -> tuple[bytes, str]:
    """A pseudo-random key of the content; equal rows fall back on their ids."""
    return hashlib.sha256(f"{seed}\0{item.label}\0{item.content}".encode()).digest(), item.id
