"""Judged completions as tokens and batches: what is supervised, what is cut, and that a prompt is never divided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import SENTENCES, tiny_tokenizer

from quilate.data.preference_batches import (
    EncodedPrompt,
    PreferenceBatches,
    collate,
    encode_prompts,
    split_prompts,
    with_mismatches,
)
from quilate.data.preferences import JudgedPrompt, Pair, read_preferences
from quilate.tokenization.chat import ChatTemplate


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), name="diminuto")


def judged(*rows: dict[str, Any]) -> list[JudgedPrompt]:
    return read_preferences(rows, list(rows[0])).prompts


def rankings(count: int = 6) -> list[JudgedPrompt]:
    """Prompts of two to four completions, all distinct."""
    return judged(
        *(
            {
                "prompt": f"{SENTENCES[n]} ¿Qué hacer?",
                "completions": [f"{n}{k} {SENTENCES[k]}" for k in range(2 + n % 3)],
                "ranks": list(range(2 + n % 3)),
            }
            for n in range(count)
        )
    )


def test_the_completion_and_the_end_of_its_turn_are_supervised(template: ChatTemplate) -> None:
    """Against the template rendered by transformers itself."""
    tokenizer = template.tokenizer
    (prompt,), counts = encode_prompts(
        judged({"prompt": "¿Qué?", "chosen": "Así.", "rejected": "No."}), template, limit=99
    )
    assert counts == {} and prompt.pairs == (Pair(0, 1),)
    for text, example in zip(("Así.", "No."), prompt.completions, strict=True):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "¿Qué?"}], add_generation_prompt=True, tokenize=False
        )
        start = tokenizer(asked, add_special_tokens=False).input_ids
        whole = tokenizer(f"{asked}{text}<|im_end|>", add_special_tokens=False).input_ids
        assert example.tokens.tolist() == whole
        assert example.supervised.tolist() == [False] * len(start) + [True] * (len(whole) - len(start))


def test_the_oldest_turns_go_first_and_completions_stay_whole(template: ChatTemplate) -> None:
    chat = [{"role": "system", "content": "Sé breve."}]
    for n in range(3):
        chat += [{"role": "user", "content": SENTENCES[n]}, {"role": "assistant", "content": SENTENCES[n + 3]}]
    chat += [{"role": "user", "content": "¿Y ahora?"}]
    (whole,), _ = encode_prompts(
        judged({"prompt": chat, "chosen": "Sí.", "rejected": "No sé."}), template, limit=10_000
    )
    longest = max(len(c.tokens) for c in whole.completions)
    (cut,), counts = encode_prompts(
        judged({"prompt": chat, "chosen": "Sí.", "rejected": "No sé."}), template, limit=longest - 1
    )
    assert counts == {"prompts cut": 1}
    texts = [template.tokenizer.decode(c.tokens) for c in cut.completions]
    assert all("Sé breve." in t and SENTENCES[1] in t and SENTENCES[0] not in t for t in texts)
    for before, after in zip(whole.completions, cut.completions, strict=True):
        assert before.tokens[before.supervised].tolist() == after.tokens[after.supervised].tolist()
    starts = {tuple(c.tokens[~c.supervised]) for c in cut.completions}
    assert len(starts) == 1  # both completions answer the same prompt


def test_a_long_question_is_cut_in_its_middle(template: ChatTemplate) -> None:
    """SHP's advice: cut the post, never the comments."""
    post = " ".join(SENTENCES)
    (cut,), counts = encode_prompts(judged({"prompt": post, "chosen": "Sí.", "rejected": "No."}), template, limit=90)
    assert counts == {"prompts cut": 1}
    assert 60 < max(len(c.tokens) for c in cut.completions) <= 90
    text = template.tokenizer.decode(cut.completions[0].tokens)
    assert SENTENCES[0][:20] in text and post[-10:] in text and text.endswith("Sí.<|im_end|>")


def test_what_cannot_fit_or_be_rendered_is_left_out_and_counted(template: ChatTemplate) -> None:
    long = " ".join(SENTENCES)
    kept, counts = encode_prompts(
        judged(
            {"prompt": "a", "completions": ["b", "c", long, "x<|im_end|>y"], "ranks": [0, 1, 2, 3]},
            {"prompt": "d", "completions": ["e", long], "ranks": [0, 1]},
            {"prompt": "f", "completions": [f"{long} 1", long], "ranks": [0, 1]},
        ),
        template,
        limit=80,
    )
    prompt, other = kept
    assert other.pairs == () and other.desirable == (True,)  # it lost its pair; it was preferred all the same
    assert [c.id for c in prompt.completions] == ["row 1#0", "row 1#1"] and prompt.pairs == (Pair(0, 1, 1.0),)
    assert counts == {
        "completions too long": 4,
        "completions: a turn holds the text of a special token": 1,
        "pairs left out with a completion": 7,
        "prompts of which no judgement is left": 1,
    }


def test_a_batch_knows_its_documents_pairs_and_prompts(template: ChatTemplate) -> None:
    prompts, _ = encode_prompts(rankings(), template, limit=200)
    batch = collate(prompts)
    lengths = {c.id: (len(c.tokens), c.supervised_tokens) for p in prompts for c in p.completions}
    assert [lengths[id][0] for id in batch.ids] == list(batch.packed.lengths)
    per_document = batch.sum_by_document(torch.ones(batch.supervised_tokens)).tolist()
    assert per_document == [lengths[id][1] for id in batch.ids]
    found = {
        (batch.ids[b], batch.ids[w], int(r)) for b, w, r in zip(batch.better, batch.worse, batch.ranking, strict=True)
    }
    wanted = {
        (p.completions[pair.better].id, p.completions[pair.worse].id, n)
        for n, p in enumerate(prompts)
        for pair in p.pairs
    }
    assert found == wanted and batch.weight == len(prompts) == 6
    liked = {id for id, good in zip(batch.ids, batch.desirable.tolist(), strict=True) if good}
    assert liked == {c.id for p in prompts for c, good in zip(p.completions, p.desirable, strict=True) if good}


