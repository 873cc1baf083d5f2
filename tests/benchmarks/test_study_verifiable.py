"""The page of verifiable rewards: what was not run says so, and planted answers give the planted rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import study_verifiable as study


def cell(policy: str, right: int, items: int = 40) -> dict[str, Any]:
    answers = {f"A{n:02}": int(n < right) for n in range(items)}
    return {"recipe": "verifiable", "policy": policy, "seed": 0, "right": answers, "items": items, "kl": 0.5,
            "ended": 1.0, "seconds": 90.0}  # fmt: skip


def row(page: str, start: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [part.strip() for part in line.strip("|").split("|")]


def test_the_page_is_what_the_cells_say() -> None:
    cells = json.loads(study.CELLS.read_text(encoding="utf-8")) if study.CELLS.exists() else []
    assert study.PAGE.read_text(encoding="utf-8") == study.page_of(cells)


def test_rows_and_paired_differences_of_planted_answers() -> None:
    assert row(study.page_of([]), "SFT, then GRPO")[1] == "not run"
    page = study.page_of([cell("start", 10), cell("grpo", 30), cell("more", 28)])
    assert row(page, "SFT, then GRPO")[1:4:2] == ["75.0%", "40"] and row(page, "SFT, then PPO")[1] == "not run"
    assert "grpo less start: +50.0 points" in page and "ppo less" not in page
    assert any(line.startswith("- grpo less start") and line.endswith("better.") for line in page.splitlines())
    assert any(line.startswith("- grpo less more") and line.endswith("undecided.") for line in page.splitlines())
    low, high, mean = study.difference(cell("grpo", 30), cell("start", 10))
    assert low < mean < high and mean == pytest.approx(0.5)
