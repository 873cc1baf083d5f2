"""A reward model is a plain classifier of transformers, with equal scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import ARCHITECTURES, random_examples, save_directory, tiny_llama, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from quilate.data.packing import PackedBatch, pack
from quilate.errors import ModelError
from quilate.models.reward import RewardModel, load_reward_model

END = 0  # the tiny tokenizer's only special tokens are the end and the template's marks


def row() -> PackedBatch:
    return pack(random_examples([9, 7, 7, 3, 1]))


@torch.no_grad()
def rewards(model: RewardModel, batch: PackedBatch) -> torch.Tensor:
    return model(batch.input_ids, batch.position_ids, batch.lengths)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_scores_the_saved_model_equally(architecture: str, tmp_path: Path) -> None:
    model = RewardModel.on(ARCHITECTURES[architecture](), torch.Generator().manual_seed(0))
    model.bias = -0.5
    ours = rewards(model, row())
    assert ours.std() > 0.1
    model.save(tiny_tokenizer(), tmp_path, end=END)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert plain.config.num_labels == 1
    documents = row().input_ids[0].split(list(row().lengths))
    with torch.no_grad():
        theirs = torch.stack([plain(input_ids=document[None]).logits[0, 0] for document in documents])
    torch.testing.assert_close(ours, theirs + plain.config.reward_bias, rtol=0, atol=1e-5)
    torch.testing.assert_close(rewards(load_reward_model(tmp_path, dtype=torch.float32), row()), ours)


def test_padded_batches_in_transformers_read_the_score_at_the_end_token(tmp_path: Path) -> None:
    """Were padding the end token, transformers would read it one token too early."""
    model = RewardModel.on(tiny_llama(), torch.Generator().manual_seed(0))
    model.save(tiny_tokenizer(), tmp_path, end=END)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert tokenizer.pad_token_id == plain.config.pad_token_id != END
    texts = [[5, 6, 7, END], [8, END]]
    padded = torch.tensor([texts[0], [*texts[1], tokenizer.pad_token_id, tokenizer.pad_token_id]])
    with torch.no_grad():
        together = plain(input_ids=padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits[:, 0]
        alone = torch.stack([plain(input_ids=torch.tensor([text])).logits[0, 0] for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_saved_model_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    """The row that a new padding token adds is not drawn at random."""
    for name in ("one", "two"):
        model = RewardModel.on(tiny_llama(), torch.Generator().manual_seed(0))
        torch.rand(17)
        model.save(tiny_tokenizer(), tmp_path / name, end=END)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_an_unused_output_head_is_not_trained_and_a_tied_one_is_the_embedding() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    untied = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20, tie_word_embeddings=False))
    RewardModel.on(untied, torch.Generator().manual_seed(0))
    assert not untied.lm_head.weight.requires_grad and untied.transformer.wte.weight.requires_grad
    tied = tiny_llama()
    RewardModel.on(tied, torch.Generator().manual_seed(0))
    assert tied.lm_head.weight.requires_grad


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lacks 1 of its weights: score"):
        load_reward_model(save_directory(tiny_llama(), tmp_path), dtype=torch.float32)
