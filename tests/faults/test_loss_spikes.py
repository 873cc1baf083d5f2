"""A loss ten times too high: each policy does what it says, the statistics survive a resume, the samples are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Outcome, Run, assert_same_bits

from quilate import faults
from quilate.config import validate
from quilate.engine.guards import ENOUGH, WINDOW, Guards, LossWatch
from quilate.engine.runlog import Progress
from quilate.errors import GateError, Interrupted, QuilateError

EPOCHS, STEPS = 8, 24
SPIKE = 21  # the step, from 1, whose first micro-batch's loss is ten times what it is
REWIND_STEPS = 8  # so the spike falls five steps behind a rewind point


def multiplied(factor: float, steps: tuple[int, ...], done: int) -> Callable[[Progress], None]:
    """A listener that alters the loss of these steps, whichever process reaches them; `done` before this one."""

    def prepare(done: int) -> None:
        if done + 1 in steps:
            faults.arm("fit.loss", lambda loss: loss * factor)

    prepare(done)
    return lambda progress: prepare(progress.done)


def done_before(folder: Path) -> int:
    saved = sorted((folder / "checkpoints").glob("step-*"))
    return int(saved[-1].name.removeprefix("step-")) if saved else 0


def run(
    folder: Path,
    policy: str = "warn",
    *,
    steps: tuple[int, ...] = (SPIKE,),
    factor: float = 10.0,
    rewinds: int = 3,
    rewind_steps: int = REWIND_STEPS,
    epochs: int = EPOCHS,
    **options: Any,
) -> Outcome:
    settings = {"loss_spike": policy, "rewind_steps": rewind_steps, "rewinds": rewinds}
    guards = validate(Guards, settings, source="t")
    on_step = multiplied(factor, steps, done_before(folder))
    # A rate at which the loss does not fall so fast that the fall itself is most of the losses' deviation.
    return Run(folder, epochs=epochs, rate=1e-3).again(on_step=on_step, guards=guards, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = run(tmp_path_factory.mktemp("sin") / "a", steps=())
    assert outcome.result.loss_spikes == 0 and outcome.result.steps == STEPS
    return outcome


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run(tmp_path_factory.mktemp("rebobinado") / "a", "rewind")


def test_what_a_spike_is() -> None:
    watch = LossWatch()
    losses = [2.0 + 0.1 * (-1) ** n for n in range(WINDOW)]
    for loss in losses[: ENOUGH - 1]:
        watch.add(loss)
    assert watch.limit() == float("inf")
    for loss in losses[ENOUGH - 1 :]:
        watch.add(loss)
    assert watch.limit() == pytest.approx(2.0 + 6 * 0.1)
    watch.add(2.0)
    assert len(watch.losses) == WINDOW
    constant = LossWatch()
    constant.restore([2.0] * ENOUGH)
    assert 2.0 < constant.limit() <= 2.2  # not every rise above what never moved
    negative = LossWatch()
    negative.restore([-1.0, -3.0] * ENOUGH)  # some objectives are below zero
    assert negative.limit() == pytest.approx(-2.0 + 6 * 1.0)


def test_warn_trains_on_and_names_the_samples(tmp_path: Path, undisturbed: Outcome) -> None:
    outcome = run(tmp_path / "a")
    assert outcome.result.loss_spikes == 1
    assert outcome.result.incidents() == {"refused updates": 0, "loss spikes": 1}
    assert int(outcome.state["updates"]) == STEPS
    assert [w for w in outcome.warnings if w.startswith(f"step {SPIKE}: loss ") and "is a spike, above" in w]
    rows = [json.loads(line) for line in (tmp_path / "a" / f"spike-step-{SPIKE:08d}.jsonl").read_text().splitlines()]
    batch = {id for row in rows for id in row["ids"]}
    assert len(batch) in (2, 4) and {row["step"] for row in rows} == {SPIKE}
    assert outcome.metrics.splitlines()[: SPIKE - 1] == undisturbed.metrics.splitlines()[: SPIKE - 1]


def test_skip_leaves_the_step_out_as_if_it_had_not_been_finite(tmp_path: Path) -> None:
    skipped = run(tmp_path / "a", "skip")
    refused = run(tmp_path / "b", factor=float("nan"))
    assert int(skipped.state["updates"]) == STEPS - 1
    assert (skipped.result.loss_spikes, skipped.result.refused_updates) == (1, 0)
    assert (refused.result.loss_spikes, refused.result.refused_updates) == (0, 1)
    for name, tensor in skipped.state.items():
        assert torch.equal(tensor, refused.state[name]), name


def test_skipping_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(QuilateError, match=r"5 updates in a row were refused, the last at step 24"):
        run(tmp_path / "a", "skip", steps=(20, 21, 22, 23, 24))


def test_stop_saves_what_was_before_the_spike_and_stops_again(tmp_path: Path, undisturbed: Outcome) -> None:
    for _ in range(2):
        with pytest.raises(GateError, match=rf"step {SPIKE}: loss .* is a spike") as caught:
            run(tmp_path / "a", "stop")
        assert caught.value.exit_code == 5
        assert f"spike-step-{SPIKE:08d}.jsonl" in (caught.value.hint or "")
        assert (tmp_path / "a" / f"spike-step-{SPIKE:08d}.jsonl").exists()
        assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == [f"step-{SPIKE - 1:08d}"]
    assert_same_bits(run(tmp_path / "a", "stop", steps=()), undisturbed)


def test_rewind_takes_everything_back_but_the_data(tmp_path: Path, rewound: Outcome) -> None:
    point = SPIKE // REWIND_STEPS * REWIND_STEPS
    with pytest.raises(Interrupted):
        run(tmp_path / "a", steps=(), stop_after=point)
    with pytest.raises(Interrupted):
        run(tmp_path / "b", "rewind", stop_after=SPIKE)
    for group in ("optimizer", "streams"):
        name = f"{group}.safetensors"
        before = load_file(tmp_path / "a" / "checkpoints" / f"step-{point:08d}" / name)
        after = load_file(tmp_path / "b" / "checkpoints" / f"step-{SPIKE:08d}" / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert rewound.result.rewinds == 1
    assert rewound.result.steps == STEPS == len(rewound.metrics.splitlines())  # no batch twice, none lost
    assert int(rewound.state["updates"]) == STEPS - (SPIKE - point)
    assert any(f"went back to the parameters of step {point}" in warning for warning in rewound.warnings)


@pytest.mark.parametrize("killed_at", [SPIKE - 3, SPIKE + 2], ids=["before the spike", "after the rewind"])
@pytest.mark.parametrize("checkpoint_steps", [None, 5])
def test_a_run_that_rewinds_resumes_to_the_same_bits(
    tmp_path: Path, rewound: Outcome, killed_at: int, checkpoint_steps: int | None
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    faults.arm("fit.step", die, nth=killed_at)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", "rewind", checkpoint_steps=checkpoint_steps)
    assert_same_bits(run(tmp_path / "a", "rewind", checkpoint_steps=checkpoint_steps), rewound)


def test_a_resumed_run_still_has_the_point_that_it_must_go_back_to(tmp_path: Path) -> None:
    """Of rewind points the newest is kept. Killed behind step 24, this run has none from before its spike at 19 any
    more, so it must not start again from the checkpoint of step 18."""

    def die() -> None:
        raise KeyboardInterrupt

    settings: dict[str, Any] = {"steps": (19,), "rewind_steps": 4, "epochs": 9, "checkpoint_steps": 18}
    whole = run(tmp_path / "a", "rewind", **settings)
    faults.arm("fit.step", die, nth=26)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", "rewind", **settings)
    assert_same_bits(run(tmp_path / "b", "rewind", **settings), whole)
    assert whole.result.rewinds == 1


def test_rewinds_have_a_budget(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="step 23: loss"):
        run(tmp_path / "a", "rewind", steps=(SPIKE, 23), rewinds=1)
    assert run(tmp_path / "b", "rewind", steps=(SPIKE, 23), rewinds=2).result.rewinds == 2


@pytest.mark.parametrize("stop_after", [ENOUGH - 4, SPIKE - 1])
def test_the_statistics_survive_a_resume(tmp_path: Path, stop_after: int) -> None:
    """A new process that had forgotten the losses would have too few to judge by, or judge by others."""
    whole = run(tmp_path / "a", "skip")
    with pytest.raises(Interrupted):
        run(tmp_path / "b", "skip", stop_after=stop_after)
    parted = run(tmp_path / "b", "skip")
    assert_same_bits(parted, whole)
    assert parted.warnings == whole.warnings != []
