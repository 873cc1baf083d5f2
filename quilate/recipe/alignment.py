"""The part of a recipe's graph that compares aligned models; no alignment is always one of what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quilate.errors import ConfigError
from quilate.files import digest
from quilate.phases.align.online import OnlineTraining
from quilate.recipe.schema import BASE, ArmConfig, Recipe, StageConfig, is_aligned, stands_on


def start_of(recipe: Recipe, name: str) -> str:
    """The model that an aligned one was first aligned from, which is "no alignment" to it; any other is its own."""
    stages: Mapping[str, StageConfig] = recipe.stages
    while name in stages and is_aligned(stages[name]):
        name = stands_on(stages[name]) or BASE
    return name


def policies_of(recipe: Recipe) -> list[str]:
    """The models to compare, each after what it was aligned from."""
    named = recipe.alignment.policies if recipe.alignment is not None else []
    wanted = named or [name for name, stage in recipe.stages.items() if is_aligned(stage)]
    return list(dict.fromkeys(one for name in wanted for one in (start_of(recipe, name), name)))


def unnamed_starts(recipe: Recipe) -> list[str]:
    """Models that are compared because others, that the recipe names, were aligned from them."""
    named = recipe.alignment.policies if recipe.alignment is not None else []
    return [name for name in policies_of(recipe) if name not in named] if named else []


def with_unaligned_arms(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with an arm that stands on no alignment beside each one that stands on an aligned model, and the names
    of those that had to be added: what alignment costs in the task is not to be seen without.

    Raises:
        ConfigError: another arm has the name of one that is to be added.
    """
    arms: dict[str, ArmConfig] = dict(recipe.arms)
    added = []
    for name, arm in recipe.arms.items():
        on = stands_on(arm)
        if on is None or on not in recipe.stages or not is_aligned(recipe.stages[on]):
            continue
        plain = arm.model_copy(update={"on": start_of(recipe, on)})
        if plain in arms.values():
            continue
        beside = f"{name}-unaligned"
        if beside in arms:
            raise ConfigError(
                f"arms.{beside} has the name of the arm that is added beside {name}, the same on no alignment",
                hint="rename it",
            )
        arms[beside] = plain
        added.append(beside)
    return (recipe.model_copy(update={"arms": arms}) if added else recipe), added


def compared(recipe: Recipe, name: str, *, seeds: list[int], made: list[str], assays: list[str]) -> dict[str, Any]:
    """What the alignment stage is told of one policy (see `ComparedPolicy`)."""
    stage = recipe.stages.get(name)
    start = start_of(recipe, name)
    return {
        "name": name,
        "kind": BASE if stage is None else stage.kind,
        "start": None if start == name else start,
        "family": family_of(stage),
        "beta": getattr(stage, "beta", None),
        "seeds": seeds,
        "made": made,
        "assays": assays,
        "rewarded_by": list(stage.reward_stages().values()) if isinstance(stage, OnlineTraining) else [],
    }


def family_of(stage: StageConfig | None) -> str | None:
    """The same for stages that differ in `beta` alone, whose results are then one frontier; None without a beta."""
    if stage is None or not hasattr(stage, "beta"):
        return None
    return digest({key: value for key, value in stage.as_json().items() if key != "beta"})[:12]


def twins(recipe: Recipe) -> dict[str, str]:
    """Arms on aligned models, and of each the arm that differs from it only in standing on no alignment; the recipe is
    one that `with_unaligned_arms` has completed."""
    found = {}
    for name, arm in recipe.arms.items():
        on = stands_on(arm)
        if on is not None and on in recipe.stages and is_aligned(recipe.stages[on]):
            plain = arm.model_copy(update={"on": start_of(recipe, on)})
            found[name] = next(other for other, one in recipe.arms.items() if one == plain)
    return found
