"""The fused operations against float64, gradients included, and against the torch code they stand in for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quilate.kernels.attention import is_fused, packed_attention
from quilate.kernels.operations import operation, why_missing
from quilate.objectives import cross_entropy
from quilate.optim import adamw

needs_fused = pytest.mark.skipif(why_missing() is not None, reason=f"no fused operations here: {why_missing()}")
BF16 = 2.0**-8  # the relative rounding error of one bf16 number

DOCUMENTS = [(1,), (5, 64, 65, 200, 130, 1), (300,), (63, 2)]


def documents_in_float64(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], causal: bool) -> Tensor:
    """Attention written out, one document after the other; heads [T, H, E]."""
    group, scale = query.shape[1] // key.shape[1], query.shape[2] ** -0.5
    outputs = []
    for q, k, v in zip(*(t.split(lengths) for t in (query, key, value)), strict=True):
        q, k, v = q.transpose(0, 1), *(t.transpose(0, 1).repeat_interleave(group, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def tensors(lengths: tuple[int, ...], heads: int, key_heads: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(sum(lengths), h, size, generator=generator).bfloat16() for h in (heads, key_heads, key_heads)]


@needs_fused
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", DOCUMENTS)
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(6, 2, 64), (3, 1, 96), (2, 2, 32), (4, 4, 128)])
def test_attention_equals_float64(
    lengths: tuple[int, ...], heads: int, key_heads: int, size: int, causal: bool
) -> None:
    rows = [t.requires_grad_() for t in tensors(lengths, heads, key_heads, size)]
    exact = [t.detach().double().requires_grad_() for t in rows]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    out = packed_attention(*rows, starts, scale=size**-0.5, causal=causal)
    expected = documents_in_float64(*exact, lengths, causal)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    out.backward(direction)
    expected.backward(direction.double())
    for mine, other in [(out, expected), *((t.grad, e.grad) for t, e in zip(rows, exact, strict=True))]:
        assert mine is not None
        assert other is not None
        assert float((mine.detach().double() - other.detach()).norm()) <= BF16 * float(other.detach().norm()) + 1e-4


@needs_fused
def test_one_document_never_moves_another() -> None:
    """Any change of the first document leaves the second's output and gradients bit-equal."""
    lengths, starts = (70, 90), torch.tensor([0, 70, 160])

    def second_of(scale_first: float) -> list[Tensor]:
        rows = tensors(lengths, 4, 2, 64)
        for t in rows:
            t[:70] *= scale_first
        rows = [t.requires_grad_() for t in rows]
        out = packed_attention(*rows, starts, scale=0.125, causal=True)
        out.sum().backward()
        return [t[70:] for t in (out, *(r.grad for r in rows if r.grad is not None))]

    assert all(torch.equal(a, b) for a, b in zip(second_of(1.0), second_of(3.0), strict=True))


@needs_fused
def test_attention_reads_strided_rows_and_is_the_same_every_time() -> None:
    query, key, value = tensors((40, 100), 4, 2, 64)
    starts = torch.tensor([0, 40, 140])
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (query, key, value)]
    plain = packed_attention(query, key, value, starts, scale=0.125, causal=True)
    assert torch.equal(plain, packed_attention(*strided, starts, scale=0.125, causal=True))


@needs_fused
def test_a_value_that_is_not_finite_is_not_hidden() -> None:
    query, key, value = tensors((30,), 2, 2, 32)
    query[3] = torch.nan
    out = packed_attention(query, key, value, torch.tensor([0, 30]), scale=1.0, causal=True)
    assert out[3].isnan().all()
    assert out[:3].isfinite().all()


def test_what_does_not_fit_is_left_to_torch() -> None:
    assert not is_fused(torch.zeros(2, 2, 64))  # fp32
    assert not is_fused(torch.zeros(2, 2, 80, dtype=torch.bfloat16))
    assert not is_fused(torch.zeros(2, 2, 512, dtype=torch.bfloat16))


@needs_fused
@pytest.mark.parametrize("vocabulary", [1000, 37, 16])
def test_cross_entropy_equals_float64(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(9, vocabulary, generator=generator) * 5).bfloat16()
    targets = torch.randint(vocabulary, (9,), generator=generator)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    expected.sum().backward()
    losses, gradient = cross_entropy._losses(logits.clone(), targets, gradient=True)
    only, none = cross_entropy._losses(logits.clone(), targets, gradient=False)
    assert none is None
    assert torch.equal(only, losses)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=1e-5)
    assert gradient is not None
    assert exact.grad is not None
    assert ((gradient.double() - exact.grad).abs() <= BF16 * exact.grad.abs() + 1e-7).all()


@needs_fused
def test_adamw_rounds_with_the_same_bits_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five updates: masters within a few fp32 roundings, and nearly all bf16 copies bit-equal."""

    def trained() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(301, 77).bfloat16())
        optimizer = adamw.AdamW([("p", parameter)], weight_decay=0.1, rounding=torch.Generator().manual_seed(5))
        for _ in range(5):
            parameter.grad = torch.randn(301, 77).bfloat16()
            optimizer.step(1e-3, gradient_scale=0.7)
        return optimizer.master["p"], parameter.detach()

    fused_master, fused_copy = trained()
    monkeypatch.setattr(adamw, "operation", lambda name: None)
    monkeypatch.setattr(adamw, "BLOCK", 1000)
    master, copy = trained()
    torch.testing.assert_close(fused_master, master, rtol=2e-6, atol=1e-7)
    assert float((fused_copy == copy).float().mean()) > 0.999


@needs_fused
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(6, 2, 64), (3, 3, 32), (4, 1, 96)])
def test_decoding_equals_float64(heads: int, key_heads: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    keys, values = random(5, key_heads, 50, size), random(5, key_heads, 50, size)
    slots, lengths = torch.tensor([4, 0, 2]), torch.tensor([0, 17, 49])
    query, new_key, new_value = random(3, heads, size), random(3, key_heads, size), random(3, key_heads, size)
    before = keys.clone()
    out = torch.empty_like(query)
    decode = operation("decode_attention")
    assert decode is not None
    decode(out, query, new_key, new_value, keys, values, slots, lengths, size**-0.5)
    assert torch.equal(keys[[1, 3]], before[[1, 3]])
    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        assert torch.equal(keys[slot, :, length], new_key[row])
        assert torch.equal(values[slot, :, length], new_value[row])
        assert torch.equal(keys[slot, :, :length], before[slot, :, :length])
        seen = [t[slot, :, : length + 1].double() for t in (keys, values)]
        grouped = query[row].double().view(key_heads, heads // key_heads, size)
        expected = (grouped @ seen[0].transpose(1, 2) * size**-0.5).softmax(-1) @ seen[1]
        error = (out[row].double() - expected.view(heads, size)).norm()
        assert float(error) <= BF16 * float(expected.norm())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"QUILATE_KERNELS": "off"}, "QUILATE_KERNELS is off"),
        ({"PATH": "/nowhere"}, "there is no C++ compiler"),
        ({"CXX": "false"}, "they cannot be built: "),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the library is built on Linux only")
def test_without_them_it_says_why(change: dict[str, str], reason: str, tmp_path: Path) -> None:
    environment = os.environ | {"QUILATE_CACHE": str(tmp_path)} | change
    code = "from quilate.kernels.operations import operation, why_missing; print(operation('adamw'), why_missing())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"None {reason}")
