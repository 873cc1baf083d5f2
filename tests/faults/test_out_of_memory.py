"""Memory that does not suffice: the micro-batch is halved, the global batch and its samples stay, nothing is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import LENGTHS, STEPS, Outcome, Run, assert_same_bits
from torch import Tensor

from quilate import faults
from quilate.data.packing import PackedBatch
from quilate.engine.runlog import Progress
from quilate.errors import Interrupted, MachineError, is_out_of_memory
from quilate.optim.adamw import AdamW

Loss = Callable[[PackedBatch], Tensor]
WHOLE = 100  # tokens: every step of a tiny run in one micro-batch

# Two orders of the same fp32 sums, followed by nine steps of AdamW, which divides by the gradient's size (guess).
LOSS_TOLERANCE, PARAMETER_TOLERANCE = 2e-5, 4e-4


class Memory:
    """Memory for so many tokens; remembers the samples of every finished step, and how often one did not fit."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.shortages = tokens, 0
        self.used: list[str] = []
        self._attempt: list[str] = []

    def finish(self, _: Progress) -> None:
        self.used += self._attempt
        self._attempt = []

    def wrap(self, loss: Loss) -> Loss:
        def limited(batch: PackedBatch) -> Tensor:
            if batch.tokens > self.tokens:
                self.shortages += 1
                self._attempt = []
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {batch.tokens} GiB.")
            self._attempt += batch.ids
            return loss(batch)

        return limited


@pytest.fixture(scope="module")
def enough(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Run(tmp_path_factory.mktemp("sobra") / "a", micro_batch_tokens=WHOLE).again()


def test_every_allocators_error_is_known() -> None:
    for allocate in (lambda: torch.empty(2**60), lambda: np.empty(2**60), lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError, ValueError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value) == (not isinstance(caught.value, ValueError)), caught.value
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 7"))


def test_halved_it_follows_the_same_trajectory_on_the_same_samples(tmp_path: Path, enough: Outcome) -> None:
    memory = Memory(20)
    halved = Run(tmp_path / "a", micro_batch_tokens=WHOLE).again(wrap=memory.wrap, on_step=memory.finish)
    assert 1 <= halved.result.memory_halvings == memory.shortages <= 3  # never again once it fits
    assert halved.result.incidents()["times micro-batches were halved"] == memory.shortages
    assert any("memory does not suffice for" in w and "the same step" in w for w in halved.warnings)
    rows = [[json.loads(line) for line in outcome.metrics.splitlines()] for outcome in (halved, enough)]
    for ours, theirs in zip(*rows, strict=True):
        assert (ours["tokens"], ours["supervised_tokens"]) == (theirs["tokens"], theirs["supervised_tokens"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE)
    for name, tensor in halved.weights.items():
        torch.testing.assert_close(tensor, enough.weights[name], rtol=0, atol=PARAMETER_TOLERANCE, msg=name)
    assert len(memory.used) == 3 * len(LENGTHS) and {memory.used.count(id) for id in memory.used} == {3}


def shortage() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("method", "point"),
    [("dropout", "fit.forward"), ("dropout", "fit.backward"), ("sophia_g", "fit.curvature"),
     ("sophia_h", "fit.curvature")],
)  # fmt: skip
def test_the_aborted_attempt_leaves_no_trace(tmp_path: Path, method: str, point: str) -> None:
    """Short of memory in its first step, a run ends with the bits of one whose micro-batches were small from the
    start: gradients, random numbers and curvature of the attempt are gone."""
    faults.arm(point, shortage)
    short = Run(tmp_path / "a", method=method, micro_batch_tokens=WHOLE).again()
    (warning,) = short.warnings
    limit = int(re.findall(r"at most ([\d,]+)", warning)[0].replace(",", ""))
    small = Run(tmp_path / "b", method=method, micro_batch_tokens=limit).again()
    assert short.result.memory_halvings == 1
    assert short.metrics == small.metrics
    for name, tensor in short.state.items():
        assert torch.equal(tensor, small.state[name]), name


def test_a_resumed_run_remembers_what_fits(tmp_path: Path) -> None:
    whole = Run(tmp_path / "a", micro_batch_tokens=WHOLE).again(wrap=Memory(20).wrap)
    run, first, second = Run(tmp_path / "b", micro_batch_tokens=WHOLE), Memory(20), Memory(20)
    with pytest.raises(Interrupted):
        run.again(wrap=first.wrap, stop_after=4)
    resumed = run.again(wrap=second.wrap)
    assert first.shortages > 0 == second.shortages
    assert_same_bits(resumed, whole)


def test_one_sample_that_does_not_fit_is_an_error_with_the_memory_in_use(tmp_path: Path) -> None:
    run = Run(tmp_path / "a", micro_batch_tokens=WHOLE)
    with pytest.raises(MachineError, match=r"does not suffice for one sample of 1[0-5] tokens \(CUDA out") as caught:
        run.again(wrap=Memory(9).wrap, checkpoint_steps=1)
    assert re.search(r"take \d+ MB and gradients \d+ MB", caught.value.message)
    assert caught.value.exit_code == 4
    assert "method: lora" in (caught.value.hint or "")


def test_memory_that_ends_within_the_update_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some parameters are updated by then: only the last checkpoint is whole."""
    original, calls = AdamW.update_parameter, []

    def failing(self: AdamW, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 40:
            raise MemoryError
        original(self, *arguments)  # type: ignore[arg-type]

    run = Run(tmp_path / "a")
    monkeypatch.setattr(AdamW, "update_parameter", failing)
    with pytest.raises(MemoryError):
        run.again(checkpoint_steps=1)
    monkeypatch.setattr(AdamW, "update_parameter", original)
    assert_same_bits(run.again(), Run(tmp_path / "b").again())
    assert STEPS == 9


def test_an_error_of_another_kind_is_raised_as_it_is(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    faults.arm("fit.forward", broken, nth=3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Run(tmp_path / "a").again()
