"""Entities as records: written, parsed, found again, and never anything else under the grammar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import CONTEXT, tiny_llama, tiny_tokenizer

from quilate.config import validate
from quilate.errors import DataError
from quilate.inference.generation import Generator
from quilate.inference.records import RecordPrompts, RecordTagger
from quilate.inference.sampling import Sampling
from quilate.inference.scorer import load_scorer
from quilate.phases.examples import record_examples
from quilate.tasks.extraction import ExtractionConfig, ExtractionTask, Span
from quilate.tasks.prepare import prepare
from quilate.tasks.records import Record, locate, parse_records, record_grammar, written
from quilate.tasks.templates import PromptTemplate
from quilate.tokenization.segments import prompt_tokens

TEXT = 'El "29" de febrero,\nÍñigo Peña\tavisó: Peña\\Peñalba. ¿Peña?'
LABELS = ["LUGAR", 'PER"SONA']
TEMPLATE = "Texto: {{ text }}\nEntidades:"


def at(word: str, label: str, *, nth: int = 0, text: str = TEXT) -> Span:
    start = -1
    for _ in range(nth + 1):
        start = text.index(word, start + 1)
    return Span(start, start + len(word), label)


SPANS = [at("29", "LUGAR"), at("Íñigo Peña", 'PER"SONA'), at("Peña", "LUGAR"), at("Peña\\Peñalba", "LUGAR"),
         at("Peña?", "LUGAR")]  # fmt: skip


def test_written_by_hand_and_found_again() -> None:
    answer = written(TEXT, SPANS)
    assert json.loads(answer)[1] == {"label": 'PER"SONA', "text": "Íñigo Peña"}
    parsed = parse_records(answer)
    assert (parsed.cut, parsed.valid) == (False, True)
    assert locate(parsed.records, TEXT) == (sorted(SPANS), 0)


def test_a_record_is_found_as_whole_words_once_a_label_and_anywhere_if_not_in_order() -> None:
    text = "Ana ve a Banana; Ana y Ana."
    ana = Record("PER", "Ana")
    found, lost = locate([ana, ana, ana, ana, Record("LUG", "Ana"), Record("PER", "nan"), Record("PER", " ")], text)
    assert [span.start for span in found] == [0, 17, 23, 23] and found[-1].label == "LUG"
    assert lost == 3  # a fourth Ana, a part of a word, and nothing
    assert locate([Record("X", "Banana"), ana], text)[0][1].start == 17
    assert locate([Record("X", "y"), Record("X", "Banana")], text)[0][1].start == 9


@pytest.mark.parametrize(
    ("answer", "records", "cut", "valid"),
    [
        ("[]", 0, False, True),
        ('[{"label": "L", "text": "a}b"}, {"label": "L", "te', 1, True, True),
        ('[{"label": "L", "te', 0, True, True),
        ("", 0, True, True),
        ('[{"label": "L", "text": "a}', 0, True, True),
        ('[{"label": "L", "text": "a}"}, {"label": "L", "text": "b}', 1, True, True),
        ('[{"lugar": "a"}]', 0, False, False),
        ('{"label": "L", "text": "a"}', 0, False, False),
        ('[{"lugar": "a"}, {"l', 0, True, False),
        ("no hay nada}", 0, True, False),
    ],
)
def test_what_was_cut_keeps_its_whole_records(answer: str, records: int, cut: bool, valid: bool) -> None:
    parsed = parse_records(answer)
    assert (len(parsed.records), parsed.cut, parsed.valid) == (records, cut, valid)


@pytest.mark.slow
def test_a_thousand_random_answers_are_all_records_of_the_document() -> None:
    """A random model, sampled at a high temperature, so that whatever the grammar allows is written sooner or later."""
    pytest.importorskip("llguidance", reason="llguidance is not installed (the extra `grammar` has it)")
    from quilate.inference.grammar import GrammarConstraint, GrammarTokens

    tokenizer, model = tiny_tokenizer(), tiny_llama()
    tokens = GrammarTokens(tokenizer, model.config.vocab_size)
    prompt = prompt_tokens(tokenizer, ["Entidades:"])[0]
    generator = Generator(model, stop={tokenizer.eos_token_id})
    number, grammar = 1000, record_grammar(LABELS, TEXT)
    found = generator.generate(
        [prompt] * number, max_new_tokens=45, sampling=Sampling(temperature=3.0), seed=1,
        constraints=[GrammarConstraint(tokens, grammar) for _ in range(number)],
    )  # fmt: skip
    parsed = [parse_records(tokenizer.decode(answer, skip_special_tokens=True).strip()) for answer in found]
    assert all(answer.valid for answer in parsed)
    ended = [answer for answer, said in zip(parsed, found, strict=True) if said[-1] == tokenizer.eos_token_id]
    assert ended and not any(answer.cut for answer in ended)
    records = [record for answer in parsed for record in answer.records]
    assert len(records) > 20 and {record.label for record in records} == set(LABELS)
    assert all(record.text in TEXT for record in records)
    assert len({record.text for record in records}) > 10


def small_task(**keys: Any) -> ExtractionTask:
    rows = []
    for n in range(16):
        name, town = ["Íñigo Peña", "Lucía Núñez"][n % 2], ["León", "A Coruña", "Cádiz"][n % 3]
        text = f"Nota {n}: {name} va a {town}."
        spans = [at(name, "PER", text=text), at(town, "LUG", text=text)]
        rows.append({"t": text, "e": [{"start": s.start, "end": s.end, "label": s.label} for s in spans]})
    value = {"kind": "extraction", "name": "t", "text": "t", "spans": "e",
             "split": {"train": 10, "dev": 2, "test": 4}, **keys}  # fmt: skip
    task = prepare(validate(ExtractionConfig, value, source="t"), {"all": rows}, {"all": {}})
    assert isinstance(task, ExtractionTask)
    return task


def test_examples_are_prompt_records_and_end() -> None:
    task, tokenizer = small_task(), tiny_tokenizer()
    made = record_examples(task, tokenizer, max_item_tokens=100, max_new_tokens=120, context=CONTEXT)
    assert not any(made.counts.values())
    for document, example in zip(task.train, made.examples, strict=True):
        prompt = f"Texto: {document.text}\nEntidades:"
        answer = f" {written(document.text, document.spans)}"
        tokens = [*tokenizer(prompt).input_ids, *tokenizer(answer).input_ids, tokenizer.eos_token_id]
        assert example.tokens.tolist() == tokens
        assert example.supervised.sum() == len(tokens) - len(tokenizer(prompt).input_ids)
    short = record_examples(task, tokenizer, max_item_tokens=100, max_new_tokens=20, context=CONTEXT)
    assert (len(short.examples), short.counts["windows with too long an answer"]) == (0, 10)


def test_the_parts_of_a_long_document_own_every_place_once() -> None:
    tokenizer = tiny_tokenizer()
    text = " ".join(f"Nota {n}, año {n}." for n in range(60))
    prompts = RecordPrompts(tokenizer, PromptTemplate(TEMPLATE), (), size=64, max_new_tokens=40, context=CONTEXT)
    parts = prompts.parts(text)
    assert len(parts) > 3
    assert [part.own_start for part in parts[1:]] == [part.own_stop for part in parts[:-1]]
    assert (parts[0].own_start, parts[-1].own_stop) == (0, len(text))
    for part in parts:
        assert text[part.start :].startswith(part.text)
        assert len(prompt_tokens(tokenizer, [prompts.prompt(part)])[0]) + 40 < CONTEXT
    owners = [sum(part.owns(Span(place, place + 1, "X")) for part in parts) for place in range(len(text))]
    assert set(np.array(owners)[[not character.isspace() for character in text]]) == {1}
    with pytest.raises(DataError, match="leave no room for a document"):
        RecordPrompts(tokenizer, PromptTemplate(TEMPLATE), (), size=64, max_new_tokens=CONTEXT, context=CONTEXT)


def test_an_untrained_model_finds_nothing_that_is_not_there_and_a_saved_one_the_same(
    tmp_path: Path, llama_directory: Path
) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (the extra `grammar` has it)")
    torch.manual_seed(0)
    tagger = RecordTagger(
        llama_directory, ["LUG", "PER"], template=TEMPLATE, instruction="Di las entidades.",
        demonstrations=[("Ana va a León.", '[{"label": "PER", "text": "Ana"}]')], max_item_tokens=60,
        max_new_tokens=40, precision="fp32",
    )  # fmt: skip
    texts = ["", "Íñigo va a A Coruña.", " ".join(["Nota de Lucía."] * 25)]
    found = tagger.find(texts)
    assert found.windowed == 1 and found.counts["answers that are no records"] == 0
    assert found.spans[0] == ()
    for text, spans in zip(texts, found.spans, strict=True):
        assert all(0 <= span.start < span.end <= len(text) for span in spans)
    tagger.save(tmp_path / "scorer")
    assert load_scorer(tmp_path / "scorer").find(texts) == found
