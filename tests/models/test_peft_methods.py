"""Every method of peft that a recipe can name: its start, its training, what is saved, and merging or why not.

Oracles: plain peft on the saved directory, peft's own forward one document at a time, the formulas in float64.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from pydantic import ValidationError
from support import ARCHITECTURES, SENTENCES, random_examples, reference_loss_sum, save_directory, tiny_tokenizer
from trained import TOKENS, logits_of, trained
from transformers import AutoModelForCausalLM, PreTrainedModel

from quilate.data.packing import pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.errors import MachineError, ModelError
from quilate.inference.features import encode
from quilate.inference.generation import Generator
from quilate.inference.likelihood import score_labels
from quilate.models.adapters import AdapterSet
from quilate.models.load import (
    context_length,
    context_of_directory,
    load_causal,
    load_tokenizer,
    new_token_classifier,
    save_model,
    trainable_parameters,
)
from quilate.models.tuning.ia3 import add_ia3
from quilate.models.tuning.lora import LoraConfig, add_lora
from quilate.models.tuning.merge import merge
from quilate.models.tuning.virtual import add_virtual_tokens
from quilate.phases.finetune import FinetuneConfig

Add = Callable[[PreTrainedModel, Path], PreTrainedModel]
LORA = {"rank": 4, "alpha": 8}
METHODS: dict[str, Add] = {
    "gaussian": lambda model, base: add_lora(model, LoraConfig(**LORA, init="gaussian"), base=base),
    "orthogonal": lambda model, base: add_lora(model, LoraConfig(**LORA, init="orthogonal"), base=base),
    "rslora": lambda model, base: add_lora(model, LoraConfig(**LORA, rslora=True), base=base),
    "dora": lambda model, base: add_lora(model, LoraConfig(**LORA, dora=True), base=base),
    "pissa": lambda model, base: add_lora(model, LoraConfig(**LORA, init="pissa"), base=base),
    "pissa-rslora": lambda model, base: add_lora(model, LoraConfig(**LORA, init="pissa", rslora=True), base=base),
    "olora": lambda model, base: add_lora(model, LoraConfig(**LORA, init="olora"), base=base),
    "targets": lambda model, base: add_lora(model, LoraConfig(**LORA, targets=["q_proj", "v_proj"]), base=base),
    "ia3": lambda model, base: add_ia3(model, base=base),
    "prefix": lambda model, base: add_virtual_tokens(model, "prefix", 5, base=base),
    "prompt": lambda model, base: add_virtual_tokens(model, "prompt", 5, base=base),
}
VIRTUAL = ("prefix", "prompt")
ELSEWHERE = [("gpt2", name) for name in ("dora", "pissa", "ia3", "prefix", "prompt")] + [("falcon", "ia3")]
CASES = [*(("llama", name) for name in METHODS), *ELSEWHERE]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: save_directory(ARCHITECTURES[name](), folder / name) for name in ("llama", "gpt2", "falcon")}


def fresh(base: Path, name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return METHODS[name](load_causal(base, dtype=torch.float32), base)


@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_it_starts_at_the_base_learns_and_comes_back(
    bases: dict[str, Path], tmp_path: Path, architecture: str, name: str
) -> None:
    base = bases[architecture]
    plain = logits_of(load_causal(base, dtype=torch.float32))
    model = fresh(base, name)
    if name not in VIRTUAL:
        torch.testing.assert_close(logits_of(model), plain, rtol=0, atol=2e-4)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained(model)
    model.get_base_model().set_attn_implementation("sdpa")
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    learned = after_learned_tokens(model)
    assert not torch.allclose(learned, plain, atol=1e-2)
    save_model(model, load_tokenizer(base), tmp_path / "adapter")
    read = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    )
    torch.testing.assert_close(after_learned_tokens(read), learned, rtol=0, atol=2e-4)
    assert torch.equal(logits_of(load_causal(tmp_path / "adapter", dtype=torch.float32)), logits_of(read))
    if name in VIRTUAL:
        with pytest.raises(ModelError, match="learned tokens cannot be merged"):
            merge(model)
    else:
        torch.testing.assert_close(logits_of(merge(model)), learned, rtol=0, atol=2e-4)


def after_learned_tokens(model: PreTrainedModel) -> torch.Tensor:
    """The logits of the text alone; peft gives those of a learned prompt too."""
    return logits_of(model)[:, -TOKENS.shape[1] :]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", VIRTUAL)
def test_learned_tokens_stand_before_every_document(bases: dict[str, Path], architecture: str, name: str) -> None:
    """Documents of several lengths at once, against peft one at a time: loss, and gradient of what is learned."""
    examples = random_examples([9, 4, 7, 7])
    for example in examples:
        example.supervised[0] = False  # behind a learned prompt peft would predict it
    model = fresh(bases[architecture], name)
    learned = model.prompt_encoder["default"].embedding.weight
    reference_loss_sum(model, examples).backward()
    expected, learned.grad = learned.grad.clone(), None
    loss = LanguageModellingLoss(model)(pack(examples))
    loss.backward()
    assert float(loss) == pytest.approx(float(reference_loss_sum(model, examples)), rel=1e-5)
    torch.testing.assert_close(learned.grad, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", VIRTUAL)
def test_labels_are_scored_after_the_learned_tokens(bases: dict[str, Path], name: str) -> None:
    """Against peft's own forward, a prompt and a label at a time; with and without words that all prompts share."""
    tokenizer, model = tiny_tokenizer(), fresh(bases["llama"], name)
    labels = ["piel", "digestivo"]
    for opening in ("", "Aviso: "):
        prompts = [f"{opening}{sentence}" for sentence in (*SENTENCES[:3], "ñ")]
        ours = score_labels(model, tokenizer, prompts, labels, normalization="sum").scores
        for row, prompt in zip(ours, prompts, strict=True):
            for score, label in zip(row, labels, strict=True):
                head, whole = (tokenizer(text).input_ids for text in (prompt, f"{prompt} {label}"))
                logits = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0, -len(whole) :].double()
                log_probs = logits.log_softmax(-1)[range(len(head) - 1, len(whole) - 1), whole[len(head) :]]
                assert score == pytest.approx(float(log_probs.sum()), abs=1e-4)


