"""The page of the random walks: what was not run says so, and planted scores give the planted rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import study_randomwalks as study
from quilate.config import load
from quilate.recipe.schema import Recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(Recipe, study.RECIPE)


def cell(stage: str, score: float, **more: Any) -> dict[str, Any]:
    keys = {key for _, name, key in study.METHODS if stage.startswith(f"{name}-s")}
    return {"stage": stage, "seconds": 10.0, "optimality": dict.fromkeys(keys, score)} | more


def texts_of(figure: Path) -> set[str]:
    """What is written in it; matplotlib draws letters and leaves the text as a comment."""
    return set(re.findall(r"<!-- (.*?) -->", figure.read_text(encoding="utf-8")))


def row(page: str, start: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [part.strip() for part in line.strip("|").split("|")]


def test_the_page_is_what_the_cells_say(recipe: Recipe) -> None:
    cells = json.loads(study.CELLS.read_text(encoding="utf-8")) if study.CELLS.exists() else []
    assert study.PAGE.read_text(encoding="utf-8") == study.page_of(recipe, cells)


def test_every_method_is_a_stage_of_the_recipe_and_measures_the_same(recipe: Recipe) -> None:
    stages = [recipe.stages[name] for name in dict.fromkeys(name for _, name, _ in study.METHODS)]
    measured = {(s.measure_training, s.max_new_tokens, s.temperature) for s in stages}  # type: ignore[union-attr]
    assert len(measured) == 1
    assert [f"{study.SET}, beta {beta:g}" for beta in recipe.stages["ilql"].betas] == [  # type: ignore[union-attr]
        key for _, name, key in study.METHODS if name == "ilql"
    ]


def test_rows_of_planted_scores(recipe: Recipe, tmp_path: Path) -> None:
    assert row(study.page_of(recipe, []), "PPO")[1:] == ["not run", "", "", ""]
    cells = [cell("ppo-s0", 0.9, rollouts=[0.1, 0.9]), cell("ppo-s2", 0.7, rollouts=[0.2]), cell("ilql-s1", 0.5)]
    page = study.page_of(recipe, cells)
    assert row(page, "PPO") == [
        "PPO",
        "0.800 (2 of 5 seeds)",
        "-0.471 to 2.071",
        "0.900, not run, 0.700, not run, not run",
        "10 s",
    ]
    assert row(page, "ILQL, beta 100")[1:3] == ["0.500 (1 of 5 seeds)", "one seed"]
    study.draw(recipe, cells, tmp_path / "first.svg")
    study.draw(recipe, cells, tmp_path / "second.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert {"PPO (2 of 5 seeds)", "GRPO (not run)"} <= texts_of(tmp_path / "first.svg")
