"""The page of human preferences: what was not run says so, and planted numbers give the planted rows."""

from __future__ import annotations

import json

from benchmarks import study_preferences as study
from quilate.config import load
from quilate.recipe.schema import Recipe


def test_the_page_is_what_the_cells_say() -> None:
    cells = json.loads(study.CELLS.read_text(encoding="utf-8")) if study.CELLS.exists() else []
    assert study.PAGE.read_text(encoding="utf-8") == study.page_of(cells)


def test_every_judge_set_and_policy_is_in_the_recipe() -> None:
    recipe = load(Recipe, study.ROOT / "recipes" / "preferences.yaml")
    assert {stage: recipe.stages[stage].preferences for stage in study.JUDGES} == {  # type: ignore[union-attr]
        stage: [name] for stage, name in study.JUDGES.items()
    }
    assert set(study.SETS) == set(recipe.preferences) and set(study.POLICIES) < set(recipe.stages)


def test_rows_of_planted_numbers() -> None:
    share, difference = {"estimate": 0.6, "low": 0.52, "high": 0.68}, {"estimate": 0.1, "low": 0.02, "high": 0.18}
    report = {"pairs": 90, "groups": 80, "accuracy": share, "length_only": share, "difference": difference}
    judge = {"stage": "judge", "seed": 0, "kind": "reward", "seconds": 90.0, "train_pairs": 70,
             "sets": {"helpful": report}}  # fmt: skip
    page = study.page_of([judge])
    assert "| 70 | HH-RLHF, helpful-base | 90 (80) | 60.0% (52.0% to 68.0%) |" in page
    assert "+10.0 points (+2.0 to +18.0), better | 1.5 min |" in page
    assert page.count(study.NOT_RUN) == 5 + len(study.POLICIES)
