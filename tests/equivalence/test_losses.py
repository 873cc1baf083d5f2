"""Settings that must agree: ours and transformers', packed and separate, one micro-batch and eight."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support import ARCHITECTURES, gradients_of, random_examples, reference_loss_sum, tiny_llama
from torch import nn
from torch.nn import functional as F

from quilate.data.packing import Example, pack
from quilate.engine.completions import WithoutDropout
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.engine.loop import optimizer_step
from quilate.errors import ModelError
from quilate.models.attention import PACKED_ATTENTION, DocumentLayout, packed_attention
from quilate.models.load import recompute_activations
from quilate.optim.adamw import AdamW

# Several groups of similar length, a pair of equal ones, a document of one token, one alone.
RAGGED = [23, 21, 20, 9, 9, 5, 4, 2, 1]


def documents(lengths: Sequence[int] = RAGGED) -> list[Example]:
    return random_examples(lengths, seed=5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_loss_and_gradients_equal_transformers_on_separate_documents(architecture: str) -> None:
    examples = documents()
    reference, model = ARCHITECTURES[architecture](), ARCHITECTURES[architecture]()
    expected = reference_loss_sum(reference, examples)
    expected.backward()
    loss = LanguageModellingLoss(model)(pack(examples))
    loss.backward()
    supervised = sum(e.supervised_tokens for e in examples)
    assert float(loss) / supervised == pytest.approx(float(expected) / supervised, abs=1e-5)
    wanted, ours = gradients_of(reference), gradients_of(model)
    assert ours.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(ours[name], wanted[name], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_packed_logits_equal_separate_logits(architecture: str) -> None:
    model = ARCHITECTURES[architecture]()
    batch = pack(documents())
    with torch.no_grad():
        separate = [model(input_ids=ids[None]).logits[0] for ids in batch.input_ids[0].split(list(batch.lengths))]
        model.set_attn_implementation(PACKED_ATTENTION)
        packed = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            document_layout=DocumentLayout.of(batch.lengths),
        ).logits[0]
    torch.testing.assert_close(packed, torch.cat(separate), rtol=1e-5, atol=2e-5)


def test_an_all_ones_mask_would_break_it() -> None:
    """The trap: transformers confines packed documents by their positions only while no mask is given."""
    model = tiny_llama()
    batch = pack(documents())
    with torch.no_grad():
        separate = torch.cat(
            [model(input_ids=ids[None]).logits[0] for ids in batch.input_ids[0].split(list(batch.lengths))]
        )
        row = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
        confined = model(**row).logits[0]
        leaking = model(**row, attention_mask=torch.ones_like(batch.input_ids)).logits[0]
    torch.testing.assert_close(confined, separate, rtol=1e-5, atol=2e-5)
    first = batch.lengths[0]
    torch.testing.assert_close(leaking[:first], separate[:first], rtol=1e-5, atol=2e-5)
    assert (leaking[first:] - separate[first:]).abs().max() > 0.1


def test_a_document_cannot_see_its_neighbour() -> None:
    """Bit equality: another first document, the same hidden states in the second."""
    loss = LanguageModellingLoss(tiny_llama())
    second = Example("b", documents()[4].tokens, documents()[4].supervised)
    alone = Example("b-again", second.tokens, second.supervised)
    with torch.no_grad():
        losses = []
        for seed in (1, 2):
            neighbour = random_examples([30], seed=seed)[0]
            both = float(loss(pack([neighbour, second])))
            losses.append(both - float(loss(pack([neighbour]))))
    assert losses == pytest.approx([float(loss(pack([alone])).detach())] * 2, abs=1e-4)


def test_packed_attention_refuses_a_mask_or_a_missing_layout() -> None:
    model = tiny_llama()
    model.set_attn_implementation(PACKED_ATTENTION)
    row = {"input_ids": torch.arange(6)[None], "use_cache": False}
    with pytest.raises(ValueError, match="document_layout"):
        model(**row)
    query = torch.zeros(1, 4, 6, 8)
    layout = DocumentLayout.of([6])
    with pytest.raises(ValueError, match="no attention mask"):
        packed_attention(nn.Module(), query, query, query, torch.ones(1, 1, 6, 6), document_layout=layout)
    with pytest.raises(ValueError, match="one packed row"):
        packed_attention(nn.Module(), query.expand(2, -1, -1, -1), query, query, None, document_layout=layout)
    with pytest.raises(ModelError, match="sliding window is 5"):
        packed_attention(nn.Module(), query, query, query, None, document_layout=layout, sliding_window=5)


def test_packed_attention_is_linear_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 documents of 8 to 11 tokens: no attention call sees a row longer than a document, nor any mask."""
    seen: list[tuple[torch.Size, torch.Tensor | None]] = []
    original = F.scaled_dot_product_attention

    def recording(query, key, value, attn_mask=None, **options):  # type: ignore[no-untyped-def]
        seen.extend([(query.shape, attn_mask), (key.shape, attn_mask)])
        return original(query, key, value, attn_mask=attn_mask, **options)

    examples = random_examples([8 + n % 4 for n in range(400)])
    batch = pack(examples)
    loss = LanguageModellingLoss(tiny_llama())
    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    loss(batch)
    assert batch.tokens == 3800
    assert len(seen) >= 4
    assert all(mask is None and shape[-2] <= 11 and shape[0] * shape[-2] <= 1.34 * batch.tokens for shape, mask in seen)


