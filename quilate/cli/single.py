"""A phase used alone: the verbs `finetune` and `icl` are a recipe of one arm, `pretrain`, `adapt`, `sft` and `align`
one of one stage, run by the same graph."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TaskFlags:
    """What the command line says of a labelled file; the names are the flags'."""

    data: Path
    text: str
    label: str
    group: str | None
    labels: dict[str, str] | None
    language: str
    train: int | None
    dev: int
    test: int


def run_single_arm(
    name: str,
    arm: dict[str, Any],
    flags: TaskFlags,
    *,
    base: str,
    seed: int,
    out: Path | None,
    json: bool,
    overrides: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Run one arm on one file and print its score on the held-out rows.

    Args:
        overrides: further keys of the arm, as `a.b=c`; `more` are keys of the recipe.

    Raises:
        QuilateError: as `run_recipe`.
    """
    import json as json_module

    from quilate import config
    from quilate.cli.display import RunDisplay, result_console
    from quilate.engine.interrupts import stop_on_signals
    from quilate.evaluation import metrics
    from quilate.evaluation.statistics import bootstrap
    from quilate.phases.evaluate import gold_indices, read_probabilities
    from quilate.recipe.run import run_recipe
    from quilate.recipe.schema import Recipe
    from quilate.tasks.kinds import load_task

    value = recipe_of(name, arm, flags, base=base, seed=seed) | dict(more or {})
    for override in overrides:
        config.apply_override(value, f"arms.{name}.{override}")
    recipe = config.validate(Recipe, value, source=f"quilate {name}")
    folder = out or Path("runs") / recipe.recipe
    display = RunDisplay(quiet=json)
    evaluated = f"{name}-s{seed}-evaluate"
    try:
        with stop_on_signals() as stop:
            graph = run_recipe(recipe, base_folder=Path.cwd(), out=folder, listener=display, stop=stop, until=evaluated)
    finally:
        display.close()
    task = load_task(graph.nodes["task"].folder(folder) / "task")
    probabilities = read_probabilities(graph.nodes[evaluated].folder(folder))
    gold = gold_indices(task.test, task.labels)
    groups = [item.group for item in task.test] if task.config.group else None
    draws = bootstrap(gold, [[metrics.predictions(probabilities)]], len(task.labels), groups=groups)
    interval = draws.score(0)
    result = {
        "accuracy": metrics.accuracy(gold, probabilities),
        "ci95": [interval.low, interval.high],
        "macro_f1": metrics.macro_f1(gold, probabilities),
        "items": len(task.test),
        "seeds": 1,
        "run": str(folder),
        "stage": str(graph.nodes[f"{name}-s{seed}"].folder(folder)),
    }
    if json:
        print(json_module.dumps(result, ensure_ascii=False))
        return
    console = result_console()
    low, high = interval.low, interval.high
    console.print(
        f"accuracy {result['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f} over items), "
        f"macro-F1 {result['macro_f1']:.3f}; {len(task.test)} items, 1 seed"
    )
    console.print(f"the stage: {result['stage']}", markup=False, soft_wrap=True)
    console.print(f"to label new rows: quilate predict {shlex.quote(str(folder))} FILE", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class TextFlags:
    """What the command line says of raw text; the names are the flags'."""

    corpus: Path
    text: str
    documents: str
    language: str
    replay: Path | None
    replay_share: float


def text_recipe(name: str, stage: dict[str, Any], flags: TextFlags, *, base: str | None, seed: int) -> dict[str, Any]:
    """The recipe of one stage on raw text, as plain values."""
    shared = {"text": flags.text, "documents": flags.documents, "language": flags.language}
    corpora: dict[str, Any] = {"text": {"path": str(flags.corpus.resolve())} | shared}
    weights = {"text": 1.0}
    if flags.replay is not None:
        corpora["replay"] = {"path": str(flags.replay.resolve()), "documents": flags.documents, "language": "any"}
        weights = {"text": 1 - flags.replay_share, "replay": flags.replay_share}
    return {
        "recipe": recipe_name(flags.corpus, name),
        "base": base,
        "corpora": corpora,
        "stages": {name: stage | {"corpora": weights}},
        "seeds": [seed],
    }


def conversations_recipe(
    name: str, stage: dict[str, Any], conversations: dict[str, Any], *, base: str, seed: int
) -> dict[str, Any]:
    """The recipe of one stage on conversations, as plain values."""
    path = Path(conversations["path"])
    return {
        "recipe": recipe_name(path, name),
        "base": base,
        "conversations": {"chats": conversations | {"path": str(path.resolve())}},
        "stages": {name: stage | {"conversations": ["chats"]}},
        "seeds": [seed],
    }


def preferences_recipe(
    name: str, stage: dict[str, Any], preferences: dict[str, Any], *, base: str, seed: int
) -> dict[str, Any]:
    """The recipe of one stage on human judgements, as plain values."""
    path = Path(preferences["path"])
    return {
        "recipe": recipe_name(path, name),
        "base": base,
        "preferences": {"judgements": preferences | {"path": str(path.resolve())}},
        "stages": {name: stage | {"preferences": ["judgements"]}},
        "seeds": [seed],
    }


def run_single_stage(
    name: str, value: dict[str, Any], *, out: Path | None, json: bool, allow_code: bool = False
) -> None:
    """Run a recipe of one stage; print what it measured and where the model is.

    Raises:
        QuilateError: as `run_recipe`.
    """
    from quilate import config
    from quilate.cli.display import RunDisplay
    from quilate.cli.report import show_models
    from quilate.engine.interrupts import stop_on_signals
    from quilate.recipe.run import run_recipe
    from quilate.recipe.schema import Recipe

    recipe = config.validate(Recipe, value, source=f"quilate {name}")
    folder = out or Path("runs") / recipe.recipe
    display = RunDisplay(quiet=json)
    try:
        with stop_on_signals() as stop:
            run_recipe(
                recipe, base_folder=Path.cwd(), out=folder, listener=display, stop=stop, allow_code=allow_code
            )  # fmt: skip
    finally:
        display.close()
    show_models(folder, json=json, with_text=False)


def recipe_of(name: str, arm: dict[str, Any], flags: TaskFlags, *, base: str, seed: int) -> dict[str, Any]:
    """The recipe of one arm, as plain values.

    Raises:
        UsageError: there is no prompt template for the language.
    """
    from quilate.errors import UsageError
    from quilate.tasks.classification import DEFAULT_TEMPLATES

    if flags.language not in DEFAULT_TEMPLATES:
        raise UsageError(
            f"--language {flags.language}: there is a prompt template for {' and '.join(DEFAULT_TEMPLATES)} alone",
            hint=f"`quilate init {flags.data} --language {flags.language} ...` writes a recipe with one to translate",
        )
    return {
        "recipe": recipe_name(flags.data, name),
        "base": base,
        "data": {"all": {"path": str(flags.data.resolve())}},
        "task": {
            "name": flags.data.name,
            "text": flags.text,
            "label": flags.label,
            "group": flags.group,
            "labels": flags.labels or {},
            "language": flags.language,
            "split": {"train": flags.train, "dev": flags.dev, "test": flags.test},
        },
        "arms": {name: arm},
        "seeds": [seed],
    }


def recipe_name(path: Path, verb: str) -> str:
    """The file's name without its endings, in the letters that a recipe's name may have: `diálogos` -> `dialogos`."""
    plain = unicodedata.normalize("NFKD", path.name.split(".")[0]).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-_") or "data"
    return f"{stem[:50]}-{verb}"
