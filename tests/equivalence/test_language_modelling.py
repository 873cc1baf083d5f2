"""Losses of new models, causal and masked, against transformers' own on the same batch; bits per byte by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import SENTENCES

from quilate.data.masking import mask_tokens
from quilate.data.packing import Example, pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.evaluation.bits_per_byte import text_loss, windows
from quilate.models.create import create, shape_config

VOCABULARY = 384


def new_model(shape: str):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    config = shape_config(shape, "tiny", vocabulary=VOCABULARY, context=128, end=0, pad=1)  # type: ignore[arg-type]
    return create(config, masked=shape == "roberta").eval()


@pytest.mark.parametrize("shape", ["llama", "gpt2", "falcon", "roberta"])
def test_loss_equals_transformers(shape: str) -> None:
    model = new_model(shape)
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, VOCABULARY, n) for n in (5, 31, 12, 30, 64)]
    if shape == "roberta":
        keep = frozenset({0, 1, 2})
        examples = [
            mask_tokens(str(i), d, rng, mask_token=2, vocabulary=VOCABULARY, keep=keep) for i, d in enumerate(documents)
        ]
    else:
        examples = [Example(str(i), d, np.ones(len(d), dtype=bool)) for i, d in enumerate(documents)]
    total = count = 0.0
    for example in examples:  # each by itself and unpacked, with the labels transformers expects
        labels = np.where(example.supervised, documents[int(example.id)], -100)
        output = model(input_ids=torch.tensor(example.tokens)[None], labels=torch.tensor(labels)[None])
        total += float(output.loss.detach()) * example.supervised_tokens
        count += example.supervised_tokens
    batch = pack(examples)
    ours = float(LanguageModellingLoss(model)(batch).detach())
    assert batch.supervised_tokens == count
    assert ours / count == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("shape", ["llama", "gpt2", "falcon", "roberta"])
def test_new_models_save_and_load_in_plain_transformers(shape: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    model = new_model(shape)
    LanguageModellingLoss(model)  # switches the attention; the saved config must not remember it
    model.save_pretrained(tmp_path)
    factory = AutoModelForMaskedLM if shape == "roberta" else AutoModelForCausalLM
    loaded = factory.from_pretrained(tmp_path).eval()
    ids = torch.arange(3, 40)[None]
    model.set_attn_implementation("sdpa")
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 30, 37])
def test_windows_predict_every_token_once_with_half_a_window_before_it(length: int) -> None:
    window = 10
    tokens = list(range(100, 100 + length))
    predicted = []
    for example in windows(tokens, 7, window):
        assert example.tokens[0] == 7 and len(example.tokens) <= window
        for position in np.flatnonzero(example.supervised):
            token = int(example.tokens[position])
            predicted.append(token)
            assert position - 1 >= min(token - 100, window // 2 - 1)
    assert predicted == tokens


def test_bits_per_byte_of_a_uniform_model_is_what_its_tokens_cost(tokenizer) -> None:  # type: ignore[no-untyped-def]
    """A model that knows nothing spends log2(V) bits a token, whatever the window."""
    model = new_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    tokens = sum(map(len, tokenizer(SENTENCES, add_special_tokens=False).input_ids))
    expected = tokens * math.log2(VOCABULARY) / sum(len(s.encode()) for s in SENTENCES)
    for window in (8, 64):
        assert text_loss(model, tokenizer, SENTENCES, window=window).bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_equals_a_plain_forward_when_a_document_fits(tokenizer) -> None:  # type: ignore[no-untyped-def]
    model = new_model("llama")
    with torch.no_grad():
        nats = 0.0
        for sentence in SENTENCES:
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(sentence, add_special_tokens=False).input_ids]])
            log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
            nats -= float(log_p[:-1].gather(-1, ids[0, 1:, None]).sum())
    ours = text_loss(model, tokenizer, SENTENCES, window=128)
    assert ours.nats == pytest.approx(nats, rel=1e-6)
