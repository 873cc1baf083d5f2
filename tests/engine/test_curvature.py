"""Sophia in the loop: what a language model's loss is probed for, when, and what an estimate may not touch."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from support import ARCHITECTURES, gradients_of, random_examples, tiny_llama
from torch import Tensor

from quilate.data.batches import ExampleBatches
from quilate.data.packing import PackedBatch, pack
from quilate.engine.interrupts import StopRequest
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import FitResult, curvature_step, fit
from quilate.objectives.cross_entropy import sample_targets
from quilate.optim.adamw import AdamW
from quilate.optim.curvature import directional_derivative
from quilate.optim.rounding import draw_key
from quilate.optim.sophia import Sophia, SophiaG, SophiaH
from quilate.rng import Streams

LENGTHS = [12, 9, 7, 15]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
def test_products_with_the_hessian_are_differences_of_gradients(architecture: str) -> None:
    """In float64: the twice differentiable loss against central differences of the gradient of the usual one."""
    model = ARCHITECTURES[architecture]().double()
    loss, batch = LanguageModellingLoss(model), pack(random_examples(LENGTHS))
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def gradients(shift: float) -> list[Tensor]:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += shift * direction
        found = list(torch.autograd.grad(loss(batch), parameters))
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= shift * direction
        return found

    size = 1e-4
    differences = [(a - b) / (2 * size) for a, b in zip(gradients(size), gradients(-size), strict=True)]
    twice = loss.twice_differentiable(batch)
    assert float(twice.detach()) == pytest.approx(float(loss(batch).detach()), rel=1e-5)
    products = torch.autograd.grad(directional_derivative(twice, parameters, directions), parameters)
    for product, difference in zip(products, differences, strict=True):
        assert float((product - difference).norm()) <= 1e-2 * float(difference.norm()) + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_usual_loss_refuses_a_second_derivative(dtype: torch.dtype) -> None:
    """It forms gradients in the forward pass; derived again, they would pass for constants without a word."""
    model = tiny_llama(dtype=dtype)
    parameters = list(model.parameters())
    loss, batch = LanguageModellingLoss(model), pack(random_examples(LENGTHS))
    directions = [torch.ones_like(p) for p in parameters]
    with pytest.raises(RuntimeError, match="no second derivative"):
        directional_derivative(loss(batch), parameters, directions).backward()
    directional_derivative(loss.twice_differentiable(batch), parameters, directions).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients_of(model).values())


def test_sampled_targets_are_the_models_own() -> None:
    """The loss is that of transformers' logits at targets drawn from them; the given targets play no part."""
    model, batch = tiny_llama(), pack(random_examples([14]))
    loss = LanguageModellingLoss(model)
    ours = loss.of_sampled_targets(batch, torch.Generator().manual_seed(4))
    key = draw_key(torch.Generator().manual_seed(4))
    logits = tiny_llama()(input_ids=batch.input_ids).logits[0, batch.source_positions]
    predictions = loss._predictions(batch)
    torch.testing.assert_close(predictions[0] @ predictions[1].T, logits, rtol=1e-4, atol=1e-4)
    drawn = sample_targets(*predictions, torch.Generator().manual_seed(key))
    torch.testing.assert_close(
        ours, torch.nn.functional.cross_entropy(logits, drawn, reduction="sum"), rtol=1e-4, atol=1e-4
    )
    changed = copy.deepcopy(batch)
    changed.targets.zero_()
    again = loss.of_sampled_targets(changed, torch.Generator().manual_seed(4))
    assert torch.equal(again, ours)


def test_the_estimate_counts_the_supervised_tokens_of_the_whole_step() -> None:
    """B is the number of tokens the loss was averaged over: here two micro-batches, whose gradients were summed."""
    model, stream = tiny_llama(), torch.Generator()
    examples = random_examples(LENGTHS)
    parts = [pack(examples[:2]), pack(examples[2:])]
    loss = LanguageModellingLoss(model)
    optimizer = SophiaG(model.named_parameters(), estimates=stream, betas=(0.9, 0.5))
    assert curvature_step(parts, loss, optimizer)
    tokens = sum(example.supervised_tokens for example in examples)
    assert tokens < sum(LENGTHS)
    (loss(pack(examples)) / tokens).backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(optimizer.curvature[name], 0.5 * tokens * gradient**2, rtol=1e-3, atol=1e-9)


def run(
    folder: Path, method: type[Sophia], *, broken_at: int | None = None, every: int = 3
) -> tuple[FitResult, list[str]]:
    streams = Streams(5)
    model = tiny_llama()
    loss = LanguageModellingLoss(model)
    batches = ExampleBatches(random_examples(LENGTHS), batch_size=2, epochs=4, seed=5, micro_batch_tokens=16)
    optimizer = method(model.named_parameters(), estimates=streams["curvature"], every=every)
    warnings: list[str] = []
    calls: list[int] = []
    probed = loss.to_probe(optimizer)
    assert probed is not None

    def curvature_loss(batch: PackedBatch) -> Tensor:
        calls.append(optimizer.updates)
        return probed(batch) * (float("nan") if optimizer.updates == broken_at else 1.0)

    folder.mkdir()
    result = fit(
        model, batches, loss, optimizer, lambda _: 1e-3, streams, curvature_loss=curvature_loss,
        folder=folder, listener=lambda _: None, stop=StopRequest(), warn=warnings.append,
    )  # fmt: skip
    assert sorted(set(calls)) == list(range(0, len(batches), every))
    return result, warnings


@pytest.mark.parametrize("method", [SophiaG, SophiaH])
def test_an_estimate_every_few_steps_is_counted_and_its_effect_logged(tmp_path: Path, method: type[Sophia]) -> None:
    result, warnings = run(tmp_path / "a", method)
    assert warnings == []
    assert (result.steps, result.refused_estimates) == (8, 0)
    assert 0 < result.curvature_tokens < result.tokens
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["unclipped"] <= 1 for row in rows)
    every_step, _ = run(tmp_path / "b", method, every=1)
    assert every_step.curvature_tokens == every_step.tokens


def test_an_estimate_that_is_not_finite_is_refused_and_said(tmp_path: Path) -> None:
    result, warnings = run(tmp_path / "a", SophiaG, broken_at=3)
    assert (result.refused_estimates, result.refused_updates) == (1, 0)
    assert warnings == ["step 4: the estimate of curvature is not finite: refused"]


def test_sophia_without_a_loss_to_probe_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    optimizer = SophiaG(model.named_parameters(), estimates=torch.Generator())
    batches = ExampleBatches(random_examples(LENGTHS), batch_size=2, epochs=1, seed=5, micro_batch_tokens=64)
    start = partial(fit, model, batches, LanguageModellingLoss(model), optimizer, lambda _: 1e-3, Streams(0))
    with pytest.raises(ValueError, match="needs a curvature_loss"):
        start(folder=tmp_path, listener=lambda _: None, stop=StopRequest(), warn=lambda _: None)
    assert LanguageModellingLoss(model).to_probe(AdamW(model.named_parameters())) is None
