"""Tokenizers trained and extended: old text comes back, new tokens stand for old ones, and rows start as their mean."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SENTENCES, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from quilate.errors import DataError, ModelError
from quilate.models.create import create, shape_config
from quilate.models.load import load_tokenizer
from quilate.models.vocabulary import extend_embeddings
from quilate.tokenization.extend import Extension, learn_extension, write_extended
from quilate.tokenization.train import TRAINERS, measure_fit, train_byte_level_unigram

ODD = [
    "",
    " \n\n\t doble  espacio ",
    "Ñandú, 漢字, 🙂\u200d🙂, a\u0301",
    "<|endoftext|>",
    "2.500,5 mg/dl",
    "\x00\ufffd",
]
WORDS = (
    "hiperplasia hepatomegalia colecistitis litiasis esplenomegalia colangitis pielonefritis hepatitis gastritis íleo"
)
DOMAIN = [f"{a} {b}" for a in WORDS.split() for b in SENTENCES]


@pytest.fixture(scope="module")
def extension() -> Extension:
    return learn_extension(tiny_tokenizer(), {"clinic": DOMAIN}, {"clinic": 1.0}, 60)


@pytest.fixture(scope="module")
def extended(extension: Extension, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("extended")
    write_extended(tiny_tokenizer(), extension, folder)
    return load_tokenizer(folder)


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


@pytest.mark.parametrize("segmentation", TRAINERS)
def test_trained_tokenizers_know_every_text_and_give_it_back(segmentation: str) -> None:
    tokenizer = TRAINERS[segmentation](SENTENCES * 4, 400)
    assert len(tokenizer) == 400
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}) == 3
    for text in ODD + SENTENCES:
        assert tokenizer.decode(tokens_of(tokenizer, text), clean_up_tokenization_spaces=False) == text
    fit = measure_fit(tokenizer, SENTENCES)
    assert fit.unknown == 0
    assert fit.as_json()["tokens_per_word"] == pytest.approx(fit.tokens / sum(len(s.split()) for s in SENTENCES), 1e-3)
    assert fit.tokens < sum(len(s.encode()) for s in SENTENCES) / 1.5


def test_unigram_cuts_by_probability() -> None:
    """The oracle is a search over all cuts of a word, with the scores that the tokenizer states."""
    tokenizer = train_byte_level_unigram(SENTENCES * 4, 400)
    scores = dict(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"])

    def best(word: str) -> float:
        table = [0.0]
        for end in range(1, len(word) + 1):
            cuts = (table[start] + scores[word[start:end]] for start in range(end) if word[start:end] in scores)
            table.append(max(cuts))
        return table[-1]

    for word in ("Ġinsuficiencia", "Ġrespuesta", "ĠhipertensiÃ³n"):
        pieces = [token.value for token in tokenizer.backend_tokenizer.model.tokenize(word)]
        assert "".join(pieces) == word
        assert sum(scores[piece] for piece in pieces) == pytest.approx(best(word))


def test_old_text_is_cut_as_before_and_only_joined_further(extension: Extension, extended: Any) -> None:
    """Writing every new token out as its pieces must give the base's own tokens, of any text."""
    base = tiny_tokenizer()
    pieces = dict(enumerate(extension.pieces, extension.first))
    english = ["The quick brown fox: hepatomegaly, hyperplasia of the liver."]
    for text in ODD + SENTENCES + DOMAIN + english:
        written_out = [old for token in tokens_of(extended, text) for old in pieces.get(token, [token])]
        assert written_out == tokens_of(base, text)
        assert extended.decode(tokens_of(extended, text), clean_up_tokenization_spaces=False) == text
    before, after = (measure_fit(t, DOMAIN).tokens_per_word for t in (base, extended))
    assert after < 0.9 * before


