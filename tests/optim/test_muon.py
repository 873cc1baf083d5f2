"""Muon against torch's own on hidden matrices and torch's AdamW on the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_falcon, tiny_gpt2, tiny_llama
from torch import nn

from quilate.optim.muon import Muon, hidden_matrices


class Network(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(8, 6)
        self.up, self.norm, self.down = nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        return self.head(hidden + self.down(torch.tanh(self.norm(self.up(hidden)))))


def backward(model: Network, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    tokens, targets = torch.randint(0, 8, (2, 20), generator=generator)
    nn.functional.cross_entropy(model(tokens).float(), targets).backward()


def test_ten_steps_equal_torch() -> None:
    ours, theirs = Network(), Network()
    hidden = hidden_matrices(ours, ours.head)
    assert hidden == {"up.weight", "down.weight"}
    optimizer = Muon(ours.named_parameters(), hidden=hidden, betas=(0.8, 0.95), weight_decay=0.3)
    named = dict(theirs.named_parameters())
    others = [named[n] for n in named if n not in hidden]
    references = [
        torch.optim.Muon([named[n] for n in sorted(hidden)], weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in others if p.dim() == 2], betas=(0.8, 0.95), weight_decay=0.3),
        torch.optim.AdamW([p for p in others if p.dim() == 1], betas=(0.8, 0.95), weight_decay=0.0),
    ]
    for step in range(10):
        rate = 1e-2 / (1 + step)
        backward(ours, step)
        backward(theirs, step)
        for parameter in theirs.parameters():
            assert parameter.grad is not None
            parameter.grad *= 0.5
        optimizer.step(rate, gradient_scale=0.5)
        for reference in references:
            reference.param_groups[0]["lr"] = rate
            reference.step()
        theirs.zero_grad()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_an_update_has_the_size_of_an_adamw_update() -> None:
    """Root mean square about 0.2 (Liu et al. 2025) times the rate, whatever the gradient's."""
    for shape in ((40, 40), (20, 160)):
        parameter = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([("p", parameter)], hidden=["p"])
        parameter.grad = 1e-4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        optimizer.step(1e-2)
        assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.2e-2, rel=0.25)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_falcon])
def test_hidden_matrices_are_those_inside_the_blocks(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    names = hidden_matrices(model, model.get_output_embeddings())
    expected = {n for n, p in model.named_parameters() if p.dim() == 2 and (".layers." in n or ".h." in n)}
    assert names == expected
    assert len(names) >= 8


def test_untied_head_is_no_hidden_matrix() -> None:
    model = Network()
    assert "head.weight" in hidden_matrices(model, None)
    model.up.requires_grad_(False)
    assert hidden_matrices(model, model.head) == {"down.weight"}


def test_the_bf16_copy_stays_beside_its_master() -> None:
    model = Network().bfloat16()
    optimizer = Muon(
        model.named_parameters(), hidden=hidden_matrices(model, model.head), rounding=torch.Generator().manual_seed(1)
    )
    for step in range(5):
        backward(model, step)
        optimizer.step(1e-3)
    for name, parameter in model.named_parameters():
        bits = optimizer.master[name].view(torch.int32) & -0x10000
        below, above = bits.view(torch.float32), (bits + 0x10000).view(torch.float32)
        assert ((parameter.float() == below) | (parameter.float() == above)).all(), name
        assert not torch.equal(parameter.float(), optimizer.master[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    def make(seed: int, stream: torch.Generator) -> tuple[Network, Muon]:
        model = Network(seed).to(dtype)
        hidden = hidden_matrices(model, model.head)
        return model, Muon(model.named_parameters(), hidden=hidden, weight_decay=0.1, rounding=stream)

    def run(stop_at: int | None) -> dict[str, torch.Tensor]:
        stream = torch.Generator().manual_seed(3)
        model, optimizer = make(0, stream)
        for step in range(8):
            if step == stop_at:
                saved, random = copy.deepcopy(optimizer.state()), stream.get_state()
                model, optimizer = make(9, stream)
                optimizer.restore(saved)
                stream.set_state(random)
            backward(model, step)
            optimizer.step(1e-3)
        return optimizer.state()

    undisturbed, resumed = run(None), run(5)
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert {n.split(".")[0] for n in resumed} >= {"momentum", "first_moment", "second_moment"}
    assert "first_moment.up.weight" not in resumed