def test_learned_tokens_take_room_and_are_never_left_out(bases: dict[str, Path], tmp_path: Path) -> None:
    model = fresh(bases["llama"], "prompt")
    save_model(model, load_tokenizer(bases["llama"]), tmp_path / "adapter")
    assert context_length(model) == context_of_directory(tmp_path / "adapter") == 256 - 5
    assert trainable_parameters(model) == 5 * 32
    assert trainable_parameters(fresh(bases["llama"], "prefix")) == 5 * 2 * 2 * 16
    with pytest.raises(ModelError, match="learned tokens"):
        Generator(model)
    vectors = encode(model, load_tokenizer(bases["llama"]), ["Le pica."], pooling="last", max_tokens=64).vectors
    bare = load_causal(bases["llama"], dtype=torch.float32)
    plain = logits_of(bare)
    assert not np.allclose(vectors, encode(bare, load_tokenizer(bases["llama"]), ["Le pica."], pooling="last",
                                           max_tokens=64).vectors, atol=1e-3)  # fmt: skip
    with AdapterSet.load({"a": tmp_path / "adapter"}, dtype=torch.float32).using(None) as without:
        assert torch.equal(logits_of(without), plain)


def test_learned_tokens_start_as_words(bases: dict[str, Path]) -> None:
    model = fresh(bases["llama"], "prompt")
    words = model.get_base_model().get_input_embeddings().weight
    start = model.prompt_encoder["default"].embedding.weight
    assert all(any(torch.equal(vector, word) for word in words) for vector in start)
    torch.manual_seed(0)
    drawn = torch.randint(0, 384, (1, 5))
    bare = load_causal(bases["llama"], dtype=torch.float32)
    with torch.no_grad():  # a prefix of words' keys and values is those words
        said = bare(input_ids=torch.cat([drawn, torch.tensor([[7, 8]])], dim=1)).logits[0, 5:]
        after = fresh(bases["llama"], "prefix")(input_ids=torch.tensor([[7, 8]])).logits[0]
    torch.testing.assert_close(after, said, rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match="numbers a token in its cache"):
        fresh(bases["falcon"], "prefix")


def layer_of(model: PreTrainedModel) -> torch.nn.Module:
    return model.get_base_model().model.layers[1].mlp.up_proj


def test_rslora_divides_by_the_root_of_the_rank(bases: dict[str, Path]) -> None:
    layer = layer_of(fresh(bases["llama"], "rslora"))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        x = torch.randn(3, 32)
        update = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 8 / 4**0.5 * update)


def test_dora_learns_magnitude_and_direction_apart(bases: dict[str, Path]) -> None:
    """Liu et al. 2024, equation 5, in float64: m (W + s B A) / its columns' norms."""
    layer = layer_of(fresh(bases["llama"], "dora"))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        layer.lora_magnitude_vector["default"].weight.mul_(1.5)
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        magnitude = layer.lora_magnitude_vector["default"].weight.double()
        moved = layer.base_layer.weight.double() + 2 * b @ a
        weight = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
        x = torch.randn(3, 32)
        torch.testing.assert_close(layer(x).double(), x.double() @ weight.T, rtol=1e-4, atol=1e-4)


