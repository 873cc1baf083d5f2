"""Tiny things that tests are made of: models, a tokenizer, documents. Nothing is fetched; all comes from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from quilate.data.packing import Example

SENTENCES = [
    "La paciente refiere cefalea y náuseas desde hace tres días; niega fiebre.",
    "Se observa una lesión pigmentada en el hombro izquierdo, de bordes irregulares.",
    "El niño ingresó por neumonía adquirida en la comunidad y evolucionó bien.",
    "Fractura cerrada del fémur derecho tras una caída en la montaña.",
    "Antecedentes: hipertensión, diabetes mellitus de tipo 2 y señales de insuficiencia renal.",
    "Acude a urgencias con dolor torácico opresivo que se irradia al brazo.",
    "Cólera debida a Vibrio cholerae; años atrás, otra infección intestinal.",
    "Glaucoma secundario a inflamación ocular, ojo izquierdo.",
    "Trastorno de ansiedad generalizada, en tratamiento con buena respuesta.",
    "Otitis media aguda supurativa sin rotura espontánea del tímpano.",
    "Embarazo de veintiocho semanas; ecografía sin hallazgos. ¡Enhorabuena!",
    "Úlcera péptica aguda con hemorragia y perforación.",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CONTEXT = 256


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 entries, trained on `SENTENCES`; every text of any language has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=CONTEXT
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_llama(seed: int = 0, *, vocab_size: int = 384, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Llama with grouped keys and tied embeddings. The large initialization makes a leak of attention visible."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_gpt2(seed: int = 0, *, vocab_size: int = 384, dropout: float = 0.0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_falcon(seed: int = 0, *, vocab_size: int = 384, alibi: bool = False) -> PreTrainedModel:
    """Falcon-7B's shape: one key head, attention and MLP in parallel. It has no use for the attention registry."""
    torch.manual_seed(seed)
    config = FalconConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=True,
        parallel_attn=True,
        bias=False,
        alibi=alibi,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return FalconForCausalLM(config).eval()


def tiny_roberta() -> RobertaForMaskedLM:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=CONTEXT + 2, type_vocab_size=1, pad_token_id=1, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return RobertaForMaskedLM(config).eval()


ARCHITECTURES = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "falcon": tiny_falcon,
    "falcon-alibi": lambda: tiny_falcon(alibi=True),
}


def save_directory(model: PreTrainedModel, folder: Path) -> Path:
    """A plain Hugging Face directory, as `transformers` itself writes it."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_examples(lengths: Sequence[int], *, seed: int = 0, vocab_size: int = 384) -> list[Example]:
    """Documents of random tokens with ragged masks: each supervises some of its tokens, at least the last."""
    rng = np.random.default_rng(seed)
    examples = []
    for index, length in enumerate(lengths):
        supervised = rng.random(length) < 0.5
        supervised[-1] = True
        examples.append(Example(f"doc-{index}", rng.integers(0, vocab_size, length), supervised))
    return examples


def reference_loss_sum(model: PreTrainedModel, examples: Sequence[Example]) -> torch.Tensor:
    """The loss as `transformers` computes it, one document at a time: labels -100 where a token is no target."""
    total = torch.zeros(())
    for example in examples:
        if not example.supervised_tokens:
            continue
        tokens = torch.from_numpy(example.tokens)[None]
        labels = tokens.masked_fill(~torch.from_numpy(example.supervised)[None], -100)
        total = total + model(input_ids=tokens, labels=labels, use_cache=False).loss * example.supervised_tokens
    return total


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
