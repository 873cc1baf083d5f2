"""The curate stage in a recipe: what it hands to corpora, what it is kept clean of, and `quilate curate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import SENTENCES

from quilate.cli.main import run_command_line
from quilate.config import Config, validate
from quilate.curation.config import CurateConfig
from quilate.curation.personal import TaggerConfig
from quilate.engine.interrupts import StopRequest
from quilate.errors import ConfigError, DataError
from quilate.inference.scorer import MajorityScorer
from quilate.inference.spans import GazetteerTagger
from quilate.phases.corpus import CORPUS, CorpusConfig, CorpusStageConfig, corpus_documents
from quilate.phases.curate import CURATE, recognizer_of
from quilate.phases.inputs import TASK, TaskStageConfig
from quilate.phases.stage import StageContext
from quilate.recipe.graph import build_graph
from quilate.recipe.schema import Recipe

STEPS_OFF = dict.fromkeys(["language", "repetition", "lines"]) | {"quality": {"min_words": 5, "min_stop_words": 0}}


def context(config: Config, folder: Path, base: Path, **inputs: Path) -> StageContext[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(config, inputs, folder, 0, base, lambda _: None, lambda _: None, StopRequest())


def recipe(**curated: Any) -> Recipe:
    value = {
        "recipe": "limpia",
        "curated": {"notas": {"sources": {"a": {"path": "notas.txt", "documents": "line"}}} | curated},
        "corpora": {"clinica": {"curated": "notas"}},
    }
    return validate(Recipe, value, source="test")


def test_a_corpus_is_made_of_what_curation_left(tmp_path: Path) -> None:
    (tmp_path / "notas.txt").write_text("\n".join([*SENTENCES, *SENTENCES, "Tos."]), encoding="utf-8")
    (tmp_path / "examen.jsonl").write_text(json.dumps({"pregunta": SENTENCES[4]}), encoding="utf-8")
    sources = {"a": {"path": "notas.txt", "documents": "line"}}
    against = {"against": [{"path": "examen.jsonl", "text": "pregunta"}]}
    config = CurateConfig.model_validate({"sources": sources, "decontaminate": against} | STEPS_OFF)
    report = CURATE.run(context(config, tmp_path / "curated", tmp_path))
    assert report.counts == {
        "quality: too few words": 1,
        "near_duplicates: near-duplicate": 12,
        "decontaminate: item": 1,
    }
    corpus = CorpusStageConfig(corpus=CorpusConfig(curated="notas", held_out=0.4))
    made = CORPUS.run(context(corpus, tmp_path / "corpus", tmp_path, curated=tmp_path / "curated"))
    kept = corpus_documents(tmp_path / "corpus", "train") + corpus_documents(tmp_path / "corpus", "held_out")
    assert sorted(kept) == sorted(set(SENTENCES) - {SENTENCES[4]})
    assert made.facts["source"]["sha256"] == report.facts["output"]["sha256"]


def test_the_graph_follows_content_and_thresholds(tmp_path: Path) -> None:
    (tmp_path / "notas.txt").write_text("La niña tose.", encoding="utf-8")
    first = build_graph(recipe(), tmp_path).nodes
    assert first["corpus-clinica"].inputs == {"curated": "curated-notas"}
    other = build_graph(recipe(language={"threshold": 0.5}), tmp_path).nodes
    (tmp_path / "notas.txt").write_text("La niña no tose.", encoding="utf-8")
    changed = build_graph(recipe(), tmp_path).nodes
    assert len({nodes["corpus-clinica"].id for nodes in (first, other, changed)}) == 3


def test_the_passage_of_a_question_is_kept_out_too(tmp_path: Path) -> None:
    passages = [" ".join(f"palabra{n}x{i}" for i in range(40)) for n in range(8)]
    rows = [{"q": f"¿Qué tiene el paciente {n}?", "c": text, "a": text[:9]} for n, text in enumerate(passages)]
    (tmp_path / "preguntas.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "notas.txt").write_text("\n".join([*passages, "Otra cosa muy distinta sin más."]), encoding="utf-8")
    task = {"kind": "question_answering", "name": "p", "text": "q", "context": "c", "answer": "a"}
    task |= {"split": {"train": 2, "dev": 3, "test": 3}}
    config = validate(TaskStageConfig, {"task": task, "sources": {"all": {"path": "preguntas.jsonl"}}}, source="t")
    TASK.run(context(config, tmp_path / "t", tmp_path))
    off = dict.fromkeys(["language", "repetition", "quality", "lines", "near_duplicates", "substrings"])
    curated = recipe(**off).curated["notas"]
    report = CURATE.run(context(curated, tmp_path / "curated", tmp_path, task=tmp_path / "t"))
    assert sum(n for what, n in report.counts.items() if what.startswith("decontaminate")) == 6


def gazetteer(folder: Path, label: str) -> str:
    """A finished arm's folder whose tagger knows one town."""
    GazetteerTagger([label], {("pamplona",): label}).save(folder / "arm" / "scorer")
    return "arm"


