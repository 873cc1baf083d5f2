"""The loop: interrupted anywhere and resumed, it ends with the same bits; what is not finite touches nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import random_examples, tiny_llama
from tiny_runs import LENGTHS, STEPS, Run, assert_same_bits
from torch import Tensor

from quilate import faults
from quilate.data.packing import Example, PackedBatch, pack
from quilate.engine import loop
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import MAX_REFUSED_IN_A_ROW, optimizer_step
from quilate.engine.runlog import Progress
from quilate.errors import CheckpointError, Interrupted, MachineError, QuilateError
from quilate.optim.adamw import AdamW
from quilate.rng import Streams

KINDS = [("full", torch.float32), ("lora", torch.float32), ("lora", torch.bfloat16), ("full", torch.bfloat16)]
KINDS += [("dropout", torch.float32)]
KINDS += [("sophia_g", torch.bfloat16), ("sophia_h", torch.float32), ("muon", torch.bfloat16)]


@pytest.mark.parametrize(("method", "dtype"), KINDS)
@pytest.mark.parametrize("stops", [[4], [3, 7]], ids=["once, within an epoch", "twice, first at an epoch's end"])
def test_interrupted_equals_undisturbed(tmp_path: Path, method: str, dtype: torch.dtype, stops: list[int]) -> None:
    undisturbed = Run(tmp_path / "a", method=method, dtype=dtype).again()
    run = Run(tmp_path / "b", method=method, dtype=dtype)
    for stop_after in stops:
        with pytest.raises(Interrupted, match=f"after step {stop_after}"):
            run.again(stop_after=stop_after)
        assert [p.name for p in (tmp_path / "b" / "checkpoints").iterdir()] == [f"step-{stop_after:08d}"]
        torch.rand(17)  # whatever another process does with its random numbers
    assert_same_bits(run.again(), undisturbed)
    assert undisturbed.result.steps == STEPS
    assert undisturbed.result.tokens == 3 * sum(LENGTHS)
    assert len(undisturbed.metrics.splitlines()) == STEPS


def test_dropout_and_order_really_vary(tmp_path: Path) -> None:
    """The control of the test above: without restored streams the bits would differ."""
    run = Run(tmp_path / "b", method="dropout")
    with pytest.raises(Interrupted):
        run.again(stop_after=4)
    folder = tmp_path / "b" / "checkpoints" / "step-00000004"
    from safetensors.torch import load_file

    saved = load_file(folder / "streams.safetensors")
    assert saved.keys() >= {"torch_global", "stream.rounding"}
    fresh = Streams(5)
    assert not torch.equal(saved["torch_global"], fresh.state()["torch_global"])


@pytest.mark.parametrize("method", ["lora", "dropout"])
def test_saving_evaluating_and_logging_do_not_move_the_trajectory(tmp_path: Path, method: str) -> None:
    def noise(_: Progress) -> None:
        streams = Streams.__new__(Streams)
        streams.seed, streams._generators = 5, {}
        torch.rand(3, generator=streams["evaluation"])

    plain = Run(tmp_path / "a", method=method).again()
    busy = Run(tmp_path / "b", method=method).again(checkpoint_steps=1, checkpoint_seconds=0.0, on_step=noise)
    assert_same_bits(busy, plain)


def test_killed_after_the_step_before_the_save_it_repeats_the_step(tmp_path: Path) -> None:
    """An exception at `fit.step` stands for a kill: metrics may hold rows that the checkpoint does not cover."""
    undisturbed = Run(tmp_path / "a", method="lora").again()
    run = Run(tmp_path / "b", method="lora")

    def die() -> None:
        raise KeyboardInterrupt

    faults.arm("fit.step", die, nth=6)
    with pytest.raises(KeyboardInterrupt):
        run.again(checkpoint_steps=2)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tok')  # cut off by the kill
    assert_same_bits(run.again(), undisturbed)


def test_metrics_survive_a_kill_while_they_are_trimmed(tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "a").again()
    run = Run(tmp_path / "b")
    with pytest.raises(Interrupted):
        run.again(stop_after=5)

    def die() -> None:
        raise KeyboardInterrupt

    faults.arm("files.rename", die)
    with pytest.raises(KeyboardInterrupt):
        run.again()
    assert_same_bits(run.again(), undisturbed)


def test_a_full_disk_at_a_save_loses_nothing_before_it(tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "a").again()
    run = Run(tmp_path / "b")
    faults.arm("checkpoint.fsync", "disk-full", nth=4 * 1 + 2)  # four files a checkpoint: within the second
    with pytest.raises(MachineError, match="disk is full"):
        run.again(checkpoint_steps=2)
    assert [p.name for p in (tmp_path / "b" / "checkpoints").iterdir()] == ["step-00000002"]
    assert_same_bits(run.again(), undisturbed)


def test_a_damaged_newest_checkpoint_falls_back_and_still_ends_with_the_same_bits(tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "a").again()
    run = Run(tmp_path / "b")
    with pytest.raises(Interrupted):
        run.again(stop_after=3)
    older = tmp_path / "kept"
    (tmp_path / "b" / "checkpoints" / "step-00000003").rename(older)
    with pytest.raises(Interrupted):
        run.again(stop_after=6)
    older.rename(tmp_path / "b" / "checkpoints" / "step-00000003")
    (tmp_path / "b" / "checkpoints" / "step-00000006" / "optimizer.safetensors").write_bytes(b"")
    assert_same_bits(run.again(checkpoint_steps=1), undisturbed)
    assert any("optimizer.safetensors" in warning for warning in run.warnings)


@pytest.mark.parametrize("change", ["content", "order", "mask"])
def test_other_data_under_a_resumed_run_is_refused(tmp_path: Path, change: str) -> None:
    run = Run(tmp_path / "b")
    with pytest.raises(Interrupted):
        run.again(stop_after=4)
    before = (tmp_path / "b" / "metrics.jsonl").read_bytes()
    if change == "order":
        run.examples.reverse()
    else:
        altered = copy.deepcopy(run.examples[2])
        altered.tokens[1] = (altered.tokens[1] + 1) % 384 if change == "content" else altered.tokens[1]
        altered.supervised[2] ^= change == "mask"
        run.examples[2] = altered
    with pytest.raises(CheckpointError, match="training data or its order changed") as caught:
        run.again()
    assert "checkpoints" in (caught.value.hint or "")
    assert (tmp_path / "b" / "metrics.jsonl").read_bytes() == before


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        Run(tmp_path / "b", method="full").again(stop_after=4)
    with pytest.raises(CheckpointError, match="another model"):
        Run(tmp_path / "b", method="lora").again()


@pytest.mark.parametrize("change", ["one row, which would be broadcast", "a tensor too many"])
def test_the_state_of_another_model_is_refused_before_a_tensor_is_copied(change: str) -> None:
    optimizer = AdamW(torch.nn.Linear(4, 3).named_parameters(), weight_decay=0.0)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    other = {name: tensor + 1 for name, tensor in before.items()}
    if change.startswith("one row"):
        other["first_moment.weight"] = other["first_moment.weight"][:1]
    else:
        other["master.scale"] = torch.ones(1)
    with pytest.raises(KeyError, match="tensors differ"):
        optimizer.restore(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state().items())


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    first, second = (Run(tmp_path / name, method="lora", dtype=torch.bfloat16).again() for name in "ab")
    assert_same_bits(first, second)


# Non-finite values


def poisoned(value: float, *, gradient_only: bool, batch: int) -> Callable[[PackedBatch, Tensor, int], Tensor]:
    def poison(_: PackedBatch, loss: Tensor, call: int) -> Tensor:
        if call != batch:
            return loss
        if not gradient_only:
            return loss * value
        loss.register_hook(lambda gradient: gradient * value)
        return loss * 1.0

    return poison


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("gradient_only", [True, False], ids=["gradient", "loss"])
def test_one_bad_micro_batch_of_several_changes_not_a_bit(
    value: float, gradient_only: bool, dtype: torch.dtype
) -> None:
    model = tiny_llama(dtype=dtype)
    stream = torch.Generator().manual_seed(0)
    optimizer = AdamW(model.named_parameters(), weight_decay=0.1, rounding=stream)
    loss = LanguageModellingLoss(model)
    examples = random_examples(LENGTHS)
    parts = [pack(examples[:4]), pack(examples[4:7]), pack(examples[7:])]
    assert optimizer_step(parts, loss, optimizer, learning_rate=1e-3, clip_norm=1.0).applied
    before, random = copy.deepcopy(optimizer.state()), stream.get_state()
    calls: list[int] = []
    poison = poisoned(value, gradient_only=gradient_only, batch=1)

    def bad(batch: PackedBatch) -> Tensor:
        calls.append(1)
        return poison(batch, loss(batch), len(calls) - 1)

    result = optimizer_step(parts, bad, optimizer, learning_rate=1e-3, clip_norm=1.0)
    assert not result.applied
    assert len(calls) == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.state().items())
    assert torch.equal(stream.get_state(), random)
    assert optimizer.gradients() == {}
    assert all(p.grad is None for p in model.parameters())
    assert optimizer_step(parts, loss, optimizer, learning_rate=1e-3, clip_norm=1.0).applied


def nan_for(*ids: str) -> Callable[[Callable[[PackedBatch], Tensor]], Callable[[PackedBatch], Tensor]]:
    def wrap(loss: Callable[[PackedBatch], Tensor]) -> Callable[[PackedBatch], Tensor]:
        return lambda batch: loss(batch) * (float("nan") if set(ids) & set(batch.ids) else 1.0)

    return wrap


def test_a_refused_step_names_its_documents_and_the_run_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    outcome = run.again(wrap=nan_for("doc-3"))
    assert outcome.result.refused_updates == 3  # once an epoch
    assert outcome.result.steps == STEPS
    assert int(outcome.state["updates"]) == STEPS - 3
    files = sorted((tmp_path / "a").glob("refused-step-*.jsonl"))
    assert len(files) == 3
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert any("doc-3" in row["ids"] for row in rows)
    assert sum(len(row["ids"]) for row in rows) in (2, 4)
    assert sum("update refused" in warning for warning in run.warnings) == 3
    metrics = [json.loads(line) for line in outcome.metrics.splitlines()]
    assert [row["step"] for row in metrics if row["loss"] == "nan"] == [int(f.stem[-8:]) for f in files]


def test_refusals_survive_an_interruption(tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "a").again(wrap=nan_for("doc-3"))
    run = Run(tmp_path / "b")
    with pytest.raises(Interrupted):
        run.again(wrap=nan_for("doc-3"), stop_after=4)
    assert_same_bits(run.again(wrap=nan_for("doc-3")), undisturbed)


def test_five_refusals_in_a_row_end_the_run(tmp_path: Path) -> None:
    everything = [f"doc-{n}" for n in range(len(LENGTHS))]
    with pytest.raises(QuilateError, match="5 updates in a row were refused, the last at step 5") as caught:
        Run(tmp_path / "a").again(wrap=nan_for(*everything))
    assert caught.value.exit_code == 1
    assert MAX_REFUSED_IN_A_ROW == 5
    assert len(list((tmp_path / "a").glob("refused-step-*.jsonl"))) == 5


def test_clipping_limits_the_update_and_reports_the_norm_before_it() -> None:
    examples = random_examples([9, 8])
    norms = {}
    for clip in (1e9, 0.01):
        model = tiny_llama()
        optimizer = AdamW(model.named_parameters())
        result = optimizer_step(
            [pack(examples)], LanguageModellingLoss(model), optimizer, learning_rate=0.0, clip_norm=clip
        )
        moments = torch.cat([m.flatten() for m in optimizer.first_moment.values()])
        norms[clip] = result.gradient_norm, float(moments.norm()) / (1 - 0.9)
    assert norms[1e9][0] == pytest.approx(norms[0.01][0])
    assert norms[1e9][1] == pytest.approx(norms[1e9][0], rel=1e-4)
    assert norms[0.01][1] == pytest.approx(0.01, rel=1e-4)


def test_examples_of_one_document_each_are_a_step_too(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    run.examples = [Example("uno", run.examples[0].tokens, run.examples[0].supervised)]
    assert run.again().result.steps == 3


def test_without_the_fused_operations_it_says_that_it_is_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "why_missing", lambda: "there is no C++ compiler")
    assert Run(tmp_path / "exact").again().warnings == []
    (warning,) = Run(tmp_path / "bf16", dtype=torch.bfloat16).again().warnings
    assert "slower: there is no C++ compiler" in warning
