"""What the studies' pages share: one study over several tasks is its recipe once, and what each run puts in place of
its keys; a mean over seeds says of how many it is, where not all that were planned have been run; figures.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from quilate.evaluation.win_rates import Estimate, mean_with_interval

# Name of a run -> the recipe's keys that it replaces.
Runs = Mapping[str, Mapping[str, Any]]

NOT_RUN = "not run"


@dataclass(frozen=True)
class OverSeeds:
    """What was measured with every planned seed; None where a seed was not run. At least one was."""

    values: Sequence[float | None]

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        """Of the seeds that were run."""
        return mean(self.known)

    @property
    def of(self) -> str:
        """ "1 of 3 seeds"; "" where all were run. Stands beside every mean, in tables and in figures."""
        return "" if len(self.known) == len(self.values) else f"{len(self.known)} of {len(self.values)} seeds"

    def named(self, name: str) -> str:
        """What the mean is called in a figure: with `of` behind it, where seeds are missing."""
        return f"{name} ({self.of})" if self.of else name

    def shown(self, digits: int) -> str:
        """The mean: "55.0", or "55.0 (1 of 3 seeds)"."""
        return self.named(f"{self.mean:.{digits}f}")

    def each(self, digits: int) -> str:
        """Every seed: "55.0, not run, not run"."""
        return ", ".join(NOT_RUN if value is None else f"{value:.{digits}f}" for value in self.values)

    def together(self, digits: int) -> str:
        """Mean and seeds in one: "55.0" of one planned seed, "60.0 (50.0, 70.0)", "60.0 (2 of 3 seeds: 50.0, 70.0)";
        of more than three seeds the lowest and the highest, "60.0 (50.0 to 70.0)"."""
        told = [f"{value:.{digits}f}" for value in (sorted(self.known) if len(self.known) > 3 else self.known)]
        seeds = f"{told[0]} to {told[-1]}" if len(told) > 3 else ", ".join(told) if len(told) > 1 else ""
        behind = ": ".join(filter(None, (self.of, seeds)))
        return f"{self.mean:.{digits}f}" + (f" ({behind})" if behind else "")


def over_seeds(by_seed: Mapping[int, float], seeds: Sequence[int]) -> OverSeeds | None:
    """What was measured by seed, for the seeds that are planned; None where none of them was run."""
    values = [by_seed.get(seed) for seed in seeds]
    return None if all(value is None for value in values) else OverSeeds(values)


def merged(known: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells by arm and seed, those without a score left out: what `new` has run takes the place of what was known, and
    the rest of `known` stays, for runs are made on several machines and days."""
    by_place = {(cell["arm"], cell["seed"]): dict(cell) for cell in (*known, *new) if cell["score"] is not None}
    return list(by_place.values())


def overrides(values: Mapping[str, Any]) -> list[str]:
    """The `--set` values of one run."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def commands(recipe: Path, runs: Runs, folder: str) -> list[str]:
    """What makes the runs in `folder`, for a shell."""
    lines = []
    for run, values in runs.items():
        sets = [f"--set {shlex.quote(one)}" for one in overrides(values)]
        lines.append(" ".join([f"quilate run recipes/{recipe.name}", *sets, f"--out {folder}/{run}"]))
    return lines


@contextmanager
def drawing(path: Path, *shape: int, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its panels (as `pyplot.subplots` gives them), saved to `path` afterwards: the same, byte for byte,
    whenever the same is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "quilate"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(*shape, layout="constrained", **settings)
    yield figure, panels
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


@dataclass(frozen=True)
class Measured:
    """A row of `intervals`: a value with the ends of its 95 % interval, None where nothing is known of them; all None
    for what was not run."""

    name: str
    estimate: float | None
    low: float | None = None
    high: float | None = None


def intervals(panel: Any, rows: Sequence[Measured], reference: float | None = None) -> None:
    """Values with their intervals, the first on top; a dotted line at what they are held against."""
    for place, row in enumerate(rows):
        if row.estimate is None:
            continue
        if row.low is not None and row.high is not None:
            panel.plot([row.low, row.high], [place, place], color="tab:blue")
        panel.plot(row.estimate, place, "o", color="tab:blue")
    if reference is not None:
        panel.axvline(reference, color="gray", linestyle=":")
    names = [row.name if row.estimate is not None else f"{row.name} ({NOT_RUN})" for row in rows]
    panel.set(yticks=range(len(rows)), yticklabels=names, ylim=(len(rows) - 0.5, -0.5))


def share_of(cell: Mapping[str, Any]) -> Estimate:
    """The share of right answers."""
    return mean_with_interval(np.array(list(cell["right"].values()), dtype=float), list(cell["right"]))


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float, float]:
    """(low, high, estimate) of the paired difference in the share of right answers."""
    groups = sorted(one["right"].keys() & other["right"].keys())
    values = np.array([one["right"][g] - other["right"][g] for g in groups], dtype=float)
    found = mean_with_interval(values, groups)
    assert found.low is not None and found.high is not None  # there are many groups
    return found.low, found.high, found.estimate
