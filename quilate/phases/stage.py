"""What a stage is: a kind, a config, finished inputs, and a folder to leave results in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from quilate.config import Config
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import ProgressListener
from quilate.errors import DataError
from quilate.files import read_json, write_json

ConfigType = TypeVar("ConfigType", bound=Config)
T = TypeVar("T")


@dataclass(frozen=True)
class StageReport:
    """What a stage says of itself; the executor adds seconds, memory and load.

    Attributes:
        train_tokens: tokens that training steps read.
        flops: floating-point operations, estimated from the model's size.
        trainable_parameters: 0 when nothing was trained.
        counts: what was truncated, dropped, skipped: name -> how many.
        facts: anything else worth keeping in the manifest (JSON-able).
    """

    train_tokens: int = 0
    flops: float = 0.0
    trainable_parameters: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext(Generic[ConfigType]):
    """What a stage gets to work with.

    Attributes:
        config: the stage's own config.
        inputs: folders of finished stages by role: "task", "model", "arm".
        folder: where to write; what a killed run left there is still there.
        seed: varies initialization and order, nothing else.
        base_folder: where the recipe lies; relative paths in it start here.
        listener: live progress; note: a line for the user; stop: somebody asked to stop.
        shared: in a search, the folder that all of its trials have; what is the same for them is left there once.
    """

    config: ConfigType
    inputs: dict[str, Path]
    folder: Path
    seed: int
    base_folder: Path
    listener: ProgressListener
    note: Callable[[str], None]
    stop: StopRequest
    shared: Path | None = None


@dataclass(frozen=True)
class StageKind(Generic[ConfigType]):
    """One kind of stage.

    Attributes:
        name: as in recipes.
        version: counted up when the same config and inputs would give another result; finished stages then run again.
        run: does the work; killed and called again, it continues.
    """

    name: str
    version: int
    config: type[ConfigType]
    run: Callable[[StageContext[ConfigType]], StageReport]


def write_model_note(folder: Path, model: Path, **facts: Any) -> None:
    """Leave word of the model this stage made, for the stages after it; a run directory may be moved as a whole."""
    path = model.relative_to(folder) if model.is_relative_to(folder) else model
    write_json(folder / "model.json", {"path": str(path)} | facts)


def model_of(folder: Path) -> Path:
    """The model directory that a finished stage made.

    Raises:
        DataError: the stage made none.
    """
    if not (folder / "model.json").exists():
        raise DataError(
            f"the stage in {folder} makes no model", hint="name a base, pretrain, adapt or finetune stage here"
        )
    path: str = read_json(folder / "model.json")["path"]
    return folder / path


def once(path: Path, compute: Callable[[], T]) -> T:
    """What `compute` gives (JSON-able), kept in a file: a resumed run does not measure again what it has measured."""
    if not path.exists():
        write_json(path, compute())
    value: T = read_json(path)
    return value
