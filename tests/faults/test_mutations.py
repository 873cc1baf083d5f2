"""The list of guards to take away fits the source, and docs/reliability.md has a row for each."""

from __future__ import annotations

import pytest
from mutations import ALL_GREEN, MUTATIONS, PAGE, ROOT, Mutation, shown


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.guard)
def test_each_guard_is_where_the_list_says(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1
    assert mutation.old != mutation.new


def test_the_page_has_them_all_and_none_that_no_test_noticed() -> None:
    results = shown(PAGE.read_text(encoding="utf-8"))
    assert list(results) == [mutation.guard for mutation in MUTATIONS]
    assert [guard for guard, result in results.items() if result == ALL_GREEN] == []
