"""Fine-tuning as a stage: what is trained on, what is saved, and on what it may stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import SENTENCES, tiny_tokenizer
from transformers import AutoModelForCausalLM

from quilate.config import validate
from quilate.engine.interrupts import StopRequest
from quilate.errors import DataError, Interrupted
from quilate.inference.scorer import load_scorer
from quilate.phases.examples import label_examples
from quilate.phases.finetune import FINETUNE, FinetuneConfig
from quilate.phases.stage import StageContext, StageReport, write_model_note
from quilate.tasks.classification import ClassificationConfig, ClassificationTask
from quilate.tasks.kinds import load_task
from quilate.tasks.prepare import prepare

LABELS = {"r": "respiratorio", "d": "digestivo", "p": "piel"}


def small_task(**keys: Any) -> ClassificationTask:
    rows = [
        {"texto": f"{sentence} Caso número {n}.", "etiqueta": "rdp"[n % 3]} for n, sentence in enumerate(SENTENCES * 4)
    ]
    split = {"train": 20, "dev": 6, "test": 12}
    value = {"name": "t", "text": "texto", "label": "etiqueta", "labels": LABELS, "split": split} | keys
    return prepare(validate(ClassificationConfig, value, source="t"), {"all": rows}, {"all": {}})


class Folder:
    """The folders that a recipe would have made."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        small_task().save(root / "task" / "task")
        self.note("base", base)

    def note(self, name: str, model: Path) -> None:
        (self.root / name).mkdir()
        write_model_note(self.root / name, model)

    def run(self, name: str, *, on: str = "base", stop: StopRequest | None = None, **config: Any) -> StageReport:
        value = {"kind": "finetune", "batch_size": 5, "epochs": 1, "precision": "fp32", "lr": 1e-2} | config
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        context = StageContext(
            config=validate(FinetuneConfig, value, source="t"),
            inputs={"task": self.root / "task", "model": self.root / on},
            folder=folder,
            seed=3,
            base_folder=self.root,
            listener=lambda _: None,
            note=lambda _: None,
            stop=stop or StopRequest(),
        )
        return FINETUNE.run(context)


@pytest.fixture
def folder(tmp_path: Path, llama_directory: Path) -> Folder:
    return Folder(tmp_path, llama_directory)


def test_an_example_is_prompt_label_and_end_and_only_the_latter_are_supervised() -> None:
    task, tokenizer = small_task(), tiny_tokenizer()
    made = label_examples(task, tokenizer, max_item_tokens=200, context=256)
    examples = made.examples
    assert made.counts == {"prompts cut": 0}
    assert [e.id for e in examples] == [item.id for item in task.train]
    for item, example in zip(task.train, examples, strict=True):
        prompt = f"Texto: {item.text}\nEtiqueta:"
        whole = [*tokenizer(f"{prompt} {LABELS[item.label]}").input_ids, tokenizer.eos_token_id]
        assert example.tokens.tolist() == whole
        assert example.supervised.sum() == len(whole) - len(tokenizer(prompt).input_ids)
        assert example.supervised[-1]
        assert (np.diff(example.supervised.astype(int)) != 0).sum() == 1


def test_long_prompts_are_cut_counted_and_still_fit_the_context() -> None:
    task, tokenizer = small_task(), tiny_tokenizer()
    longest_answer = max(len(tokenizer(f" {word}").input_ids) for word in LABELS.values()) + 1
    made = label_examples(task, tokenizer, max_item_tokens=512, context=30)
    assert made.counts == {"prompts cut": len(made.examples)}
    assert max(len(e.tokens) for e in made.examples) == 30
    made = label_examples(task, tokenizer, max_item_tokens=20, context=256)
    assert max(len(e.tokens) for e in made.examples) == 20 + longest_answer
    with pytest.raises(DataError, match="fills the model's context of 5"):
        label_examples(task, tokenizer, max_item_tokens=512, context=5)


@pytest.mark.parametrize(("method", "lr"), [("full", 1e-2), ("lora", 1e-2), ("adapter", 3e-2), ("last_layers", 1e-2)])
def test_a_stage_learns_saves_and_can_be_asked(folder: Folder, method: str, lr: float) -> None:
    report = folder.run("arm", method=method, epochs=20, lr=lr)
    task = load_task(folder.root / "task" / "task")
    scores = load_scorer(folder.root / "arm" / "scorer").score([item.text for item in task.train]).scores
    predicted = [task.labels[i] for i in scores.argmax(axis=1)]
    assert np.mean([p == item.label for p, item in zip(predicted, task.train, strict=True)]) > 0.9
    assert report.train_tokens > 0
    assert report.counts == {"prompts cut": 0, "refused updates": 0, "visits over the token budget": 0}
    assert report.facts["steps"] == 80
    assert report.facts["train_rows"] == 20


def test_an_arm_may_stand_on_an_adapter(folder: Folder) -> None:
    """The adapter is merged first: then all weights train, or a new adapter on a directory that plain peft can load."""
    import peft

    folder.run("first", method="lora")
    full = folder.run("full", on="first", method="full")
    base = AutoModelForCausalLM.from_pretrained(folder.root / "full" / "model")
    assert full.trainable_parameters == sum(p.numel() for p in base.parameters())
    folder.run("second", on="first", method="lora")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder.root / "second" / "model")
    merged = peft.AutoPeftModelForCausalLM.from_pretrained(folder.root / "first" / "model").merge_and_unload()
    for name, tensor in merged.state_dict().items():
        module, _, kind = name.rpartition(".")
        inner = model.get_base_model().state_dict()
        mine = inner.get(name, inner.get(f"{module}.base_layer.{kind}"))
        torch.testing.assert_close(mine, tensor, msg=name)


def test_a_stopped_stage_continues_to_the_same_files(folder: Folder) -> None:
    folder.run("undisturbed", method="lora", epochs=2, lora={"dropout": 0.2})
    stop = StopRequest()
    stop.signal = "SIGTERM"
    for _ in range(2):
        with pytest.raises(Interrupted):
            folder.run("stopped", method="lora", epochs=2, lora={"dropout": 0.2}, stop=stop)
    folder.run("stopped", method="lora", epochs=2, lora={"dropout": 0.2})
    for name in ("model/adapter_model.safetensors", "metrics.jsonl"):
        assert (folder.root / "stopped" / name).read_bytes() == (folder.root / "undisturbed" / name).read_bytes()


def test_a_budget_of_no_step_is_a_data_error(folder: Folder) -> None:
    with pytest.raises(DataError, match="not one training step fits"):
        folder.run("arm", method="full", max_train_tokens=3)


def test_a_budget_is_kept_and_what_it_leaves_out_is_counted(folder: Folder) -> None:
    whole = folder.run("whole", method="full")
    report = folder.run("half", method="full", max_train_tokens=whole.train_tokens // 2)
    assert 0 < report.train_tokens <= whole.train_tokens // 2
    assert report.counts["visits over the token budget"] == 20 - 5 * report.facts["steps"]
