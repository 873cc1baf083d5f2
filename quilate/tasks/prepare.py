"""From rows to a task of any kind: leak-free splits, with everything that was dropped counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from quilate.errors import DataError, GateError
from quilate.tasks.columns import Row, columns_of, filter_rows, require_column
from quilate.tasks.kinds import TASKS
from quilate.tasks.labels import Item, cell_text
from quilate.tasks.leaks import Leaks, find_leaks, normalize
from quilate.tasks.splits import carve_dev, sample, split, tie_duplicates
from quilate.tasks.task import SPLITS, CommonTaskConfig, Counts, Task

_PAIRS = (("train", "test"), ("train", "dev"), ("dev", "test"))


def prepare(config: CommonTaskConfig, rows: Mapping[str, Sequence[Row]], notes: Mapping[str, Any]) -> Task:
    """Make a task of tables.

    Args:
        rows: `{"all": rows}` to be split here, or `{"train", "test"}` with optional `"dev"` as given; a missing dev
            is taken out of train, by group.
        notes: the tables' notes by the same keys, kept in the report as `sources`.

    Raises:
        ConfigError: the templates or verbalizers are unusable.
        DataError: a column is missing, a label of dev or test is unseen in train, or there are too few rows.
        GateError: given splits share texts or groups, and neither `drop_leaks` nor `allow_leak` is set.
    """
    config.check()
    counts = Counts()
    pools = {name: _items(config, name, part, counts) for name, part in rows.items()}
    usable = sum(map(len, pools.values()))
    parts = _split_here(config, pools["all"], counts) if "all" in pools else _use_given(config, dict(pools), counts)
    labels = config.labels_of(parts, counts)
    leaks = {pair: find_leaks(parts[pair[0]], parts[pair[1]]) for pair in _PAIRS}
    leaked = any(found.items for found in leaks.values())
    if leaked and not config.allow_leak:
        raise _gate(leaks)
    described = {name: _describe(parts[name]) for name in SPLITS}
    if leaked:
        counts.warn("splits_leak")
    report = {
        **counts.report(),
        "conflicting_labels": _conflicts([item for pool in pools.values() for item in pool]),
        "unused": usable - sum(map(len, parts.values())) - counts.total_dropped_later(),
        "splits": described,
        "never_tested": counts.never_tested,
        "leaks": {f"{first}-{second}": found.counts() for (first, second), found in leaks.items()},
        "allowed_leak": leaked,
        "warnings": counts.warnings,
        "sources": dict(notes),
    }
    return TASKS[config.kind](config, labels, **parts, report=report)


def _items(config: CommonTaskConfig, name: str, rows: Sequence[Row], counts: Counts) -> list[Item]:
    """The usable rows of one table. Ids are `table:row number`, so that a row can be found again."""
    read = config.reader(rows, counts)
    if config.group is not None:
        require_column(config.group, columns_of(rows), role="group")
    kept, dropped = filter_rows(rows, config.where)
    counts.filtered_by.update(dropped)
    counts.simple.update(read=len(rows), filtered=len(rows) - len(kept))
    items = []
    for number, row in kept:
        identity = f"{name}:{number}"
        group = cell_text(row.get(config.group)) if config.group is not None else identity
        item = read(row, identity, group or identity)
        if isinstance(item, str):
            counts.simple[item] += 1
            continue
        counts.simple["missing_group"] += not group
        items.append(item)
    if not items:
        raise DataError(
            f"{name}: none of the {len(rows)} rows is usable: {len(rows) - len(kept)} dropped by `where`, "
            f"{len(kept)} without a text or answer",
            hint="check the names of columns in the task, and its `where`",
        )
    return items


def _split_here(config: CommonTaskConfig, items: list[Item], counts: Counts) -> dict[str, list[Item]]:
    ties = tie_duplicates(items)
    counts.simple.update(duplicates_tied=ties.equal, overlaps_tied=ties.overlapping)
    parts = split(ties.items, config.split)
    _warn_if_short("train", config.split.train, parts["train"], counts)
    return parts


def _use_given(config: CommonTaskConfig, pools: dict[str, list[Item]], counts: Counts) -> dict[str, list[Item]]:
    """Choose from given splits, the test first: what leaks into it can then be taken from the others."""
    missing = {"train", "test"} - set(pools)
    if missing:
        raise DataError(f"the source has no {' and no '.join(sorted(missing))} file", hint="give train and test files")
    pools = config.usable(pools, counts)
    if "dev" not in pools:
        original = {item.id: item for item in pools["train"]}
        carved = carve_dev(tie_duplicates(pools["train"]).items, config.split)
        pools["train"], pools["dev"] = ([original[item.id] for item in part] for part in carved)
    sizes = {"test": config.split.test, "dev": config.split.dev, "train": config.split.train}
    parts: dict[str, list[Item]] = {}
    for name, size in sizes.items():
        pool = pools[name]
        if config.drop_leaks:
            guilty = frozenset[str]().union(*(find_leaks(pool, later).earlier for later in parts.values()))
            counts.dropped_leaks[name] = len(guilty)
            pool = [item for item in pool if item.id not in guilty]
        parts[name] = sample(pool, len(pool) if size is None else size, config.split, at_least=int(name == "train"))
        _warn_if_short(name, size, parts[name], counts)
    counts.dropped_leaks.pop("test", None)
    return parts


def _warn_if_short(name: str, size: int | None, items: Sequence[Item], counts: Counts) -> None:
    if size is not None and len(items) < size:
        counts.warn("fewer_rows", split=name, asked=size, available=len(items))


def _gate(leaks: Mapping[tuple[str, str], Leaks]) -> GateError:
    listed = "; ".join(
        f"{len(found.items)} of the {found.of} {later} items occur in {earlier} "
        f"({len(found.exact)} equal, {len(found.overlap)} overlapping, {len(found.group)} of a shared group)"
        for (earlier, later), found in leaks.items()
        if found.items
    )
    return GateError(
        f"the given splits leak: {listed}",
        hint="set drop_leaks: true to remove them from the training side, or allow_leak: true to go on; "
        "the report will say so",
    )


def _conflicts(items: Sequence[Item]) -> int:
    answers: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for item in items:
        answers[normalize(item.content)].add(item.answers)
    return sum(len(found) > 1 for found in answers.values())


def _describe(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "items": len(items),
        "groups": len({item.group for item in items}),
        "duplicates": len(items) - len({normalize(item.content) for item in items}),
        "labels": dict(sorted(Counter(label for item in items for label in item.labels).items())),
    }
