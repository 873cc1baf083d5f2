"""Settings that must agree over a whole training run: how a step is divided, and how documents are packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import Outcome, Run

# One order of the fp32 sums or another, followed by nine steps of AdamW, which divides by the gradient's size: see
# tests/faults/test_out_of_memory.py.
LOSS_TOLERANCE, PARAMETER_TOLERANCE = 2e-5, 4e-4

WHOLE, ALONE = 100, 1  # tokens: a step in one row of packed documents; every document by itself


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Run(tmp_path_factory.mktemp("entero") / "a", micro_batch_tokens=WHOLE).again()


def rows(outcome: Outcome) -> list[dict[str, float]]:
    return [json.loads(line) for line in outcome.metrics.splitlines()]


@pytest.mark.parametrize("tokens", [ALONE, 13, 25, 40])
def test_however_a_step_is_divided_and_packed(tmp_path: Path, whole: Outcome, tokens: int) -> None:
    """The last step of each epoch has two samples where the others have four: the division is never an even one."""
    divided = Run(tmp_path / "a", micro_batch_tokens=tokens).again()
    assert divided.result == whole.result
    for ours, theirs in zip(rows(divided), rows(whole), strict=True):
        assert (ours["tokens"], ours["supervised_tokens"]) == (theirs["tokens"], theirs["supervised_tokens"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    for name, tensor in divided.weights.items():
        torch.testing.assert_close(tensor, whole.weights[name], rtol=0, atol=PARAMETER_TOLERANCE, msg=name)