def test_extension_learns_what_byte_pair_training_would(extension: Extension) -> None:
    """The oracle counts all pairs anew for every merge."""
    base = tiny_tokenizer()
    backend, old = base.backend_tokenizer, base.get_vocab()
    written = {number: token for token, number in old.items()}
    words: dict[str, int] = {}
    for text in DOMAIN:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):
            words[word] = words.get(word, 0) + 1
    cuts = {word: [written[t.id] for t in backend.model.tokenize(word)] for word in words}
    known = set(old)
    for merge, token in zip(extension.merges[:25], extension.tokens, strict=False):
        values: dict[tuple[str, str], int] = {}
        for word, cut in cuts.items():
            for pair in itertools.pairwise(cut):
                values[pair] = values.get(pair, 0) + words[word]
        most = max(value for pair, value in values.items() if "".join(pair) not in known)
        assert values[merge] == most
        assert "".join(merge) == token
        known.add(token)
        for word, cut in cuts.items():
            joined: list[str] = []
            for piece in cut:
                if joined and (joined[-1], piece) == merge:
                    joined[-1] = token
                else:
                    joined.append(piece)
            cuts[word] = joined


def test_what_a_corpus_weighs_does_not_depend_on_its_size() -> None:
    domain, general = ["hepatomegalia " * 3] * 10, ["ventanilla " * 3] * 500
    learned = [
        learn_extension(tiny_tokenizer(), {"d": domain, "g": general}, {"d": d, "g": 1 - d}, 4).tokens
        for d in (0.95, 0.05)
    ]
    assert all(token.replace("Ġ", "") in "hepatomegalia" for token in learned[0])
    assert all(token.replace("Ġ", "") in "ventanilla" for token in learned[1])


def test_special_tokens_and_the_chat_template_stay(extended: Any) -> None:
    base = tiny_tokenizer()
    assert extended.chat_template == base.chat_template
    assert extended.all_special_ids == base.all_special_ids
    assert extended("<|im_end|>").input_ids == base("<|im_end|>").input_ids


def test_other_tokenizers_and_too_little_text_are_refused() -> None:
    with pytest.raises(ModelError, match="the base's tokenizer is Unigram over ByteLevel"):
        learn_extension(train_byte_level_unigram(SENTENCES * 4, 400), {"a": DOMAIN}, {"a": 1.0}, 5)
    with pytest.raises(DataError, match="give only 0 new tokens that occur 10 times, 5 were asked for"):
        learn_extension(tiny_tokenizer(), {"a": SENTENCES[:1]}, {"a": 1.0}, 5)


@pytest.mark.parametrize("shape", ["tied llama", "untied llama", "gpt2", "roberta"])
def test_new_rows_are_the_mean_of_their_pieces_and_are_saved(shape: str, extension: Extension, tmp_path: Path) -> None:
    if shape == "roberta":
        model: Any = create(shape_config("roberta", "tiny", vocabulary=384, context=64, end=0, pad=1), masked=True)
        torch.nn.init.normal_(model.lm_head.bias)
    else:
        model = tiny_gpt2() if shape == "gpt2" else tiny_llama()
    if shape == "untied llama":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    ids = torch.tensor([[5, 9, 200, 383]])
    before = model.eval()(ids).logits.detach()
    extend_embeddings(model, extension.first, extension.pieces)
    model.save_pretrained(tmp_path)
    factory = AutoModelForMaskedLM if shape == "roberta" else AutoModelForCausalLM
    loaded = factory.from_pretrained(tmp_path)
    for found in (model, loaded):
        logits = found.eval()(ids).logits
        assert logits.shape[-1] == found.config.vocab_size == 384 + len(extension.tokens)
        torch.testing.assert_close(logits[..., :384], before)
        # A head is linear: the logit of a mean row (and bias) is the mean of the logits.
        expected = torch.stack([before[..., pieces].mean(dim=-1) for pieces in extension.pieces], dim=-1)
        torch.testing.assert_close(logits[..., 384:], expected, atol=1e-4, rtol=1e-4)
    rows = loaded.get_input_embeddings().weight
    for number, pieces in enumerate(extension.pieces, extension.first):
        torch.testing.assert_close(rows[number], rows[pieces].mean(dim=0))


def test_rows_that_pad_a_table_are_used_first() -> None:
    model = tiny_llama(vocab_size=500)
    extend_embeddings(model, 384, [[1, 2], [3, 4, 5]])
    assert model.config.vocab_size == 500
    rows = model.get_input_embeddings().weight
    torch.testing.assert_close(rows[385], rows[[3, 4, 5]].mean(dim=0))
