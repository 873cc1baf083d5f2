"""The list of guards to take away fits the source, and docs/reliability.md shows each with a test that failed."""

from __future__ import annotations

import pytest
from mutations import MUTATIONS, PAGE, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.guard)
def test_each_guard_is_where_the_list_says(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1
    assert mutation.old != mutation.new


def test_the_page_has_a_failure_for_each() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = {cells[1]: cells[3] for cells in rows if len(cells) == 4}
    assert [m.guard for m in MUTATIONS if m.guard not in found] == []
    assert [m.guard for m in MUTATIONS if "all green" in found[m.guard]] == []
