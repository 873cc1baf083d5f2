"""The pages of the studies on adaptation and privacy: what was not run says so, planted cells are shown as they are."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from synthetic_privacy import make_privacy

from benchmarks import study_adaptation, study_privacy
from benchmarks.studies import commands, merged, over_seeds, overrides
from quilate.config import load
from quilate.phases.adapt import AdaptConfig
from quilate.recipe.schema import Recipe


@pytest.mark.parametrize("study", [study_adaptation, study_privacy], ids=["adaptation", "privacy"])
def test_the_page_is_what_the_cells_say(study: ModuleType) -> None:
    cells = json.loads(study.CELLS.read_text(encoding="utf-8")) if study.CELLS.exists() else {}
    assert study.PAGE.read_text(encoding="utf-8") == study.page_of(load(Recipe, study.RECIPE), cells)


@pytest.mark.parametrize("task", study_adaptation.TASKS)
def test_every_task_makes_a_recipe_with_the_same_cells(task: str) -> None:
    recipe = load(Recipe, study_adaptation.RECIPE, overrides(study_adaptation.TASKS[task]))
    assert recipe.task is not None
    assert (recipe.task.split.train, recipe.task.split.test, recipe.seeds) == (1000, 600, [0, 1, 2])
    assert list(recipe.arms) == list(load(Recipe, study_adaptation.RECIPE).arms)
    assert all(f"--out runs/adaptation/{name}" in line for name, line in _commands())


def _commands() -> list[tuple[str, str]]:
    return list(
        zip(
            study_adaptation.TASKS,
            commands(study_adaptation.RECIPE, study_adaptation.TASKS, "runs/adaptation"),
            strict=True,
        )
    )


def test_controls_of_adaptation_read_as_much_as_what_they_control() -> None:
    stages = load(Recipe, study_adaptation.RECIPE).stages
    for one, other in (("dapt", "not-dapt"), ("dapt", "dapt-wide"), ("knn-tapt", "random-tapt")):
        a, b = stages[one], stages[other]
        assert isinstance(a, AdaptConfig)
        assert isinstance(b, AdaptConfig)
        assert (a.tokens, a.lr, a.on) == (b.tokens, b.lr, b.on)


def test_a_mean_says_of_how_many_seeds_it_is() -> None:
    assert over_seeds({7: 1.0}, [0, 1]) is None
    whole, part, only = over_seeds({1: 2.0, 0: 1.0}, [0, 1]), over_seeds({1: 2.0}, [0, 1, 2]), over_seeds({3: 4.0}, [3])
    assert whole is not None and part is not None and only is not None
    assert [one.shown(1) for one in (whole, part, only)] == ["1.5", "2.0 (1 of 3 seeds)", "4.0"]
    assert [one.each(1) for one in (whole, part, only)] == ["1.0, 2.0", "not run, 2.0, not run", "4.0"]
    assert [one.together(1) for one in (whole, part, only)] == ["1.5 (1.0, 2.0)", "2.0 (1 of 3 seeds)", "4.0"]
    assert [one.named("PPO") for one in (whole, part)] == ["PPO", "PPO (1 of 3 seeds)"]
    many = over_seeds({0: 5.0, 1: 2.0, 2: 3.0, 3: 6.0}, range(5))
    assert many is not None and many.together(1) == "4.0 (4 of 5 seeds: 2.0 to 6.0)"


def test_what_another_machine_ran_is_added() -> None:
    def cell(arm: str, seed: int, score: float | None) -> dict[str, object]:
        return {"arm": arm, "seed": seed, "score": score}

    known = [cell("k0", 0, 0.5), cell("k1", 0, 0.6)]
    new = [cell("k0", 0, None), cell("k1", 0, 0.7), cell("k1", 1, 0.8)]
    assert merged(known, new) == [cell("k0", 0, 0.5), cell("k1", 0, 0.7), cell("k1", 1, 0.8)]


def test_scores_of_adaptation_are_means_of_whole_rows_of_seeds() -> None:
    recipe = load(Recipe, study_adaptation.RECIPE)
    page = study_adaptation.page_of(recipe, {})
    assert page.count("not run") == 3 * len(recipe.arms) + len(recipe.stages)
    cells: list[dict[str, Any]] = [{"arm": "unadapted", "seed": s, "score": v} for s, v in enumerate((0.5, 0.6, None))]
    model = {"stage": "dapt-s0", "tokens": 1_000_000, "after": {"clinical": 1.25}}
    page = study_adaptation.page_of(recipe, {"codiesp": {"arms": cells, "models": [model]}})
    assert "| unadapted | not run | 55.0 (2 of 3 seeds: 50.0, 60.0) | not run |" in page
    assert "| dapt | 1,000,000 |" in page
    assert "larger one" not in page  # what older cells do not say
    costs = {"flops": 25e12, "seconds_per_1000": 18.0}
    arms = [{"arm": arm, "seed": 0, "score": 0.5} | costs for arm in ("with-dapt", "larger-head", "larger-lora")]
    sizes = {"flops": 60e12, "parameters": 10_059_840, "after": {}, "tokens": 5}
    models = [{"stage": stage} | sizes for stage in ("causal-s0", "dapt-s0")]
    page = study_adaptation.page_of(recipe, {"headqa": {"arms": arms, "models": models}})
    assert "| headqa | with-dapt | 10M | 50.0 (1 of 3 seeds) | 120 | 25 | 18 |" in page
    assert "| headqa | larger-head | 135M | 50.0 | 0 | 25 | 18 |" in page
    cells[2]["score"] = 0.7
    page = study_adaptation.page_of(recipe, {"codiesp": {"arms": cells, "models": []}})
    assert "| unadapted | not run | 60.0 (50.0, 60.0, 70.0) | not run |" in page


def test_what_an_examination_found_is_shown_and_another_was_not_run() -> None:
    recipe = load(Recipe, study_privacy.RECIPE)
    page = study_privacy.page_of(recipe, {"examinations": [make_privacy() | {"stage": "kept-often-s0"}]})
    assert page.count("not run") == 1
    assert "| 100 | 8 | 9.97 | 9.07 to 10.87 | 1.50 | 8 (0) |" in page
    assert "| min_k | 0.550 | 0.510 to 0.590 | 0.030 | 0.010 to 0.050 |" in page
    assert "| exposure | 2 | 2.800 | not passed |" in page
