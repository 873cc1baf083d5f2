"""What other trainers lose without a word: the end of sequence, resized embeddings, a classifier.

Their siblings are elsewhere: an adapter merged into tied embeddings (test_peft_methods), LoRA handed from stage to
stage (phases/test_finetune), ragged accumulation (equivalence/test_losses), truncation that leaves nothing to learn and
templates that cannot mark an answer (phases/test_sft, tokenization/test_chat_templates).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ARCHITECTURES, reference_loss_sum, save_directory, tiny_llama, tiny_tokenizer
from trained import logits_of, trained
from transformers import AutoModelForCausalLM

from quilate.data.packing import Example, pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.errors import ModelError
from quilate.models.load import load_causal, load_token_classifier, load_tokenizer, new_token_classifier, save_model
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.phases.examples import label_examples
from quilate.tasks.classification import ClassificationConfig, ClassificationTask
from quilate.tasks.labels import Item


@pytest.mark.parametrize("architecture", ["llama", "falcon"])
def test_the_end_is_learned_though_it_is_also_the_padding(architecture: str) -> None:
    """Padding is left out by where it stands, not by which token it is: packed (Llama) and padded (Falcon)."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    items = [
        Item(str(n), text, label, str(n)) for n, (text, label) in enumerate([("Le pica.", "piel"), ("ñ", "hueso")])
    ]
    config = ClassificationConfig(name="t", text="texto", label="etiqueta", kind="classification")
    task = ClassificationTask(config, ["hueso", "piel"], items, [], [], {"splits": {}})
    examples = label_examples(task, tokenizer, max_item_tokens=64, context=256).examples
    assert all(e.tokens[-1] == tokenizer.pad_token_id and e.supervised[-1] for e in examples)
    model = ARCHITECTURES[architecture]()
    without = [Example(e.id, e.tokens, e.supervised & (e.tokens != tokenizer.pad_token_id)) for e in examples]
    with torch.no_grad():
        whole, masked = (float(reference_loss_sum(model, given)) for given in (examples, without))
        loss = float(LanguageModellingLoss(model)(pack(examples)))
    assert loss == pytest.approx(whole, rel=1e-5)
    assert loss > masked + 1


def test_resized_embeddings_are_saved_or_refused(tmp_path: Path) -> None:
    base = save_directory(tiny_llama(), tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<|señal|>"])
    model = load_causal(base, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    save_model(trained(model), tokenizer, tmp_path / "full")
    model.set_attn_implementation("sdpa")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32)
    assert plain.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert torch.equal(logits_of(plain), logits_of(model))
    resized = load_causal(base, dtype=torch.float32)
    resized.resize_token_embeddings(len(tokenizer))
    with pytest.raises(ModelError, match=r"385 rows and those of .*base have 384"):
        save_model(add_lora(resized, LoraConfig(rank=2), base=base), tokenizer, tmp_path / "adapter")
    adapted = add_lora(load_causal(tmp_path / "full", dtype=torch.float32), LoraConfig(rank=2), base=tmp_path / "full")
    save_model(adapted, tokenizer, tmp_path / "adapter")  # on the resized base as it was saved
    assert torch.equal(logits_of(load_causal(tmp_path / "adapter", dtype=torch.float32)), logits_of(adapted))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_saved_classifier_is_there_or_missed(tmp_path: Path, method: str) -> None:
    base = save_directory(tiny_llama(), tmp_path / "base")
    model = new_token_classifier(base, ["O", "B-PER"], dtype=torch.float32)
    if method == "lora":
        model = add_lora(model, LoraConfig(rank=2), base=base)
    save_model(model, load_tokenizer(base), tmp_path / "tagger")
    assert torch.equal(logits_of(load_token_classifier(tmp_path / "tagger", dtype=torch.float32)), logits_of(model))
    weights = tmp_path / "tagger" / ("adapter_model.safetensors" if method == "lora" else "model.safetensors")
    whole = load_file(weights)
    for lost, said in (("score.weight", "lacks|cannot be loaded"), ("layers.1", "lacks")):
        save_file({k: v for k, v in whole.items() if lost not in k}, weights, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=said):
            load_token_classifier(tmp_path / "tagger", dtype=torch.float32)
