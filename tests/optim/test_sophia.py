"""Sophia: both estimators against exact curvatures in float64, its update against the paper's line by line."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quilate.objectives.cross_entropy import sample_targets
from quilate.optim.curvature import directional_derivative, gauss_newton_bartlett, hutchinson
from quilate.optim.sophia import Sophia, SophiaG, SophiaH

TOKENS, CLASSES = 3, 4
DRAWS = 3000


class SmallNetwork(nn.Module):
    """A hidden layer and a softmax, in float64: its Hessian and its Gauss-Newton matrix differ."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden = nn.Parameter(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(CLASSES, 2, generator=generator, dtype=torch.float64))
        self.inputs = torch.randn(TOKENS, 3, generator=generator, dtype=torch.float64)
        self.labels = torch.tensor([0, 3, 1])

    def features(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.inputs @ hidden.T)

    def logits(self, flat: Tensor) -> Tensor:
        hidden, head = flat[:6].view(2, 3), flat[6:].view(CLASSES, 2)
        return self.features(hidden) @ head.T

    def flat(self) -> Tensor:
        return torch.cat([self.hidden.detach().flatten(), self.head.detach().flatten()])

    def mean_loss(self, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.features(self.hidden) @ self.head.T, labels)


def assert_mean_is(draws: Tensor, exact: Tensor) -> None:
    """Every coordinate's mean within five standard errors of the exact value, and these errors small."""
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() <= 5 * error + 1e-12).all()
    assert float(error.norm()) < 0.1 * float(exact.norm())


def test_gauss_newton_bartlett_estimates_the_exact_diagonal() -> None:
    network, generator = SmallNetwork(), torch.Generator().manual_seed(1)
    jacobian = torch.autograd.functional.jacobian(network.logits, network.flat())  # [tokens, classes, parameters]
    p = network.logits(network.flat()).softmax(-1)
    of_softmax = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    exact = torch.einsum("tcp,tcd,tdp->p", jacobian, of_softmax, jacobian) / TOKENS

    def draw() -> Tensor:
        labels = sample_targets(network.features(network.hidden), network.head, None, generator)
        gradients = torch.autograd.grad(network.mean_loss(labels), [network.hidden, network.head])
        return torch.cat([gauss_newton_bartlett(g, TOKENS).flatten() for g in gradients])

    assert_mean_is(torch.stack([draw() for _ in range(DRAWS)]), exact)


def test_hutchinson_estimates_the_exact_diagonal() -> None:
    network, generator = SmallNetwork(), torch.Generator().manual_seed(2)
    hessian = torch.autograd.functional.hessian(
        lambda flat: F.cross_entropy(network.logits(flat), network.labels), network.flat()
    )
    parameters = [network.hidden, network.head]

    def draw() -> Tensor:
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        probe = directional_derivative(network.mean_loss(network.labels), parameters, directions)
        products = torch.autograd.grad(probe, parameters)
        flat = torch.cat([u.flatten() for u in directions])
        torch.testing.assert_close(torch.cat([h.flatten() for h in products]), hessian @ flat, rtol=1e-5, atol=1e-6)
        return torch.cat([hutchinson(u, h).flatten() for u, h in zip(directions, products, strict=True)])

    assert_mean_is(torch.stack([draw() for _ in range(DRAWS)]), hessian.diagonal())


def test_targets_are_drawn_from_the_softmax_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from quilate.objectives import cross_entropy

    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 7)  # the last chunk is a shorter one
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(5, 2, generator=generator), torch.randn(5, generator=generator)
    rows = torch.randn(4, 2, generator=generator)
    drawn = sample_targets(rows.repeat(5000, 1), weight, bias, generator).view(5000, 4)
    frequencies = torch.stack([(drawn == c).float().mean(0) for c in range(5)], dim=1)
    expected = (rows @ weight.T + bias).softmax(-1)
    assert ((frequencies - expected).abs() < 5 * (expected * (1 - expected) / 5000).sqrt() + 1e-9).all()


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs, wanted = torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)
    return (model(inputs.to(next(model.parameters()).dtype)).float() - wanted).square().mean()


def sophia(method: type[Sophia], model: nn.Module, **options: object) -> Sophia:
    streams = {name: torch.Generator().manual_seed(5) for name in ("estimates", "rounding")}
    return method(model.named_parameters(), **streams, **options)  # type: ignore[arg-type]


def train(model: nn.Module, optimizer: Sophia, steps: range, rate: float = 1e-2) -> None:
    for step in steps:
        if optimizer.estimate_due():
            optimizer.probe(loss_of(model, 100 + step)).backward()
            assert optimizer.update_curvature(7)
        loss_of(model, step).backward()
        optimizer.step(rate, gradient_scale=0.5)


