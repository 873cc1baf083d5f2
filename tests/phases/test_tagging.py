"""Extraction as stages: what is trained on and saved; plain transformers and peft read it with equal logits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import CONTEXT, save_directory, tiny_falcon, tiny_gpt2, tiny_llama, tiny_roberta, tiny_tokenizer
from transformers import AutoModelForTokenClassification

from quilate.config import validate
from quilate.engine.interrupts import StopRequest
from quilate.errors import Interrupted
from quilate.evaluation.spans import count_spans
from quilate.files import read_json
from quilate.inference.scorer import load_scorer
from quilate.inference.spans import GazetteerTagger, ModelTagger
from quilate.inference.tagging import WindowPlan, tag_documents
from quilate.models.load import load_token_classifier, load_tokenizer, new_token_classifier, reads_both_sides
from quilate.phases.baselines import train_gazetteer
from quilate.phases.evaluate import EVALUATE, EvaluateConfig, read_counts, read_spans
from quilate.phases.examples import tag_examples
from quilate.phases.finetune import FINETUNE, FinetuneConfig
from quilate.phases.stage import StageContext, StageReport, write_model_note
from quilate.tasks.extraction import ExtractionConfig, ExtractionTask, Span
from quilate.tasks.prepare import prepare

NAMES = ["Íñigo Peña", "Lucía Núñez", "Úrsula Gil", "José Ibáñez"]
PLACES = ["Alcor", "Cádiz", "León", "A Coruña"]
TAGS = ["O", "B-LUG", "I-LUG", "B-PER", "I-PER"]


def document(n: int, *, repeat: int = 1) -> dict[str, Any]:
    text, spans = "", []
    for turn in range(repeat):
        for piece, label in (
            (f"Parte {n}.{turn}: ", None), (NAMES[(n + turn) % 4], "PER"), (" fue a ", None),
            (PLACES[(n // 4 + turn) % 4], "LUG"), (".\n", None),
        ):  # fmt: skip
            if label:
                spans.append({"start": len(text), "end": len(text) + len(piece), "label": label})
            text += piece
    return {"texto": text, "e": spans}


def small_task(*, repeat: int = 1) -> ExtractionTask:
    value = {"kind": "extraction", "name": "t", "text": "texto", "spans": "e",
             "split": {"train": 12, "dev": 2, "test": 6}}  # fmt: skip
    rows = [document(n, repeat=repeat) for n in range(20)]
    task = prepare(validate(ExtractionConfig, value, source="t"), {"all": rows}, {"all": {}})
    assert isinstance(task, ExtractionTask)
    return task


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "falcon": tiny_falcon, "roberta": tiny_roberta}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: save_directory(make(), root / name) for name, make in MODELS.items()}


class Folder:
    """The folders that a recipe would have made."""

    def __init__(self, root: Path, base: Path, task: ExtractionTask) -> None:
        self.root = root
        task.save(root / "task" / "task")
        (root / "base").mkdir()
        write_model_note(root / "base", base)

    def context(self, name: str, config: Any, inputs: dict[str, str], stop: StopRequest | None) -> StageContext[Any]:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        return StageContext(
            config=config,
            inputs={role: self.root / place for role, place in inputs.items()},
            folder=folder,
            seed=3,
            base_folder=self.root,
            listener=lambda _: None,
            note=lambda _: None,
            stop=stop or StopRequest(),
        )

    def train(self, name: str, *, stop: StopRequest | None = None, **config: Any) -> StageReport:
        value = {"kind": "finetune", "batch_size": 4, "epochs": 1, "precision": "fp32", "lr": 1e-2} | config
        checked = validate(FinetuneConfig, value, source="t")
        return FINETUNE.run(self.context(name, checked, {"task": "task", "model": "base"}, stop))

    def evaluate(self, arm: str) -> StageReport:
        return EVALUATE.run(self.context(f"{arm}-evaluate", EvaluateConfig(), {"task": "task", "arm": arm}, None))


@pytest.mark.parametrize("architecture", MODELS)
def test_tags_are_those_that_plain_transformers_gives(bases: dict[str, Path], architecture: str) -> None:
    """Packed, windowed and batched here; one whole document at a time there."""
    torch.manual_seed(1)
    model = new_token_classifier(bases[architecture], TAGS, dtype=torch.float32)
    tokenizer = load_tokenizer(bases[architecture])
    texts = [row["texto"] for row in (document(0), document(1, repeat=2), document(2))]
    found = tag_documents(model, tokenizer, [*texts, ""], max_tokens=CONTEXT)
    model.set_attn_implementation("eager")
    for text, tagged in zip(texts, found, strict=False):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[0, *ids]]), attention_mask=torch.ones(1, len(ids) + 1)).logits[0]
        opening = logits.shape[0] - len(tagged.tags)
        assert opening == 1 or architecture != "llama" or len(ids) == len(tagged.tags)
        with torch.no_grad():
            plain = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0]
        assert tagged.tags.tolist() == plain.argmax(-1).tolist()
    assert len(found[3].tags) == 0


def test_masked_models_see_both_sides_and_causal_ones_one(bases: dict[str, Path]) -> None:
    seen = {}
    for name, base in bases.items():
        model = new_token_classifier(base, TAGS, dtype=torch.float32)
        seen[name] = reads_both_sides(model)
        tokens = torch.tensor([[9, 8, 7, 6]])
        other = torch.tensor([[9, 8, 7, 5]])
        with torch.no_grad():
            same = torch.equal(model(input_ids=tokens).logits[:, :3], model(input_ids=other).logits[:, :3])
        assert same != seen[name]
    assert seen == {"llama": False, "gpt2": False, "falcon": False, "roberta": True}


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("llama", "full"), ("gpt2", "full"), ("roberta", "full"), ("llama", "lora"), ("roberta", "lora"),
     ("falcon", "last_layers"), ("roberta", "head"), ("llama", "adapter")],
)  # fmt: skip
def test_a_stage_learns_and_plain_libraries_load_what_it_saved(
    tmp_path: Path, bases: dict[str, Path], architecture: str, method: str
) -> None:
    folder = Folder(tmp_path, bases[architecture], small_task())
    report = folder.train("arm", method=method, epochs=40, lr=3e-2 if method in ("head", "adapter") else 1e-2)
    evaluated = folder.evaluate("arm")
    learned = small_task().train
    found = load_scorer(tmp_path / "arm" / "scorer").find([item.text for item in learned]).spans
    counts = sum(count_spans(i.spans, s, ["LUG", "PER"]) for i, s in zip(learned, found, strict=True)).sum(axis=0)
    if method == "head":  # on a body of random weights: it sees where names are, not where they end
        assert counts[0] + counts[1] > 0.6 * counts[3]
    else:
        assert 2 * counts[0] / (counts[2] + counts[3]) > 0.9
    assert report.facts["train_rows"] == 12
    assert report.counts["spans that end inside a token"] == 0
    assert evaluated.counts == {"test documents in several windows": 0, "dev documents in several windows": 0}

    directory = tmp_path / "arm" / "model"
    names = dict(enumerate(TAGS))
    if method in ("lora", "adapter"):
        import peft

        import quilate.models.tuning.bottleneck_peft  # noqa: F401

        assert read_json(directory / "config.json")["id2label"] == {str(k): v for k, v in names.items()}
        base = AutoModelForTokenClassification.from_pretrained(bases[architecture], num_labels=len(TAGS))
        plain = peft.PeftModel.from_pretrained(base, directory).eval()
    else:
        plain = AutoModelForTokenClassification.from_pretrained(directory).eval()
        assert plain.config.id2label == names
    ours = load_token_classifier(directory, dtype=torch.float32)
    tokens = torch.tensor([tiny_tokenizer()(document(3)["texto"]).input_ids])
    with torch.no_grad():
        assert torch.equal(plain(input_ids=tokens).logits, ours(input_ids=tokens).logits)


def test_only_the_head_of_a_frozen_body_learns(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = Folder(tmp_path, bases["llama"], small_task())
    report = folder.train("arm", method="head")
    trained = load_token_classifier(tmp_path / "arm" / "model", dtype=torch.float32)
    base = new_token_classifier(bases["llama"], TAGS, dtype=torch.float32)
    assert report.trainable_parameters == 32 * len(TAGS) + len(TAGS)
    for (name, one), other in zip(trained.base_model.named_parameters(), base.base_model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_long_documents_go_through_windows_and_every_token_is_supervised_once(bases: dict[str, Path]) -> None:
    task = small_task(repeat=5)
    tokenizer = tiny_tokenizer()
    for name in ("llama", "roberta"):
        plan = WindowPlan.of(new_token_classifier(bases[name], TAGS, dtype=torch.float32), tokenizer, 24)
        made = tag_examples(task, tokenizer, plan)
        assert made.counts["documents in several windows"] == made.rows == 12
        for item in task.train:
            own = [e for e in made.examples if e.id.startswith(f"{item.id}/")]
            assert len(own) > 1
            assert max(len(e.tokens) for e in own) <= 24
            tokens = tokenizer(item.text, return_offsets_mapping=True)
            words = sum(bool(item.text[s:e].strip()) for s, e in tokens.offset_mapping)
            assert sum(int(e.supervised.sum()) for e in own) == words
            assert sum(int((e.answers[e.supervised] % 2 == 1).sum()) for e in own if e.answers is not None) == 10


def test_windows_change_nothing_where_the_whole_document_fits(bases: dict[str, Path]) -> None:
    """A causal model's first window is all that a short context sees: its tags equal those of the whole."""
    model = new_token_classifier(bases["llama"], TAGS, dtype=torch.float32)
    text = document(1, repeat=4)["texto"]
    whole, cut = (tag_documents(model, tiny_tokenizer(), [text], max_tokens=n)[0] for n in (CONTEXT, 40))
    assert (whole.windows, cut.windows > 1) == (1, True)
    assert whole.tags[:40].tolist() == cut.tags[:40].tolist()
    assert cut.tokens_read > len(cut.tags)


