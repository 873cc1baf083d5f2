"""Documents that begin alike, their beginning computed once: the same results and gradients as side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import tiny_falcon, tiny_gpt2, tiny_llama
from torch import Tensor
from transformers import PreTrainedModel

from quilate.data.packing import Example, PackedBatch, pack, pack_shared, split_shared
from quilate.kernels.operations import operation
from quilate.models.encoder import DocumentEncoder
from quilate.objectives.cross_entropy import linear_token_log_probs

PROMPTS = ((5, 9, 11, 40, 7, 8, 9), (3,), (5, 9, 11), (5, 9, 11, 40, 7, 8, 9, 12, 13))


def completed(counts: tuple[int, ...] = (3, 2, 1, 4)) -> list[Example]:
    """Several completions of each prompt, one of which begins like another prompt goes on."""
    stream = np.random.default_rng(4)
    examples = []
    for prompt, count in zip(PROMPTS, counts, strict=True):
        for number in range(count):
            tokens = np.array([*prompt, *stream.integers(3, 300, size=int(stream.integers(1, 9)))], dtype=np.int64)
            examples.append(Example(f"{len(prompt)}/{number}", tokens, np.arange(len(tokens)) >= len(prompt)))
    return examples


def token_log_probs(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    encoder = DocumentEncoder(model)
    hidden = encoder(batch.input_ids, batch.position_ids, batch.lengths, batch.places)
    head = encoder.divided.head
    return linear_token_log_probs(hidden[batch.source_positions], head.weight, head.bias, batch.targets)


def test_every_document_is_there_and_its_prompt_once() -> None:
    examples = completed()
    batch, plain = pack_shared(examples), pack(examples)
    assert batch.tokens == sum(map(len, PROMPTS)) + sum(e.supervised_tokens for e in examples) < plain.tokens
    assert batch.places is not None and batch.ids == plain.ids and torch.equal(batch.targets, plain.targets)
    rows = batch.input_ids[0, batch.places], batch.position_ids[0, batch.places]
    assert torch.equal(rows[0], plain.input_ids[0]) and torch.equal(rows[1], plain.position_ids[0])
    assert pack_shared(completed((1, 1, 1, 1))).places is None


@pytest.mark.parametrize("made", [tiny_llama, tiny_gpt2, tiny_falcon])
def test_log_probabilities_and_gradients_are_those_of_documents_side_by_side(
    made: Callable[[], PreTrainedModel],
) -> None:
    weights = torch.randn(sum(e.supervised_tokens for e in completed()), generator=torch.Generator().manual_seed(1))
    found = []
    for batch in (pack_shared(completed()), pack(completed())):
        model = made().eval()
        log_probs = token_log_probs(model, batch)
        (log_probs * weights).sum().backward()  # type: ignore[no-untyped-call]
        found.append((log_probs.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (ours, gradients), (expected, theirs) = found
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(operation("attention_forward") is None, reason="no fused attention on this machine")
def test_in_bf16_it_is_as_near_to_fp32_as_side_by_side() -> None:
    """The fused attention is the same; only sums over a prompt's continuations are new, and these are in fp32."""
    exact = tiny_llama().eval()
    reference = token_log_probs(exact, pack(completed()))
    reference.sum().backward()  # type: ignore[no-untyped-call]
    worst = []
    for batch in (pack_shared(completed()), pack(completed())):
        model = tiny_llama(dtype=torch.bfloat16).eval()
        log_probs = token_log_probs(model, batch)
        log_probs.sum().backward()  # type: ignore[no-untyped-call]
        errors = [
            float((p.grad.float() - q.grad).norm() / q.grad.norm())
            for p, q in zip(model.parameters(), exact.parameters(), strict=True)
            if p.grad is not None and q.grad is not None
        ]
        worst.append((float((log_probs.float() - reference).detach().abs().max()), max(errors)))
    assert worst[0][0] <= 1.5 * worst[1][0] + 1e-3 and worst[0][1] <= 1.5 * worst[1][1]


@pytest.mark.parametrize("limit", [1, 20, 45, 1000])
def test_micro_batches_hold_every_document_and_no_more_tokens_than_allowed(limit: int) -> None:
    examples = completed()
    parts = split_shared(examples, limit)
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in examples)
    for part in parts:
        assert pack_shared(part).tokens <= limit or len(part) == 1
    assert len(parts) == {1: len(examples), 1000: 1}.get(limit, len(parts))
