"""Prompts and answers as tokens: the same in training and in scoring, whatever stands in the text."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SENTENCES, tiny_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from quilate.tokenization.segments import (
    KEPT_END,
    answer_tokens,
    common_prefix_length,
    opening_tokens,
    prompt_tokens,
    shorten,
)

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=8)


def with_template(single: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


@given(st.lists(tokens, min_size=1, max_size=6))
def test_common_prefix_length_is_the_naive_one(sequences: list[list[int]]) -> None:
    agreeing = takewhile(lambda column: len(set(column)) == 1, zip(*(s[:-1] for s in sequences), strict=False))
    assert common_prefix_length(sequences) == len(list(agreeing))


@given(tokens, st.lists(tokens, min_size=1, max_size=4))
def test_a_shared_beginning_is_found(start: list[int], endings: list[list[int]]) -> None:
    assert common_prefix_length([start + ending for ending in endings]) >= len(start)


def test_no_sequences_share_nothing() -> None:
    assert common_prefix_length([]) == 0
    assert common_prefix_length([[], [1]]) == 0


@given(st.lists(st.integers(), max_size=200), st.integers(1, 150))
def test_shorten_keeps_beginning_and_end(sequence: list[int], limit: int) -> None:
    kept, was_cut = shorten(sequence, limit)
    assert was_cut == (len(sequence) > limit)
    assert len(kept) == min(len(sequence), limit)
    end = min(KEPT_END, limit // 2) if was_cut else 0
    assert kept[: len(kept) - end] == sequence[: len(kept) - end]
    assert kept[len(kept) - end :] == sequence[len(sequence) - end :]


def test_shorten_without_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="no room"):
        shorten([1, 2], 0)


def test_prompt_and_answer_are_the_tokens_of_the_whole_text() -> None:
    tokenizer = tiny_tokenizer()
    for sentence in SENTENCES:
        prompt, answer = f"Diagnóstico: {sentence}\nCapítulo:", "señal ósea"
        (first,), (second,) = prompt_tokens(tokenizer, [prompt]), answer_tokens(tokenizer, [answer])
        assert first + second == tokenizer(f"{prompt} {answer}").input_ids
        assert tokenizer.decode(first) == prompt


@pytest.mark.parametrize("single", ["$A", "<|im_start|> $A"])
def test_the_tokenizers_opening_comes_once_before_the_prompt_and_never_before_the_answer(single: str) -> None:
    tokenizer = with_template(single)
    assert opening_tokens(tokenizer) == ([] if single == "$A" else [1])
    assert prompt_tokens(tokenizer, ["Año: ñ"]) == [tokenizer("Año: ñ").input_ids]
    assert answer_tokens(tokenizer, ["sí"]) == [tokenizer(" sí", add_special_tokens=False).input_ids]


def test_a_tokenizer_that_also_closes_keeps_its_opening() -> None:
    """A closing token (T5-like) belongs after the answer, if anywhere; the opening is still needed."""
    tokenizer = with_template("<|im_start|> $A <|im_end|>")
    assert opening_tokens(tokenizer) == [1]
    assert opening_tokens(with_template("$A <|im_end|>")) == []


@pytest.mark.parametrize("word", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
def test_special_tokens_in_a_users_text_stay_ordinary_text(word: str) -> None:
    tokenizer = tiny_tokenizer()
    special = tokenizer.convert_tokens_to_ids(word)
    (prompt,), (answer,) = prompt_tokens(tokenizer, [f"El texto {word} sigue"]), answer_tokens(tokenizer, [word])
    assert special not in prompt + answer
    assert tokenizer.decode(prompt) == f"El texto {word} sigue"


def test_no_texts_no_tokens() -> None:
    assert prompt_tokens(tiny_tokenizer(), []) == []
    assert prompt_tokens(tiny_tokenizer(), [""]) == [[]]


@pytest.mark.smollm2
def test_smollm2_continues_its_own_tokens(smollm2) -> None:  # type: ignore[no-untyped-def]
    from quilate.models.load import load_tokenizer

    tokenizer = load_tokenizer(smollm2)
    for sentence in SENTENCES:
        (prompt,), (answer,) = prompt_tokens(tokenizer, [sentence]), answer_tokens(tokenizer, ["infección"])
        assert prompt + answer == tokenizer(f"{sentence} infección").input_ids
    assert opening_tokens(tokenizer) == []
    assert tokenizer.eos_token_id not in prompt_tokens(tokenizer, [f"uno {tokenizer.eos_token} dos"])[0]
