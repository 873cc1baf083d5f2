"""Adaptation's corpora and vocabulary: the task's neighbours, words that domains share, new tokens in a saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from support import SENTENCES

from quilate.config import validate
from quilate.data.similarity import frequent_words, nearest_documents, stop_words, vocabulary_overlap
from quilate.data.tables import SourceConfig
from quilate.engine.interrupts import StopRequest
from quilate.errors import ConfigError, DataError
from quilate.files import read_json
from quilate.phases.adapt import ADAPT, AdaptConfig
from quilate.phases.corpus import CORPUS, CorpusConfig, CorpusStageConfig, NeighboursConfig, corpus_documents
from quilate.phases.inputs import TASK, LabelledSources, TaskStageConfig
from quilate.phases.stage import StageContext, StageReport, write_model_note
from quilate.recipe.schema import Recipe
from quilate.tasks.classification import ClassificationConfig
from quilate.tasks.kinds import load_task
from quilate.tasks.splits import SplitConfig

CLINIC = [f"Informe {i}: {a} {b}" for i, (a, b) in enumerate(zip(SENTENCES * 8, SENTENCES[5:] * 16, strict=False))]
TOWN = [f"El ayuntamiento abrió la fuente número {i} de la plaza mayor." for i in range(60)]


def context(settings: Any, folder: Path, **inputs: Path) -> StageContext[Any]:
    folder.mkdir(exist_ok=True)
    roles = {role.replace("corpus_", "corpus:"): path for role, path in inputs.items()}
    return StageContext(settings, roles, folder, 0, folder.parent, lambda _: None, lambda _: None, StopRequest())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of clinical notes, and a text that is half clinical, half of the town hall."""
    folder = tmp_path_factory.mktemp("adaptation")
    rows = [json.dumps({"texto": f"Consulta {i}. {s}", "tema": "ab"[i % 2]}) for i, s in enumerate(SENTENCES * 3)]
    (folder / "filas.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "texto.txt").write_text("\n".join(CLINIC + TOWN), encoding="utf-8")
    task = ClassificationConfig(name="t", text="texto", label="tema", split=SplitConfig(train=12, dev=4, test=8))
    sources = LabelledSources(all=SourceConfig(path="filas.jsonl"))
    TASK.run(context(TaskStageConfig(task=task, sources=sources), folder / "task"))
    return folder


def corpus(place: Path, name: str, **keys: Any) -> tuple[StageReport, list[str], list[str]]:
    config = CorpusConfig(path="texto.txt", documents="line", language=None, held_out=0.2, **keys)
    report = CORPUS.run(context(CorpusStageConfig(corpus=config, allow_leak=True), place / name, task=place / "task"))
    return report, corpus_documents(place / name, "train"), corpus_documents(place / name, "held_out")


def test_neighbours_are_the_documents_nearest_to_the_task(place: Path) -> None:
    _, everything, held_out = corpus(place, "all")
    report, near, held_out_too = corpus(place, "near", neighbours=NeighboursConfig(k=3))
    assert held_out_too == held_out
    assert near == [d for d in everything if d in set(near)]
    assert report.counts["documents not near the task"] == len(everything) - len(near)
    queries = [item.content for item in load_task(place / "task" / "task").train]
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    rows = vectorizer.fit_transform(everything).toarray()
    expected: set[str] = set()
    for query in vectorizer.transform(queries).toarray():
        by_cosine = sorted(range(len(rows)), key=lambda i: (-round(float(rows[i] @ query), 5), i))
        expected |= {everything[i] for i in by_cosine[:3]}
    assert len(expected ^ set(near)) <= 2  # float32 breaks ties otherwise
    assert not set(near) & set(TOWN)


def test_the_control_of_neighbours_is_as_many_documents_of_any_kind(place: Path) -> None:
    _, near, _ = corpus(place, "near2", neighbours=NeighboursConfig(k=3))
    _, drawn, _ = corpus(place, "drawn", neighbours=NeighboursConfig(k=3, chosen="random"))
    assert len(drawn) == len(near)
    assert set(drawn) & set(TOWN)
    assert corpus(place, "again", neighbours=NeighboursConfig(k=3, chosen="random"))[1] == drawn


def test_a_text_with_no_word_of_the_task_has_no_neighbours(tmp_path: Path, place: Path) -> None:
    assert nearest_documents(["uno dos"], ["tres cuatro", "cinco dos"], 2) == [1]
    (tmp_path / "otro.txt").write_text("\n".join(f"zzz{i} www{i}" for i in range(40)), encoding="utf-8")
    config = CorpusConfig(path="otro.txt", documents="line", language=None, held_out=0.3, neighbours=NeighboursConfig())
    with pytest.raises(DataError, match="shares a word with the task"):
        CORPUS.run(context(CorpusStageConfig(corpus=config), tmp_path / "c", task=place / "task"))
    with pytest.raises(ConfigError, match="to have `neighbours` of the task: give `data` and `task`"):
        stages = {"new": {"kind": "pretrain", "corpora": {"c": 1.0}}}
        value = {"recipe": "r", "corpora": {"c": {"path": "c.txt", "neighbours": {}}}, "stages": stages}
        validate(Recipe, value, source="r")


def test_overlap_counts_the_frequent_words_that_two_texts_share() -> None:
    words = frequent_words(["El Dolor, el dolor y la fiebre; fiebre: ¡tos! 3 ml", "Ñandú DOLOR"], "es")
    assert words == ["dolor", "fiebre", "ml", "tos", "ñandú"]
    assert frequent_words(["the pain of the knee"], "en") == ["knee", "pain"]
    assert frequent_words(["el dolor"], None) == ["dolor", "el"]
    assert vocabulary_overlap(list("abcd"), list("abxyzzz")) == 0.5  # of four, as the shorter has four
    assert vocabulary_overlap([], ["a"]) == 0.0
    assert {"el", "de", "según"} <= stop_words("es")
    assert stop_words("zz") == frozenset()


def adapt(place: Path, name: str, base: Path, **keys: Any) -> StageReport:
    if not (place / "all" / "train.jsonl").exists():
        corpus(place, "all")
    (place / name).mkdir(exist_ok=True)
    write_model_note(place, base)
    config = AdaptConfig(
        kind="adapt", corpora={"texto": 1.0}, tokens=1500, batch_tokens=500, length=64, precision="fp32", **keys
    )
    return ADAPT.run(context(config, place / name, model=place, corpus_texto=place / "all"))


def test_an_extended_model_is_saved_whole_and_needs_fewer_tokens(place: Path, llama_directory: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quilate.evaluation.bits_per_byte import text_loss

    facts = adapt(place, "wider", llama_directory, extend_vocabulary=40).facts
    assert facts["new_tokens"] == 40
    before, after = (facts[name]["texto"] for name in ("tokenizer_before", "tokenizer"))
    assert after["bytes"] == before["bytes"]
    assert after["tokens"] < 0.9 * before["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(place / "wider" / "model")
    model = AutoModelForCausalLM.from_pretrained(place / "wider" / "model")
    assert len(tokenizer) == model.config.vocab_size == len(model.get_input_embeddings().weight) == 424
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    documents = corpus_documents(place / "all", "held_out")
    text = "\n".join(documents)
    assert tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == text
    loss = text_loss(model.eval(), tokenizer, documents, window=64)
    assert loss.bits_per_byte == pytest.approx(facts["after"]["texto"], abs=2e-4)
    assert set(facts["extended"]) == set(facts["before"]) == {"texto"}
    pieces = read_json(place / "wider" / "extension.json")["pieces"]
    old = AutoModelForCausalLM.from_pretrained(llama_directory).get_input_embeddings().weight
    start = torch.stack([old[ids].mean(dim=0) for ids in pieces])
    moved = (model.get_input_embeddings().weight[384:] - start).abs()
    assert 0 < moved.max() < 0.1  # trained, from the mean of their pieces: three steps at 5e-5 move little


def test_an_adapter_cannot_train_new_tokens() -> None:
    with pytest.raises(ValueError, match="`extend_vocabulary` needs `weights: full`"):
        AdaptConfig(kind="adapt", corpora={"t": 1.0}, weights="lora", extend_vocabulary=10)
