"""One process and two, replicated and sharded, take the same steps; neither updates, saves or leaves alone.

Two processes add numbers up in another order than one, so their results differ by rounding; Adam's division by the root
of a second moment near zero makes the most of it. Tolerance: 1e-5 in fp32 on weights of deviation 0.2, after six steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train_together import STEPS, train

from quilate import faults
from quilate.engine.checkpoint import load_checkpoint
from quilate.engine.distributed import World
from quilate.engine.interrupts import StopRequest
from quilate.engine.runlog import read_metrics
from quilate.errors import Interrupted

SCRIPT = Path(__file__).with_name("train_together.py")
TOLERANCE = 1e-6


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Parameters within the tolerance in the mean. AdamW divides by a gradient's own size, so a sum in another order
    moves a parameter whose gradient is next to nothing by more than all others."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs()
        assert difference.mean() <= tolerance and difference.max() <= 100 * tolerance, name


def interrupted(folder: Path, after: int) -> None:
    stop = StopRequest()

    def ask() -> None:
        stop.signal = "SIGTERM"

    faults.arm("fit.step", ask, nth=after)
    with pytest.raises(Interrupted):
        train(folder, stop=stop)
    faults.disarm()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every scenario that needs two processes, in one `torchrun`."""
    folder = tmp_path_factory.mktemp("together")
    interrupted(folder / "one-then-two", 3)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


def model(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("run", ["ddp", "fsdp", "fsdp-checkpointing", "fsdp-offload"])
def test_two_processes_train_as_one_does(alone: Path, together: Path, run: str) -> None:
    assert_close(model(together / run), model(alone))
    ours, one = (read_metrics(folder / "metrics.jsonl") for folder in (together / run, alone))
    for shown in ("loss", "gradient_norm"):  # AdamW would not feel a gradient of another scale; its norm tells
        assert [row[shown] for row in ours] == pytest.approx([row[shown] for row in one], rel=1e-5, abs=1e-5), shown
    used = [json.loads((folder / "used.json").read_text()) for folder in (together / run, alone)]
    assert used[0] == used[1]
    assert len(used[0]) == STEPS


@pytest.mark.slow
def test_an_adapter_on_a_sharded_base_is_trained_as_alone(tmp_path: Path, together: Path) -> None:
    train(tmp_path / "run", lora=True)
    assert_close(model(together / "fsdp-lora"), model(tmp_path / "run"))


@pytest.mark.slow
def test_ddp_and_fsdp_agree(together: Path) -> None:
    assert_close(model(together / "fsdp"), model(together / "ddp"))
    for variant in ("checkpointing", "offload"):
        assert_close(model(together / f"fsdp-{variant}"), model(together / "fsdp"), 0.0)


@pytest.mark.slow
def test_sharded_bf16_follows_fp32(together: Path) -> None:
    """bf16 compute over sharded fp32 masters: near the fp32 run, and every tensor saved in bf16 again."""
    found = model(together / "fsdp-bf16")
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    reference = model(together / "fsdp")
    for name, tensor in reference.items():
        assert (found[name].float() - tensor).abs().mean() < 0.01, name


@pytest.mark.slow
def test_a_run_of_one_process_is_finished_by_two(alone: Path, together: Path) -> None:
    assert_close(model(together / "one-then-two"), model(alone))
    used = json.loads((together / "one-then-two" / "used.json").read_text())
    assert [step for step, _ in used] == [3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_sigterm_to_one_of_two_stops_both_and_one_process_finishes(alone: Path, together: Path, sharding: str) -> None:
    """Both leave after the same step with one checkpoint; one process goes on with the same samples in their order."""
    folder = together / f"stopped-{sharding}"
    left = [(folder / f"left-{rank}.txt").read_text() for rank in (0, 1)]
    assert left == [
        "stopped by a request to another process after step 3, saved", "stopped by SIGTERM after step 3, saved"
    ]  # fmt: skip
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000003"
    files = {path.name for path in checkpoint.iterdir()}
    shards = {"optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"}
    assert files == {"manifest.json", "state.json", "optimizer.safetensors", "streams.safetensors"} | {
        "streams-1.safetensors"
    } | (shards if sharding == "fsdp" else set())
    used = train(folder)
    before = json.loads((alone / "used.json").read_text())
    assert used == before[3:]
    assert_close(model(folder), model(alone))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_nan_in_one_process_changes_no_parameter_in_any(together: Path, sharding: str) -> None:
    folder = together / f"nan-{sharding}"
    rows = [json.loads(line) for line in (folder / "refused-step-00000003.jsonl").read_text().splitlines()]
    assert {row["rank"]: row["finite"] for row in rows} == {0: True, 1: False}
    assert sorted(id for row in rows for id in row["ids"]) == sorted(
        id for batch in json.loads((folder / "used.json").read_text())[2][1] for id in batch
    )
    (warned,) = json.loads((folder / "warnings.json").read_text())
    assert "step 3: loss nan" in warned
    assert all(t.isfinite().all() for t in model(folder).values())
    metrics = read_metrics(folder / "metrics.jsonl")
    assert metrics[2]["loss"] == "nan"
    # Nothing was updated in step 3, so step 4 begins where it did: like a run whose third batch was left out.
    assert metrics[3]["loss"] != "nan"


@pytest.mark.slow
def test_rows_of_a_sharded_checkpoint_are_read_alone(together: Path) -> None:
    """Any rows of a tensor, whichever files they are in, as they stand in the whole of it."""
    (checkpoint,) = (together / "fsdp" / "checkpoints").iterdir()
    whole = load_checkpoint(checkpoint).tensors["optimizer"]
    name = "master.model.embed_tokens.weight"
    assert whole[name].shape == (384, 32)
    part = load_checkpoint(checkpoint, {name: (190, 195)}).tensors["optimizer"][name]
    assert torch.equal(part, whole[name][190:195])


def test_micro_batches_are_dealt_in_turn() -> None:
    worlds = [World(rank, 3) for rank in range(3)]
    dealt = [world.share(list("abcd")) for world in worlds]
    assert dealt == [[("a", 1.0), ("d", 1.0)], [("b", 1.0), ("a", 0.0)], [("c", 1.0), ("b", 0.0)]]
    assert [world.share(["a"]) for world in worlds] == [[("a", 1.0)], [("a", 0.0)], [("a", 0.0)]]
    assert World().share(list("ab")) == [("a", 1.0), ("b", 1.0)]
