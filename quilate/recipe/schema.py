"""What a recipe file may say."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from quilate.config import Config
from quilate.phases.baselines import BaselineConfig
from quilate.phases.finetune import FinetuneConfig
from quilate.phases.icl import IclConfig
from quilate.phases.inputs import LabelledSources
from quilate.tasks.classification import TaskConfig

ArmConfig = Annotated[BaselineConfig | IclConfig | FinetuneConfig, Field(discriminator="kind")]

BASE = "base"  # the name by which `on:` refers to the base model


class Budget(Config):
    """The same maximum for every arm, upstream stages included."""

    seconds: float | None = Field(default=None, gt=0)
    """An arm that takes longer is shown, and not eligible for the recommendation."""
    train_tokens: int | None = Field(default=None, ge=1)
    """Training stops at this many tokens; the learning-rate schedule is planned for it."""


class Recipe(Config):
    recipe: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """The recipe's name; its results go to `runs/NAME` by default."""
    base: str | None = None
    """The base model: a model directory, a .gguf file, `package:NAME`, or a hub name. Needed by arms that use a model."""
    data: LabelledSources
    """Where the labelled rows are."""
    task: TaskConfig
    """What is to be solved."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """The ways of solving it, by name."""
    seeds: list[int] = Field(default=[0, 1], min_length=1)
    """One run of every arm a seed. Two show that an arm works, three are for studies, five for a claim."""
    budget: Budget = Budget()
    """The most that any arm may cost."""
    margin: float = Field(default=0.02, gt=0, lt=1)
    """A difference in score that is too small to pay for."""
    resamples: int = Field(default=10_000, ge=1000)
    """Bootstrap resamples behind every interval."""
    strict: bool = False
    """Stop at the first broken record instead of setting it aside and counting it."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return seeds

    @field_validator("arms")
    @classmethod
    def _names_fit_folders(cls, arms: dict[str, ArmConfig]) -> dict[str, ArmConfig]:
        for name in arms:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name in (BASE, "task", "report"):
                raise ValueError(f"'{name}' cannot name an arm: use letters, digits, - and _, and not base, task or report")
        return arms

    @model_validator(mode="after")
    def _arms_stand_on_something(self) -> Recipe:
        for name, arm in self.arms.items():
            if isinstance(arm, BaselineConfig):
                continue
            if arm.on == BASE and self.base is None:
                raise ValueError(f"arm '{name}' needs a model: give the recipe a `base`")
            if arm.on != BASE and not isinstance(self.arms.get(arm.on), FinetuneConfig):
                known = [BASE, *(n for n, a in self.arms.items() if isinstance(a, FinetuneConfig))]
                raise ValueError(f"arm '{name}' stands on '{arm.on}', which makes no model; known: {', '.join(known)}")
            self._refuse_cycle(name)
        return self

    def _refuse_cycle(self, name: str) -> None:
        seen: list[str] = []
        while name != BASE:
            if name in seen:
                raise ValueError(f"arms stand on one another in a circle: {' -> '.join([*seen, name])}")
            seen.append(name)
            arm = self.arms[name]
            name = BASE if isinstance(arm, BaselineConfig) else arm.on
