"""What we save, plain transformers and plain peft load, with equal logits; what adapters promise at their start and
end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from support import ARCHITECTURES, SENTENCES, gradients_of, random_examples, save_directory, tiny_tokenizer
from trained import TOKENS, logits_of, trained
from transformers import AutoModelForCausalLM, AutoTokenizer

from quilate.data.packing import pack
from quilate.engine.language_modelling import LanguageModellingLoss
from quilate.models.heads import divide
from quilate.models.load import context_length, load_causal, load_tokenizer, save_model, trainable_parameters
from quilate.models.tuning.lora import LoraConfig, add_lora


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_model_loads_in_plain_transformers(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    base = save_directory(ARCHITECTURES[architecture](), tmp_path / "base")
    before = logits_of(load_causal(base, dtype=dtype))
    model = trained(load_causal(base, dtype=dtype))
    save_model(model, load_tokenizer(base), tmp_path / "ours")
    ours = logits_of(load_causal(tmp_path / "ours", dtype=dtype))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype).eval()
    assert torch.equal(logits_of(plain), ours)
    inner = model
    inner.set_attn_implementation("sdpa")
    assert torch.equal(logits_of(inner), ours)
    assert not torch.allclose(before, ours, atol=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer("señal ñ").input_ids == tiny_tokenizer()("señal ñ").input_ids
    assert not list((tmp_path / "ours").glob("*.bin"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
def test_an_adapter_loads_in_plain_peft(tmp_path: Path, architecture: str) -> None:
    base = save_directory(ARCHITECTURES[architecture](), tmp_path / "base")
    model = trained(add_lora(load_causal(base, dtype=torch.float32), LoraConfig(rank=4, alpha=8), base=base))
    save_model(model, load_tokenizer(base), tmp_path / "adapter")
    ours = logits_of(load_causal(tmp_path / "adapter", dtype=torch.float32))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    )
    assert torch.equal(logits_of(plain), ours)
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert torch.equal(logits_of(auto), ours)
    assert not torch.allclose(ours, logits_of(load_causal(base, dtype=torch.float32)), atol=1e-2)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    base = save_directory(ARCHITECTURES[architecture](), tmp_path / "base")
    plain = logits_of(load_causal(base, dtype=dtype))
    adapted = add_lora(load_causal(base, dtype=dtype), LoraConfig(dropout=0.3), base=base)
    assert torch.equal(logits_of(adapted), plain)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
def test_a_merged_adapter_is_the_adapted_model(llama_directory: Path, dtype: torch.dtype, tolerance: float) -> None:
    model = trained(
        add_lora(load_causal(llama_directory, dtype=dtype), LoraConfig(rank=4, alpha=8), base=llama_directory)
    )
    model.get_base_model().set_attn_implementation("sdpa")
    unmerged = logits_of(model)
    torch.testing.assert_close(logits_of(model.merge_and_unload()), unmerged, rtol=0, atol=tolerance)


def test_lora_trains_its_matrices_on_every_linear_layer_and_nothing_else(llama_directory: Path) -> None:
    base = load_causal(llama_directory, dtype=torch.float32)
    frozen = {name: p.clone() for name, p in base.named_parameters()}
    model = add_lora(base, LoraConfig(rank=4, alpha=8), base=llama_directory)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(trainable) == 2 * len(linear) * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable)
    # r (in + out) for each: hidden 32, keys and values 16 wide, MLP 64
    assert trainable_parameters(model) == 2 * 4 * (64 + 48 + 48 + 64 + 96 + 96 + 96)
    trained(model)
    after = {
        name.replace(".base_layer", ""): p
        for name, p in model.get_base_model().named_parameters()
        if ".lora_" not in name
    }
    assert after.keys() == frozen.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_the_adapters_scale_is_alpha_over_rank(llama_directory: Path) -> None:
    model = add_lora(
        load_causal(llama_directory, dtype=torch.float32), LoraConfig(rank=4, alpha=12), base=llama_directory
    )
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        inputs = torch.randn(3, 32)
        update = inputs @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        torch.testing.assert_close(layer(inputs), layer.base_layer(inputs) + 3.0 * update)


def test_dividing_at_the_head_gives_the_models_logits(llama_directory: Path) -> None:
    model = load_causal(llama_directory, dtype=torch.float32)
    divided = divide(model)
    with torch.no_grad():
        assert torch.equal(divided.head(divided.body(input_ids=TOKENS).last_hidden_state), logits_of(model))
    assert model.config._attn_implementation == "sdpa"
    assert not model.training


def test_a_head_that_does_more_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from quilate.errors import ModelError

    config = Gemma2Config(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(ModelError, match="more than one linear map"):
        divide(Gemma2ForCausalLM(config).eval())


def test_an_unknown_attention_switch_is_not_left_behind() -> None:
    """An architecture that cannot take packed attention keeps its own, and answers as before."""
    model = ARCHITECTURES["falcon"]()
    before, attention = logits_of(model), model.config._attn_implementation
    LanguageModellingLoss(model)
    assert model.config._attn_implementation == attention
    assert torch.equal(logits_of(model), before)


def test_gradients_reach_a_tied_embedding_from_both_sides(llama_directory: Path) -> None:
    model = load_causal(llama_directory, dtype=torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    LanguageModellingLoss(model)(pack(random_examples([12]))).backward()
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert gradients_of(model)["model.embed_tokens.weight"].abs().sum() > 0


def test_context_length(llama_directory: Path) -> None:
    assert context_length(load_causal(llama_directory, dtype=torch.float32)) == 256
    assert context_length(ARCHITECTURES["gpt2"]()) == 256


def test_a_copied_adapter_without_its_base_says_what_is_missing(tmp_path: Path, llama_directory: Path) -> None:
    from quilate.errors import ModelError

    base = Path(shutil.copytree(llama_directory, tmp_path / "base"))
    model = add_lora(load_causal(base, dtype=torch.float32), LoraConfig(rank=2), base=base)
    save_model(model, load_tokenizer(base), tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"is an adapter for .*base, which is not there") as caught:
        load_causal(tmp_path / "adapter", dtype=torch.float32)
    assert caught.value.exit_code == 3


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_loss_equals_transformers(smollm2: Path) -> None:
    """Ours packed, transformers' one by one: in fp32 to 1e-5 a token."""
    from support import reference_loss_sum

    from quilate.data.packing import Example

    tokenizer = load_tokenizer(smollm2)
    examples = []
    for number, sentence in enumerate(SENTENCES[:5]):
        tokens = torch.tensor(tokenizer(sentence).input_ids).numpy()
        examples.append(Example(str(number), tokens, tokens >= 0))
    model = load_causal(smollm2, dtype=torch.float32)
    supervised = sum(e.supervised_tokens for e in examples)
    with torch.no_grad():
        expected = float(reference_loss_sum(model, examples)) / supervised
        ours = float(LanguageModellingLoss(model)(pack(examples))) / supervised
    assert ours == pytest.approx(expected, abs=1e-5)
