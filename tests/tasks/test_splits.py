"""Splits: sizes, groups, shares, determinism, for any data hypothesis can think of."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quilate.errors import DataError
from quilate.tasks.labels import Item
from quilate.tasks.leaks import find_leaks
from quilate.tasks.splits import SplitConfig, apportion, carve_dev, sample, split, tie_duplicates

NAMES = ("train", "dev", "test")
rows = st.lists(st.tuples(st.sampled_from("abcñ"), st.integers(0, 60)), min_size=1, max_size=120)
sizes = st.tuples(st.none() | st.integers(1, 60), st.integers(0, 20), st.integers(1, 30))


def items_of(pairs: list[tuple[str, int]]) -> list[Item]:
    return [Item(f"i{n}", f"texto {n}", label, f"g{group}") for n, (label, group) in enumerate(pairs)]


@settings(max_examples=150, deadline=None)
@given(rows, sizes, st.booleans(), st.integers(0, 3))
def test_split_invariants(
    pairs: list[tuple[str, int]], wanted: tuple[int | None, int, int], stratify: bool, seed: int
) -> None:
    items = items_of(pairs)
    train, dev, test = wanted
    config = SplitConfig(train=train, dev=dev, test=test, stratify=stratify, seed=seed)
    try:
        parts = split(items, config)
    except DataError:  # allowed only when whole groups stand in the way
        alone = all(count == 1 for count in Counter(i.group for i in items).values())
        assert not (alone and len(items) - len({i.label for i in items}) >= dev + test)
        return
    assert (len(parts["test"]), len(parts["dev"])) == (test, dev)
    assert len(parts["train"]) <= (train or len(items))
    owner = defaultdict(set)
    for name in NAMES:
        for item in parts[name]:
            owner[item.group].add(name)
    assert all(len(names) == 1 for names in owner.values())
    used = [item.id for name in NAMES for item in parts[name]]
    assert len(used) == len(set(used))
    assert set(used) <= {item.id for item in items}
    labels = {name: {item.label for item in parts[name]} for name in NAMES}
    if train is None or (stratify and train >= len({i.label for i in items})):
        assert labels["dev"] | labels["test"] <= labels["train"]
    if train is None and all(count == 1 for count in Counter(i.group for i in items).values()):
        assert len(used) == len(items)
    shuffled = random.Random(0).sample(items, len(items))
    assert split(shuffled, config) == parts  # the order of the rows on disk does not matter


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=8),
    st.integers(0, 200),
    st.integers(0, 2),
)
def test_apportion_is_proportional(available: dict[str, int], size: int, at_least: int) -> None:
    quota = apportion(size, available, at_least=at_least)
    total = sum(available.values())
    assert sum(quota.values()) == min(size, total)
    assert all(0 <= quota[label] <= count for label, count in available.items())
    if at_least == 0 and size <= total:  # the quota rule of Hamilton's method
        assert all(abs(quota[label] - size * count / total) < 1 for label, count in available.items())
    if at_least * len(available) <= size:
        assert all(quota[label] >= min(at_least, count) for label, count in available.items())


def test_apportion_by_weights_within_what_is_available() -> None:
    assert apportion(10, {"a": 50, "b": 50}, weights={"a": 900, "b": 100}) == {"a": 9, "b": 1}
    assert apportion(10, {"a": 2, "b": 50}, weights={"a": 900, "b": 100}) == {"a": 2, "b": 8}


def test_shares_are_kept_exactly_when_groups_allow() -> None:
    items = items_of([("ab"[n % 4 == 0], n) for n in range(400)])
    parts = split(items, SplitConfig(train=100, dev=40, test=60))
    assert {name: Counter(i.label for i in parts[name]) for name in NAMES} == {
        "train": {"a": 75, "b": 25},
        "dev": {"a": 30, "b": 10},
        "test": {"a": 45, "b": 15},
    }


def test_the_seed_decides() -> None:
    items = items_of([("a", n) for n in range(100)])
    drawn = [frozenset(i.id for i in split(items, SplitConfig(dev=10, test=20, seed=s))["test"]) for s in range(5)]
    assert len(set(drawn)) == 5


def test_large_groups_are_thinned_when_rows_abound() -> None:
    items = items_of([("a", n // 20) for n in range(4000)])
    parts = split(items, SplitConfig(train=100, dev=20, test=50))
    assert len({i.group for i in parts["test"]}) >= 25
    everything = split(items, SplitConfig(dev=20, test=40))
    assert sum(map(len, everything.values())) == 4000  # without a limit on train nothing is wasted


def test_thinning_does_not_change_the_labels_shares() -> None:
    items = items_of([("a", n // 20) for n in range(4000)] + [("b", 1000 + n) for n in range(1000)])
    parts = split(items, SplitConfig(train=100, dev=20, test=50))
    assert {name: Counter(i.label for i in parts[name]) for name in NAMES} == {
        "train": {"a": 80, "b": 20},
        "dev": {"a": 16, "b": 4},
        "test": {"a": 40, "b": 10},
    }


def test_a_limited_train_keeps_every_label() -> None:
    items = items_of([("a", n) for n in range(2000)] + [("rara", 5000), ("rara", 5001)])
    parts = split(items, SplitConfig(train=20, dev=10, test=30))
    assert Counter(i.label for i in parts["train"])["rara"] == 1


def test_a_label_with_one_group_stays_in_train() -> None:
    items = items_of([("a", n) for n in range(50)] + [("rara", 99)] * 5)
    parts = split(items, SplitConfig(dev=10, test=30))
    assert Counter(i.label for i in parts["train"])["rara"] == 5


def test_too_few_rows_says_what_is_available() -> None:
    with pytest.raises(DataError, match="test: 500 rows are asked for, and only 19 of the 20 usable rows") as caught:
        split(items_of([("a", n) for n in range(20)]), SplitConfig())
    assert "split.test" in str(caught.value)
    with pytest.raises(DataError, match="dev: 15 rows are asked for, and only 9 of the 20"):
        split(items_of([("a", n) for n in range(20)]), SplitConfig(dev=15, test=10))


def test_sample_keeps_every_label_once() -> None:
    items = items_of([("a", n) for n in range(500)] + [("b", 501), ("c", 502)])
    assert {i.label for i in sample(items, 10, SplitConfig(), at_least=1)} == {"a", "b", "c"}
    assert len(sample(items, 10, SplitConfig(stratify=False))) == 10


def test_carve_dev_by_group() -> None:
    items = items_of([("ab"[n % 2], n // 3) for n in range(90)])
    train, dev = carve_dev(items, SplitConfig(dev=12))
    assert len(dev) == 12
    assert not {i.group for i in train} & {i.group for i in dev}


LONG = [f"síntoma{n}" for n in range(16)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Tos.", "tos", "fiebre", " ".join(LONG), " ".join(LONG[:14]), "ñ"]), st.integers(0, 9)
        ),
        max_size=30,
    ),
    st.lists(st.integers(0, 2), min_size=30, max_size=30),
)
def test_ties_leave_no_leak_however_groups_are_dealt(rows: list[tuple[str, int]], deal: list[int]) -> None:
    items = [Item(f"i{n}", text, "a", f"g{group}") for n, (text, group) in enumerate(rows)]
    tied = tie_duplicates(items).items
    names = sorted({item.group for item in tied})
    side = {name: deal[index] for index, name in enumerate(names)}
    parts = [[item for item in tied if side[item.group] == part] for part in range(3)]
    assert not find_leaks(parts[0], parts[1]).items
    assert not find_leaks(parts[1], parts[2]).items
    for first, second in zip(items, tied, strict=True):  # and ties only ever merge groups
        assert (first.id, first.text, first.label) == (second.id, second.text, second.label)
    merged = defaultdict(set)
    for before, after in zip(items, tied, strict=True):
        merged[before.group].add(after.group)
    assert all(len(names) == 1 for names in merged.values())


def test_tie_counts() -> None:
    texts = ["Tos.", "tos", "TOS!", "fiebre", " ".join(LONG), " ".join(LONG[:-1])]
    ties = tie_duplicates([Item(f"i{n}", text, "a", f"g{n}") for n, text in enumerate(texts)])
    assert (ties.equal, ties.overlapping) == (3, 2)
    assert [item.group for item in ties.items] == ["g0", "g0", "g0", "g3", "g4", "g4"]
