"""The formulas against what large models were published to have cost, and against a brute-force search."""

from __future__ import annotations

import math

import pytest

from quilate.plan.formulas import (
    Dimensions,
    affordable_parameters,
    compute_optimal,
    expected_loss,
    gpu_hours,
    training_flops,
    training_memory,
)
from quilate.plan.hardware import GPUS

A100 = GPUS["a100-80gb"]

# Parameters, tokens, published A100 hours: Touvron et al. 2023 (table 15), Almazrouei et al. 2023 (petaFLOP-days and
# hours as the model cards have them).
PUBLISHED = {
    "LLaMA-7B": (6.7e9, 1.0e12, 82_432),
    "LLaMA-65B": (65.2e9, 1.4e12, 1_022_362),
    "Falcon-40B": (40e9, 1.0e12, 553_000),
    "Falcon-180B": (180e9, 3.5e12, 7_000_000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_gpu_hours_within_15_percent(name: str) -> None:
    """One MFU for all four: nothing is fitted to the model at hand."""
    parameters, tokens, hours = PUBLISHED[name]
    planned = gpu_hours(training_flops(parameters, tokens), A100.peak_flops)
    assert planned == pytest.approx(hours, rel=0.15)


def test_falcon_in_petaflop_days() -> None:
    day = 1e15 * 86_400
    assert training_flops(40e9, 1e12) / day == pytest.approx(2778, rel=0.001)
    assert training_flops(180e9, 3.5e12) / day == pytest.approx(43_750, rel=0.001)


def test_ten_million_dollars_and_a_trillion_tokens() -> None:
    """At 45 % of an A100: a dense model of 210B at $4 an hour and of 420B at $2; a 40B would have cost $1M to $2M."""
    at_four, at_two = (affordable_parameters(10e6, 1e12, price, A100.peak_flops, 0.45) for price in (4.0, 2.0))
    assert at_four == pytest.approx(210e9, rel=0.01)
    assert at_two == pytest.approx(420e9, rel=0.01)
    cost = 2.0 * gpu_hours(training_flops(40e9, 1e12), A100.peak_flops)
    assert 0.9e6 < cost < 2e6
    hours = gpu_hours(training_flops(at_two, 1e12), A100.peak_flops, 0.45)
    assert hours * 2.0 == pytest.approx(10e6)


@pytest.mark.parametrize(("flops", "tokens_per_parameter"), [(1e18, 26), (1e22, 20)])
def test_compute_optimal_is_the_lowest_loss(flops: float, tokens_per_parameter: float) -> None:
    parameters, tokens = compute_optimal(flops)
    assert training_flops(parameters, tokens) == pytest.approx(flops)
    assert tokens / parameters == pytest.approx(tokens_per_parameter, rel=0.05)
    best = expected_loss(parameters, tokens)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert expected_loss(parameters * factor, tokens / factor) > best


def test_frozen_weights_cost_no_gradient() -> None:
    assert training_flops(100, 10) == 6000
    assert training_flops(100, 10, trainable=0) == 4000


def test_memory_of_a_7b_model() -> None:
    """16 bytes a parameter trained in full, 2 and a little with LoRA; sharded over 8, an eighth of the state."""
    llama = Dimensions(parameters=6_738_415_616, hidden=4096, layers=32, vocabulary=32_000)
    state = 16 * llama.parameters
    activations = 34 * 4096 * 32 * 2048
    assert training_memory(llama, llama.parameters, 2048) == state + activations
    assert training_memory(llama, llama.parameters, 2048, shards=8) == pytest.approx(state / 8 + activations)
    lora = training_memory(llama, 40_000_000, 2048)
    assert lora == 2 * (llama.parameters - 40_000_000) + 16 * 40_000_000 + activations
    checkpointed = training_memory(llama, llama.parameters, 2048, gradient_checkpointing=True) - state
    assert activations / 10 > checkpointed > activations / 34
    assert math.isclose(
        training_memory(llama, llama.parameters, 2048, several_micro_batches=True), state * 20 / 16 + activations
    )
