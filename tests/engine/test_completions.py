"""Log-probabilities of packed completions against transformers, one document at a time."""

from __future__ import annotations

import pytest
import torch
from support import ARCHITECTURES, gradients_of, random_examples, tiny_gpt2, tiny_llama

from quilate.data.packing import Example
from quilate.data.preference_batches import EncodedPrompt, collate
from quilate.data.preferences import Pair
from quilate.engine.completions import CompletionLogProbs, WithoutDropout, by_document


def prompts() -> list[EncodedPrompt]:
    """Two prompts of two and three completions, lengths mixed so that packing reorders them."""
    examples = random_examples([9, 14, 5, 20, 7], seed=3)
    first = EncodedPrompt("a", "a", tuple(examples[:2]), (Pair(0, 1),), (True, False), ())
    second = EncodedPrompt("b", "b", tuple(examples[2:]), (Pair(1, 0), Pair(2, 0)), (None, True, True), ())
    return [first, second]


def alone(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """log p of the supervised tokens, from transformers' logits."""
    tokens = torch.from_numpy(example.tokens)
    log_probs = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    wanted = torch.from_numpy(example.supervised[1:])
    return log_probs.gather(1, tokens[1:, None])[:, 0][wanted].sum()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_document_gets_its_own_log_probability_and_gradient(architecture: str) -> None:
    model, reference = ARCHITECTURES[architecture](), ARCHITECTURES[architecture]()
    batch = collate(prompts())
    examples = {c.id: c for prompt in prompts() for c in prompt.completions}
    weights = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5])
    ours = CompletionLogProbs(model)(batch)
    expected = torch.stack([alone(reference, examples[id]) for id in batch.ids])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    wanted = gradients_of(reference)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-4, msg=name)


def test_values_by_document_do_not_depend_on_how_prompts_are_divided() -> None:
    model = tiny_llama()
    log_probs = CompletionLogProbs(model)
    together = by_document(log_probs, model, [collate(prompts())])
    apart = by_document(log_probs, model, [collate([prompt]) for prompt in reversed(prompts())])
    assert together.keys() == apart.keys() == {c.id for p in prompts() for c in p.completions}
    assert together == pytest.approx(apart, abs=1e-4)


def test_a_model_without_dropout_stays_the_same_in_training() -> None:
    """With it, log-ratios against the model itself would not start at 0."""
    model = tiny_gpt2(dropout=0.5)
    log_probs, batch = CompletionLogProbs(model), collate(prompts())
    wanted = by_document(log_probs, model, [batch])
    WithoutDropout(model).train()
    assert dict(zip(batch.ids, log_probs(batch).tolist(), strict=True)) == pytest.approx(wanted, abs=1e-6)
    model.train()
    assert dict(zip(batch.ids, log_probs(batch).tolist(), strict=True)) != pytest.approx(wanted, abs=1e-2)
