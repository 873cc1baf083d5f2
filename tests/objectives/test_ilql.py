"""ILQL's losses against plain Python in float64, and its values on a chain whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from quilate.objectives.ilql import guided_log_probs, ilql_losses, standardized_returns, sync_target

S, V = 6, 4


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_softmax(row: list[float], index: int) -> float:
    return row[index] - math.log(sum(math.exp(x) for x in row))


def test_the_four_terms_against_their_formulas() -> None:
    logits, q1, q2, t1, t2 = (draw(S, V, seed=n) for n in range(5))
    values, following, rewards = draw(S, seed=5), draw(S, seed=6), draw(S, seed=7)
    actions = torch.tensor([0, 3, 1, 2, 2, 0])
    losses = ilql_losses(
        logits, [q1, q2], [t1, t2], values, following, actions, rewards, gamma=0.9, tau=0.8, awac_temperature=0.5
    )
    q = value = cql = awac = 0.0
    for s, a in enumerate(actions.tolist()):
        goal = float(rewards[s] + 0.9 * following[s])
        q += sum((float(head[s, a]) - goal) ** 2 for head in (q1, q2))
        target, v = min(float(t1[s, a]), float(t2[s, a])), float(values[s])
        value += (0.8 if target >= v else 0.2) * (target - v) ** 2
        cql += sum(-log_softmax(head[s].tolist(), a) for head in (q1, q2))
        awac += -math.exp(0.5 * (target - v)) * log_softmax(logits[s].tolist(), a)
    assert [x.item() for x in losses] == pytest.approx([q, value, cql, awac], rel=1e-6)


def test_each_term_trains_what_it_should_and_nothing_else() -> None:
    tensors = {
        name: draw(S, V, seed=n).requires_grad_() for n, name in enumerate(("logits", "q1", "q2", "t1", "t2"))
    } | {name: draw(S, seed=9 + n).requires_grad_() for n, name in enumerate(("values", "next"))}
    losses = ilql_losses(
        tensors["logits"], [tensors["q1"], tensors["q2"]], [tensors["t1"], tensors["t2"]], tensors["values"],
        tensors["next"], torch.zeros(S, dtype=torch.int64), torch.ones(S), awac_temperature=1.0,
    )  # fmt: skip
    reached = {}
    for term, loss in losses._asdict().items():
        gradients = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True, allow_unused=True)
        reached[term] = {name for name, g in zip(tensors, gradients, strict=True) if g is not None and g.any()}
    assert reached == {"q": {"q1", "q2"}, "value": {"values"}, "cql": {"q1", "q2"}, "awac": {"logits"}}


def test_value_of_a_high_expectile_is_near_the_best_action_in_the_data_and_never_above() -> None:
    """One state, three actions seen with returns 0, 1 and 5: the expectile of tau = 0.5 is their mean."""
    returns = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    q = torch.diag(returns)
    found = {}
    for tau in (0.5, 0.9, 0.999):
        value = torch.zeros((), dtype=torch.float64, requires_grad=True)
        for _ in range(4000):
            losses = ilql_losses(q, [q], [q], value.expand(3), torch.zeros(3), torch.arange(3), returns, tau=tau)
            (gradient,) = torch.autograd.grad(losses.value, value)
            value = (value - 0.1 * gradient).detach().requires_grad_()
        found[tau] = value.item()
    assert found[0.5] == pytest.approx(2.0)
    assert found[0.5] < found[0.9] < found[0.999] < 5.0
    assert found[0.999] > 4.9


def test_targets_follow_slowly_and_copy_at_rate_one() -> None:
    target, source = torch.zeros(2, dtype=torch.bfloat16), torch.ones(2)
    sync_target([target], [source], rate=0.25)
    assert target.tolist() == [0.25, 0.25]
    sync_target([target], [source])
    assert target.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError):
        sync_target([target], [source, source])


def test_returns_are_standardized_over_the_dataset() -> None:
    returns = standardized_returns(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    assert returns.mean().item() == pytest.approx(0, abs=1e-6)
    assert returns.square().mean().item() == pytest.approx(1)
    assert standardized_returns(torch.full((3,), 7.0)).tolist() == [0.0, 0.0, 0.0]


def test_guidance_prefers_what_both_critics_value() -> None:
    logits = torch.zeros(1, 3)
    qs = [torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[0.0, -3.0, 1.0]])]
    torch.testing.assert_close(guided_log_probs(logits, qs, torch.tensor([0.5]), beta=0.0), logits.log_softmax(-1))
    guided = guided_log_probs(logits, qs, torch.tensor([0.5]), beta=2.0)
    torch.testing.assert_close(guided, logits.log_softmax(-1) + torch.tensor([[-1.0, -7.0, 1.0]]))