def test_dropout_in_training_is_used_by_packed_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from support import tiny_gpt2

    model = tiny_gpt2(dropout=0.5).train()
    rates: list[float] = []
    original = F.scaled_dot_product_attention

    def recording(*tensors, dropout_p=0.0, **options):  # type: ignore[no-untyped-def]
        rates.append(dropout_p)
        return original(*tensors, dropout_p=dropout_p, **options)

    loss = LanguageModellingLoss(model)
    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    loss(pack(documents()))
    model.eval()
    loss(pack(documents([5])))
    assert set(rates[:-2]) == {0.5}
    assert rates[-2:] == [0.0, 0.0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_activations_give_the_same_bits(architecture: str) -> None:
    """Every layer is run a second time for the gradient, and nothing of it is kept meanwhile."""
    found, visits = [], []
    for recomputes in (False, True):
        model = ARCHITECTURES[architecture]()
        if recomputes:
            recompute_activations(model)
        model.train()
        loss = LanguageModellingLoss(model)
        calls: list[object] = []
        layer = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)[0]
        next(layer.children()).register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        loss(pack(documents())).backward()
        found.append(gradients_of(model))
        visits.append(len(calls))
    assert visits[1] == 2 * visits[0] > 0
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def test_recomputing_is_refused_where_transformers_would_not_do_it() -> None:
    with pytest.raises(ValueError, match="training mode"):
        recompute_activations(WithoutDropout(tiny_llama()))


def one_update(
    parts: Sequence[Sequence[Example]], *, precision: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], float, float]:
    """The gradient of one step given as micro-batches, its loss and its norm."""
    model = tiny_llama(dtype=precision)
    loss = LanguageModellingLoss(model)
    optimizer = AdamW(model.named_parameters(), rounding=torch.Generator())
    gradients: dict[str, torch.Tensor] = {}
    original = optimizer.step

    def recording(learning_rate: float, gradient_scale: float = 1.0) -> None:
        gradients.update({name: g.float().clone() for name, g in optimizer.gradients().items()})
        original(learning_rate, gradient_scale)

    optimizer.step = recording  # type: ignore[method-assign]
    result = optimizer_step([pack(part) for part in parts], loss, optimizer, learning_rate=1e-3, clip_norm=1.0)
    assert result.supervised_tokens == sum(e.supervised_tokens for part in parts for e in part)
    return gradients, result.loss, result.gradient_norm


def test_eight_micro_batches_equal_one() -> None:
    """Ragged lengths and masks, so a mean of the micro-batches' means would be another number."""
    examples = documents([30, 3, 17, 2, 24, 5, 9, 11])
    whole, loss, norm = one_update([examples])
    means = [float(reference_loss_sum(tiny_llama(), [e])) / e.supervised_tokens for e in examples]
    parted, parted_loss, parted_norm = one_update([[example] for example in examples])
    assert abs(sum(means) / 8 - loss) > 1e-3
    assert parted_loss == pytest.approx(loss, abs=1e-6)
    assert parted_norm == pytest.approx(norm, rel=1e-6)
    for name in whole:
        torch.testing.assert_close(parted[name], whole[name], rtol=0, atol=1e-6, msg=name)


def test_a_micro_batch_without_targets_changes_nothing() -> None:
    examples = documents([12, 7])
    silent = Example("mudo", examples[0].tokens, examples[0].supervised & False)
    plain, loss, _ = one_update([examples])
    padded, padded_loss, _ = one_update([examples, [silent]])
    assert padded_loss == pytest.approx(loss, abs=1e-6)
    for name in plain:
        torch.testing.assert_close(padded[name], plain[name], rtol=0, atol=1e-6, msg=name)
