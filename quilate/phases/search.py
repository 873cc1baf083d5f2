"""A small search inside an arm: every combination of some settings is trained, and the best on the development items is
kept. The test items see one model a seed; what all trials cost is the arm's cost, and its token budget is shared.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from quilate.config import Config
from quilate.engine.loop import INCIDENTS, REFUSED
from quilate.engine.runlog import Progress
from quilate.errors import DataError
from quilate.files import make_folder, read_json, write_json
from quilate.inference.scorer import load_scorer
from quilate.phases.evaluate import answer, score_of
from quilate.phases.stage import StageContext, StageReport
from quilate.tasks.task import Task

C = TypeVar("C", bound=Config)
Value = bool | int | float | str
Search = dict[str, list[Value]]

FACTOR = 3.0  # between neighbours of a default sweep of learning rates: about half a decade (guess)
PENALTY = "head.regularization"  # in a search: the same vectors, another classifier
PENALTY_FACTOR = 10.0  # and of strengths of a penalty, which matter less (guess)

# A key that says what an arm is, not how it is trained.
NOT_SEARCHED = ("kind", "method", "on", "search", "max_train_tokens")


@dataclass(frozen=True)
class Trial:
    """One combination of settings, by the dotted names of their keys."""

    values: dict[str, Value]


def combinations(search: Mapping[str, Sequence[Value]]) -> list[Trial]:
    """All of them, the last key varying fastest.

    Raises:
        ValueError: a list is empty or names a value twice, or a key cannot be searched.
    """
    for key, values in search.items():
        if key.partition(".")[0] in NOT_SEARCHED:
            raise ValueError(f"search: `{key}` says what the arm is; give that an arm of its own")
        if not values or len(set(map(repr, values))) < len(values):
            raise ValueError(f"search: `{key}` must list values, none twice")
    return [Trial(dict(zip(search, chosen, strict=True))) for chosen in itertools.product(*search.values())]


def config_of(config: C, trial: Trial, trials: int) -> C:
    """The config of one trial: its values in their places, no search, and its share of the tokens. Penalties share one
    pass over the rows, which takes them all.

    Raises:
        ValueError: the values are not valid there.
    """
    value = config.as_json() | {"search": None}
    if value.get("max_train_tokens") is not None and trial.values.keys() != {PENALTY}:
        value["max_train_tokens"] = max(1, value["max_train_tokens"] // trials)
    for key, chosen in trial.values.items():
        *parents, last = key.split(".")
        place = value
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ValueError(f"search: `{key}`: `{parent}` has no keys of its own")
        place[last] = chosen
    return type(config).model_validate(value)


def sweep(centre: float, count: int, factor: float = FACTOR) -> list[Value]:
    """`count` values around `centre`, each `factor` times the one before, to two digits."""
    return [float(f"{centre * factor ** (place - (count - 1) / 2):.2g}") for place in range(count)]


def best_of_trials(
    context: StageContext[C], task: Task, trials: Sequence[Trial], run: Callable[[StageContext[C]], StageReport]
) -> StageReport:
    """Run every trial, keep what the best left, and report the cost of all.

    A finished trial is not run again when a killed stage continues. Of equals the first is kept. What the others
    trained is removed; their metrics and answers to the development items stay in `trials/`.

    Args:
        run: runs the arm without a search in a folder.

    Raises:
        DataError: there are no development items to choose on.
    """
    if not task.dev:
        raise DataError("there are no development items to choose on", hint="set split.dev, or drop `search`")
    folder = make_folder(context.folder / "trials")
    done: list[_Done] = []
    for number, trial in enumerate(trials):
        words = ", ".join(f"{key} {value}" for key, value in trial.values.items())
        context.note(f"trial {number + 1} of {len(trials)}: {words}")
        place = folder / f"{number:03}"
        done.append(_done(context, task, trial, len(trials), place, run))
        best = max(range(len(done)), key=lambda index: done[index].score)
        for loser in set(range(len(done))) - {best}:
            for heavy in _LEFT:
                shutil.rmtree(folder / f"{loser:03}" / heavy, ignore_errors=True)
    best = max(range(len(done)), key=lambda index: done[index].score)
    _take(folder / f"{best:03}", context.folder)
    context.note(f"best of {len(trials)} on {len(task.dev)} dev items: trial {best + 1}, {done[best].score:.3f}")
    chosen = done[best].report
    return StageReport(
        train_tokens=sum(entry.report.train_tokens for entry in done),
        flops=sum(entry.report.flops for entry in done),
        trainable_parameters=chosen.trainable_parameters,
        counts=chosen.counts | _incidents([entry.report for entry in done]),
        facts=chosen.facts
        | {
            "chosen": best,
            "tried": [
                {
                    "values": trial.values,
                    "score": entry.score,
                    "train_tokens": entry.report.train_tokens,
                    "trainable_parameters": entry.report.trainable_parameters,
                }
                for trial, entry in zip(trials, done, strict=True)
            ],
        },
    )


def _incidents(reports: Sequence[StageReport]) -> dict[str, int]:
    """What happened in all trials, as `FitResult.incidents` names it; the other counts are the chosen one's."""
    summed = {name: sum(report.counts.get(name, 0) for report in reports) for name in INCIDENTS}
    return {name: count for name, count in summed.items() if count or name == REFUSED}


@dataclass(frozen=True)
class _Done:
    report: StageReport
    score: float


# What a trained arm leaves, beside the files that every trial keeps.
_LEFT = ("model", "base", "scorer", "checkpoints")
_TAKEN = (*_LEFT, "model.json", "metrics.jsonl")


def _done(
    context: StageContext[C],
    task: Task,
    trial: Trial,
    trials: int,
    place: Path,
    run: Callable[[StageContext[C]], StageReport],
) -> _Done:
    note = place.with_suffix(".json")  # written last: with it the trial is finished
    if not note.exists():
        own = replace(
            context, config=config_of(context.config, trial, trials), folder=make_folder(place), shared=context.folder
        )
        report = run(own)

        def listen(done: int, total: int) -> None:
            context.stop.raise_if_set()
            context.listener(Progress(done, total, "items"))

        answered = answer(task, load_scorer(place / "scorer"), task.dev, listen)
        save_file({"dev": answered.array}, place.with_suffix(".safetensors"))
        write_json(note, asdict(report))
    score = score_of(task, task.dev, load_file(place.with_suffix(".safetensors"))["dev"])
    return _Done(StageReport(**read_json(note)), score)


def dev_answers(folder: Path, number: int) -> NDArray[Any]:
    """What a trial of the stage in `folder` answered to the development items, as `evaluate.Answered.array`."""
    answers: NDArray[Any] = load_file(folder / "trials" / f"{number:03}.safetensors")["dev"]
    return answers


def _take(trial: Path, folder: Path) -> None:
    """Move what a trial left to where an arm without a search would have left it; done in part, it goes on."""
    for name in _TAKEN:
        if (trial / name).exists():
            (trial / name).rename(folder / name)
    adapter = folder / "model" / "adapter_config.json"
    if adapter.exists():  # a base that the trial merged has moved too
        config = read_json(adapter)
        if config["base_model_name_or_path"] == str(trial / "base"):
            write_json(adapter, config | {"base_model_name_or_path": str(folder / "base")})