def test_updates_are_those_of_the_paper() -> None:
    """Algorithm 3 by hand, in float64, with an estimate every third step from the first."""
    model, gamma, rate, decay = network(), 0.3, 1e-2, 0.2
    optimizer = sophia(SophiaG, model, gamma=gamma, betas=(0.9, 0.8), weight_decay=decay, every=3)
    theta = {n: p.detach().double() for n, p in model.named_parameters()}
    m, h = ({n: torch.zeros_like(t) for n, t in theta.items()} for _ in range(2))
    kept = []
    for step in range(8):
        twin = copy.deepcopy(model)
        if step % 3 == 0:
            loss_of(twin, 100 + step).backward()
            h = {n: 0.8 * h[n] + 0.2 * 7 * p.grad.double() ** 2 for n, p in twin.named_parameters()}
            twin.zero_grad()
        loss_of(twin, step).backward()
        for n, p in twin.named_parameters():
            m[n] = 0.9 * m[n] + 0.1 * 0.5 * p.grad.double()
            wanted = m[n] / (gamma * h[n]).clamp(min=1e-12)
            kept.append((wanted.abs() < 1).double().flatten())
            shrink = 1 - rate * (decay if p.dim() == 2 else 0)
            theta[n] = theta[n] * shrink - rate * wanted.clamp(-1, 1)
        train(model, optimizer, range(step, step + 1))
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.detach().double(), theta[n], rtol=1e-5, atol=1e-6)
    assert optimizer.measured()["unclipped"] == pytest.approx(float(torch.cat(kept[-4:]).mean()))
    assert 0 < optimizer.measured()["unclipped"] < 1


@pytest.mark.parametrize("method", [SophiaG, SophiaH])
def test_no_coordinate_moves_further_than_the_rate(method: type[Sophia]) -> None:
    model = network()
    optimizer = sophia(method, model, gamma=1e-3, every=2)
    for step in range(6):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        train(model, optimizer, range(step, step + 1), rate=1e-2)
        moved = torch.cat([(p.detach() - before[n]).abs().flatten() for n, p in model.named_parameters()])
        assert float(moved.max()) <= 1e-2 * (1 + 1e-4)
    assert float(moved.max()) > 0.99e-2


def test_an_estimate_over_micro_batches_is_that_of_the_whole_batch() -> None:
    """One direction serves all of them; the next estimate has another."""
    curvatures = []
    for parts in ([[0, 1]], [[0], [1]]):
        model = network()
        optimizer = sophia(SophiaH, model)
        for part in parts:
            optimizer.probe(sum(loss_of(model, n) for n in part)).backward()
            optimizer.accumulate()
        assert optimizer.update_curvature(10)
        curvatures.append(torch.cat([c.flatten() for c in optimizer.curvature.values()]))
    torch.testing.assert_close(*curvatures)
    optimizer.probe(loss_of(model, 0)).backward()
    again = optimizer._directions
    optimizer.clear_gradients()
    optimizer.probe(loss_of(model, 0)).backward()
    assert again is not None and optimizer._directions is not None
    assert not torch.equal(again["0.weight"], optimizer._directions["0.weight"])


@pytest.mark.parametrize("method", [SophiaG, SophiaH])
def test_an_estimate_that_is_not_finite_changes_nothing(method: type[Sophia]) -> None:
    model = network()
    optimizer = sophia(method, model)
    train(model, optimizer, range(1))
    before = copy.deepcopy(optimizer.state())
    optimizer.probe(loss_of(model, 0) * float("nan")).backward()
    assert not optimizer.update_curvature(7)
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.state().items())
    assert optimizer.gradients() == {}


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    model = network()
    model[0].requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    optimizer = sophia(SophiaH, model, weight_decay=0.1)
    train(model, optimizer, range(3))
    assert not any(name.endswith(("0.weight", "0.bias")) for name in optimizer.state())
    assert model.get_parameter("unused").tolist() == [1, 1]


@pytest.mark.parametrize("method", [SophiaG, SophiaH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_continues_bit_for_bit(method: type[Sophia], dtype: torch.dtype) -> None:
    def run(stop_at: int | None) -> dict[str, Tensor]:
        model = network(dtype)
        optimizer = sophia(method, model, every=3, weight_decay=0.2)
        for step in range(8):
            if step == stop_at:
                streams = [s.get_state() for s in (optimizer.estimates, optimizer._stream())]
                saved = copy.deepcopy(optimizer.state())
                model = network(dtype, seed=9)
                optimizer = sophia(method, model, every=3, weight_decay=0.2)
                optimizer.restore(saved)
                for stream, state in zip((optimizer.estimates, optimizer._stream()), streams, strict=True):
                    stream.set_state(state)
            train(model, optimizer, range(step, step + 1))
        return optimizer.state()

    undisturbed, resumed = run(None), run(5)
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert any(name.startswith("curvature.") for name in resumed)