def test_a_stopped_stage_continues_to_the_same_files(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = Folder(tmp_path, bases["roberta"], small_task())
    folder.train("undisturbed", method="full", epochs=2)
    stop = StopRequest()
    stop.signal = "SIGTERM"
    for _ in range(2):
        with pytest.raises(Interrupted):
            folder.train("stopped", method="full", epochs=2, stop=stop)
    folder.train("stopped", method="full", epochs=2)
    for name in ("model/model.safetensors", "model/config.json", "metrics.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_saved_tagger_moves_with_its_run(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = Folder(tmp_path / "here", bases["roberta"], small_task())
    folder.train("arm", method="full", epochs=3)
    text = [document(5)["texto"]]
    before = load_scorer(tmp_path / "here" / "arm" / "scorer").find(text)
    shutil.move(tmp_path / "here", tmp_path / "there")
    tagger = load_scorer(tmp_path / "there" / "arm" / "scorer")
    assert isinstance(tagger, ModelTagger)
    assert tagger.find(text) == before


def test_the_gazetteer_finds_the_longest_phrase_and_drops_what_mostly_is_none(tmp_path: Path) -> None:
    task = small_task()
    tagger, facts = train_gazetteer(task)
    assert facts["ambiguous"] == 0
    text = "INFORME: íñigo  peña vive en A Coruña, no en Leonesa."
    found = tagger.find([text, ""]).spans
    assert found == [(Span(9, 20, "PER"), Span(29, 37, "LUG")), ()]
    tagger.save(tmp_path / "g")
    again = load_scorer(tmp_path / "g")
    assert isinstance(again, GazetteerTagger)
    assert again.find([text]).spans == found[:1]

    rows = [document(n) for n in range(19)]
    often = "Alta. " * 6
    rows.append({"texto": often + "Vino de Alta.", "e": [{"start": 44, "end": 48, "label": "LUG"}]})
    value = {"kind": "extraction", "name": "t", "text": "texto", "spans": "e", "split": {"dev": 1, "test": 1}}
    parts = {"train": rows[2:], "dev": rows[:1], "test": rows[1:2]}
    task = prepare(validate(ExtractionConfig, value, source="t"), parts, {})
    assert isinstance(task, ExtractionTask)
    tagger, facts = train_gazetteer(task)
    assert facts["ambiguous"] == 1
    assert tagger.find(["Vino de Alta."]).spans == [()]


def test_what_was_found_is_kept_by_offsets_alone(tmp_path: Path, bases: dict[str, Path]) -> None:
    task = small_task()
    folder = Folder(tmp_path, bases["llama"], task)
    train_gazetteer(task)[0].save(tmp_path / "arm" / "scorer")
    folder.evaluate("arm")
    found = read_spans(tmp_path / "arm-evaluate")
    assert [set(spans) for spans in found] == [set(item.spans) for item in task.test]
    assert "Peña" not in (tmp_path / "arm-evaluate" / "found.jsonl").read_text(encoding="utf-8")
    counts = read_counts(tmp_path / "arm-evaluate")
    assert counts.shape == (6, 2, 4)
    assert np.array_equal(counts[..., 0], counts[..., 3])
