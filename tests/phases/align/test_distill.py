"""Context distillation: its loss against transformers alone, and that a student learns what the prompt does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from judged import Folder
from support import SENTENCES
from transformers import AutoModelForCausalLM

from quilate.data.conversations import Conversation
from quilate.data.packing import pack
from quilate.errors import DataError
from quilate.files import write_jsonl
from quilate.models.load import load_causal, load_tokenizer
from quilate.phases.align.distill import DISTILL, DistillationLoss, LessonBatch, lessons, prompted
from quilate.phases.conversations import CONVERSATIONS
from quilate.phases.stage import StageReport, model_of
from quilate.tokenization.chat import ChatTemplate

PROMPT = "Responde siempre con cortesía; añade «gracias»."


def chats(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"Caso {n}: {SENTENCES[n]}"},
                      {"role": "assistant", "content": "Visto." if n % 2 else "Sí, con mucho gusto: visto y anotado."}]}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def folder(folder: Folder) -> Folder:
    """With a set of conversations of which a third is held out."""
    write_jsonl(folder.root / "charlas.jsonl", chats())
    folder.run(CONVERSATIONS, "charlas", {"conversations": {"path": "charlas.jsonl", "held_out": 0.3}}, {})
    return folder


def distilled(folder: Folder, **keys: Any) -> StageReport:
    value = {
        "kind": "distill", "prompt": PROMPT, "conversations": ["charlas"], "precision": "fp32", "batch_size": 4,
        "epochs": 6, "micro_batch_tokens": 200,
    } | keys  # fmt: skip
    inputs = {"conversations:charlas": folder.root / "charlas", "model": folder.root / "base"}
    return folder.run(DISTILL, "destilado", value, inputs)


def conversations(count: int = 5) -> list[Conversation]:
    return [Conversation(str(n), row["messages"]) for n, row in enumerate(chats(count))]


def test_the_loss_is_the_divergence_that_transformers_computes_one_by_one(llama_directory: Path) -> None:
    """Whatever the packing and its order: teacher and student read rows of different lengths."""
    template = ChatTemplate(load_tokenizer(llama_directory), name="t")
    found = lessons(conversations(), template, PROMPT, length=128, context=256)
    model = load_causal(llama_directory, dtype=torch.float32)
    batch = LessonBatch(pack(found.student), tuple(found.teacher[id] for id in pack(found.student).ids))
    with torch.no_grad():
        loss = DistillationLoss(model, model, micro_batch_tokens=150)(batch)
    plain = AutoModelForCausalLM.from_pretrained(llama_directory).double().eval()
    expected = 0.0
    for row in chats(5):
        log_probs = []
        for messages in (prompted(row["messages"], PROMPT), row["messages"]):
            chat = template.encode(messages)
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([chat.tokens])).logits[0]
            places = [i - 1 for i, learned in enumerate(chat.learned) if learned]
            log_probs.append(logits[places].log_softmax(-1))
        teacher, student = log_probs
        expected += float((teacher.exp() * (teacher - student)).sum())
    assert expected > 1e-3, "the prompt must make a difference for the test to say anything"
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_learns_to_answer_as_if_prompted(folder: Folder, method: str) -> None:
    report = distilled(folder, method=method, lr=2e-3 if method == "full" else 1e-2)
    before, after = report.facts["before"]["charlas"], report.facts["after"]["charlas"]
    assert 0 < after < 0.7 * before  # on conversations that it was not trained on
    saved = load_causal(model_of(folder.root / "destilado"), dtype=torch.float32)
    teacher = load_causal(model_of(folder.root / "base"), dtype=torch.float32)
    template = ChatTemplate(load_tokenizer(model_of(folder.root / "base")), name="t")
    found = lessons(conversations(12), template, PROMPT, length=128, context=256)
    batch = LessonBatch(pack(found.student), tuple(found.teacher[id] for id in pack(found.student).ids))
    with torch.no_grad():
        untrained, trained = (DistillationLoss(m, teacher, micro_batch_tokens=400)(batch) for m in (teacher, saved))
    assert float(trained) < 0.7 * float(untrained)


def test_what_cannot_be_compared_is_counted(llama_directory: Path) -> None:
    template = ChatTemplate(load_tokenizer(llama_directory), name="t")
    long = Conversation("l", [{"role": "user", "content": "¿?"}, {"role": "assistant", "content": "sí " * 200}])
    special = Conversation("s", [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "no"}])
    found = lessons([long, special, *conversations(2)], template, PROMPT * 2, length=150, context=150)
    assert found.counts["conversations with no whole answer within the length"] == 1
    assert found.counts["a turn holds the text of a special token"] == 1
    assert found.counts["conversations that do not fit behind the prompt"] + len(found.student) == 2


def test_a_prompt_that_leaves_no_room_is_an_error(folder: Folder) -> None:
    with pytest.raises(DataError, match="do not fit behind the prompt"):
        distilled(folder, prompt="palabra " * 300)
