"""AdamW against torch's own, and its bf16 copy against what stochastic rounding promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from quilate.kernels.operations import operation, why_missing
from quilate.optim import adamw
from quilate.optim.adamw import AdamW


@pytest.fixture(params=["fused", "plain"], autouse=True)
def both_paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds of the fused kernel and of the plain torch code."""
    if request.param == "plain":
        monkeypatch.setattr(adamw, "operation", lambda name: None)
    elif operation("adamw") is None:
        pytest.skip(f"no fused operations here: {why_missing()}")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 3))


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    inputs, wanted = torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)
    (model(inputs.to(dtype)).float() - wanted).square().sum().backward()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("block", [adamw.BLOCK, 7])
def test_twenty_steps_equal_torch(monkeypatch: pytest.MonkeyPatch, weight_decay: float, block: int) -> None:
    """torch decays what it is told to; ours decays matrices only. A changing learning rate, and betas off the
    default."""
    monkeypatch.setattr(adamw, "BLOCK", block)
    ours, theirs = network(), network()
    optimizer = AdamW(ours.named_parameters(), betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    for step in range(20):
        rate = 1e-2 / (1 + step)
        for group in reference.param_groups:
            group["lr"] = rate
        backward(ours, step)
        backward(theirs, step)
        optimizer.step(rate)
        reference.step()
        reference.zero_grad()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_the_gradient_scale_is_a_clip() -> None:
    ours, theirs = network(), network()
    optimizer, reference = (
        AdamW(ours.named_parameters(), eps=1e-3),
        torch.optim.AdamW(theirs.parameters(), lr=1e-2, eps=1e-3, weight_decay=0),
    )
    for step in range(3):
        backward(ours, step)
        backward(theirs, step)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert optimizer.gradient_norm() == pytest.approx(float(norm), rel=1e-6)
        optimizer.step(1e-2, gradient_scale=0.5 / optimizer.gradient_norm())
        reference.step()
        reference.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = AdamW(model.named_parameters(), weight_decay=0.1)
    model[1](torch.ones(1, 9)).sum().backward()  # only the norm is used
    optimizer.step(1e-2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.bias"}  # the normalized constant row is zero, so the norm's weight has no gradient either
    assert not any(name.startswith("0.") for name in optimizer.state())


def test_accumulated_gradients_are_summed_in_fp32() -> None:
    """512 + 0.5 + 0.5 is 513 in fp32; a bf16 sum would stay at 512."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = AdamW([("p", parameter)], rounding=torch.Generator())
    for value in (512.0, 0.5, 0.5):
        parameter.grad = torch.full((3,), value, dtype=torch.bfloat16)
        optimizer.accumulate()
    assert optimizer.gradients()["p"].dtype == torch.float32
    assert optimizer.gradients()["p"].tolist() == [513.0] * 3
    optimizer.clear_gradients()
    assert optimizer.gradients() == {}


def test_bf16_needs_a_rounding_stream() -> None:
    with pytest.raises(ValueError, match="rounding stream"):
        AdamW([("p", nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))])


def test_the_master_of_a_bf16_model_follows_fp32_and_the_copy_stays_beside_it() -> None:
    """The same gradients to an fp32 and a bf16 parameter: equal masters, and every copy one of its two neighbours."""
    torch.manual_seed(0)
    start = torch.randn(50, 40).bfloat16()
    exact, rounded = nn.Parameter(start.float()), nn.Parameter(start.clone())
    plain = AdamW([("p", exact)])
    mixed = AdamW([("p", rounded)], rounding=torch.Generator().manual_seed(1))
    for _ in range(10):
        gradient = torch.randn(50, 40).bfloat16()
        exact.grad, rounded.grad = gradient.float(), gradient.clone()
        plain.step(1e-4)
        mixed.step(1e-4)
        assert torch.equal(mixed.master["p"], exact)
        below = (exact.detach().view(torch.int32) & -0x10000).view(torch.float32)
        above = ((exact.detach().view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
        assert ((rounded.float() == below) | (rounded.float() == above)).all()
    mixed.write_nearest()
    assert torch.equal(rounded.data, exact.detach().bfloat16())


def drift(*, stochastic: bool) -> float:
    """How much of 200 equal steps of 2e-5 on weights near 0.1 arrives in the bf16 copy."""
    weights = nn.Parameter(torch.full((4000,), 0.1, dtype=torch.bfloat16))
    optimizer = AdamW([("p", weights)], rounding=torch.Generator().manual_seed(0))
    start = weights.detach().float().mean()
    for _ in range(200):
        weights.grad = torch.ones_like(weights)
        optimizer.step(2e-5)
        if not stochastic:  # a copy rounded to nearest, with no master behind it: what plain bf16 training is
            optimizer.write_nearest()
            optimizer.master["p"].copy_(weights.data)
    return float(start - weights.detach().float().mean())


def test_stochastic_rounding_keeps_small_steps_and_rounding_to_nearest_loses_them() -> None:
    assert drift(stochastic=True) == pytest.approx(200 * 2e-5, rel=0.02)
    assert drift(stochastic=False) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    def run(stop_at: int | None) -> dict[str, torch.Tensor]:
        model = network().to(dtype)
        stream = torch.Generator().manual_seed(3)
        optimizer = AdamW(model.named_parameters(), weight_decay=0.1, rounding=stream)
        for step in range(8):
            if step == stop_at:
                saved, random = copy.deepcopy(optimizer.state()), stream.get_state()
                model = network(seed=9).to(dtype)
                stream = torch.Generator()
                optimizer = AdamW(model.named_parameters(), weight_decay=0.1, rounding=stream)
                optimizer.restore(saved)
                stream.set_state(random)
            backward(model, step)
            optimizer.step(1e-3)
        return optimizer.state()

    undisturbed, resumed = run(None), run(5)
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert int(resumed["updates"]) == 8


def test_state_of_another_model_is_refused_before_anything_changes() -> None:
    optimizer = AdamW(network().named_parameters())
    before = copy.deepcopy(optimizer.state())
    missing = {k: v for k, v in before.items() if k != "first_moment.0.weight"}
    with pytest.raises(KeyError, match=r"first_moment\.0\.weight"):
        optimizer.restore(missing)
    other_shape = {k: v + 1 for k, v in before.items()} | {"master.3.bias": torch.ones(1)}
    with pytest.raises(KeyError, match=r"master\.3\.bias"):
        optimizer.restore(other_shape)  # [1] would broadcast into [3] without a word
    assert all(torch.equal(before[name], value) for name, value in optimizer.state().items())


def test_small_gradients_of_many_micro_batches_are_not_lost_in_a_bf16_sum() -> None:
    """Beside 256 a bf16 sum cannot see 0.5: its next number is 258."""
    weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    optimizer = AdamW([("w", weight)], rounding=torch.Generator())
    for gradient in [256.0] + [0.5] * 8:
        weight.grad = torch.full((2, 2), gradient, dtype=torch.bfloat16)
        optimizer.accumulate()
    assert torch.equal(optimizer.gradients()["w"], torch.full((2, 2), 260.0))