def test_pissa_is_the_best_approximation_of_the_weight(bases: dict[str, Path]) -> None:
    """Eckart and Young: what it takes out is the four largest singular triples, by numpy in float64."""
    original = layer_of_base(bases["llama"])
    left, values, right = np.linalg.svd(original.double().numpy(), full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    layer = layer_of(fresh(bases["llama"], "pissa"))
    taken = (2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    np.testing.assert_allclose(taken.numpy(), best, atol=1e-4)
    torch.testing.assert_close(layer.base_layer.weight + taken, original, rtol=0, atol=1e-5)


def layer_of_base(base: Path) -> torch.Tensor:
    return load_causal(base, dtype=torch.float32).model.layers[1].mlp.up_proj.weight.detach()


def test_what_pissa_saves_is_what_peft_converts(bases: dict[str, Path], tmp_path: Path) -> None:
    model = fresh(bases["llama"], "pissa")
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    trained(model)
    save_model(model, load_tokenizer(bases["llama"]), tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours, theirs = (load_causal(tmp_path / name, dtype=torch.float32) for name in ("ours", "theirs"))
    assert torch.equal(logits_of(ours), logits_of(theirs))
    assert ours.peft_config["default"].r == theirs.peft_config["default"].r == 8
    assert trainable_parameters(model) == sum(p.numel() for p in model.lora_start.values())


def test_a_classifier_survives_what_pissa_saves(bases: dict[str, Path], tmp_path: Path) -> None:
    """peft's own conversion drops the weights beside the adapter's."""
    tags = ["O", "B-MOR", "I-MOR"]
    model = new_token_classifier(bases["llama"], tags, dtype=torch.float32)
    adapted = add_lora(model, LoraConfig(**LORA, init="pissa"), base=bases["llama"])
    with torch.no_grad():
        adapted.get_base_model().score.modules_to_save["default"].weight.fill_(0.5)
    save_model(adapted, load_tokenizer(bases["llama"]), tmp_path / "adapter")
    from quilate.models.load import load_token_classifier

    read = load_token_classifier(tmp_path / "adapter", dtype=torch.float32)
    assert (read.get_base_model().score.modules_to_save["default"].weight == 0.5).all()
    torch.testing.assert_close(logits_of(read), logits_of(adapted), rtol=0, atol=2e-4)


def test_an_adapter_on_a_tied_weight_is_not_merged(bases: dict[str, Path]) -> None:
    """Merged, it would change the embeddings too: peft does it without a word."""
    model = peft.get_peft_model(
        load_causal(bases["llama"], dtype=torch.float32), peft.LoraConfig(target_modules=["q_proj", "lm_head"])
    )
    with pytest.raises(ModelError, match=r"lm_head.weight cannot be merged: that weight is also .*embed_tokens"):
        merge(model)


def test_settings_that_contradict_each_other(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no sum of the base"):
        LoraConfig(dora=True, init="pissa")
    with pytest.raises(ValidationError, match="even rank, not 3"):
        LoraConfig(rank=3, init="orthogonal")
    with pytest.raises(ModelError, match=r"16 singular vectors; `init: pissa` asks for 20"):
        add_lora(load_causal(bases["llama"], dtype=torch.float32), LoraConfig(rank=20, init="pissa"), base=tmp_path)
    with pytest.raises(ModelError, match="transposed weights"):
        fresh(bases["gpt2"], "olora")


def test_a_quantized_base_is_refused_where_it_cannot_be_held(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quilate.models.quantized.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="needs the package bitsandbytes, which is not installed"):
        load_causal(bases["llama"], dtype=torch.float32, quantize="nf4")
    for keys, reason in (({"method": "full"}, "cannot be trained"), ({"lora": {"init": "pissa"}}, "changes the base")):
        with pytest.raises(ValidationError, match=reason):
            FinetuneConfig.model_validate({"kind": "finetune", "method": "lora", "quantize": "nf4"} | keys)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_comes_back_onto_its_quantized_base(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model = load_causal(bases["llama"], dtype=torch.float32, quantize=kind)
    plain = logits_of(load_causal(bases["llama"], dtype=torch.float32))
    held = logits_of(model)
    assert not torch.equal(held, plain)
    torch.testing.assert_close(held, plain, rtol=0, atol=2.0)
    adapted = add_lora(model, LoraConfig(rank=4), base=bases["llama"])
    torch.testing.assert_close(logits_of(adapted), held)
    trained(adapted)
    adapted.get_base_model().set_attn_implementation("sdpa")
    assert not torch.allclose(logits_of(adapted), held, atol=1e-2)
    save_model(adapted, load_tokenizer(bases["llama"]), tmp_path / "adapter")
    torch.testing.assert_close(
        logits_of(load_causal(tmp_path / "adapter", dtype=torch.float32)), logits_of(adapted), rtol=0, atol=1e-4
    )
    with pytest.raises(ModelError, match="rounded to so few values"):
        merge(adapted)


def test_targets_are_the_layers_named_and_no_others(bases: dict[str, Path]) -> None:
    model = fresh(bases["llama"], "targets")
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(ModelError, match="no linear layer 'c_attn'") as caught:
        base = load_causal(bases["llama"], dtype=torch.float32)
        add_lora(base, LoraConfig(targets=["q_proj", "c_attn"]), base=bases["llama"])
    assert "down_proj" in (caught.value.hint or "") and "lm_head" not in (caught.value.hint or "")
    gpt2 = load_causal(bases["gpt2"], dtype=torch.float32)
    assert trainable_parameters(add_lora(gpt2, LoraConfig(targets=["c_attn"]), base=bases["gpt2"])) > 0