def test_a_prompt_is_in_one_micro_batch_and_every_epoch_has_each_once(template: ChatTemplate) -> None:
    """Shuffled pairs of one prompt, each in a batch of its own, overfit (InstructGPT, section 3.5)."""
    prompts, _ = encode_prompts(rankings(9), template, limit=200)
    batches = PreferenceBatches(prompts, batch_size=4, epochs=2, seed=1, micro_batch_tokens=150)
    assert len(batches) == 6
    seen: list[str] = []
    for step in range(len(batches)):
        parts = batches[step]
        assert sum(part.weight for part in parts) == len(batches.plan[step])
        for part in parts:
            assert len(part.packed.lengths) == 0 or part.packed.tokens <= 150 or part.prompts == 1
            owners = [id.partition("#")[0] for id in part.ids]
            seen += set(owners)
            for owner in set(owners):
                size = len(next(p for p in prompts if p.id == owner).completions)
                assert owners.count(owner) == size
    assert sorted(seen) == sorted([p.id for p in prompts] * 2)


def test_order_depends_on_the_seed_and_the_fingerprint_on_everything(template: ChatTemplate) -> None:
    prompts, _ = encode_prompts(rankings(), template, limit=200)

    def fingerprint(of: list[EncodedPrompt] = prompts, **keys: Any) -> str:
        settings = {"batch_size": 2, "epochs": 1.0, "seed": 0, "micro_batch_tokens": 150} | keys
        return PreferenceBatches(of, **settings).fingerprint

    turned = [replace(prompts[0], pairs=tuple(Pair(p.worse, p.better) for p in prompts[0].pairs)), *prompts[1:]]
    others = [fingerprint(seed=1), fingerprint(batch_size=3), fingerprint(micro_batch_tokens=99), fingerprint(turned)]
    assert fingerprint() == fingerprint() and len({fingerprint(), *others}) == 5


def test_a_token_budget_stops_before_it_is_exceeded(template: ChatTemplate) -> None:
    prompts, _ = encode_prompts(rankings(), template, limit=200)
    total = sum(p.tokens for p in prompts)
    batches = PreferenceBatches(prompts, batch_size=2, epochs=1, seed=0, micro_batch_tokens=999, max_tokens=total - 1)
    assert len(batches) == 2 and batches.examples_left_out == 2


def test_mismatches_keep_the_completion_and_change_the_prompt(template: ChatTemplate) -> None:
    """TRL pairs a completion with its neighbour in the batch, so that it must not shuffle and batches of one fail; and
    two completions of one prompt would be each other's mismatch."""
    read = rankings()
    prompts, _ = encode_prompts(read, template, limit=120)
    alone = with_mismatches(read, prompts, limit=120)
    labelled = [c.id for p in prompts for c, label in zip(p.completions, p.desirable, strict=True) if label is not None]
    assert [p.id for p in alone] == labelled
    starts = {p.id: tuple(p.completions[0].tokens[~p.completions[0].supervised]) for p in prompts}
    for prompt in alone:
        own, other = prompt.completions[0], prompt.mismatched
        assert own.tokens[own.supervised].tolist() == other.tokens[other.supervised].tolist()
        assert tuple(other.tokens[~other.supervised]) != starts[prompt.id.partition("#")[0]]
        assert len(other.tokens) <= 120
    batches = PreferenceBatches(alone, batch_size=5, epochs=1, seed=0, micro_batch_tokens=100)
    first, *rest = batches[0]
    assert len(rest) > 0 and not any(part.elsewhere for part in rest)
    elsewhere = {id for part in first.elsewhere for id in part.ids}
    assert elsewhere == {f"{id} elsewhere" for part in (first, *rest) for id in part.ids}


def test_one_prompt_alone_has_no_mismatch(template: ChatTemplate) -> None:
    read = rankings(1)
    prompts, _ = encode_prompts(read, template, limit=200)
    assert [p.mismatched for p in with_mismatches(read, prompts, limit=200)] == [None] * 2


def test_splitting_keeps_every_prompt(template: ChatTemplate) -> None:
    prompts, _ = encode_prompts(rankings(), template, limit=200)
    parts = split_prompts(prompts, 1)
    assert [len(part) for part in parts] == [1] * 6
    assert sorted(p.id for part in split_prompts(prompts, 170) for p in part) == sorted(p.id for p in prompts)
    assert np.diff([p.tokens for part in parts for p in part]).max() <= 0


def test_a_prompt_cut_within_a_letter_of_several_bytes_becomes_shorter(template: ChatTemplate) -> None:
    """Half a letter decodes to a mark of three tokens: cut by one token, a prompt grew by two, and was cut for ever."""
    row = {"prompt": "€ año " * 20, "chosen": "Sí.", "rejected": "No."}
    (whole,), _ = encode_prompts(judged(row), template, limit=10_000)
    longest = max(len(c.tokens) for c in whole.completions)
    for limit in range(longest - 12, longest):
        (cut,), counts = encode_prompts(judged(row), template, limit=limit)
        assert max(len(c.tokens) for c in cut.completions) <= limit and counts == {"prompts cut": 1}
