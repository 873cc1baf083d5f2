"""Every phase that trains, through everything at once: killed, a bit flipped, stopped, disk full, short of memory.

Each run has a step whose loss is not a number, so what is compared has refused an update too.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from phases import NAN_STEP, Phases, facts_of, left_by, training_stages

from quilate import faults
from quilate.engine import loop
from quilate.engine.checkpoint import load_checkpoint
from quilate.errors import CheckpointError, DataError, Interrupted, MachineError
from quilate.files import read_json
from quilate.optim.master import MasterOptimizer
from quilate.recipe.kinds import KINDS, stage_kind

STAGES = training_stages()
FILES = ("manifest.json", "state.json", "optimizer.safetensors", "streams.safetensors")


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory, llama_directory: Path) -> Iterator[Phases]:
    with pytest.MonkeyPatch.context() as patch:
        yield Phases(tmp_path_factory.mktemp("fases"), llama_directory, patch)


def test_no_phase_that_trains_is_forgotten() -> None:
    trained = {kind for kind in KINDS if "checkpoint_steps" in stage_kind(kind).config.model_fields}
    assert set(STAGES.values()) == trained


class Killed(BaseException):
    """As SIGKILL would: nothing on the way catches it, nothing is saved."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_killed_damaged_stopped_and_out_of_disk_it_ends_with_the_undisturbed_bytes(
    phases: Phases, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = phases.undisturbed(name)
    assert read_json(undisturbed / "manifest.json")["facts"]["steps"] >= 5
    folder = phases.fresh(name, tmp_path / "stage")
    updates = unchanged_when_refused(monkeypatch)

    faults.arm("fit.step", kill, nth=4)
    with pytest.raises(Killed):
        phases.run(folder)
    assert saved(folder) == ["step-00000002"]
    assert updates == [True, False, True, True]

    checkpoint = folder / "checkpoints" / "step-00000002"
    for place, file in enumerate(FILES):
        whole = (checkpoint / file).read_bytes()
        flip_a_bit(checkpoint / file, place=len(whole) * 2 // 3 + place)
        with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
            load_checkpoint(checkpoint)
        if file == FILES[len(name) % len(FILES)]:  # one of them through the stage, another for another phase
            with monkeypatch.context() as patch:
                patch.setattr(MasterOptimizer, "restore", never)
                with pytest.raises(CheckpointError, match="no checkpoint is whole"):
                    phases.run(folder)
        (checkpoint / file).write_bytes(whole)

    faults.arm("fit.step", terminate)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3, saved") as stopped:
        phases.run(folder)
    assert stopped.value.exit_code == 75
    assert saved(folder) == ["step-00000003"]

    faults.arm("checkpoint.fsync", "disk-full", nth=2)
    with pytest.raises(MachineError, match="the disk is full") as full:
        phases.run(folder)
    assert "free some space" in (full.value.hint or "")
    assert saved(folder) == ["step-00000003"]

    phases.run(folder)
    ours, theirs = left_by(folder), left_by(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [file for file in ours if ours[file] != theirs[file]] == []
    assert facts_of(folder) == facts_of(undisturbed)


def never(*_: object) -> None:
    raise AssertionError("a tensor of a damaged checkpoint reached the optimizer")


def unchanged_when_refused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which steps were applied; a refused one must leave every bit of parameters, optimizer and copies."""
    original, applied = loop.optimizer_step, []

    def watched(*arguments: Any, optimizer: MasterOptimizer, **options: Any) -> loop.StepResult:
        before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
        result = original(*arguments, optimizer=optimizer, **options)
        after = optimizer.state()
        applied.append(result.applied)
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert bool(changed) == result.applied
        return result

    monkeypatch.setattr(loop, "optimizer_step", watched)
    return applied


@pytest.mark.parametrize("name", STAGES)
def test_a_loss_that_is_not_a_number_is_refused_logged_and_its_samples_are_named(phases: Phases, name: str) -> None:
    folder = phases.undisturbed(name)
    assert facts_of(folder)["counts"]["refused updates"] == 1
    rows = [json.loads(line) for line in (folder / f"refused-step-{NAN_STEP:08d}.jsonl").read_text().splitlines()]
    assert rows and all(row["step"] == NAN_STEP and row["ids"] for row in rows)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if row["loss"] == "nan"] == [NAN_STEP]


def shortage() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_short_of_memory_it_halves_the_micro_batch_and_follows_the_same_trajectory(
    phases: Phases, tmp_path: Path, name: str
) -> None:
    """Two orders of the same fp32 sums: losses agree within 1e-3 of their size (guess). A prompt that completions share
    is computed once in every micro-batch, so more of these compute more tokens."""
    shares = STAGES[name] in ("ppo", "grpo")
    undisturbed = phases.undisturbed(name)
    folder = phases.fresh(name, tmp_path / "stage")
    faults.arm("fit.backward", shortage)
    phases.run(folder)
    ours, theirs = facts_of(folder), facts_of(undisturbed)
    assert ours["counts"] == theirs["counts"] | {"times micro-batches were halved": 1}
    assert ours["tokens"] >= theirs["tokens"] if shares else ours["tokens"] == theirs["tokens"]
    rows = [[json.loads(row) for row in (f / "metrics.jsonl").read_text().splitlines()] for f in (folder, undisturbed)]
    for mine, other in zip(*rows, strict=True):
        assert mine["step"] == other["step"]
        assert mine["tokens"] >= other["tokens"] if shares else mine["tokens"] == other["tokens"]
        if other["loss"] != "nan":
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-4)


# Where a stop may fall besides in a step: (stage, fault point, its passage). The stage does at most one unit more.
ELSEWHERE = [
    pytest.param("new", "shard.write", 1, id="while data are tokenized"),
    pytest.param("tapt", "checkpoint.write", 1, id="while saving"),
    pytest.param("chat", "evaluate.batch", 1, id="while measuring before training"),
    pytest.param("judge", "evaluate.batch", 1, id="while measuring after training"),
    pytest.param("polite", "evaluate.batch", 1, id="while the reference is asked"),
    pytest.param("exact", "rollouts.write", 3, id="while completions are written"),
    pytest.param("adapter-s0-evaluate", "evaluate.batch", 2, id="while items are scored"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "point", "nth"), ELSEWHERE)
def test_a_stop_elsewhere_is_heard_and_the_stage_ends_with_the_undisturbed_bytes(
    phases: Phases, tmp_path: Path, name: str, point: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = phases.undisturbed(name)
    folder = phases.fresh(name, tmp_path / "stage")
    passed: list[str] = []
    fires = faults._fires
    monkeypatch.setattr(faults, "_fires", lambda point: passed.append(point) or fires(point))
    faults.arm(point, terminate, nth)
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
        phases.run(folder)
    assert stopped.value.exit_code == 75
    assert point != "evaluate.batch" or passed.count(point) == nth  # it is heard at once, before another batch
    assert not (folder / "manifest.json").exists()
    phases.run(folder)
    for file, content in left_by(folder).items():
        assert content == left_by(undisturbed)[file], file


@pytest.mark.parametrize(("name", "role"), [("full", "task"), ("chat", "model"), ("new", "corpus:pueblo")])
def test_one_bit_in_what_an_earlier_stage_left_is_found_before_training(
    phases: Phases, tmp_path: Path, name: str, role: str
) -> None:
    """Names and sizes are as they were: only the digests in the earlier stage's manifest tell."""
    source = phases.undisturbed(phases.graph.nodes[phases.node(name)].inputs[role])
    folder = phases.fresh(name, tmp_path / "stage")
    outputs = read_json(source / "manifest.json")["outputs"]
    largest = source / max(outputs, key=lambda file: outputs[file]["bytes"])
    whole = largest.read_bytes()
    try:
        flip_a_bit(largest, place=len(whole) // 2)
        with pytest.raises(DataError, match=f"{largest.name} was altered since its stage finished"):
            phases.run(folder)
    finally:
        largest.write_bytes(whole)
    assert not (folder / "metrics.jsonl").exists()