def test_a_trained_tagger_finds_what_rules_do_not(tmp_path: Path) -> None:
    texts = [f"Nota {n}, de Pamplona: {sentence} Tel. 948 29 65 00." for n, sentence in enumerate(SENTENCES)]
    (tmp_path / "notas.txt").write_text("\n".join(texts), encoding="utf-8")
    tagger = {"path": gazetteer(tmp_path, "TERRITORIO"), "labels": {"TERRITORIO": "place"}}
    off = dict.fromkeys(["language", "repetition", "quality", "lines", "near_duplicates", "substrings"])
    curated = recipe(**off, personal_data={"tagger": tagger}).curated["notas"]
    report = CURATE.run(context(curated, tmp_path / "curated", tmp_path))
    assert report.facts["personal_data"] == {"place": len(texts), "phone": len(texts)}
    corpus = CorpusStageConfig(corpus=CorpusConfig(curated="notas", held_out=0.4))
    CORPUS.run(context(corpus, tmp_path / "corpus", tmp_path, curated=tmp_path / "curated"))
    kept = corpus_documents(tmp_path / "corpus", "train")
    assert kept and all("de [PLACE]: " in text and text.endswith("Tel. [PHONE].") for text in kept)


def test_a_tagger_is_part_of_what_a_curated_corpus_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "notas.txt").write_text("La niña tose.", encoding="utf-8")
    found = recipe(personal_data={"tagger": {"path": gazetteer(tmp_path, "A")}})
    first = build_graph(found, tmp_path).nodes["curated-notas"].id
    gazetteer(tmp_path, "B")
    assert build_graph(found, tmp_path).nodes["curated-notas"].id != first
    with pytest.raises(DataError, match="is not the folder of a finished arm"):
        build_graph(recipe(personal_data={"tagger": {"path": "nada"}}), tmp_path)
    with pytest.raises(ConfigError, match="arm has no label 'C'"):
        recognizer_of(TaggerConfig(path="arm", labels={"C": "name"}), tmp_path)
    MajorityScorer(["a", "b"], [0.5, 0.5]).save(tmp_path / "arm" / "scorer")
    with pytest.raises(DataError, match="holds no model that finds spans"):
        recognizer_of(TaggerConfig(path="arm"), tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"corpora": {"c": {"curated": "otra"}}}, "not in `curated`; known: notas"),
        ({"corpora": {"c": {"curated": "notas", "path": "x.txt"}}}, "give one of the two"),
        ({"corpora": {"c": {}}}, "give one of the two"),
        ({"curated": {"notas": {"sources": {}}}}, "at least 1"),
        (
            {"curated": {"n": {"sources": {"a": {"path": "x"}}, "language": {"accept": ["pl"]}}}},
            "no stop words are known",
        ),
        ({"curated": {"n": {"sources": {"a": {"path": "x"}}, "minhash": {}}}}, "unknown key 'minhash'"),
    ],
)
def test_what_a_recipe_may_not_say(value: dict[str, Any], message: str) -> None:
    whole = {"recipe": "x", "curated": {"notas": {"sources": {"a": {"path": "notas.txt"}}}}} | value
    with pytest.raises(ConfigError, match=message):
        validate(Recipe, whole, source="test")


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    long = " ".join(SENTENCES)
    (tmp_path / "notas.txt").write_text(f"{long} Tel. 948 29 65 00.", encoding="utf-8")
    (tmp_path / "cortas.txt").write_text("Tos secreta.", encoding="utf-8")
    code = run_command_line(
        ["curate", "notas.txt", "cortas.txt", "--with-text", "--lang", "es", "--json", "--out", "r"]
    )
    printed = capsys.readouterr().out
    assert code == 0, printed
    card = json.loads(printed)
    assert (card["documents_in"], card["output"]["documents"], card["personal_data"]) == (2, 1, {"phone": 1})
    page = (tmp_path / "r" / "curated-text-card.html").read_text(encoding="utf-8")
    assert "Ficha de datos" in page and "Tos secreta." in page and "948" not in page
    assert run_command_line(["curate"]) == 2
