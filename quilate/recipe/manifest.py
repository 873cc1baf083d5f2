"""`manifest.json`: what a finished stage was, stood on, cost and left; also how a reader knows that it is finished."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quilate.errors import DataError, QuilateError
from quilate.evaluation.outcomes import Cost
from quilate.files import read_json, sha256_of_file, write_json
from quilate.phases.stage import StageReport
from quilate.recipe.spec import StageSpec

SCHEMA = 1

# Reading the rows and converting the base serve every arm alike; they are no arm's cost.
SHARED_KINDS = ("task", "base")

NOT_OUTPUTS = {
    "manifest.json", "config.yaml", "log.txt", "attempts.json", "error.json", "checkpoints",
    "certificate.json", ".verify", "events.jsonl", ".lock",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What was measured around a stage.

    Attributes:
        seconds: wall clock, of all its attempts; of one that was killed, until it last showed progress.
        cpu_seconds: processor time of all its attempts and of all the processes that trained it together; of an attempt
            that was killed or failed, the first process's alone.
        peak_memory_bytes: the largest resident memory of any of these processes.
        load_average: the machine's, the largest seen at an attempt's end.
        attempts: how often it was begun.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    load_average: float
    attempts: int


def write_manifest(folder: Path, spec: StageSpec, report: StageReport, measured: Measured) -> None:
    """Declare the stage finished. Written last: without it the stage runs again."""
    outputs = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not NOT_OUTPUTS & set(path.relative_to(folder).parts)
    }
    cost = Cost(
        seconds=round(measured.seconds, 3),
        train_tokens=report.train_tokens,
        flops=report.flops,
        peak_memory_bytes=measured.peak_memory_bytes,
        trainable_parameters=report.trainable_parameters,
    )
    manifest = {
        "schema": SCHEMA,
        "stage": spec.name,
        "kind": spec.kind,
        "version": spec.version,
        "id": spec.id,
        "seed": spec.seed,
        "inputs": spec.input_ids,
        "cost": asdict(cost),
        "counts": report.counts,
        "facts": report.facts,
        "measured": asdict(measured),
        "machine": machine(),
        "versions": {
            name: version(name) for name in ("quilate", "torch", "transformers", "peft", "tokenizers", "numpy")
        },
        "outputs": outputs,
    }
    write_json(folder / "manifest.json", manifest)


def check_outputs(folder: Path) -> None:
    """Compare what a finished stage left with the digests it recorded; a folder without a manifest has none.

    Raises:
        DataError: a file is missing or was altered since, if only by a bit.
    """
    if not (folder / "manifest.json").exists():
        return
    for name, expected in read_json(folder / "manifest.json")["outputs"].items():
        if sha256_of_file(folder / name) != expected["sha256"]:
            raise DataError(
                f"{folder / name} was altered since its stage finished: its SHA-256 differs",
                hint=f"remove {folder} and run the same command again",
            )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage whose outputs are all there, else None."""
    if not (folder / "manifest.json").exists():
        return None
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        whole = manifest["schema"] == SCHEMA and all(
            (folder / name).is_file() and (folder / name).stat().st_size == expected["bytes"]
            for name, expected in manifest["outputs"].items()
        )
    except (DataError, KeyError, TypeError):
        return None
    return manifest if whole else None


def left_off(folder: Path) -> str | None:
    """Where an unfinished stage would go on: "at step 6", of a search "at step 3 of trial 2" or "after trial 2"; None
    if it would begin anew."""
    trials = sorted(path for path in folder.glob("trials/[0-9][0-9][0-9]") if path.is_dir())
    finished = [trial for trial in trials if trial.with_suffix(".json").exists()]  # as `phases.search` writes them
    for place in [folder] if not trials else [trial for trial in trials if trial not in finished]:
        checkpoints = sorted((place / "checkpoints").glob("step-????????"))
        if checkpoints:
            step = int(checkpoints[-1].name.removeprefix("step-"))
            return f"at step {step}" + (f" of trial {int(place.name) + 1}" if trials else "")
    return f"after trial {len(finished)}" if finished else None


def finished_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a stage that must be finished by now."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise QuilateError(f"the stage in {folder} is not finished", hint="run the recipe again")
    return manifest


def stages_behind(name: str, manifests: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The manifests of a stage and of all that it stands on, sources first, those of `SHARED_KINDS` left out."""
    wanted: list[str] = []
    pending = [name]
    while pending:
        stage = pending.pop()
        if stage not in wanted:
            wanted.append(stage)
            pending += [source["stage"] for source in manifests[stage]["inputs"].values()]
    return [m for stage, m in manifests.items() if stage in wanted and m["kind"] not in SHARED_KINDS]


def machine() -> dict[str, Any]:
    """The machine in the words of a report."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
