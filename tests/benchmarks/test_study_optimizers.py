"""The page of the optimizers' study: what was not run says so, and planted losses give the planted choice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import study_optimizers as study
from quilate.config import load
from quilate.optim.choice import DEFAULTS
from quilate.recipe.schema import Recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(Recipe, study.RECIPE)


def cell(stage: str, chosen_on: float, compared_on: float) -> dict[str, Any]:
    loss = {study.CHOOSE_ON: chosen_on, study.COMPARE_ON: compared_on}
    return {"stage": stage, "tokens": 2_000_000, "seconds": 100.0, "loss": loss}


def row(page: str, start: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [part.strip() for part in line.strip("|").split("|")]


def test_the_page_is_what_the_cells_say(recipe: Recipe) -> None:
    cells = json.loads(study.CELLS.read_text(encoding="utf-8")) if study.CELLS.exists() else []
    assert study.PAGE.read_text(encoding="utf-8") == study.page_of(recipe, cells)


def test_every_optimizer_has_its_own_sweep_at_equal_compute(recipe: Recipe) -> None:
    costs = {"adamw": 1.0, "sophia_g": 1.113, "sophia_h": 1.3, "muon": 1.043}
    for optimizer in DEFAULTS:
        stages = [stage for stage in recipe.stages.values() if stage.optimizer == optimizer]  # type: ignore[union-attr]
        assert len({stage.lr for stage in stages}) == len(stages) >= 4  # type: ignore[union-attr]
        for stage in stages:
            assert stage.tokens * costs[optimizer] == pytest.approx(2_000_000, rel=1e-3)  # type: ignore[union-attr]
    assert recipe.seeds == [0, 1, 2]


def test_without_cells_nothing_is_claimed(recipe: Recipe) -> None:
    page = study.page_of(recipe, [])
    assert page.count(study.NOT_RUN) == len(recipe.stages) + len(DEFAULTS)
    assert row(page, "adamw | not run") == ["adamw", "not run", "", "", ""]


def test_the_rate_is_chosen_on_one_text_and_compared_on_the_other(recipe: Recipe) -> None:
    sweep = [
        cell("adamw-5e-4-s0", 2.5, 1.0),
        cell("adamw-1e-3-s0", 2.1, 3.0),
        cell("adamw-2e-3-s0", 2.2, 2.9),
        cell("adamw-4e-3-s0", 2.3, 2.8),
    ]
    assert row(study.page_of(recipe, sweep[:3]), "adamw | not run")[2:] == ["", "", ""]
    part = study.page_of(recipe, [*sweep, cell("adamw-1e-3-s1", 2.0, 3.3)])
    shown = ["adamw", "0.001", "3.1500 (2 of 3 seeds)", "3.0000, 3.3000, not run", "100 s"]
    assert row(part, "adamw | 0.001 | 3.1500 (2 of 3 seeds)") == shown
    seeds = [cell("adamw-1e-3-s1", 2.0, 3.3), cell("adamw-1e-3-s2", 2.0, 3.6), cell("adamw-4e-3-s1", 1.0, 1.0)]
    assert row(study.page_of(recipe, [*sweep, *seeds]), "adamw | 0.001 | 3.3000")[3] == "3.0000, 3.3000, 3.6000"
    sweep[0]["loss"][study.CHOOSE_ON] = 1.9
    assert "0.0005 (an end of its sweep)" in study.page_of(recipe, sweep)


def test_the_figure_shows_what_there_is(recipe: Recipe, tmp_path: Path) -> None:
    """And says what there is not: the best of half a sweep is compared neither in the table nor here."""
    whole = [cell(f"adamw-{rate}-s0", 2.1, 3.0) for rate in ("5e-4", "1e-3", "2e-3", "4e-3")]
    study.draw(recipe, [*whole, cell("muon-1e-3-s0", 2.0, 2.9)], tmp_path / "f.svg")
    svg = (tmp_path / "f.svg").read_text(encoding="utf-8")
    texts = re.findall(r"<!-- (.*?) -->", svg)
    assert svg.rstrip().endswith("</svg>")
    assert {"adamw", "muon (1 of 6 rates)", "1 of 3 seeds"} <= set(texts)
    assert texts.count("not run") == 3
