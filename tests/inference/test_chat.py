"""Conversation: the model's own template, the same tokens as plain generation, and an end to every answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support import CONTEXT

from quilate.errors import ModelError
from quilate.inference.chat import ChatSession


def test_the_prompt_is_what_transformers_renders(llama_directory: Path) -> None:
    conversation = ChatSession(llama_directory, system="Eres médico; responde en español.")
    conversation.messages += [
        {"role": "user", "content": "¿Qué es la cefalea?"},
        {"role": "assistant", "content": "Ña."},
    ]
    expected = conversation.tokenizer.apply_chat_template(
        conversation.messages, tokenize=False, add_generation_prompt=True
    )
    assert conversation.prompt() == expected
    assert "<|im_start|>system\nEres médico" in expected


def test_a_greedy_answer_is_plain_generation(llama_directory: Path) -> None:
    conversation = ChatSession(llama_directory)
    said = "".join(conversation.answer("Hola, señor", max_new_tokens=12, temperature=0))
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"]
    asked = ChatSession(llama_directory)
    asked.messages.append({"role": "user", "content": "Hola, señor"})
    ids = asked.tokenizer(asked.prompt(), return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        for _ in range(12):
            following = asked.model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            if int(following) in asked.stop_tokens():
                break
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
    start = len(asked.tokenizer(asked.prompt(), add_special_tokens=False).input_ids)
    assert said == asked.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_closing_an_answer_early_keeps_what_was_said(llama_directory: Path) -> None:
    conversation = ChatSession(llama_directory)
    answer = conversation.answer("hola", max_new_tokens=60, temperature=0)
    first = next(answer)
    answer.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": first.strip()}


def test_a_full_context_says_so_and_forgets_the_question(llama_directory: Path) -> None:
    conversation = ChatSession(llama_directory)
    with pytest.raises(ModelError, match="fills the model's context"):
        list(conversation.answer("ñ" * CONTEXT))
    assert conversation.messages == []


def test_a_model_without_a_template_is_refused(tmp_path: Path, llama_directory: Path) -> None:
    base = Path(shutil.copytree(llama_directory, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        ChatSession(base)
