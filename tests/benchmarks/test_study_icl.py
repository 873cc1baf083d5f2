"""The page of the study on prompting: what was not run says so, break-even is of seconds, orders are a spread."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import study_icl as study
from benchmarks.studies import overrides
from quilate.config import load
from quilate.recipe.schema import Recipe


def cell(arm: str, score: float, *, make: float, ask: float, **more: Any) -> dict[str, Any]:
    figures = {"seconds_to_make": make, "seconds_per_1000": ask, "tried": None, "load_average": 1.5}
    return {"arm": arm, "seed": 0, "score": score} | figures | more


def test_the_page_is_what_the_cells_say() -> None:
    found = json.loads(study.CELLS.read_text(encoding="utf-8"))
    page = study.page_of(load(Recipe, study.RECIPE), found["cells"], found["timed"])
    assert study.PAGE.read_text(encoding="utf-8") == page


@pytest.mark.parametrize("run", study.RUNS)
def test_every_run_makes_a_recipe_with_the_same_arms(run: str) -> None:
    recipe = load(Recipe, study.RECIPE, overrides(study.RUNS[run]))
    assert recipe.task is not None
    assert (recipe.task.split.train, recipe.task.split.test) == (2000, 300)
    assert list(recipe.arms) == list(load(Recipe, study.RECIPE).arms)


def test_a_seed_of_five_is_not_shown_as_if_nothing_were_drawn() -> None:
    recipe = load(Recipe, study.RECIPE)
    cells = [cell(arm, 0.55, make=1.0, ask=1.0) for arm in ("majority", "k0", "k16", "lora")]
    page = study.page_of(recipe, {"mr": [*cells, cell("lora", 0.65, make=1.0, ask=1.0, seed=2)]}, {})
    rows = {line.split(" | ")[0]: line.split(" | ")[1] for line in page.splitlines() if line.startswith("| ")}
    assert (rows["| majority"], rows["| k0"]) == ("55.0", "55.0")
    assert (rows["| k16"], rows["| lora"]) == ("55.0 (1 of 5 seeds)", "60.0 (2 of 5 seeds: 55.0, 65.0)")


def test_break_even_and_the_spread_of_orders() -> None:
    recipe = load(Recipe, study.RECIPE)
    assert study.page_of(recipe, {}, {}).count(study.NOT_RUN) == len(recipe.arms) * len(study.RUNS)
    cells = [
        cell("k16", 0.6, make=2.0, ask=50.0),
        cell("k16-orders", 0.625, make=9.0, ask=50.0, tried=[0.48, 0.71, 0.5]),
        cell("lora", 0.8, make=200.0, ask=10.0),
        cell("frozen", 0.7, make=60.0, ask=55.0),
        cell("k32", 0.7, make=60.0, ask=55.0, load_average=7.0),
    ]
    page = study.page_of(recipe, {"mr": cells}, {"mr": cells})
    assert study.page_of(recipe, {"mr": cells}, {}).count("break-even") == 0
    assert "| mr | 0 | 3 | 48 to 71 | 62.5 |" in page
    assert "| mr | lora | 200.0 | 10.0 | 5,000 |" in page  # 200 s / (50 s - 10 s) x 1,000
    assert "| mr | frozen | 60.0 | 55.0 | never |" in page
    assert "| mr | k32 |" not in page
