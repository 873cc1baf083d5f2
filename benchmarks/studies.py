"""One study over several tasks: the recipe once, and what each run puts in place of its keys."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Name of a run -> the recipe's keys that it replaces.
Runs = Mapping[str, Mapping[str, Any]]


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
